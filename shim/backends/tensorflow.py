"""TensorFlow: a program is one traced graph, run by TensorFlow's executor (``graph``) or compiled by XLA (``xla``).

Three choices differ from what Keras does by default, each the fastest of those measured:

- *LSTM*: a small one is a graph of all its steps, a large one a loop; see ``_tensorflow_lstm.py``.
- *Embedding average*: the ``SparseSegmentMean`` kernel sums the rows where they lie, and its gradient is dense.
  XLA does not have it and gathers the rows first.
- *Calls*: a program calls the concrete function of its shapes, which spares ``tf.function`` its search for one.
"""

from __future__ import annotations

import functools
import os
import platform
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only; TensorFlow reads it when it is imported

import numpy as np
import tensorflow as tf

from shim.backends import _tensorflow_lstm, _tensorflow_trainer
from shim.protocol import bare_ops, check_choice, op, program

DEVICES = ("cpu", "cuda")
MODES = ("graph", "xla")
HALVES = ("float16", "bfloat16")
FUSES = MODES  # what shim.protocol.fuses reads
PRECISIONS = {"cpu": ("float32",), "cuda": ("float32", "tf32")}

_module = sys.modules[__name__]
_settings = {"device": "cpu", "precision": "float32"}


def setup(device="cpu", precision="float32", threads=None):
    """Show TensorFlow the first GPU or none, set TF32, and give each of its two thread pools ``threads`` threads."""
    check_choice("device", device, DEVICES)
    check_choice("precision", precision, PRECISIONS[device])
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    gpus = tf.config.list_physical_devices("GPU")
    if device == "cuda" and not gpus:
        raise ValueError("TensorFlow sees no GPU here; a build for one comes with: pip install 'tensorflow[and-cuda]'")
    try:
        tf.config.set_visible_devices(gpus[:1] if device == "cuda" else [], "GPU")
        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        raise ValueError("TensorFlow has started; call setup() before any array, in a new process") from None
    tf.config.experimental.enable_tensor_float_32_execution(precision == "tf32")
    _settings.update(device=device, precision=precision)


def to_device(value):
    with tf.device("/GPU:0" if _settings["device"] == "cuda" else "/CPU:0"):
        return tf.constant(value)


def to_numpy(array):
    return np.asarray(array.numpy())


def synchronize(outputs):
    """Wait for the GPU's stream; on a CPU a call returns when its results are there."""
    tf.test.experimental.sync_devices()


@op
def dense(x, w, b, *, activation=None):
    """``tf.matmul``, into which the graph optimizer fuses the bias and the rectifier."""
    y = tf.nn.bias_add(tf.matmul(x, w), b)
    return tf.nn.relu(y) if activation == "relu" else y


@op
def conv2d(x, w, b, *, stride=1, padding="valid", activation=None):
    """``tf.nn.conv2d``, into which the graph optimizer fuses the bias and the rectifier."""
    y = tf.nn.bias_add(tf.nn.conv2d(x, w, stride, padding.upper()), b)
    return tf.nn.relu(y) if activation == "relu" else y


@op
def lstm(x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid"):
    """Every step in the graph, or a ``tf.while_loop``."""
    options = {"return_sequences": return_sequences, "reverse": reverse, "recurrent_activation": recurrent_activation}
    return _tensorflow_lstm.lstm(x, w_x, w_h, b, **options)


@op
def bilstm(
    x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse, *, return_sequences=False, recurrent_activation="sigmoid"
):
    """Two LSTMs, which the graph's executor runs side by side."""
    weights = w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse
    options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
    return _tensorflow_lstm.bilstm(x, *weights, **options)


@op
def embedding_average(ids, table, *, padding_id=None):
    """``tf.sparse.segment_mean``, which gives 0 to a sample without any id."""
    batch, steps = ids.shape
    if padding_id is None:
        return tf.sparse.segment_mean(table, tf.reshape(ids, (-1,)), tf.repeat(tf.range(batch), steps))
    kept = tf.where(ids != padding_id)
    # One more sample, of which nothing is kept: without any ids at all the kernel leaves the gradient uninitialised.
    ids = tf.concat([tf.gather_nd(ids, kept), [padding_id]], axis=0)
    samples = tf.concat([kept[:, 0], [batch]], axis=0)
    return tf.sparse.segment_mean(table, ids, samples, num_segments=batch + 1)[:batch]


def gathered_average(ids, table, *, padding_id=None):
    return average(tf.gather(table, ids), ids, padding_id)


def average(rows, ids, padding_id):
    """Average the rows (N, T, D) of each sample but those of padding."""
    if padding_id is None:
        return tf.reduce_mean(rows, axis=1)
    kept = tf.cast(ids != padding_id, rows.dtype)[:, :, None]
    return tf.reduce_sum(rows * kept, axis=1) / tf.maximum(tf.reduce_sum(kept, axis=1), 1)


@op
def embedding(ids, table):
    return tf.gather(table, ids)


@op
def max_pool2d(x, *, pool=2):
    return tf.nn.max_pool2d(x, pool, pool, "VALID")


@op
def relu(x):
    return tf.nn.relu(x)


@op
def dropout(x, *, rate=0.0):
    """``tf.nn.dropout``, from TensorFlow's global generator."""
    return tf.nn.dropout(x, rate)


@op
def batch_norm(x, gamma, beta, mean, variance, *, training=False):
    if training:
        mean, variance = tf.nn.moments(x, axes=[0])
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)


@op
def concat(x, y):
    return tf.concat([x, y], axis=-1)


@op
def flatten(x):
    return tf.reshape(x, (x.shape[0], -1))


@op
def softmax_cross_entropy(logits, labels):
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


@op
def sigmoid_cross_entropy(logits, labels):
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(labels, logits.dtype), logits))


_XLA = {
    "lstm": functools.partial(_tensorflow_lstm.lstm, loop=True),
    "bilstm": functools.partial(_tensorflow_lstm.bilstm, loop=True),
    "embedding_average": gathered_average,
}


def ops(mode, **replaced):
    """Return the op functions of a mode, as models and programs call them."""
    return bare_ops(_module, **((_XLA if mode == "xla" else {}) | replaced))


def _concrete(function, mode):
    """Return a search for the concrete function of ``function`` for given arguments, the last one found at hand."""
    traced = tf.function(function, autograph=False, jit_compile=mode == "xla")
    found = shapes = None

    def find(arrays, *args):
        nonlocal found, shapes
        if shapes != [a.shape for a in arrays]:  # a concrete function would take them all the same
            shapes = [a.shape for a in arrays]
            found = traced.get_concrete_function(*args)
        return found

    return find


def built(function, mode):
    """Return a function as a program."""
    concrete = _concrete(function, mode)
    return lambda *args: concrete(args, *args)(*args)


@program
def forward(op, options, mode):
    function = getattr(ops(mode), op)
    # Not a partial, whose concrete function cannot bind its arguments and composes a message on each call.
    return built(lambda *args: function(*args, **options), mode)


@program
def forward_backward(op, options, mode, first=True):
    function = getattr(ops(mode), op)

    def value_and_gradients(args, dy):
        floats = [a for k, a in enumerate(args) if a.dtype.is_floating and (first or k)]
        with tf.GradientTape() as tape:
            tape.watch(floats)
            y = function(*args, **options)
        return y, gradients(tape, y, floats, dy)

    concrete = _concrete(value_and_gradients, mode)
    return lambda args, dy: concrete(args, list(args), dy)(list(args), dy)


def gradients(tape, y, sources, dy=None):
    """Return dense gradients, zero for a source that ``y`` does not depend on."""
    found = tape.gradient(y, sources, dy, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return [tf.convert_to_tensor(g) for g in found]  # tf.gather gives an IndexedSlices


def trainer(model, params, optimizer, mode, seed=0):
    check_choice("mode", mode, MODES)
    return _tensorflow_trainer.Trainer(_module, model, params, optimizer, mode, seed)


def implementation(case, mode=MODES[0]):
    if case.is_model and dict(case.options).get("table_gradient") == "rows":
        return f"gather and scatter of the rows in use around {'an XLA program' if mode == 'xla' else 'one graph'}"
    if mode == "xla":
        return {"lstm": "XLA while loop", "bilstm": "two XLA while loops"}.get(case.op, "XLA")
    if case.is_model:
        return "one graph a step"
    if case.op in ("lstm", "bilstm"):
        sizes = (dict(case.dims)[axis] for axis in "NTH")
        return f"graph of {dict(case.dims)['T']} steps" if _tensorflow_lstm.unrolled(*sizes) else "while loop"
    library = "oneDNN" if _onednn() and case.dtype != "float64" else "Eigen"
    library = "TensorFlow's" if case.dtype in HALVES else library  # oneDNN takes them on some CPUs
    library = library if _settings["device"] == "cpu" else "CUDA"
    kernels = {"dense": f"{library} matmul", "conv2d": f"{library} convolution", "max_pool2d": f"{library} max pooling"}
    kernels |= {"embedding": "gather kernel", "embedding_average": "SparseSegmentMean kernel"}
    return kernels.get(case.op, "TensorFlow kernels")


def _onednn():
    """Return whether TensorFlow uses oneDNN on a CPU, which it does on x86 unless told otherwise."""
    default = platform.machine() in ("x86_64", "AMD64") and sys.platform != "darwin"
    return os.environ.get("TF_ENABLE_ONEDNN_OPTS", str(default)).lower() in ("1", "true")


def describe():
    threads = tf.config.threading.get_intra_op_parallelism_threads() or int(os.environ.get("TF_NUM_INTRAOP_THREADS", 0))
    versions = {"tensorflow": tf.__version__, "numpy": np.__version__}
    libraries = {"oneDNN": "on" if _onednn() else "off"}
    return {**_settings, "threads": threads or None, "versions": versions, "libraries": libraries}


setup()
