"""The models' descriptions: layers, weights, batches, and the optimizers' formulas."""

import dataclasses
import functools
import importlib
import math
from types import SimpleNamespace

import numpy as np
import pytest

import shim
from shim import cases, contract, models, parity
from shim.measure import clock
from shim.models import initializers, optimizers

#: model -> parameters, forward FLOPs a sample, then optimizer, learning rate, decay, data set, batch size, epochs
FACTS = {
    "cifar10_cnn": (1_250_858, 41_482_240, ("rmsprop", 1e-4, 1e-6, "cifar10", 32, 20)),
    "imdb_bidirectional_lstm": (2_658_945, 19_661_056, ("adam", 0.001, 0.0, "imdb", 32, 4)),
    "imdb_fasttext": (60_271_001, 20_100, ("adam", 0.001, 0.0, "imdb", 32, 5)),
    "lstm_text_generation": (102_585, 7_592_192, ("rmsprop", 0.01, 0.0, "nietzsche", 128, 10)),
    "mnist_cnn": (1_199_882, 23_984_896, ("adadelta", 1.0, 0.0, "mnist", 128, 12)),
    "mnist_mlp": (669_706, 1_337_344, ("rmsprop", 0.001, 0.0, "mnist", 128, 20)),
    "text_generator": (456_894, 17_967_872, ("adam", 0.001, 1e-4, "nietzsche", 128, 10)),
}
NAMES = tuple(FACTS)
#: What has the layers of each model but is small enough for tests with weights.
SMALL = tuple("imdb_fasttext-ngrams=1" if name == "imdb_fasttext" else name for name in NAMES)
CLASSES = {"imdb_bidirectional_lstm": 2, "imdb_fasttext": 2, "lstm_text_generation": 57, "text_generator": 57}
DROPOUT = {
    "cifar10_cnn": [0.25, 0.25, 0.5],
    "imdb_bidirectional_lstm": [0.5],
    "mnist_cnn": [0.25, 0.5],
    "mnist_mlp": [0.2, 0.2],
}
WITH_LSTM = ("imdb_bidirectional_lstm", "lstm_text_generation", "text_generator")
OPTIMIZERS = (optimizers.sgd(), optimizers.rmsprop(), optimizers.adam(), optimizers.adadelta())


def test_the_models_are_listed():
    assert models.names() == NAMES


def _layers(model, direction="forward_backward"):
    return [c for c in models.record(model, direction) if c.op in contract.MEASURED]


@pytest.mark.parametrize("name", NAMES)
def test_apply_calls_the_layers_of_the_article(name):
    variants = [models.load(name), *([models.load(name, ngrams=1)] if name == "imdb_fasttext" else [])]
    layers = [(c.op, dict(c.dims), dict(c.options)) for model in variants for c in _layers(model)]
    unique = [layer for k, layer in enumerate(layers) if layer not in layers[:k]]
    assert sorted(unique, key=str) == sorted(cases.ARTICLE[name], key=str)


@pytest.mark.parametrize("name", NAMES)
def test_the_losses_come_last_and_each_head_has_one(name):
    loss = models.load(name).loss
    heads = [loss] if isinstance(loss, str) else [kind for kind, _ in loss]
    assert [c.op for c in models.record(models.load(name))][-len(heads) :] == heads


@pytest.mark.parametrize("name", NAMES)
def test_recorded_work_is_that_of_the_article(name):
    model = models.load(name)
    layers = [c for c in _layers(model, "forward") if c.op != "max_pool2d"]  # only products and sums are counted there
    assert sum(c.work().flops for c in layers) == FACTS[name][1] * model.batch_size


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_recorded_with_its_rate_and_can_be_switched_off(name):
    def rates(model):
        return [dict(c.options)["rate"] for c in models.record(model) if c.op == "dropout"]

    assert rates(models.load(name)) == DROPOUT.get(name, [])
    assert rates(models.load(name, dropout=False)) == []


def test_batch_norm_is_recorded_as_it_runs():
    def options(direction):
        calls = models.record(models.load("text_generator"), direction)
        return [dict(c.options) for c in calls if c.op == "batch_norm"]

    assert options("forward_backward") == [{"training": True}] * 2
    assert options("forward") == [{}] * 2


def test_record_follows_the_size_of_the_batch():
    assert {dict(c.dims)["N"] for c in models.record(models.load("mnist_mlp"), size=5)} == {5}


@pytest.mark.parametrize("name", NAMES)
def test_training_settings_are_those_of_the_article(name):
    m = models.load(name)
    o = m.optimizer
    assert (o.name, o.learning_rate, o.decay, m.data, m.batch_size, m.epochs) == FACTS[name][2]
    assert m.dropout is True


def test_the_second_head_counts_a_fifth():
    assert models.load("text_generator").loss == (("softmax_cross_entropy", 1.0), ("softmax_cross_entropy", 0.2))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("imdb_fasttext", "ngrams", 1),
        ("imdb_fasttext", "pairs", 100_000),
        ("imdb_fasttext", "optimizer", "sgd"),
        ("lstm_text_generation", "inputs", "ids"),
        *((name, "recurrent_activation", "hard_sigmoid") for name in WITH_LSTM),
    ],
)
def test_variants_are_written_as_in_case_ids(name, option, value):
    model = models.load(f"{name}-{option}={value}")
    assert model.label == f"{name}-{option}={value}"
    assert models.load(name, **{option: value}).label == model.label
    assert models.load(name).label == name
    default = importlib.import_module(f"shim.models.{name}").OPTIONS[option][0]
    assert models.load(f"{name}-{option}={default}").label == name
    case = cases.parse(f"{name}/train_step/N5-{option}={value}/float32")
    assert case.id == f"{name}/train_step/N5-{option}={value}/float32"
    (step,) = cases.case_set("models", [model.label])
    assert cases.parse(step.id) == step == dataclasses.replace(case, dims=(("N", model.batch_size),))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imdb_fasttext-ngrams=3", "imdb_fasttext: ngrams=3 is not one of 2, 1"),
        (
            "imdb_fasttext-grams=1",
            "imdb_fasttext has no 'grams'; it has: ngrams, pairs, optimizer, table_gradient, name, ",
        ),
        ("imdb_fasttext-table_gradient=rows", "write imdb_fasttext-optimizer=sgd-table_gradient=rows"),
        ("mnist_mlp-", "mnist_mlp has no ''; it has: name, "),
    ],
)
def test_unknown_variants_are_answered_with_the_choices(name, message):
    with pytest.raises(ValueError, match=message):
        models.load(name)


@pytest.mark.parametrize("name", WITH_LSTM)
def test_the_lstm_of_2017_has_hard_sigmoids(name):
    def gates(name):
        calls = models.record(models.load(name))
        return [dict(c.options).get("recurrent_activation") for c in calls if c.op in ("lstm", "bilstm")]

    assert gates(name) == [None]
    assert gates(name + "-recurrent_activation=hard_sigmoid") == ["hard_sigmoid"]


@pytest.mark.parametrize("name", ["imdb_bidirectional_lstm", "imdb_fasttext", "text_generator"])
def test_steps_may_be_on_the_rows_in_use(name):
    model = models.load(name, optimizer="sgd", table_gradient="rows")
    assert model.label == f"{name}-optimizer=sgd-table_gradient=rows"
    assert (model.optimizer.name, models.with_rows(model, model.optimizer)) == ("sgd", True)
    assert models.tables_by_rows(model, model.initial(), model.optimizer) == ["embedding"]
    assert not models.with_rows(models.load(name), model.optimizer)


@pytest.mark.parametrize(
    ("name", "tables"),
    [
        ("mnist_mlp", []),
        ("lstm_text_generation-inputs=ids", []),  # its table is not trained
        ("text_generator", []),  # 57 rows, of which a batch looks 5,120 up
        ("imdb_bidirectional_lstm", ["embedding"]),
    ],
)
def test_large_tables_are_differentiated_by_rows(name, tables):
    model = models.load(name)
    assert models.tables_by_rows(model, model.initial(), model.optimizer) == tables


def test_ids_and_one_hot_vectors_are_the_same_model():
    onehot, ids = models.load("lstm_text_generation"), models.load("lstm_text_generation-inputs=ids")
    x, _ = ids.batch(0, "float64", 3)
    ops = _contract_ops()
    logits = ids.apply(ops, ids.initial(0, "float64"), x)
    np.testing.assert_array_equal(logits, onehot.apply(ops, onehot.initial(0, "float64"), onehot.prepare(x)))
    assert onehot.prepare(x).shape == onehot.batch(0, size=3)[0].shape
    assert models.trained(ids, ids.initial()) == models.trained(onehot, onehot.initial())


def test_layers_without_bias_and_moving_moments_are_not_trained():
    model = models.load("text_generator")
    params = model.initial()
    others = set(params) - set(models.trained(model, params))
    kinds = ("b", "mean", "variance")
    assert others == {f"hidden_{k}_{kind}" for k in (1, 2) for kind in kinds}
    assert all((params[name] == (1 if name.endswith("variance") else 0)).all() for name in others)


def test_load_changes_fields_and_leaves_the_model_as_it_was():
    assert models.load("mnist_mlp", dropout=False, epochs=2).epochs == 2
    assert models.load("mnist_mlp").epochs == 20


def test_unknown_names_are_answered_with_the_choices():
    with pytest.raises(ValueError, match="unknown model 'mnist'; the models are: cifar10_cnn, imdb_bidirectional_lstm"):
        models.load("mnist")
    with pytest.raises(ValueError, match=r"mnist_mlp has no 'epoch'; it has: name, .*epochs"):
        models.load("mnist_mlp", epoch=3)


@pytest.mark.parametrize("name", NAMES)
def test_models_have_as_many_parameters_as_in_the_article(name):
    model = models.load(name)
    params = model.initial()
    assert sum(params[k].size for k in models.trained(model, params)) == FACTS[name][0]


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights_come_from_the_seed_alone(name):
    model = models.load(name)
    first, again, other = model.initial(3), model.initial(3), model.initial(4)
    assert all(v.dtype == np.float32 for v in first.values())
    assert all(np.array_equal(first[k], again[k]) for k in first)
    assert any(not np.array_equal(first[k], other[k]) for k in first)
    wide = model.initial(3, "float64")
    assert all(wide[k].dtype == np.float64 for k in wide)
    assert all(np.array_equal(wide[k].astype("float32"), first[k]) for k in first)


def test_initial_weights_are_drawn_as_keras_draws_them():
    params = models.load("imdb_bidirectional_lstm").initial(0, "float64")
    assert np.abs(params["embedding"]).max() == pytest.approx(0.05, rel=1e-3)
    for way in ("forward", "reverse"):
        limit = math.sqrt(6 / (128 + 256))
        assert np.abs(params[f"{way}_w_x"]).max() == pytest.approx(limit, rel=1e-3)
        assert params[f"{way}_w_x"].std() == pytest.approx(limit / math.sqrt(3), rel=0.01)
        assert np.allclose(params[f"{way}_w_h"] @ params[f"{way}_w_h"].T, np.eye(64), atol=1e-12)
        assert np.array_equal(params[f"{way}_b"], np.repeat([0.0, 1.0, 0.0, 0.0], 64))  # the forget gate is the second
    assert not np.array_equal(params["forward_w_x"], params["reverse_w_x"])
    assert np.array_equal(params["output_b"], [0.0])


def test_orthogonal_matrices_have_no_preferred_sign():
    rng = np.random.default_rng(0)
    corners = [initializers.orthogonal(rng, 3, 5)[0, 0] for _ in range(200)]
    assert 60 < sum(c > 0 for c in corners) < 140
    tall = initializers.orthogonal(rng, 5, 3)
    assert np.allclose(tall.T @ tall, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batches_look_like_the_data(dtype):
    x, labels = models.load("mnist_mlp").batch(0, dtype, size=7)
    assert (x.shape, x.dtype, labels.shape, labels.dtype) == ((7, 784), dtype, (7,), "int32")
    assert 0 <= x.min() <= x.max() <= 1
    ids, labels = models.load("imdb_bidirectional_lstm").batch(0, dtype, size=5)
    assert (ids.shape, ids.dtype, labels.dtype) == ((5, 100), "int32", "int32")
    assert 0 <= ids.min() <= ids.max() < 20000
    assert set(labels) <= {0, 1}
    assert len(np.unique(ids)) < ids.size  # words repeat
    assert models.load("mnist_mlp").batch(0)[0].shape == (128, 784)


def test_kernels_are_drawn_within_glorot_s_limit():
    kernel, bias = initializers.conv2d(np.random.default_rng(0), 3, 2, 5, 7)
    limit = math.sqrt(6 / (3 * 2 * 5 + 3 * 2 * 7))
    assert kernel.shape == (3, 2, 5, 7)
    assert 0.9 * limit < np.abs(kernel).max() <= limit
    assert np.array_equal(bias, np.zeros(7))


def _contract_ops(training=False):
    ops = SimpleNamespace(**{op: entry.reference for op, entry in contract.OPS.items()})
    ops.dropout = lambda x, *, rate: x
    ops.batch_norm = functools.partial(contract.OPS["batch_norm"].reference, training=training)
    return ops


@pytest.mark.parametrize("name", SMALL)
def test_untrained_models_know_nothing_about_the_labels(name):
    model = models.load(name)
    x, labels = model.batch(0, "float64", size=5)
    logits, losses = models.losses(model, _contract_ops(), model.initial(0, "float64"), x, labels)
    classes = CLASSES.get(model.name, 10)
    assert logits.shape == ((5,) if classes == 2 else (5, classes))
    for loss, weight in losses:
        assert 0 < weight <= 1
        assert loss == pytest.approx(math.log(classes), rel=0.4)


def test_the_weighted_sum_of_losses():
    assert models.weighted([(3.0, 1.0)]) == 3.0
    assert models.weighted([(3.0, 1.0), (5.0, 0.2)]) == 4.0


def test_models_prepare_what_their_data_hold():
    images = models.load("mnist_cnn").prepare(np.arange(2 * 784.0).reshape(2, 784))
    assert images.shape == (2, 28, 28, 1)
    assert images[1, 2, 3, 0] == 784 + 2 * 28 + 3
    one_hot = models.load("lstm_text_generation").prepare(np.array([[3, 0]], np.int32))
    assert one_hot.shape == (1, 2, 57)
    assert np.argwhere(one_hot).tolist() == [[0, 0, 3], [0, 1, 0]]


def _steps_in_plain_python(optimizer, p, gradients):
    """Keras 3's update rules for one number, written out."""
    lr, eps, a, u, m, v = optimizer.learning_rate, 1e-7, 0.0, 0.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        if optimizer.name == "sgd":
            p -= lr * g
        elif optimizer.name == "rmsprop":
            v += (g * g - v) * 0.1
            p -= lr * g / math.sqrt(v + eps)
        elif optimizer.name == "adam":
            m += (g - m) * (1 - 0.9)
            v += (g * g - v) * (1 - 0.999)
            p -= lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (math.sqrt(v) + eps)
        else:
            a += (g * g - a) * 0.05
            d = math.sqrt(u + eps) / math.sqrt(a + eps) * g
            u += (d * d - u) * 0.05
            p -= lr * d
    return p


def _steps(optimizer, p, gradients, kind=int):
    state = optimizers.init(optimizer, p)
    for step, g in enumerate(gradients):
        p, state = optimizers.update(optimizer, np, p, g, state, kind(step))
    return p, state


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_updates_follow_keras(optimizer):
    rng = np.random.default_rng(0)
    p, gradients = rng.standard_normal(7), 10.0 ** rng.integers(-6, 2, (5, 7)) * rng.standard_normal((5, 7))
    expected = [_steps_in_plain_python(optimizer, p[k], gradients[:, k]) for k in range(7)]
    assert _steps(optimizer, p, gradients)[0] == pytest.approx(expected, rel=1e-13, abs=0)


@pytest.mark.parametrize("kind", [int, np.int32, np.array], ids=["int", "int32", "array"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_updates_keep_the_dtype_and_leave_their_arguments_alone(optimizer, decay, kind):
    p, g = np.ones(3, np.float32), np.full((2, 3), 0.5, np.float32)
    moved, state = _steps(dataclasses.replace(optimizer, decay=decay), p, g, kind)
    assert moved.dtype == np.float32
    assert [s.dtype for s in state] == [np.float32] * optimizers.STATES[optimizer.name]
    assert np.array_equal(p, np.ones(3))
    assert np.all(moved < p)


def test_the_learning_rate_decays_by_the_inverse_of_time():
    optimizer = optimizers.rmsprop(learning_rate=0.5, decay=0.1)
    assert [optimizers.rate(optimizer, step) for step in (0, 10, 30)] == [0.5, 0.25, 0.125]
    p, _ = _steps(optimizers.sgd(1.0, decay=1.0), np.zeros(1), np.ones((3, 1)))
    assert p == pytest.approx([-(1 + 1 / 2 + 1 / 3)])


def test_defaults_are_those_of_keras_3():
    assert [o.learning_rate for o in OPTIMIZERS] == [0.01, 0.001, 0.001, 0.001]
    assert [o.epsilon for o in OPTIMIZERS] == [1e-7] * 4
    assert (optimizers.rmsprop().rho, optimizers.adadelta().rho) == (0.9, 0.95)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adamw", "learning_rate": 1.0}, "unknown optimizer 'adamw'; the optimizers are: sgd, rmsprop"),
        ({"name": "sgd", "learning_rate": 0.0}, "learning_rate must be positive"),
        ({"name": "sgd", "learning_rate": math.nan}, "learning_rate must be positive"),
        ({"name": "sgd", "learning_rate": 1.0, "decay": -1.0}, "decay must not be negative"),
        ({"name": "sgd", "learning_rate": 1.0, "momentum": 0.9}, "momentum is not supported"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        optimizers.Optimizer(**settings)


def test_a_prediction_is_a_case_of_its_own_and_a_wrong_one_is_found():
    case, backend = cases.parse("mnist_mlp/predict/N5/float32"), shim.load("numpy")
    assert (case.is_model, case.trains, str(case)) == (True, False, "mnist_mlp/predict/N5/float32")
    assert clock.prepare(backend, case, "eager").call().shape == (5, 10)
    assert 0 < parity.verify(backend, case, "eager")["worst"] < 1

    def wrong(*args, **options):
        trainer = backend.trainer(*args, **options)
        return SimpleNamespace(predict=lambda x: 1.001 * trainer.predict(x))

    with pytest.raises(parity.ParityError, match="the prediction differs from the contract"):
        parity.verify(SimpleNamespace(**vars(backend) | {"trainer": wrong}), case, "eager")
