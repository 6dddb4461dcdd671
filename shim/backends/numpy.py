"""NumPy: products through BLAS, everything else through ufuncs that write into buffers laid out on the first call.

The mathematics is in :mod:`shim.backends._handwritten`. A program owns its workspace, so it serves one thread at a
time; a batch of another size lays it out anew. Results are fresh arrays, but the gradient of a table is not: it is one
dense (V, D) buffer of the program, of which the next call clears only the rows that this one had written. Copy it to
keep it, and do not write to it.
"""

from __future__ import annotations

import functools
import sys

import numpy as np

from shim import models
from shim.backends import _handwritten
from shim.backends._handwritten import Workspace
from shim.backends._state import pack, refill
from shim.backends._tape import Tape, Variable
from shim.backends._updates import tables_by_rows, update
from shim.models import optimizers
from shim.protocol import bare_ops, check_choice, op, program

DEVICES = ("cpu",)
MODES = ("eager",)
PRECISIONS = ("float32",)

_generator = np.random.default_rng()


def setup(device="cpu", precision="float32", threads=None):
    """Set the number of threads of the BLAS; NumPy itself has one."""
    check_choice("device", device, DEVICES)
    check_choice("precision", precision, PRECISIONS)
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads, user_api="blas")


def to_device(value):
    return np.array(value, order="C")


def to_numpy(array):
    return array


def synchronize(outputs):
    """Return at once: NumPy computes while it is called."""


# ------------------------------------------------------------------------------------------------------- the ops


def _call(name, *args, **options):
    """Run an op on arrays, or record it on the tape of its variables."""
    function = _handwritten.OPS[name]
    for a in args:
        if isinstance(a, Variable):
            return a.tape.call(function, args, options)
    return function(Workspace(np, keep=False), *args, **options)[0]


@op
def dense(x, w, b, *, activation=None):
    return _call("dense", x, w, b, activation=activation)


@op
def conv2d(x, w, b, *, stride=1, padding="valid", activation=None):
    return _call("conv2d", x, w, b, stride=stride, padding=padding, activation=activation)


@op
def lstm(x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid"):
    options = {"return_sequences": return_sequences, "reverse": reverse, "recurrent_activation": recurrent_activation}
    return _call("lstm", x, w_x, w_h, b, **options)


@op
def bilstm(
    x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse, *, return_sequences=False, recurrent_activation="sigmoid"
):
    weights = w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse
    options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
    return _call("bilstm", x, *weights, **options)


@op
def embedding_average(ids, table, *, padding_id=None):
    return _call("embedding_average", ids, table, padding_id=padding_id)


@op
def embedding(ids, table):
    return _call("embedding", ids, table)


@op
def max_pool2d(x, *, pool=2):
    return _call("max_pool2d", x, pool=pool)


@op
def relu(x):
    return _call("relu", x)


@op
def dropout(x, *, rate=0.0):
    return _call("dropout", x, rate=rate, generator=_generator)


@op
def batch_norm(x, gamma, beta, mean, variance, *, training=False):
    return _call("batch_norm", x, gamma, beta, mean, variance, training=training)


@op
def concat(x, y):
    return _call("concat", x, y)


@op
def flatten(x):
    return _call("flatten", x)


@op
def softmax_cross_entropy(logits, labels):
    return _call("softmax_cross_entropy", logits, labels)


@op
def sigmoid_cross_entropy(logits, labels):
    return _call("sigmoid_cross_entropy", logits, labels)


# -------------------------------------------------------------------------------------------------- the programs


def _function(op, options):
    function = _handwritten.OPS[op]
    return functools.partial(function, generator=_generator) if options.get("rate") else function


@program
def forward(op, options, mode):
    function, work = _function(op, options), Workspace(np, keep=False)

    def run(*args):
        return function(work, *args, **options)[0]

    return run


@program
def forward_backward(op, options, mode, first=True):
    function, work = _function(op, options), Workspace(np)

    def run(args, dy):
        y, pullback = function(work, *args, **options)
        return y, pullback(dy, first)[0 if first else 1 :]

    return run


# -------------------------------------------------------------------------------------------------- the training


class _Trainer:
    """A tape for the training steps, another one for evaluation, and weights that are updated in place."""

    def __init__(self, model, params, optimizer, seed):
        self._model, self._optimizer, self._count = model, optimizer, 0
        self._params = {name: np.array(value, order="C") for name, value in params.items()}
        self._trained = models.trained(model, self._params)
        self._states = {name: optimizers.init(optimizer, self._params[name]) for name in self._trained}
        self._training, self._evaluation = Tape(np), Tape(np, recording=False)
        self._generator, self._moments = np.random.Generator(np.random.SFC64(seed)), []

        def draw(x, *, rate=0.0):
            return _call("dropout", x, rate=rate, generator=self._generator) if rate else x

        lookups = _row_lookups() if tables_by_rows(model, params, optimizer) else {}
        dropout = draw if model.dropout else _identity
        self._training_ops = _ops({"training": True, "moments": self._moments}, dropout=dropout, **lookups)
        self._evaluation_ops = _ops({"training": False}, dropout=_identity)

    def step(self, x, labels):
        variables = self._training.start({name: self._params[name] for name in self._trained})
        self._moments.clear()
        _, losses = models.losses(self._model, self._training_ops, self._params | variables, x, labels)
        gradients = self._training.gradients(losses, variables.values())
        self._update(gradients)
        for names, moments in zip(self._model.moments, self._moments, strict=True):
            for name, moment in zip(names, moments, strict=True):
                self._params[name] += (1 - models.MOMENTUM) * (moment - self._params[name])
        self._count += 1
        return losses[0][0].value

    def _update(self, gradients):
        for name, g in zip(self._trained, gradients, strict=True):
            update(self._optimizer, np, self._count, self._params[name], g, self._states[name])

    def updater(self, gradients):
        arrays = [np.array(gradients[name], order="C") for name in self._trained]

        def call():
            self._update(arrays)
            self._count += 1

        return call

    def _evaluated(self):
        """Return the weights as variables of the tape of evaluation, which starts anew."""
        return self._params | self._evaluation.start({name: self._params[name] for name in self._trained})

    def evaluate(self, x, labels):
        logits, losses = models.losses(self._model, self._evaluation_ops, self._evaluated(), x, labels)
        predicted = logits.value.argmax(axis=-1) if logits.value.ndim == 2 else logits.value > 0
        return losses[0][0].value, np.asarray((predicted == labels).sum())

    def predict(self, x):
        return models.logits(self._model, self._evaluation_ops, self._evaluated(), x).value

    def params(self):
        return {name: value.copy() for name, value in self._params.items()}

    def state(self):
        slots = {name: [value.copy() for value in values] for name, values in self._states.items()}
        words = self._generator.bit_generator.state["state"]["state"]  # dropout draws whole words: nothing is buffered
        return pack(self.params(), slots, self._count, generator=words.copy())

    def restore(self, state):
        self._count = refill(self._params, self._states, state)
        known = self._generator.bit_generator.state
        self._generator.bit_generator.state = known | {"state": {"state": state["generator"]}}


def _ops(normalising, **replaced):
    """Return the ops of a model, with the options of its ``batch_norm``."""

    def normalise(*args, training=None):
        return _call("batch_norm", *args, **normalising)

    return bare_ops(sys.modules[__name__], batch_norm=normalise, **replaced)


def _row_lookups():
    """Return the ops that look up tables, their gradients as rows."""
    names = ("embedding", "embedding_average")
    return {name: functools.partial(_call, name, table_gradient="rows") for name in names}


def _identity(x, *, rate=0.0):
    return x


def trainer(model, params, optimizer, mode, seed=0):
    check_choice("mode", mode, MODES)
    return _Trainer(model, params, optimizer, seed)


# ------------------------------------------------------------------------------------------------ what was used


def implementation(case, mode=MODES[0]):
    if case.is_model:
        rows = dict(case.options).get("table_gradient") == "rows"
        return "tape of hand-written ops" + (", descent on the rows in use" if rows else "")
    product = f"{_blas()} product"
    return {
        "dense": product,
        "conv2d": f"patches, {product}",
        "lstm": f"loop over steps, {product}",
        "bilstm": f"loop over steps, both directions stacked, {product}",
        "embedding_average": "take and vector product; gradient: counts of unique ids",
        "embedding": "take; gradient: sort and pairwise sums",
        "max_pool2d": "maximum of strided views",
    }.get(case.op, "ufuncs")


@functools.cache
def _blas():
    return np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"].removeprefix("scipy-")


def describe():
    pools = _thread_pools()
    return {
        "device": "cpu",
        "precision": "float32",
        "threads": pools[0]["num_threads"] if pools else None,
        "versions": {"numpy": np.__version__},
        "libraries": {_blas(): " ".join(str(pool.get(k)) for pool in pools[:1] for k in ("version", "architecture"))},
    }


def _thread_pools():
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    return [pool for pool in threadpool_info() if pool["user_api"] == "blas"]


setup()
