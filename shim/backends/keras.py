"""Keras 3 on each of its engines: TensorFlow, JAX and PyTorch, and forward only NumPy and OpenVINO.

This file is loaded once a process, under the name of its engine (``shim.backends.keras_jax``). Each op is the layer
that a Keras user would write, built into a functional model and called as Keras calls its models by default
(``jit_compile="auto"``): in a ``tf.function``, under ``jax.jit``, by ``predict_on_batch`` on OpenVINO, and as it is on
PyTorch and NumPy. Threads, device and arrays are the engine's own matter: ``jax.py`` and its neighbours see to them.
"""

from __future__ import annotations

import functools
import importlib
import sys

import keras
import numpy as np
from keras import layers, ops

from shim import contract
from shim.backends import _keras_programs as programs
from shim.backends._keras_programs import call, check_dtype, dtype, engine
from shim.backends._keras_trainer import Trainer
from shim.protocol import Unsupported, check_choice, op, program

DEVICES = ("cpu",)
MODES = ("auto",)

_host = importlib.import_module("shim.backends." + {"openvino": "numpy"}.get(engine, engine))
_module = sys.modules[__name__]
_FORWARD_ONLY = ("numpy", "openvino")

DTYPES = programs.DTYPES
DIRECTIONS = ("forward",) if engine in _FORWARD_ONLY else ("forward", "forward_backward")

keras.config.set_image_data_format("channels_last")
if engine == "jax":
    import jax

    jax.config.update("jax_enable_x64", False)  # as Keras' users have it; jax.py switches it on
elif engine == "openvino":
    import openvino

    # Keras passes no options on, and by default OpenVINO computes in bfloat16 wherever the CPU can.
    _compile_model, _compile_options = openvino.compile_model, {"INFERENCE_PRECISION_HINT": "f32"}
    openvino.compile_model = lambda model, device: _compile_model(model, device, _compile_options)


def setup(device="cpu", precision="float32", threads=None):
    """Set up the engine."""
    check_choice("device", device, DEVICES)
    _host.setup(device, precision, threads)
    if engine == "openvino" and threads is not None:
        _compile_options["INFERENCE_NUM_THREADS"] = threads


def to_device(value):
    """A copy; on NumPy and OpenVINO it is read-only, because a program keeps what it has made of its weights."""
    if value.dtype.name in contract.FLOATS:
        check_dtype(value.dtype.name)
    array = _host.to_device(value)
    if engine in _FORWARD_ONLY:
        array.flags.writeable = False
    return array


def to_numpy(array):
    return np.array(ops.convert_to_numpy(array)) if engine in _FORWARD_ONLY else _host.to_numpy(array)


synchronize = _host.synchronize


# ------------------------------------------------------------------------------------------------------ the layers

#: Every weight is given: to draw others first would take as long as all the rest of building a model.
_KERNEL = {"kernel_initializer": "zeros"}


@op
def dense(x, w, b, *, activation=None):
    return call(layers.Dense(w.shape[1], activation=activation, **_KERNEL, dtype=dtype(w)), x, w, b)


@op
def conv2d(x, w, b, *, stride=1, padding="valid", activation=None):
    size, how = tuple(w.shape[:2]), _KERNEL | {"activation": activation, "dtype": dtype(w)}
    return call(layers.Conv2D(w.shape[3], size, stride, padding, **how), x, w, b)


@keras.saving.register_keras_serializable("shim")  # Bidirectional copies its layer by way of its configuration
def _hard_sigmoid(x):
    """That of Keras 2; the one of Keras 3 has another slope."""
    return ops.clip(0.2 * x + 0.5, 0, 1)


def _lstm(w_h, gates, **how):
    gates = _hard_sigmoid if gates == "hard_sigmoid" else gates
    how |= _KERNEL | {"recurrent_initializer": "zeros", "recurrent_activation": gates}
    return layers.LSTM(w_h.shape[0], **how, dtype=dtype(w_h))


@op
def lstm(x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid"):
    """``keras.layers.LSTM``, which leaves the outputs of a reversed sequence in reverse."""
    layer = _lstm(w_h, recurrent_activation, return_sequences=return_sequences, go_backwards=reverse)
    y = call(layer, x, w_x, w_h, b)
    return ops.flip(y, axis=1) if return_sequences and reverse else y


@op
def bilstm(
    x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse, *, return_sequences=False, recurrent_activation="sigmoid"
):
    layer = _lstm(w_h, recurrent_activation, return_sequences=return_sequences)
    both = layers.Bidirectional(layer, dtype=dtype(w_h))
    return call(both, x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse)


@op
def embedding_average(ids, table, *, padding_id=None):
    """``Embedding`` and ``GlobalAveragePooling1D``, which would make NaN of a sample of nothing but padding."""
    rows = embedding.bare(ids, table)
    if padding_id is None:
        return layers.GlobalAveragePooling1D(dtype=dtype(table))(rows)
    kept = ops.cast(ops.not_equal(ids, padding_id), dtype(table))[:, :, None]
    return ops.sum(rows * kept, axis=1) / ops.maximum(ops.sum(kept, axis=1), 1)


@op
def embedding(ids, table):
    return call(layers.Embedding(*table.shape, embeddings_initializer="zeros", dtype=dtype(table)), ids, table)


@op
def max_pool2d(x, *, pool=2):
    return call(layers.MaxPooling2D(pool, dtype=dtype(x)), x)


@op
def relu(x):
    return call(layers.ReLU(dtype=dtype(x)), x)


@op
def dropout(x, *, rate=0.0):
    return call(layers.Dropout(rate, dtype=dtype(x)), x, training=True)


@op
def batch_norm(x, gamma, beta, mean, variance, *, training=False):
    return call(layers.BatchNormalization(dtype=dtype(x)), x, gamma, beta, mean, variance, training=training)


@op
def concat(x, y):
    return call(layers.Concatenate(dtype=dtype(x)), [x, y])


@op
def flatten(x):
    return call(layers.Flatten(dtype=dtype(x)), x)


@op
def softmax_cross_entropy(logits, labels):
    return ops.mean(ops.sparse_categorical_crossentropy(labels, logits, from_logits=True))


@op
def sigmoid_cross_entropy(logits, labels):
    return ops.mean(ops.binary_crossentropy(ops.cast(labels, dtype(logits)), logits, from_logits=True))


# ---------------------------------------------------------------------------------------------------- the programs
@functools.cache
def _graph(op, options, first):
    """One for all programs of an op and its options, so that a shape is traced once a process."""
    return programs.Graph(op, functools.partial(getattr(_module, op).bare, **dict(options)), first)


def _build(op, options, first=True):
    if engine in ("tensorflow", "jax"):
        return _graph(op, tuple(sorted(options.items())), first)
    make = programs.Prediction if engine == "openvino" else programs.Layers
    return make(op, functools.partial(getattr(_module, op).bare, **options), first)


@program
def forward(op, options, mode):
    function = functools.partial(getattr(_module, op).bare, **options)
    if options.get("rate"):  # in a compiled function dropout would draw the same mask each time
        return function
    if engine in _FORWARD_ONLY and (op.endswith("cross_entropy") or options.get("training")):
        return functools.partial(programs.at_once, function)
    run = _build(op, options).forward
    return programs.compiled(run) if engine == "torch" else run


@program
def forward_backward(op, options, mode, first=True):
    """Gradients by ``tf.GradientTape``, ``jax.vjp`` or ``torch.autograd.grad``."""
    if "forward_backward" not in DIRECTIONS:
        raise Unsupported(f"Keras on {engine} has no gradients; it computes forward only")
    return _build(op, options, first).forward_backward


def trainer(model, params, optimizer, mode, seed=0):
    check_choice("mode", mode, MODES)
    if engine in _FORWARD_ONLY:
        raise Unsupported(f"Keras on {engine} does not train; it computes forward only")
    return Trainer(_module, model, params, optimizer, seed)


# ---------------------------------------------------------------------------------------------------- what was used

_STEPS = {"tensorflow": "one graph a step", "jax": "one XLA program a step", "torch": "eager steps"}
_LOOPS = {"tensorflow": "while loop", "jax": "XLA while loop", "openvino": "LSTMSequence"}
_CALLS = {"tensorflow": "graph", "jax": "XLA", "torch": "eager", "openvino": "compiled model", "numpy": "eager"}


def implementation(case, mode=MODES[0]):
    if case.is_model:
        return f"Keras fit, {_STEPS.get(engine, 'forward only')}"
    name = {"lstm": "LSTM", "bilstm": "Bidirectional", "conv2d": "Conv2D", "max_pool2d": "MaxPooling2D"}.get(case.op)
    name = name or "".join(part.capitalize() for part in case.op.split("_"))
    if case.op in ("lstm", "bilstm"):
        return f"Keras {name}, {_LOOPS.get(engine, 'loop over steps')}"
    by_jax = engine == "numpy" and case.op in ("conv2d", "max_pool2d")
    return f"Keras {name}, {'jax.lax' if by_jax else _CALLS[engine]}"


def describe():
    host = _host.describe()
    versions = {"keras": keras.__version__} | host["versions"]
    if engine == "openvino":
        versions["openvino"] = openvino.__version__
        threads = _compile_options.get("INFERENCE_NUM_THREADS")
        return host | {"threads": threads, "versions": versions, "libraries": {}}
    return host | {"versions": versions}


setup()
