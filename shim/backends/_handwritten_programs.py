"""Programs and trainers on hand-written ops, over the array module of a backend: NumPy's or CuPy's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from shim import contract, models
from shim.backends._handwritten import Rows, Workspace
from shim.backends._state import pack, refill
from shim.backends._tape import Tape, Variable
from shim.backends._updates import rows_in_use, tables_by_rows
from shim.models import optimizers
from shim.protocol import op


@dataclass(frozen=True)
class Programs:
    """What a backend computes with: an array module, ops over it, and the step of an optimizer.

    ``ops[name](work, *args, **options)`` are those of :mod:`shim.backends._handwritten`, or others for the same, and
    ``update`` moves a weight in place as that of :mod:`shim.backends._updates` does. ``generator(seed)`` makes what
    dropout draws from: ``words(n)`` returns n random integers of 64 bits, and ``state`` is an array that can be set.
    ``scale`` is how many times as much as fits the caches of a CPU one pass over an array may handle.
    """

    xp: Any
    ops: Mapping[str, Callable[..., Any]]
    update: Callable[..., None]
    generator: Callable[..., Any]
    scale: int = 1

    def workspace(self, keep=True):
        return Workspace(self.xp, keep, self.scale)

    def call(self, name, *args, **options):
        """Run an op on arrays, or record it on the tape of its variables."""
        function = self.ops[name]
        for a in args:
            if isinstance(a, Variable):
                return a.tape.call(function, args, options)
        return function(self.workspace(keep=False), *args, **options)[0]

    @functools.cached_property
    def drawn(self):
        """The generator of dropout outside of trainers."""
        return self.generator()

    def _function(self, op, options):
        function = self.ops[op]
        return functools.partial(function, generator=self.drawn) if options.get("rate") else function

    def forward(self, op, options):
        function, work = self._function(op, options), self.workspace(keep=False)

        def run(*args):
            return function(work, *args, **options)[0]

        return run

    def forward_backward(self, op, options, first):
        function, work = self._function(op, options), self.workspace()

        def run(args, dy):
            y, pullback = function(work, *args, **options)
            return y, pullback(dy, first)[0 if first else 1 :]

        return run


def define_ops(module):
    """Give a backend's module the ops of the contract; they run on the module's ``_programs``."""
    for name in contract.OPS:
        setattr(module, name, _op(module, name))


def _op(module, name):
    @functools.wraps(contract.op(name).reference)
    def call(*args, **options):
        if name == "dropout":
            options["generator"] = module._programs.drawn
        return module._programs.call(name, *args, **options)

    call.__name__, call.__module__ = name, module.__name__
    return op(call)


def by_name(names, gradients):
    """Return gradients by the names of their weights, those of :class:`Rows` as pieces."""
    pieces = (g.pieces if isinstance(g, Rows) else g for g in gradients)
    return dict(zip(names, pieces, strict=True))


class Trainer:
    """A tape for the training steps, another one for evaluation, and weights that are updated in place.

    ``backend`` is the module whose transfers of arrays it uses.
    """

    def __init__(self, programs, backend, model, params, optimizer, seed):
        self._programs, self._backend, self._xp = programs, backend, programs.xp
        self._model, self._optimizer, self._count = model, optimizer, 0
        self._params = {name: backend.to_device(value) for name, value in params.items()}
        self._trained = models.trained(model, self._params)
        self._states = {
            name: [backend.to_device(value) for value in optimizers.init(optimizer, params[name])]
            for name in self._trained
        }
        self._training, self._evaluation = Tape(programs.workspace), Tape(programs.workspace, recording=False)
        self._generator, self._moments = programs.generator(seed), []

        def draw(x, *, rate=0.0):
            return programs.call("dropout", x, rate=rate, generator=self._generator) if rate else x

        lookups, self._tables = {}, tables_by_rows(model, params, optimizer)
        self.by_rows = bool(self._tables)
        if self.by_rows:
            for name in ("embedding", "embedding_average"):
                lookups[name] = functools.partial(programs.call, name, table_gradient="rows")
        dropout = draw if model.dropout else _identity
        self._training_ops = self._ops({"training": True, "moments": self._moments}, dropout=dropout, **lookups)
        self._evaluation_ops = self._ops({"training": False}, dropout=_identity)

    def _ops(self, normalising, **replaced):
        """Return the ops of the model, with the options of its ``batch_norm``."""

        def normalise(*args, training=None):
            return self._programs.call("batch_norm", *args, **normalising)

        ops = {name: functools.partial(self._programs.call, name) for name in contract.OPS}
        return SimpleNamespace(**ops | {"batch_norm": normalise} | replaced)

    def step(self, x, labels):
        loss = self._step(x, labels)
        self._count += 1
        return loss

    def _step(self, x, labels):
        loss, gradients = self._differentiate(x, labels)
        self._update(gradients)
        for names, moments in zip(self._model.moments, self._moments, strict=True):
            for name, moment in zip(names, moments, strict=True):
                self._params[name] += (1 - models.MOMENTUM) * (moment - self._params[name])
        return loss

    def _differentiate(self, x, labels):
        """Return the main loss and the gradients of the trained weights, in their order."""
        variables = self._training.start({name: self._params[name] for name in self._trained})
        self._moments.clear()
        _, losses = models.losses(self._model, self._training_ops, self._params | variables, x, labels)
        return losses[0][0].value, self._training.gradients(losses, variables.values())

    def gradients(self, x, labels):
        loss, gradients = self._differentiate(x, labels)
        return loss, by_name(self._trained, gradients)

    def _update(self, gradients):
        for name, g in zip(self._trained, gradients, strict=True):
            self._programs.update(self._optimizer, self._xp, self._count, self._params[name], g, self._states[name])

    def updater(self, gradients):
        to_device = self._backend.to_device
        arrays = [
            rows_in_use(gradients[name], to_device) if name in self._tables else to_device(gradients[name])
            for name in self._trained
        ]

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
        return losses[0][0].value, self._xp.asarray((predicted == labels).sum())

    def predict(self, x):
        return models.logits(self._model, self._evaluation_ops, self._evaluated(), x).value

    def _copy(self, array):
        return np.array(self._backend.to_numpy(array))

    def params(self):
        return {name: self._copy(value) for name, value in self._params.items()}

    def state(self):
        slots = {name: [self._copy(value) for value in values] for name, values in self._states.items()}
        return pack(self.params(), slots, self._count, generator=np.array(self._generator.state))

    def restore(self, state):
        self._count = refill(self._params, self._states, state, self._backend.to_device)
        self._generator.state = state["generator"]


def _identity(x, *, rate=0.0):
    return x
