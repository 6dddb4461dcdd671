"""What is special about the TensorFlow backend. Run it with that target's interpreter, ``.shim/env/tensorflow``."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from shim import cases, contract, parity

pytest.importorskip("tensorflow", reason="this interpreter has no TensorFlow; .shim/env/tensorflow/bin/python has")

import tensorflow as tf

from shim.backends import _tensorflow_lstm
from shim.backends import tensorflow as backend
from shim.measure import clock

LSTM = {"N": 3, "T": 7, "I": 5, "H": 4}


def _run(case, mode="graph"):
    args, dy = case.arrays()
    run = backend.forward_backward(case.op, dict(case.options), mode)
    return run([backend.to_device(a) for a in args], backend.to_device(dy))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("limit", ["UNROLL", "CACHED"])
def test_an_lstm_too_long_or_too_large_to_unroll_is_a_loop(monkeypatch, limit, return_sequences, reverse, dtype):
    case = cases.case("lstm", "forward_backward", LSTM, dtype, return_sequences=return_sequences, reverse=reverse)
    assert backend.implementation(case) == "graph of 7 steps"
    monkeypatch.setattr(_tensorflow_lstm, limit, 6)
    assert backend.implementation(case) == "while loop"
    parity.verify(backend, case, "graph")


@pytest.mark.parametrize("mode", backend.MODES)
@pytest.mark.parametrize("op", ["lstm", "bilstm"])
def test_a_loop_that_multiplies_its_inputs_itself_meets_the_contract(monkeypatch, op, mode):
    monkeypatch.setattr(_tensorflow_lstm, "CACHED", 6)
    parity.verify(backend, cases.case(op, "forward_backward", LSTM), mode)


@pytest.mark.parametrize(
    ("limits", "kernels", "products"),
    [
        ({"UNROLL": 7}, set(), 1),
        ({"UNROLL": 6}, {"StatelessWhile"}, 1),
        ({"CACHED": 3 * 7 * 4 * 4}, set(), 1),
        ({"CACHED": 3 * 7 * 4 * 4 - 1}, {"StatelessWhile"}, 0),
    ],
)
def test_the_lstm_in_the_graph_is_the_one_named(monkeypatch, limits, kernels, products):
    for name, limit in limits.items():
        monkeypatch.setattr(_tensorflow_lstm, name, limit)
    args, _ = cases.case("lstm", "forward", LSTM).arrays()
    with tf.Graph().as_default() as graph:
        backend.lstm.bare(*(tf.constant(a) for a in args))
    nodes = [node.type for node in graph.get_operations()]
    assert set(nodes) & {"StatelessWhile", "While", "BlockLSTMV2"} == kernels
    assert nodes.count("MatMul") == products  # the others are in the functions of the steps


def test_the_gradient_of_block_lstm_is_still_wrong():
    """If this fails, TensorFlow has mended it, and ``_tensorflow_lstm.py`` should say so."""
    (x, w_x, w_h, b), dy = cases.case("lstm", "forward_backward", LSTM, return_sequences=True).arrays()
    zero, peephole, w = np.zeros((3, 4), "float32"), np.zeros(4, "float32"), tf.constant(np.concatenate([w_x, w_h]))
    with tf.GradientTape() as tape:
        tape.watch(w)
        peepholes = {"wci": peephole, "wcf": peephole, "wco": peephole, "use_peephole": False}
        sequence = {"seq_len_max": tf.constant(7, tf.int64), "x": tf.transpose(x, (1, 0, 2))}
        state = {"cs_prev": zero, "h_prev": zero, "cell_clip": 0.0}
        h = tf.raw_ops.BlockLSTMV2(**sequence, **state, **peepholes, w=w, b=b).h
    reference = contract.OPS["lstm"].reference
    y = reference(x, w_x, w_h, b, return_sequences=True)
    np.testing.assert_allclose(h.numpy().transpose(1, 0, 2), y, atol=1e-5)
    wide = [a.astype("float64") for a in (x, w_x, w_h, b)]
    _, w_x_gradient, _, _ = contract.reference_vjp(lambda *a: reference(*a, return_sequences=True), wide, dy)
    assert np.abs(tape.gradient(h, w, dy.transpose(1, 0, 2)).numpy()[:5] - w_x_gradient).max() > 0.1


@pytest.mark.parametrize("mode", backend.MODES)
@pytest.mark.parametrize("op", ["embedding", "embedding_average"])
def test_the_gradient_of_a_table_is_dense(op, mode):
    case = cases.case(op, "forward_backward", {"N": 3, "T": 5, "V": 1000, "D": 7})
    _, (gradient,) = _run(case, mode)
    assert isinstance(gradient, tf.Tensor)
    ids = case.arrays()[0][0]
    assert set(np.flatnonzero(np.any(gradient.numpy(), axis=1))) == set(np.unique(ids))


@pytest.mark.parametrize("mode", backend.MODES)
def test_a_batch_of_nothing_but_padding_averages_to_zero(mode):
    ids, table = tf.zeros((3, 5), tf.int32), tf.ones((7, 2))
    y, (gradient,) = backend.forward_backward("embedding_average", {"padding_id": 0}, mode)(
        [ids, table], tf.ones((3, 2))
    )
    assert not y.numpy().any()
    assert not gradient.numpy().any()


@pytest.mark.parametrize("mode", backend.MODES)
def test_a_program_is_traced_once_for_each_shape(monkeypatch, mode):
    traced = []

    def relu(x):
        traced.append(tuple(x.shape))
        return tf.nn.relu(x)

    monkeypatch.setattr(backend.relu, "bare", relu)
    run = backend.forward("relu", {}, mode)
    for length in (3, 3, 5, 5):
        np.testing.assert_array_equal(run(tf.ones((2, length))).numpy(), np.ones((2, length)))
    assert traced == [(2, 3), (2, 5)]


@pytest.fixture
def written(monkeypatch):
    """What is written into messages: a concrete function that cannot bind its arguments first does that, in 2 ms."""
    found = []
    monkeypatch.setattr(type(tf.ones(())), "__repr__", lambda tensor: found.append(tensor) or "")
    return found


@pytest.mark.parametrize("mode", backend.MODES)
def test_a_program_binds_its_arguments_at_once(mode, written):
    (x, w, b), dy = cases.case("dense", "forward_backward", parity.SMALL["dense"]).arrays()
    x, w, b, dy = (backend.to_device(a) for a in (x, w, b, dy))
    forward = backend.forward("dense", {"activation": "relu"}, mode)
    both = backend.forward_backward("dense", {"activation": "relu"}, mode)
    forward(x, w, b), both([x, w, b], dy)
    written.clear()
    forward.bare(x, w, b), both.bare([x, w, b], dy), both.bare((x, w, b), dy)
    assert not written


@pytest.mark.parametrize("mode", backend.MODES)
@pytest.mark.parametrize(
    ("model", "direction"),
    [
        *(("mnist_mlp", direction) for direction in ("train_step", "predict", "gradients", "optimizer_step")),
        ("imdb_fasttext-ngrams=1-optimizer=sgd-table_gradient=rows", "train_step"),
    ],
)
def test_a_trainer_binds_its_arguments_at_once(model, direction, mode, written):
    name, *options = model.split("-")
    case = cases.parse("/".join([name, direction, "-".join(["N3", *options]), "float32"]))
    prepared = clock.prepare(backend, case, mode)
    prepared.synchronize(prepared.call())
    written.clear()
    prepared.synchronize(prepared.call())
    assert not written


def _kernels(case):
    """Return the names of the kernels that TensorFlow's executor runs for a case."""
    function, args = getattr(backend, case.op).bare, case.arrays()[0]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        inputs = [tf.compat.v1.placeholder(a.dtype, a.shape) for a in args]
        y = function(*inputs, **dict(case.options))
        options = tf.compat.v1.RunOptions(trace_level=tf.compat.v1.RunOptions.FULL_TRACE)
        metadata = tf.compat.v1.RunMetadata()
        session.run(y, dict(zip(inputs, args, strict=True)), options=options, run_metadata=metadata)
    return " ".join(node.timeline_label for device in metadata.step_stats.dev_stats for node in device.node_stats)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", ["dense", "conv2d", "max_pool2d"])
def test_the_library_named_is_the_one_that_runs(op, dtype):
    activation = {} if op == "max_pool2d" else {"activation": "relu"}
    case = cases.case(op, "forward", parity.SMALL[op], dtype, **activation)
    kernels = _kernels(case)
    assert ("_Mkl" in kernels) == backend.implementation(case).startswith("oneDNN"), kernels
    assert not activation or dtype == "float64" or "Fused" in kernels


def test_zero_gradient_for_arguments_without_influence():
    case = cases.case("batch_norm", "forward_backward", {"N": 5, "C": 3}, training=True)
    _, (*_, mean, variance) = _run(case)
    assert not mean.numpy().any()
    assert not variance.numpy().any()


def test_settings_are_refused_once_tensorflow_runs():
    backend.to_device(np.ones(3))
    with pytest.raises(ValueError, match=r"call setup\(\) before any array, in a new process"):
        backend.setup(threads=77)
    assert backend.describe()["threads"] != 77


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"precision": "tf32"}, "unknown precision 'tf32'; choose from: float32"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        backend.setup(**settings)


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="there is a GPU")
def test_a_missing_gpu_is_an_error():
    with pytest.raises(ValueError, match="TensorFlow sees no GPU here"):
        backend.setup("cuda")


def test_threads_and_log_level_are_set_in_a_new_process():
    script = (
        "import os, shim; b = shim.load('tensorflow'); b.setup(threads=1); b.setup(threads=1); "
        "print(b.describe()['threads'], os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2"]
