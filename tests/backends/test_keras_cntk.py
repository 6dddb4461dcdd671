"""What is special about Keras 2.3.1 on CNTK. Run it with that target's interpreter, ``.shim/env/keras-cntk``."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shim import backends, cases, contract, models, parity, protocol
from shim.cntk import _edits, _slots

try:
    backend = backends.load("keras-cntk")
except backends.BackendUnavailable as error:
    pytest.skip(str(error), allow_module_level=True)

from shim.cntk import keras as loader

MODE = backend.MODES[0]
keras = loader.keras


def _case(op, dims=None, **options):
    return cases.case(op, "forward_backward", dims or parity.SMALL[op], "float32", **options)


def _on_device(*values):
    return [backend.to_device(value) for value in values]


# --------------------------------------------------------------------------------------------------------- loading


def _fresh(code, **variables):
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    return done.stdout


def test_nothing_of_the_home_or_of_variables_chooses_and_nothing_is_left(tmp_path):
    settings = tmp_path / ".keras" / "keras.json"
    settings.parent.mkdir()
    settings.write_text(json.dumps({"backend": "theano", "floatx": "float16", "image_data_format": "channels_first"}))
    code = "import shim; shim.load('keras-cntk'); import keras; K = keras.backend; "
    code += "print(K.backend(), K.floatx(), K.image_data_format(), keras.__version__)"
    said = _fresh(code, HOME=str(tmp_path), KERAS_BACKEND="tensorflow", KERAS_HOME=str(settings.parent))
    assert said == "cntk float32 channels_last 2.3.1\n"
    settings.unlink()
    settings.parent.rmdir()
    _fresh(code, HOME=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_it_does_not_take_a_keras_that_was_loaded_before():
    code = "import sys, types; sys.modules['keras'] = types.ModuleType('keras'); import shim\n"
    code += "try: shim.load('keras-cntk')\nexcept shim.BackendUnavailable as error: print(error)"
    assert "another Keras is loaded in this process" in _fresh(code)


def test_edits_are_those_of_the_files():
    folder = Path(keras.__file__).parents[1]
    for name, edits in loader.EDITS.items():
        path = folder.joinpath(*name.split(".")).with_suffix(".py")
        text = importlib.util.decode_source(path.read_bytes())
        result = _edits.edited(edits, text, str(path))
        ast.parse(result)
        assert text.count("\n") == result.count("\n")


def test_another_text_is_refused():
    with pytest.raises(_slots.UnexpectedContent, match=r"^f\.py is not the file of Keras 2\.3\.1: "):
        _edits.edited(loader.EDITS["keras.callbacks.callbacks"], "nothing\n", "f.py", "Keras 2.3.1")


# ------------------------------------------------------------------------------------------------------------- ops


@pytest.mark.parametrize("op", contract.OPS)
def test_a_second_call_with_other_values_is_right(op):
    case = _case(op)
    args, dy = case.arrays()
    run = backend.forward_backward(op)
    others = [a * 3 if a.dtype.kind == "f" else (a + 1) % (a.max() + 1) for a in args]
    run(_on_device(*others), backend.to_device((dy * 2).astype(dy.dtype)))
    parity.verify(backend, case, MODE, run=run)


@pytest.mark.parametrize("op", ["lstm", "embedding_average", "conv2d"])
def test_a_program_follows_its_batch_size(op):
    run, dims = backend.forward_backward(op), parity.SMALL[op]
    for size in (dims["N"], dims["N"] + 2) * 2:
        case = _case(op, dims | {"N": size})
        args, dy = case.arrays()
        run(_on_device(*args), backend.to_device(dy))
        parity.verify(backend, case, MODE, run=run)


def test_stacked_cells_return_the_output_of_the_last_one():
    """Keras itself returns the last of all states here, which is that of a cell."""
    cells = [keras.layers.LSTMCell(units, recurrent_activation="sigmoid") for units in (3, 5)]
    model = keras.Sequential([keras.layers.RNN(cells, input_shape=(7, 2))])
    x = np.random.default_rng(0).standard_normal((2, 7, 2)).astype(np.float32)
    weights = model.get_weights()
    lstm = contract.op("lstm").reference
    wanted = lstm(lstm(x, *weights[:3], return_sequences=True), *weights[3:])
    np.testing.assert_allclose(model.predict_on_batch(x), wanted, rtol=0, atol=1e-6)


def test_a_batch_of_nothing_but_padding_averages_to_zero():
    args = _on_device(np.zeros((3, 5), np.int32), np.ones((7, 2), np.float32))
    run = backend.forward_backward("embedding_average", {"padding_id": 0})
    y, (gradient,) = run(args, backend.to_device(np.ones((3, 2), np.float32)))
    assert not y.any()
    assert not gradient.any()


@pytest.mark.parametrize("value", [-90.0, 90.0])
def test_sigmoid_cross_entropy_of_large_logits_is_not_cut_off(value):
    args = _on_device(np.full(3, value, np.float32), np.array([0, 1, 0], np.int32))
    wanted = 30.0 if value < 0 else 60.0
    y, (gradient,) = backend.forward_backward("sigmoid_cross_entropy")(args, backend.to_device(np.float32(3)))
    assert float(y) == pytest.approx(wanted)
    np.testing.assert_allclose(gradient, [0, -1, 0] if value < 0 else [1, 0, 1], atol=1e-6)


def test_ids_are_looked_at_whenever_they_are_others():
    run = backend.forward("embedding")
    table = backend.to_device(np.ones((5, 2), np.float32))
    run(backend.to_device(np.array([[4, 0]], np.int32)), table)
    for wrong in (5, -1):
        with pytest.raises(ValueError, match=rf"ids: {wrong} is outside 0\.\.4"):
            run(backend.to_device(np.array([[4, wrong]], np.int32)), table)


def test_arrays_on_the_device_are_read_only():
    """A program keeps the weights of its last call and would not see them change."""
    with pytest.raises(ValueError, match="read-only"):
        backend.to_device(np.ones(3, np.float32))[0] = 2


def test_float64_is_refused():
    with pytest.raises(protocol.Unsupported, match="computes in float32 only, not in float64"):
        backend.to_device(np.ones(3))
    model = models.load("mnist_mlp")
    with pytest.raises(protocol.Unsupported, match="computes in float32 only, not in float64"):
        backend.trainer(model, model.initial(0, "float64"), model.optimizer, MODE)


# -------------------------------------------------------------------------------------------------------- training


def _trainer(name, **changed):
    model = models.load(name)
    return backend.trainer(model, model.initial() | changed, model.optimizer, MODE), model


def test_a_model_is_made_of_keras_own_layers():
    trainer, model = _trainer("text_generator")
    assert [type(layer).__name__.strip("_") for layer in trainer._model.layers] == [
        "InputLayer", "Embedding", "LSTM", "Dense", "BatchNormalization", "Activation",
        "Dense", "BatchNormalization", "Activation", "Dense", "Dense",
    ]  # fmt: skip
    assert trainer._model.count_params() == sum(
        value.size for name, value in model.initial().items() if name not in model.constants
    )


@pytest.mark.parametrize("wrong", [-1, 20000])
def test_ids_out_of_range_do_not_reach_cntk_in_training(wrong):
    trainer, model = _trainer("imdb_bidirectional_lstm")
    x, labels = model.batch(0, size=3)
    x[1, 2] = wrong
    for call in (trainer.step, trainer.evaluate):
        with pytest.raises(ValueError, match=rf"ids: {wrong} is outside 0\.\.19999"):
            call(*_on_device(x, labels))


@pytest.mark.parametrize(("name", "wrong"), [("mnist_mlp", 10), ("imdb_bidirectional_lstm", 2)])
def test_labels_out_of_range_are_refused(name, wrong):
    trainer, model = _trainer(name)
    x, labels = model.batch(0, size=3)
    labels[1] = wrong
    with pytest.raises(ValueError, match=rf"labels: {wrong} is outside 0\.\.{wrong - 1}"):
        trainer.step(*_on_device(x, labels))


def test_a_bias_that_is_not_trained_must_be_zero():
    with pytest.raises(protocol.Unsupported, match="only if it is 0"):
        _trainer("text_generator", hidden_1_b=np.ones(512, np.float32))


def test_weights_that_are_not_trained_stay():
    trainer, model = _trainer("lstm_text_generation-inputs=ids")
    trainer.step(*_on_device(*model.batch(0, size=3)))
    np.testing.assert_array_equal(trainer.params()["onehot"], model.initial()["onehot"])
    assert not np.array_equal(trainer.params()["lstm_w_x"], model.initial()["lstm_w_x"])
