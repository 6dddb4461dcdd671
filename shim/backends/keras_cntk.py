"""Keras 2.3.1 on CNTK 2.7: the layers of the 2017 comparison, in the last Keras that has a CNTK backend.

Each op is the layer that a Keras user would write, run as Keras runs it on CNTK, by a ``K.function`` that is fed with
NumPy arrays. Gradients of ops come from CNTK's own ``backward`` on the graph that Keras built, since on CNTK Keras has
gradients inside its training function only. Where Keras follows another formula on CNTK than the contract:

- *Recurrent layers* return their last state, an LSTM that of its cell: corrected as Keras is loaded.
- *Convolution*, ``same`` with a stride above 1: CNTK pads other rows than TensorFlow; ``ZeroPadding2D`` comes first.
- *Sigmoid cross-entropy*: Keras clips probabilities at 1e-7; here it is a loss of one's own, from logits.
- *Training*: see :mod:`shim.backends._keras_cntk_trainer`.
"""

from __future__ import annotations

import functools
import sys

import numpy as np

from shim import contract, models
from shim.backends import _cntk_graph as graph
from shim.backends import _keras_cntk_layers as programs
from shim.backends import cntk as host
from shim.backends._keras_cntk_layers import K, call, check_dtype
from shim.backends._keras_cntk_trainer import Trainer
from shim.cntk.keras import VERSION, keras
from shim.protocol import check_choice, op, program

layers = keras.layers

DEVICES = ("cpu",)
MODES = ("graph",)
DTYPES = programs.DTYPES

_module = sys.modules[__name__]

setup = host.setup
synchronize = host.synchronize


def to_device(value):
    """Copy to a NumPy array that is read-only, because a program keeps the weights it has taken."""
    if value.dtype.kind in "iub":
        return graph.Ids(value)
    if value.dtype == np.float64:
        check_dtype(value.dtype)
    array = np.array(value, order="C")
    array.flags.writeable = False
    return array


def to_numpy(array):
    return np.array(programs.values(array))


def _layer(build):
    """Let a function of symbols take arrays too: then it is built as a program and run."""

    @functools.wraps(build)
    def on_either(*args, **options):
        if isinstance(args[0], (np.ndarray, graph.Ids)):
            return _program(build.__name__, tuple(options.items()))(*args)
        return build(*args, **options)

    return on_either


# ------------------------------------------------------------------------------------------------------ the layers


@op
@_layer
def dense(x, w, b, *, activation=None):
    """``Dense``, without bias where a model never trains it."""
    layer = layers.Dense(w.shape[1], activation=activation, use_bias=not b.constant)
    return call(layer, x, w) if b.constant else call(layer, x, w, b)


@op
@_layer
def conv2d(x, w, b, *, stride=1, padding="valid", activation=None):
    size = w.shape[:2]
    if padding == "same" and stride > 1:
        lengths = zip(K.int_shape(x)[1:3], size, strict=True)
        x = layers.ZeroPadding2D(tuple(contract.same_padding(n, k, stride) for n, k in lengths))(x)
        padding = "valid"
    return call(layers.Conv2D(w.shape[3], size, strides=stride, padding=padding, activation=activation), x, w, b)


def _recurrent(w_h, gates, return_sequences, reverse=False):
    return layers.LSTM(
        w_h.shape[0],
        recurrent_activation=gates,
        recurrent_initializer="zeros",
        return_sequences=return_sequences,
        go_backwards=reverse,
    )


@op
@_layer
def lstm(x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid"):
    """``LSTM``, which leaves the outputs of a reversed sequence in reverse. Its hard sigmoid is the contract's."""
    y = call(_recurrent(w_h, recurrent_activation, return_sequences, reverse), x, w_x, w_h, b)
    return layers.Lambda(functools.partial(K.reverse, axes=1))(y) if return_sequences and reverse else y


@op
@_layer
def bilstm(
    x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse, *, return_sequences=False, recurrent_activation="sigmoid"
):
    both = layers.Bidirectional(_recurrent(w_h, recurrent_activation, return_sequences))
    return call(both, x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse)


def _lookup(table, **how):
    return layers.Embedding(*table.shape, embeddings_initializer="zeros", trainable=not table.constant, **how)


@op
@_layer
def embedding_average(ids, table, *, padding_id=None):
    """``Embedding``, with ``mask_zero`` for a padding, and ``GlobalAveragePooling1D``."""
    return layers.GlobalAveragePooling1D()(call(_lookup(table, mask_zero=padding_id is not None), ids, table))


@op
@_layer
def embedding(ids, table):
    return call(_lookup(table), ids, table)


@op
@_layer
def max_pool2d(x, *, pool=2):
    return layers.MaxPooling2D(pool)(x)


@op
@_layer
def relu(x):
    return layers.Activation("relu")(x)


@op
@_layer
def dropout(x, *, rate=0.0):
    return layers.Dropout(rate)(x, training=True) if rate else layers.Lambda(K.identity)(x)


@op
@_layer
def batch_norm(x, gamma, beta, mean, variance, *, training=False):
    return call(layers.BatchNormalization(), x, gamma, beta, mean, variance, training=training)


@op
@_layer
def concat(x, y):
    return layers.Concatenate()([x, y])


@op
@_layer
def flatten(x):
    return layers.Flatten()(x)


@op
@_layer
def softmax_cross_entropy(logits, labels):
    return K.mean(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))


@op
@_layer
def sigmoid_cross_entropy(logits, labels):
    return K.mean(programs.sigmoid_cross_entropy(labels, logits))


# ---------------------------------------------------------------------------------------------------- the programs


def _build(op, options, first=True):
    phase = 1 if options.get("rate") else 0
    return programs.Program(op, functools.partial(getattr(_module, op).bare, **options), phase, first)


@functools.lru_cache(64)
def _program(op, options):
    return forward(op, dict(options)).bare


@program
def forward(op, options, mode):
    return _build(op, options).forward


@program
def forward_backward(op, options, mode, first=True):
    """``Function.backward`` of CNTK; the gradient of a table is dense."""
    return _build(op, options, first).forward_backward


def trainer(model, params, optimizer, mode, seed=0):
    """``train_on_batch`` of a ``keras.Model``."""
    check_choice("mode", mode, MODES)
    return Trainer(_module, model, params, optimizer, seed)


# ---------------------------------------------------------------------------------------------------- what was used

_NAMES = {
    "conv2d": "Conv2D",
    "lstm": "LSTM",
    "bilstm": "Bidirectional",
    "embedding_average": "Embedding and GlobalAveragePooling1D",
    "max_pool2d": "MaxPooling2D",
    "batch_norm": "BatchNormalization",
    "concat": "Concatenate",
}
_PATHS = {"lstm": "past_value loop", "bilstm": "two past_value loops", "conv2d": "MKL convolution between transposes"}
_OPTIMIZERS = {"sgd": "SGD", "rmsprop": "RMSprop with epsilon inside the root", "adam": "Adam", "adadelta": "Adadelta"}


def implementation(case, mode=MODES[0]):
    if case.is_model:
        optimizer = models.load(case.op, **dict(case.options)).optimizer.name
        return f"Keras train_on_batch, {_OPTIMIZERS[optimizer]} in CNTK's universal learner"
    name = _NAMES.get(case.op) or "".join(part.capitalize() for part in case.op.split("_"))
    return f"Keras {name}, {_PATHS.get(case.op, 'CNTK graph')}"


def describe():
    found = host.describe()
    return found | {"versions": {"keras": VERSION} | found["versions"]}
