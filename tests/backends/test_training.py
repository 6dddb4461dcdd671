"""Training on every backend and in every mode: trajectories, whole-model gradients, optimizers and evaluation.

All backends start from the same weights and see the same batches, so without dropout they must stay together. The
gradient of a whole model is also compared with the complex step over the contract, which no backend has a part in.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest

import shim
from shim import contract, models, parity
from shim.models import optimizers

pytestmark = [  # torch.compile warns about its own inner workings
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
SIZES = (7,) * 9 + (5,)  # the last batch of an epoch is smaller
NAMES = models.names()


def _batch(model, step, dtype, size):
    """Return values that float32 holds exactly, whatever the dtype."""
    x, labels = model.batch(step, "float32", size)
    return (x.astype(dtype) if x.dtype.kind == "f" else x), labels


def _params(model, dtype):
    return {name: value.astype(dtype) for name, value in model.initial(1, "float32").items()}


def _train(backend, model, mode, dtype, sizes=SIZES):
    trainer = backend.trainer(model, _params(model, dtype), model.optimizer, mode)
    losses = []
    for step, size in enumerate(sizes):
        x, labels = _batch(model, step, dtype, size)
        losses.append(trainer.step(backend.to_device(x), backend.to_device(labels)))
    return np.array([float(backend.to_numpy(loss)) for loss in losses]), trainer.params()


@functools.cache
def _reference(name):
    backend = shim.load("numpy")
    return _train(backend, models.load(name, dropout=False), backend.MODES[0], "float64")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_ten_steps_agree(backend, mode, name, dtype):
    losses, params = _train(backend, models.load(name, dropout=False), mode, dtype)
    wanted_losses, wanted = _reference(name)
    tolerance = parity.TRAINING[dtype]
    np.testing.assert_allclose(losses, wanted_losses, rtol=tolerance)
    assert {k: v.dtype for k, v in params.items()} == dict.fromkeys(wanted, np.dtype(dtype))
    norms = {k: np.linalg.norm(v.astype(np.float64)) for k, v in params.items()}
    assert norms == pytest.approx({k: np.linalg.norm(v) for k, v in wanted.items()}, rel=tolerance)
    if dtype == "float64":
        for k, value in params.items():
            np.testing.assert_allclose(value, wanted[k], rtol=0, atol=tolerance * np.abs(wanted[k]).max(), err_msg=k)


def _contract_loss(model, params, x, labels):
    ops = SimpleNamespace(**{name: entry.reference for name, entry in contract.OPS.items()})
    ops.dropout = lambda x, *, rate: x
    logits = model.apply(ops, params, x)
    return logits, getattr(ops, model.loss)(logits, labels)


def _gradient(backend, mode, model, params, x, labels):
    """Return the gradient of each weight as one step of plain descent shows it."""
    trainer = backend.trainer(model, params, optimizers.sgd(learning_rate=1.0), mode)
    trainer.step(backend.to_device(x), backend.to_device(labels))
    return {name: params[name] - value for name, value in trainer.params().items()}


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_whole_model_are_those_of_the_contract(backend, mode, name):
    model = models.load(name, dropout=False)
    params, (x, labels) = _params(model, "float64"), _batch(model, 0, "float64", 3)
    gradient = _gradient(backend, mode, model, params, x, labels)
    directions = {k: np.random.default_rng(n).standard_normal(v.shape) for n, (k, v) in enumerate(params.items())}
    moved = {k: v + 1e-30j * directions[k] for k, v in params.items()}
    wanted = _contract_loss(model, moved, x, labels)[1].imag / 1e-30
    product = sum((value * directions[k]).sum() for k, value in gradient.items())
    size = sum(np.linalg.norm(value) for value in gradient.values())
    rounding = np.finfo(float).eps * sum(np.linalg.norm(v) for v in params.values())  # gradients are differences here
    assert abs(product - wanted) <= 1e-10 * size + 10 * rounding


@pytest.mark.parametrize("name", sorted(optimizers.STATES))
def test_optimizers_follow_their_formulas(backend, mode, name):
    model = models.load("mnist_mlp", dropout=False)
    optimizer = getattr(optimizers, name)(learning_rate=0.01, decay=0.5)
    params = _params(model, "float64")
    trainer = backend.trainer(model, params, optimizer, mode)
    states = {k: optimizers.init(optimizer, v) for k, v in params.items()}
    for step in range(2):
        x, labels = _batch(model, step, "float64", 3)
        trainer.step(backend.to_device(x), backend.to_device(labels))
        for k, g in _gradient(backend, mode, model, params, x, labels).items():
            params[k], states[k] = optimizers.update(optimizer, np, params[k], g, states[k], step)
    for k, value in trainer.params().items():
        np.testing.assert_allclose(value, params[k], rtol=0, atol=1e-9, err_msg=k)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_leaves_dropout_out(backend, mode, name):
    model = models.load(name)
    params, (x, labels) = _params(model, "float64"), _batch(model, 0, "float64", 7)
    trainer = backend.trainer(model, params, model.optimizer, mode)
    loss, right = trainer.evaluate(backend.to_device(x), backend.to_device(labels))
    logits, wanted = _contract_loss(model, params, x, labels)
    predicted = logits.argmax(axis=-1) if logits.ndim == 2 else logits > 0
    assert float(backend.to_numpy(loss)) == pytest.approx(float(wanted), rel=1e-9)
    assert int(backend.to_numpy(right)) == (predicted == labels).sum()


@pytest.mark.parametrize("name", NAMES)
def test_dropout_comes_from_the_seed(backend, mode, name):
    def losses(seed, **changes):
        model = models.load(name, **changes)
        trainer = backend.trainer(model, _params(model, "float32"), model.optimizer, mode, seed=seed)
        batch = [backend.to_device(v) for v in _batch(model, 0, "float32", 7)]
        return [float(backend.to_numpy(trainer.step(*batch))) for _ in range(3)]

    first = losses(1)
    assert first == pytest.approx(losses(1), rel=1e-5)
    assert abs(first[0] - losses(2)[0]) > 1e-4
    assert abs(first[0] - losses(1, dropout=False)[0]) > 1e-4


def test_dropout_draws_anew_at_each_step(backend, mode):
    model = models.load("mnist_mlp")
    trainer = backend.trainer(model, _params(model, "float64"), optimizers.sgd(learning_rate=1e-12), mode)
    batch = [backend.to_device(v) for v in _batch(model, 0, "float64", 7)]
    losses = [float(backend.to_numpy(trainer.step(*batch))) for _ in range(3)]
    assert min(abs(losses[0] - losses[1]), abs(losses[1] - losses[2])) > 1e-4


def test_a_trainer_keeps_its_weights_to_itself(backend, mode):
    model = models.load("mnist_mlp", dropout=False)
    given, kept = _params(model, "float32"), _params(model, "float32")
    trainer = backend.trainer(model, given, model.optimizer, mode)
    before = trainer.params()
    trainer.step(*(backend.to_device(v) for v in _batch(model, 0, "float32", 5)))
    for k, value in kept.items():
        np.testing.assert_array_equal(given[k], value)
        np.testing.assert_array_equal(before[k], value)
        assert not np.array_equal(trainer.params()[k], value), k


def test_unknown_modes_are_refused(backend):
    model = models.load("mnist_mlp")
    with pytest.raises(ValueError, match="unknown mode 'warp'; choose from"):
        backend.trainer(model, _params(model, "float32"), model.optimizer, "warp")
