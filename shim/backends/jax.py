"""JAX: pure functions compiled whole by XLA; ``jax.jit`` is the only mode.

64-bit types are switched on at import, as the contract's float64 needs them; every array keeps the dtype it is given.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src.xla_bridge import backends_are_initialized

from shim import contract
from shim.backends import _jax_trainer
from shim.protocol import check_choice, op, program

jax.config.update("jax_enable_x64", True)

DEVICES = ("cpu", "cuda")
MODES = ("jit",)
HALVES = ("float16", "bfloat16")
FUSES = MODES  # what shim.protocol.fuses reads

_module = sys.modules[__name__]
_platform, _precision = "cpu", "float32"
_draws = itertools.count()


def setup(device="cpu", precision="float32", threads=None):
    """Choose device, matmul precision and thread count; ``tf32`` is for CUDA devices.

    XLA reads the thread count once, when the first array is made: later only the same count is accepted.
    """
    global _platform, _precision
    check_choice("device", device, DEVICES)
    check_choice("precision", precision, ("float32", "tf32") if device == "cuda" else ("float32",))
    if threads is not None:
        _set_threads(threads)
    if not backends_are_initialized():
        jax.config.update("jax_platforms", device)
    if device == "cuda":
        try:
            jax.devices("cuda")
        except (RuntimeError, AssertionError) as error:  # JAX asserts where its CUDA plugin is not installed
            jax.config.update("jax_platforms", _platform)
            reason = str(error) or "the package jax[cuda12] or jax[cuda13] is not installed"
            raise ValueError(f"device 'cuda' is not available to jax {jax.__version__}: {reason}") from None
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if precision == "tf32" else "highest")
    if device != _platform:
        _program.cache_clear()  # an LSTM is another program there
    _platform, _precision = device, precision


def _set_threads(threads):
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if backends_are_initialized() and threads != _threads():
        raise ValueError(
            f"jax already runs {_threads()} threads and cannot change to {threads}; "
            f"call setup before the first array, or start Python with NPROC={threads}"
        )
    os.environ["NPROC"] = str(threads)


def _threads():
    return int(os.environ.get("NPROC", 0)) or len(os.sched_getaffinity(0))


def _sharding():
    return jax.sharding.SingleDeviceSharding(jax.devices(_platform)[0])


def to_device(value):
    """A copy: ``jax.device_put`` would share the memory of an aligned NumPy array."""
    return jnp.array(value, device=_sharding())


def to_numpy(array):
    return np.array(array)


def synchronize(outputs):
    jax.block_until_ready(outputs)


@op
def dense(x, w, b, *, activation=None):
    y = x @ w + b
    return jax.nn.relu(y) if activation == "relu" else y


@op
def conv2d(x, w, b, *, stride=1, padding="valid", activation=None):
    layout = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(x, w, (stride, stride), padding.upper(), dimension_numbers=layout) + b
    return jax.nn.relu(y) if activation == "relu" else y


@op
def lstm(x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid"):
    """``lax.scan`` over time. On a CPU both products are in its step: that of the whole sequence at once and its
    gradient are large arrays, which take longer to write and read than small ones. Unrolling does not help. On a GPU
    cuDNN's LSTM, ``jax.experimental.rnn``, makes training steps of these models twice as long."""
    sigmoid = jax.nn.sigmoid if recurrent_activation == "sigmoid" else lambda z: jnp.clip(0.2 * z + 0.5, 0, 1)
    in_step = _platform == "cpu"

    def project(x):
        return x @ w_x + b

    def step(state, x):
        h, c = state
        i, f, g, o = jnp.split((project(x) if in_step else x) + h @ w_h, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return (h, c), h if return_sequences else None

    zero, x = jnp.zeros((x.shape[0], w_h.shape[0]), x.dtype), x.swapaxes(0, 1)
    (h, _), outputs = lax.scan(step, (zero, zero), x if in_step else project(x), reverse=reverse)
    return outputs.swapaxes(0, 1) if return_sequences else h


@op
def bilstm(
    x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse, *, return_sequences=False, recurrent_activation="sigmoid"
):
    """Two scans, which XLA is free to run at the same time."""
    options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
    forwards = lstm.bare(x, w_x, w_h, b, **options)
    backwards = lstm.bare(x, w_x_reverse, w_h_reverse, b_reverse, reverse=True, **options)
    return jnp.concatenate([forwards, backwards], axis=-1)


@op
def embedding_average(ids, table, *, padding_id=None):
    return average(embedding.bare(ids, table), ids, padding_id)


def average(rows, ids, padding_id):
    """Average the rows (N, T, D) of each sample but those of padding."""
    if padding_id is None:
        return rows.mean(axis=1)
    kept = ids != padding_id
    count = kept.sum(axis=1, keepdims=True, dtype=rows.dtype)
    return jnp.where(kept[:, :, None], rows, 0).sum(axis=1) / jnp.maximum(count, 1)


@op
def embedding(ids, table):
    """``jnp.take``; clipping spares the default mode's test for ids out of range."""
    return jnp.take(table, ids, axis=0, mode="clip")


@op
def max_pool2d(x, *, pool=2):
    """The first maximum of each window, by selection: the gradient of ``lax.reduce_window`` is far slower on a CPU."""
    p, q = x.shape[1] // pool * pool, x.shape[2] // pool * pool
    corners = [x[:, i:p:pool, j:q:pool] for i in range(pool) for j in range(pool)]
    return functools.reduce(lambda first, then: jnp.where(then > first, then, first), corners)


@op
def relu(x):
    return jax.nn.relu(x)


@op
def dropout(x, *, rate=0.0):
    """``jax.random.bernoulli`` with a new key at each call."""
    return _drop(next(_draws), x, rate=rate)


def _drop(draw, x, *, rate):
    return _jax_trainer.drop(jax.random.fold_in(jax.random.key(0), draw), x, rate)


@op
def batch_norm(x, gamma, beta, mean, variance, *, training=False):
    if training:
        mean, variance = x.mean(axis=0), x.var(axis=0)
    return (x - mean) * lax.rsqrt(variance + 1e-3) * gamma + beta


@op
def concat(x, y):
    return jnp.concatenate([x, y], axis=-1)


@op
def flatten(x):
    return x.reshape(x.shape[0], -1)


@op
def softmax_cross_entropy(logits, labels):
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=-1) - chosen).mean()


@op
def sigmoid_cross_entropy(logits, labels):
    return (jax.nn.softplus(logits) - logits * labels.astype(logits.dtype)).mean()


@functools.cache
def _program(op, options, direction):
    """The compiled function; one for each op and options, so that its shapes are compiled once a process."""
    function = functools.partial(getattr(_module, op).bare, **dict(options))
    start = 1 if direction == contract.WEIGHTS else 0
    arguments = contract.op(op).arguments[start:]

    def program(function):
        def run(args, dy):
            y, pullback = jax.vjp(functools.partial(function, *args[:start]), *args[start:])
            return y, tuple(g for g, argument in zip(pullback(dy), arguments, strict=True) if argument.is_float)

        return function if direction == "forward" else run

    if not dict(options).get("rate"):
        return jax.jit(program(function))
    # The number of the draw is an argument: one drawn while tracing would give all calls the same mask.
    drawn = jax.jit(lambda draw, *args: program(functools.partial(_drop, draw, **dict(options)))(*args))
    return lambda *args: drawn(next(_draws), *args)


@program
def forward(op, options, mode):
    return _program(op, tuple(sorted(options.items())), "forward")


@program
def forward_backward(op, options, mode, first=True):
    return _program(op, tuple(sorted(options.items())), "forward_backward" if first else contract.WEIGHTS)


def trainer(model, params, optimizer, mode, seed=0):
    """One compiled step, gradients and optimizer in it, that overwrites weights and state in place (donation)."""
    check_choice("mode", mode, MODES)
    return _jax_trainer.Trainer(_module, model, params, optimizer, seed)


#: marks in XLA's compiled text -> the library that a product or convolution is left to
_LIBRARIES = {"__ynn": "YNNPACK", "__onednn": "oneDNN", "__cudnn": "cuDNN", "__cublas": "cuBLAS"}
#: how the target of a custom call begins -> what it is
_CALLS = {
    "__cudnn$conv": "convolution by cuDNN",
    "__cublas": "dot by cuBLAS",
}


def implementation(case, mode=MODES[0]):
    """Name what XLA made of a case, read from its compiled program; nothing is compiled that has run already."""
    if case.is_model:
        rows = dict(case.options).get("table_gradient") == "rows"
        return "XLA, one donated step" + (", scatter of the rows in use" if rows else "")
    if dict(case.options).get("rate"):
        return "XLA: fused loops"
    args, dy = _shapes(case)
    run = _program(case.op, tuple(sorted(case.options)), case.direction)
    text = run.lower(*(args if case.direction == "forward" else [args, dy])).compile().as_text()
    return _path(text)


def _shapes(case):
    entry, dims = contract.op(case.op), dict(case.dims)
    at = _sharding()

    def shape(axes, dtype=case.dtype):
        return jax.ShapeDtypeStruct(axes, dtype, sharding=at)

    args = [shape(entry.shape(a.axes, dims), case.dtype if a.is_float else "int32") for a in entry.arguments]
    return args, shape(entry.result_shape(dims, dict(case.options)))


def _path(text):
    """Say which products, convolutions and loops a compiled program has and who computes them."""
    library = {
        name: _LIBRARIES[mark]
        for name, mark in re.findall(r'calls=%([\w.-]+).*?"kind":"(__[a-z]+)', text)
        if mark in _LIBRARIES
    }
    found, computation = [], ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            computation = line.split()[0].lstrip("%")
        if kind := re.search(r" (while|dot|convolution|scatter|gather)\(", line):
            by = library.get(computation) or next((n for m, n in _LIBRARIES.items() if m in line), None)
            found.append(kind[1] + (f" by {by}" if by else ""))
        if target := re.search(r'custom_call_target="([^"]+)"', line):
            found += [call for mark, call in _CALLS.items() if target[1].startswith(mark)]
    return "XLA: " + (", ".join(dict.fromkeys(found)) or "fused loops")


def describe():
    return {
        "device": jax.devices(_platform)[0].device_kind,
        "precision": _precision,
        "threads": _threads(),
        "versions": {name: sys.modules[name].__version__ for name in ("jax", "jaxlib", "numpy")},
        "libraries": {"dropout": jax.config.jax_default_prng_impl},
    }


setup()
