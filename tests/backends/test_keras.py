"""What is special about Keras, on each of its engines. Run it in an environment such as ``.shim/env/keras-jax``."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import shim
from shim import backends, cases, models, parity, protocol
from tests import broken

if not os.environ.get("KERAS_BACKEND"):
    pytest.skip("these tests are for --backend keras-jax and the like", allow_module_level=True)

import keras

ENGINE = keras.config.backend()
NAMES = [name for name in shim.names() if name.startswith("keras-")]

trains = pytest.mark.skipif(ENGINE in ("numpy", "openvino"), reason=f"Keras on {ENGINE} computes forward only")
tensorflow = pytest.mark.skipif(ENGINE != "tensorflow", reason=f"this is Keras on {ENGINE}")


def test_the_module_is_named_after_its_engine(backend):
    assert backend.__name__ == f"shim.backends.keras_{ENGINE}"
    assert backend is shim.load(f"keras-{ENGINE}")
    assert keras.__version__ == backend.describe()["versions"]["keras"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != f"keras-{ENGINE}"])
def test_another_engine_is_refused_in_the_same_process(backend, name):
    wanted = name.removeprefix("keras-")
    with pytest.raises(
        shim.BackendUnavailable, match=rf"needs Keras on {wanted}, .* runs Keras on {ENGINE}; load it in"
    ):
        shim.load(name)
    assert os.environ["KERAS_BACKEND"] == ENGINE


def test_the_name_chooses_the_engine_whatever_the_environment_says():
    other = "numpy" if ENGINE != "numpy" else "jax"
    script = f"import shim; print(shim.load('keras-{ENGINE}').__name__)"
    environ = os.environ | {"KERAS_BACKEND": other}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"shim.backends.keras_{ENGINE}"]


LAYERS = {
    "dense": keras.layers.Dense,
    "conv2d": keras.layers.Conv2D,
    "lstm": keras.layers.LSTM,
    "bilstm": keras.layers.Bidirectional,
    "embedding_average": keras.layers.Embedding,
    "embedding": keras.layers.Embedding,
    "max_pool2d": keras.layers.MaxPooling2D,
    "batch_norm": keras.layers.BatchNormalization,
}


@pytest.mark.parametrize("op", LAYERS)
def test_an_op_is_the_layer_that_a_user_would_write(backend, monkeypatch, op):
    called = []
    call = LAYERS[op].call
    monkeypatch.setattr(LAYERS[op], "call", lambda self, *a, **o: called.append(self) or call(self, *a, **o))
    args, _ = cases.case(op, "forward", parity.SMALL[op]).arrays()
    getattr(backend, op)(*(backend.to_device(a) for a in args))
    assert [type(layer) for layer in called] == [LAYERS[op]]


@pytest.mark.skipif(ENGINE not in ("numpy", "openvino"), reason=f"Keras on {ENGINE} trains")
def test_engines_without_gradients_say_so(backend):
    model = models.load("mnist_mlp")
    with pytest.raises(protocol.Unsupported, match=f"Keras on {ENGINE} has no gradients; it computes forward only"):
        backend.forward_backward("dense")
    with pytest.raises(protocol.Unsupported, match=f"Keras on {ENGINE} does not train; it computes forward only"):
        backend.trainer(model, model.initial(), model.optimizer, "auto")


@trains
@pytest.mark.skipif(ENGINE == "tensorflow", reason="TensorFlow makes gradients by rows")
def test_engines_without_gradients_by_rows_say_so(backend):
    model = models.load("text_generator-optimizer=sgd-table_gradient=rows")
    with pytest.raises(protocol.Unsupported, match=f"Keras on {ENGINE} has dense gradients of tables only"):
        backend.trainer(model, model.initial(), model.optimizer, "auto")


@pytest.mark.skipif(ENGINE not in ("numpy", "openvino"), reason="arrays of this engine are not NumPy's")
def test_arrays_are_read_only_because_weights_are_kept(backend):
    with pytest.raises(ValueError, match="read-only"):
        backend.to_device(np.ones(3, np.float32))[0] = 2


@trains
def test_gradients_follow_weights_put_into_the_same_list(backend):
    (x, w, b), dy = cases.case("dense", "forward_backward", parity.SMALL["dense"]).arrays()
    run, args = backend.forward_backward("dense"), [backend.to_device(a) for a in (x, w, b)]
    run(args, backend.to_device(dy))
    args[1] = backend.to_device(-w)
    y, (dx, _, _) = run(args, backend.to_device(dy))
    np.testing.assert_allclose(backend.to_numpy(y), b - x @ w, rtol=0, atol=1e-5)
    np.testing.assert_allclose(backend.to_numpy(dx), -dy @ w.T, rtol=0, atol=1e-5)


@trains
@pytest.mark.parametrize("fault", broken.FAULTS)
def test_a_fault_is_caught_by_the_conformance_cases(backend, fault):
    ops = broken.FAULTS[fault][0]
    chosen = [case for case in parity.conformance_cases(protocol.dtypes(backend)[:1]) if case.op in ops]
    assert set(broken.caught(fault, backend, chosen)) == ops


def test_two_shapes_in_turn(backend):
    run = backend.forward("relu")
    for length in (3, 5, 3):
        assert backend.to_numpy(run(backend.to_device(np.ones((2, length), np.float32)))).shape == (2, length)


@trains
def test_a_step_is_what_keras_does_with_a_batch(backend):
    """``train_on_batch`` and ``fit`` on the same model, weights and batches give the same losses."""
    model = models.load("mnist_mlp", dropout=False)
    batches = [model.batch(step, "float32", 7) for step in range(3)]
    stepping, by_batch, by_fit = (backend.trainer(model, model.initial(), model.optimizer, "auto") for _ in range(3))
    losses = [float(backend.to_numpy(stepping.step(*map(backend.to_device, batch)))) for batch in batches]
    assert len(set(losses)) == 3
    assert losses == pytest.approx([float(by_batch._model.train_on_batch(x, y)) for x, y in batches], rel=1e-5)
    fitted = [by_fit._model.fit(x, y, batch_size=7, verbose=0).history["batch_loss"][0] for x, y in batches]
    assert losses == pytest.approx(fitted, rel=1e-5)


@pytest.mark.skipif(ENGINE != "jax", reason=f"this is Keras on {ENGINE}")
def test_a_step_is_compiled_once(backend):
    """Arrays that are bound to a device and such that are not are arguments of two programs."""
    import jax

    model = models.load("mnist_mlp")
    compiled = []
    trainer = backend.trainer(model, model.initial(), model.optimizer, "auto")
    batch = [backend.to_device(a) for a in model.batch(0, "float32", 7)]
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    counts = []
    for _ in range(3):
        backend.synchronize(trainer.step(*batch))
        counts.append(sum(event.endswith("backend_compile_duration") for event in compiled))
    assert counts[0] >= 1
    assert counts[1:] == [counts[0]] * 2


@trains
def test_the_model_is_made_of_keras_layers_and_keras_optimizer(backend):
    model = models.load("imdb_bidirectional_lstm")
    trainer = backend.trainer(model, model.initial(), model.optimizer, "auto")
    kinds = [type(layer).__name__ for layer in trainer._model.layers]
    assert kinds == ["InputLayer", "Embedding", "Bidirectional", "Dropout", "Dense"]
    assert isinstance(trainer._model.optimizer, keras.optimizers.Adam)
    assert trainer._model.count_params() == sum(value.size for value in model.initial().values())


@tensorflow
def test_keras_still_squares_the_parts_of_a_row_that_repeats():
    """If this fails, Keras has mended it, and ``_DenseGradients`` can go."""
    import tensorflow as tf

    parts = tf.IndexedSlices(tf.ones((2, 1)), tf.constant([0, 0]), tf.constant([1, 1]))
    assert tf.convert_to_tensor(parts).numpy().item() == 2
    assert tf.convert_to_tensor(keras.ops.square(parts)).numpy().item() == 2  # and not 4


def test_variables_choose_engine_and_device():
    assert backends.variables("torch") == {}
    assert backends.variables("keras-torch") == {"KERAS_BACKEND": "torch", "KERAS_TORCH_DEVICE": "cpu"}
