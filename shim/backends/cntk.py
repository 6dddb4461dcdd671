"""CNTK 2.7 on the CPU: static graphs, built once for the shapes they are called with.

Inputs have no dynamic axes, so an array has one shape inside and outside; what needs CNTK's batch axis gets it inside
the graph. Data are fed, which copies them. Weights are parameters: one is copied when another array is passed, and what
follows from weights alone, such as a transposed kernel, is then computed once. What differs from CNTK's own layers was
measured (milliseconds, two cores of an AMD EPYC):

- *Rectifier*: ``x * greater(x, 0)``; ``C.relu`` takes 0.5 where this takes 0.1 (128 × 512). It makes NaN of -inf.
- *LSTM*: the input product of the whole sequence, then a ``past_value`` loop with one sigmoid over all gates, tanh
  being ``2 * sigmoid(2 * x) - 1``. Forward and with gradients, N128 T40 I57 H128 and N32 T100 I128 H64: 35, 101 and
  16, 41; with ``C.tanh`` and the product in the loop, as ``layers.LSTM`` has them, 41, 103 and 17, 40; unrolled 39, 98
  and 19, 46, and 0.7 s to build. ``C.optimized_rnnstack`` does not exist on a CPU.
- *Embedding average*: a gather and a product with a row of ones: 0.2 and 1.0; ``reduce_mean`` 0.6 and 6.2.
- *Convolution* and pooling want NCHW: the transposes around a convolution add 5 to 20 %.

Nearly every node is a parallel region that waits for all threads: on cores that other processes use too, two threads
took ten times as long as one for an LSTM.
"""

from __future__ import annotations

import functools
import sys

import numpy as np

from shim import cntk as loader
from shim import contract
from shim.backends import _cntk_graph as graph
from shim.backends import _cntk_lstm, _cntk_training
from shim.backends._cntk_graph import Array, C, Ids
from shim.protocol import check_choice, op, program

DEVICES = ("cpu",)
MODES = ("graph",)
PRECISIONS = ("float32",)

_module = sys.modules[__name__]
_threads = None


def setup(device="cpu", precision="float32", threads=None):
    """Set CNTK's thread count, which crashes it (SIGFPE) once something was computed with another one."""
    global _threads
    check_choice("device", device, DEVICES)
    check_choice("precision", precision, PRECISIONS)
    if threads is None:
        return
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    current = C.cntk_py.get_max_num_cputhreads()
    if threads == _threads or threads == current:
        return
    if _threads is not None or graph.used:
        raise ValueError(f"CNTK runs {current} threads and cannot change to {threads}; set threads once, at first")
    C.cntk_py.set_max_num_cputhreads(threads)
    _threads = threads


def to_device(value):
    return graph.array(value)


def to_numpy(array):
    return array.host.copy() if isinstance(array, Ids) else array.data.to_ndarray()


def synchronize(outputs):
    """Return at once: CNTK's calls on a CPU return when all is computed."""


def _node(build):
    """Let a function that builds nodes take arrays too: then it is built as a program and run."""

    @functools.wraps(build)
    def call(*args, **options):
        if isinstance(args[0], (Array, Ids)):
            return _program(build.__name__, tuple(options.items()))(*args)
        return build(*args, **options)

    return call


# ------------------------------------------------------------------------------------------------------- the ops


def _channels_first(x):
    """NHWC to NCHW, as a transpose of matrices, which is the faster one."""
    n, height, width, channels = x.shape
    matrices = C.reshape(x, (n, height * width, channels))
    return C.reshape(C.transpose(matrices, (0, 2, 1)), (n, channels, height, width))


def _channels_last(x):
    n, channels, height, width = x.shape
    matrices = C.reshape(x, (n, channels, height * width))
    return C.reshape(C.transpose(matrices, (0, 2, 1)), (n, height, width, channels))


def _filled(shape, value, like):
    return C.constant(np.full(shape, value, like.dtype))


def _mean(x):
    """Reduce to the mean of all values."""
    return C.reduce_mean(x, axis=C.Axis.all_static_axes())


@op
@_node
def relu(x):
    """A product with ``C.greater``."""
    return x * C.greater(x, 0.0)


@op
@_node
def dense(x, w, b, *, activation=None):
    y = C.times(x, w) + b
    return relu.bare(y) if activation == "relu" else y


@op
@_node
def conv2d(x, w, b, *, stride=1, padding="valid", activation=None):
    """``C.convolution``. Its padding is TensorFlow's for odd kernels and strides of 1; else ``C.pad`` comes first."""
    x = _channels_first(x)
    own = padding == "same" and stride == 1 and w.shape[0] % 2 == w.shape[1] % 2 == 1
    if padding == "same" and not own:
        pads = [contract.same_padding(n, k, stride) for n, k in zip(x.shape[2:], w.shape[:2], strict=True)]
        x = C.pad(x, [(0, 0), (0, 0), *pads])
    kernel = C.transpose(w, (3, 2, 0, 1))
    strides, padded = (stride, stride), [False, own, own]
    y = graph.batched(lambda image: C.convolution(kernel, image, strides=strides, auto_padding=padded), x)
    y = y + C.reshape(b, (-1, 1, 1))
    return _channels_last(relu.bare(y) if activation == "relu" else y)


@op
@_node
def lstm(x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid"):
    """``C.sequence.past_value``, or ``future_value`` from the end, around one step of which all products are made."""
    options = {"return_sequences": return_sequences, "reverse": reverse, "recurrent_activation": recurrent_activation}
    return _cntk_lstm.lstm(x, w_x, w_h, b, **options)


@op
@_node
def bilstm(
    x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse, *, return_sequences=False, recurrent_activation="sigmoid"
):
    """Two loops."""
    options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
    forwards = lstm.bare(x, w_x, w_h, b, **options)
    backwards = lstm.bare(x, w_x_reverse, w_h_reverse, b_reverse, reverse=True, **options)
    return C.splice(forwards, backwards, axis=-1)


@op
@_node
def embedding_average(ids, table, *, padding_id=None):
    """``C.gather`` and a product with a row of ones; what is padded is multiplied by 0 first."""
    (batch, steps), (_, width) = ids.shape, table.shape

    def average(ids):
        rows = C.gather(table, ids)
        if padding_id is None:
            return C.times(_filled((1, steps), 1 / steps, table), rows)
        kept = C.reshape(C.not_equal(ids, float(padding_id)), (steps, 1))
        ones = _filled((1, steps), 1, table)
        return C.times(ones, rows * kept) / C.element_max(C.times(ones, kept), 1.0)

    return C.reshape(graph.batched(average, ids), (batch, width))


@op
@_node
def embedding(ids, table):
    """``C.gather``, whose gradient fails inside a graph without the batch axis."""
    return graph.batched(functools.partial(C.gather, table), ids)


@op
@_node
def max_pool2d(x, *, pool=2):
    """``C.pooling``."""
    window = (pool, pool)
    pooled = functools.partial(C.pooling, pooling_type=C.MAX_POOLING, pooling_window_shape=window, strides=window)
    return _channels_last(graph.batched(pooled, _channels_first(x)))


@op
@_node
def dropout(x, *, rate=0.0):
    """``C.dropout``, which drops where a gradient is wanted and nowhere else."""
    return C.dropout(x, rate) if rate else C.alias(x)


def moments(x):
    """Return mean and variance over the batch, made as products."""
    average = _filled((1, x.shape[0]), 1 / x.shape[0], x)
    mean = C.times(average, x)
    distance = x - mean
    return mean, C.times(average, distance * distance)


@op
@_node
def batch_norm(x, gamma, beta, mean, variance, *, training=False):
    """The formula: ``C.batch_normalization`` keeps moments of its own."""
    if training:
        mean, variance = moments(x)
    return (x - mean) / C.sqrt(variance + 1e-3) * gamma + beta


@op
@_node
def concat(x, y):
    return C.splice(x, y, axis=-1)


@op
@_node
def flatten(x):
    return C.reshape(x, (x.shape[0], int(np.prod(x.shape[1:]))))


@op
@_node
def softmax_cross_entropy(logits, labels):
    """``C.cross_entropy_with_softmax`` with ``C.one_hot`` labels."""
    classes = logits.shape[1]
    one_hot = C.one_hot(C.to_batch(C.reshape(labels, (-1, 1))), classes)
    one_hot = C.reshape(one_hot, (classes,))
    return _mean(C.unpack_batch(C.cross_entropy_with_softmax(C.to_batch(logits), one_hot)))


@op
@_node
def sigmoid_cross_entropy(logits, labels):
    """The formula: ``C.binary_cross_entropy`` takes probabilities."""
    return _mean(relu.bare(logits) - logits * labels + C.log(C.exp(-C.abs(logits)) + 1.0))


# -------------------------------------------------------------------------------------------------- the programs


def _builder(op, options):
    function = getattr(_module, op).bare
    return lambda *nodes: function(*nodes, **options)


@functools.lru_cache(64)
def _program(op, options):
    return forward(op, dict(options)).bare


@program
def forward(op, options, mode):
    find = graph.program(contract.op(op), _builder(op, options), training=bool(options.get("rate")))
    return lambda *args: find(args).forward()


@program
def forward_backward(op, options, mode, first=True):
    """``Function.forward`` and ``backward``; the gradient of a table is dense."""
    find = graph.program(contract.op(op), _builder(op, options), training=True, first=first)
    return lambda args, dy: find(tuple(args)).forward_backward(dy)


def trainer(model, params, optimizer, mode, seed=0):
    """CNTK's gradients; its learners follow other formulas than Keras', so NumPy updates the weights where they are."""
    check_choice("mode", mode, MODES)
    return _cntk_training.Trainer(_module, model, params, optimizer, seed)


# ------------------------------------------------------------------------------------------------ what was used

_PATHS = {
    "dense": "MKL product",
    "conv2d": "MKL convolution between transposes",
    "lstm": "past_value loop",
    "bilstm": "past_value and future_value loops",
    "embedding_average": "gather, product with ones",
    "embedding": "gather",
    "max_pool2d": "pooling between transposes",
}


def implementation(case, mode=MODES[0]):
    if case.is_model:
        rows = "NumPy brings the rows in use, " if dict(case.options).get("table_gradient") == "rows" else ""
        return f"{rows}one graph a step, NumPy updates in place"
    return _PATHS.get(case.op, "tensor operations")


def describe():
    return {
        "device": "cpu",
        "precision": "float32",
        "threads": C.cntk_py.get_max_num_cputhreads(),
        "versions": {"cntk": loader.VERSION, "numpy": np.__version__},
        "libraries": {"BLAS": "MKLML"},
    }


setup()
