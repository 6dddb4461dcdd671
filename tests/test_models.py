"""The models' descriptions: layers, weights, batches, and the optimizers' formulas."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest

from shim import cases, contract, models
from shim.models import initializers, optimizers

NAMES = ("imdb_bidirectional_lstm", "mnist_mlp")
PARAMETERS = {"imdb_bidirectional_lstm": 2_658_945, "mnist_mlp": 669_706}
OPTIMIZERS = (optimizers.sgd(), optimizers.rmsprop(), optimizers.adam(), optimizers.adadelta())


def test_the_models_are_listed():
    assert models.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_apply_calls_the_layers_of_the_article(name):
    calls = models.record(models.load(name))
    layers = [(c.op, dict(c.dims), dict(c.options)) for c in calls if c.op in contract.MEASURED]
    assert layers == list(cases.ARTICLE[name])
    assert calls[-1].op == models.load(name).loss


@pytest.mark.parametrize("name", NAMES)
def test_recorded_work_is_that_of_the_article(name):
    flops_per_sample = {"imdb_bidirectional_lstm": 19_661_056, "mnist_mlp": 1_337_344}[name]
    model = models.load(name)
    layers = [c for c in models.record(model, "forward") if c.op in contract.MEASURED]
    assert sum(c.work().flops for c in layers) == flops_per_sample * model.batch_size


def test_dropout_is_recorded_with_its_rate_and_can_be_switched_off():
    def rates(model):
        return [dict(c.options)["rate"] for c in models.record(model) if c.op == "dropout"]

    assert rates(models.load("mnist_mlp")) == [0.2, 0.2]
    assert rates(models.load("imdb_bidirectional_lstm")) == [0.5]
    assert rates(models.load("mnist_mlp", dropout=False)) == []


def test_record_follows_the_size_of_the_batch():
    assert {dict(c.dims)["N"] for c in models.record(models.load("mnist_mlp"), size=5)} == {5}


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("imdb_bidirectional_lstm", ("adam", 0.001, "imdb", 32, 4)),
        ("mnist_mlp", ("rmsprop", 0.001, "mnist", 128, 20)),
    ],
)
def test_training_settings_are_those_of_the_article(name, facts):
    m = models.load(name)
    assert (m.optimizer.name, m.optimizer.learning_rate, m.data, m.batch_size, m.epochs) == facts
    assert m.dropout is True


def test_load_changes_fields_and_leaves_the_model_as_it_was():
    assert models.load("mnist_mlp", dropout=False, epochs=2).epochs == 2
    assert models.load("mnist_mlp").epochs == 20


def test_unknown_names_are_answered_with_the_choices():
    with pytest.raises(ValueError, match="unknown model 'mnist'; the models are: imdb_bidirectional_lstm, mnist_mlp"):
        models.load("mnist")
    with pytest.raises(ValueError, match=r"a model has no 'epoch'; it has: name, .*epochs"):
        models.load("mnist_mlp", epoch=3)


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_come_from_the_seed_alone(name):
    model = models.load(name)
    first, again, other = model.initial(3), model.initial(3), model.initial(4)
    assert sum(v.size for v in first.values()) == PARAMETERS[name]
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


@pytest.mark.parametrize("name", NAMES)
def test_untrained_models_know_nothing_about_the_labels(name):
    ops = SimpleNamespace(**{op: entry.reference for op, entry in contract.OPS.items()})
    ops.dropout = lambda x, *, rate: x
    model = models.load(name)
    x, labels = model.batch(0, "float64", size=5)
    logits = model.apply(ops, model.initial(0, "float64"), x)
    chance = {"mnist_mlp": math.log(10), "imdb_bidirectional_lstm": math.log(2)}[name]
    assert logits.shape == {"mnist_mlp": (5, 10), "imdb_bidirectional_lstm": (5,)}[name]
    assert getattr(ops, model.loss)(logits, labels) == pytest.approx(chance, rel=0.4)


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
