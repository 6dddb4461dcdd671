"""Training on every backend and in every mode: trajectories, whole-model gradients, optimizers and evaluation.

All backends start from the same weights and see the same batches, so without dropout they must stay together. The
gradient of a whole model is also compared with the complex step over the contract, which no backend has a part in.
"""

from __future__ import annotations

import dataclasses
import functools
from types import SimpleNamespace

import numpy as np
import pytest

import shim
from shim import cases, checkpoint, contract, models, parity, protocol
from shim.models import optimizers

pytestmark = [  # torch.compile warns about its own inner workings
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
#: dtype -> tolerances of what the tests below compare, where it is no trajectory
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
SIZES = (7,) * 9 + (5,)  # the last batch of an epoch is smaller
SMALL = {
    "imdb_fasttext": "imdb_fasttext-ngrams=1"
}  # the same layers with a table of 20,000 rows instead of 1.2 million
ROWS = "-optimizer=sgd-table_gradient=rows"
NAMES = [*(SMALL.get(name, name) for name in models.names()), "lstm_text_generation-inputs=ids"]
DROPOUT = ("cifar10_cnn", "imdb_bidirectional_lstm", "mnist_cnn", "mnist_mlp")
QUICK = ("imdb_fasttext-ngrams=1", "mnist_mlp", "text_generator")  # all that modes which compile for long need to show


def _compiles_for_long(backend, mode):
    return mode != backend.MODES[0] or mode == "auto"  # that of Keras 3


def _skip_unless_quick(backend, mode, name):
    if _compiles_for_long(backend, mode) and name not in QUICK:
        pytest.skip(f"{mode} compiles {name} for long, and does so in the test of ten steps in float32")


@pytest.fixture(autouse=True)
def _trains(request):
    """Have a backend that computes forward only say so, and leave the tests out by that name."""
    backend = request.getfixturevalue("backend")
    if "forward_backward" in protocol.directions(backend):
        return
    model = models.load("mnist_mlp")
    with pytest.raises(protocol.Unsupported, match="forward only") as refusal:
        backend.trainer(model, model.initial(), model.optimizer, backend.MODES[0])
    pytest.skip(str(refusal.value))


@pytest.fixture
def widest(backend):
    """The most exact dtype of a backend."""
    return protocol.dtypes(backend)[-1]


def _batch(model, step, dtype, size):
    """Return values that float32 holds exactly, whatever the dtype."""
    x, labels = model.batch(step, "float32", size)
    return (x.astype(dtype) if x.dtype.kind == "f" else x), labels


def _params(model, dtype):
    return {name: value.astype(dtype) for name, value in model.initial(0, "float32").items()}


def _train(backend, model, mode, dtype, sizes=SIZES):
    trainer = backend.trainer(model, _params(model, dtype), model.optimizer, mode)
    losses = []
    for step, size in enumerate(sizes):
        x, labels = _batch(model, step, dtype, size)
        losses.append(trainer.step(backend.to_device(x), backend.to_device(labels)))
    return np.array([float(backend.to_numpy(loss)) for loss in losses]), trainer.params()


@functools.cache
def _reference(name, sizes):
    backend = shim.load("numpy")
    return _train(backend, models.load(name, dropout=False), backend.MODES[0], "float64", sizes)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
def test_ten_steps_agree(backend, mode, name, dtype):
    if mode != backend.MODES[0] and (dtype == "float64" or "-inputs" in name):
        _skip_unless_quick(backend, mode, name)
    each_size_is_compiled = _compiles_for_long(backend, mode) and name != "mnist_mlp"
    sizes = SIZES[:1] * 10 if each_size_is_compiled else SIZES
    if dtype not in protocol.dtypes(backend):
        with pytest.raises(protocol.Unsupported, match=f"not in {dtype}"):
            _train(backend, models.load(name, dropout=False), mode, dtype, sizes)
        return
    losses, params = _train(backend, models.load(name, dropout=False), mode, dtype, sizes)
    wanted_losses, wanted = _reference(name, sizes)
    tolerance = parity.TRAINING[dtype]
    np.testing.assert_allclose(losses, wanted_losses, rtol=tolerance)
    assert {k: v.dtype for k, v in params.items()} == dict.fromkeys(wanted, np.dtype(dtype))
    norms = {k: np.linalg.norm(v.astype(np.float64)) for k, v in params.items()}
    assert norms == pytest.approx({k: np.linalg.norm(v) for k, v in wanted.items()}, rel=tolerance)
    if dtype == "float64":
        for k, value in params.items():
            np.testing.assert_allclose(value, wanted[k], rtol=0, atol=tolerance * np.abs(wanted[k]).max(), err_msg=k)


def _skip_without_rows(backend, mode):
    """Leave out a backend that says that it makes the gradients of tables dense only."""
    model = models.load("text_generator" + ROWS)
    try:
        backend.trainer(model, _params(model, "float32"), model.optimizer, mode)
    except protocol.Unsupported as refusal:
        pytest.skip(str(refusal))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["imdb_bidirectional_lstm", "imdb_fasttext-ngrams=1", "text_generator"])
def test_steps_on_the_rows_in_use_are_those_of_plain_descent(backend, mode, name, dtype):
    """At a rate that moves the table, over more samples than NumPy counts at once, ids repeated within each."""
    _skip_without_rows(backend, mode)
    if dtype == "float64":
        _skip_unless_quick(backend, mode, name)
    optimizer, sizes = optimizers.sgd(learning_rate=0.1, decay=0.1), (7,) * 8 + (5, 67)
    if mode != backend.MODES[0]:
        sizes = sizes[:1] * 10
    numpy, tolerance = shim.load("numpy"), parity.TRAINING[dtype]
    dense, rows = (models.load(n, dropout=False) for n in (name, name + ROWS))
    dense, rows = (dataclasses.replace(model, optimizer=optimizer) for model in (dense, rows))
    wanted_losses, wanted = _train(numpy, dense, numpy.MODES[0], "float64", sizes)
    losses, params = _train(backend, rows, mode, dtype, sizes)
    np.testing.assert_allclose(losses, wanted_losses, rtol=tolerance)
    for k, value in params.items():
        scale = np.abs(wanted[k] - _params(dense, "float64")[k]).max()  # of the change
        np.testing.assert_allclose(value, wanted[k], rtol=0, atol=10 * tolerance * max(scale, 1e-3), err_msg=k)


def test_rows_of_two_lookups_add_up_and_leave_the_padding_out(backend, mode, widest):
    _skip_without_rows(backend, mode)

    def apply(ops, params, ids):
        without, whole = (ops.embedding_average(ids, params["table"], padding_id=p) for p in (0, None))
        return ops.dense(ops.concat(without, whole), params["w"], params["b"])[:, 0]

    rng, optimizer = np.random.default_rng(0), optimizers.sgd(learning_rate=1.0)
    params = {"table": rng.random((11, 3)), "w": rng.random((6, 1)), "b": np.zeros(1)}
    model = models.load("imdb_fasttext" + ROWS)
    params = {name: value.astype(widest) for name, value in params.items()}

    def sample(rng, size):
        return rng.integers(0, 7, (size, 7)), rng.integers(0, 2, size)

    model = dataclasses.replace(model, apply=apply, optimizer=optimizer, sample=sample)
    ids, labels = model.batch(0, widest, 5)
    ids[1] = 0
    trainer = backend.trainer(model, params, optimizer, mode)
    trainer.step(backend.to_device(ids), backend.to_device(labels))

    def loss(table):
        return _contract_loss(model, params | {"table": table}, ids, labels)[1]

    (gradient,) = contract.reference_vjp(loss, [params["table"]], np.ones(()))
    np.testing.assert_allclose(trainer.params()["table"], params["table"] - gradient, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(trainer.params()["table"][7:], params["table"][7:])


def test_rows_are_refused_where_every_row_moves(backend, mode):
    model = models.load("imdb_fasttext-ngrams=1" + ROWS)
    with pytest.raises(ValueError, match="table_gradient='rows' goes with optimizer='sgd'; adam moves every row"):
        backend.trainer(model, _params(model, "float32"), optimizers.adam(), mode)


@pytest.mark.parametrize("name", ["mnist_mlp", "mnist_cnn", "text_generator"])  # three optimizers
def test_the_optimizer_alone_agrees(backend, mode, name):
    if backend.__name__.startswith("shim.backends.keras_"):
        model = models.load(name)
        with pytest.raises(protocol.Unsupported, match="not timed alone"):
            backend.trainer(model, model.initial(), model.optimizer, mode).updater({})
        return
    parity.verify(backend, cases.of_model(name, cases.OPTIMIZER_STEP, 5, "float32", {}), mode)


@pytest.mark.parametrize("name", [*QUICK, f"imdb_fasttext-ngrams=1{ROWS}"])  # dropout, moments, tables in two ways
def test_the_step_without_its_optimizer_agrees(backend, mode, name, widest):
    model = models.load(name)
    case = cases.of_model(model.name, cases.GRADIENTS, 5, widest, dict(model.options))
    if "keras" in backend.__name__:
        with pytest.raises(protocol.Unsupported, match=r"optimizer|dense gradients of tables only"):
            parity.verify(backend, case, mode)
        return
    trainer = backend.trainer(model, model.initial(dtype=widest), model.optimizer, mode, seed=3)
    if trainer.by_rows and backend.__name__.endswith(("cupy", "tensorflow")):
        with pytest.raises(protocol.Unsupported, match="optimizer"):
            parity.verify(backend, case, mode)
        return
    parity.verify(backend, case, mode)
    x, labels = (backend.to_device(value) for value in model.batch(0, widest, 5))
    before = trainer.params()
    loss, gradients = trainer.gradients(x, labels)
    loss = float(backend.to_numpy(loss))
    assert set(gradients) == set(models.trained(model, before))
    for key, value in trainer.params().items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)
    if name not in DROPOUT:
        assert float(backend.to_numpy(trainer.step(x, labels))) == pytest.approx(loss, rel=1e-6)


def _contract_loss(model, params, x, labels, training=False):
    """Return the logits of the main head, its loss, and the weighted loss."""
    ops = SimpleNamespace(**{name: entry.reference for name, entry in contract.OPS.items()})
    ops.dropout = lambda x, *, rate: x
    ops.batch_norm = functools.partial(contract.OPS["batch_norm"].reference, training=training)
    logits, losses = models.losses(model, ops, params, x, labels)
    return logits, losses[0][0], models.weighted(losses)


def _gradient(backend, mode, model, params, x, labels):
    """Return the gradient of each weight as one step of plain descent shows it."""
    trainer = backend.trainer(model, params, optimizers.sgd(learning_rate=1.0), mode)
    trainer.step(backend.to_device(x), backend.to_device(labels))
    return {name: params[name] - value for name, value in trainer.params().items()}


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_whole_model_are_those_of_the_contract(backend, mode, name, widest):
    _skip_unless_quick(backend, mode, name)
    model = models.load(name, dropout=False)
    params, (x, labels) = _params(model, widest), _batch(model, 0, widest, 3)
    gradient, trained = _gradient(backend, mode, model, params, x, labels), models.trained(model, params)
    directions = {k: np.random.default_rng(n).standard_normal(params[k].shape) for n, k in enumerate(trained)}
    moved = params | {k: params[k] + 1e-30j * directions[k] for k in trained}
    wanted = _contract_loss(model, moved, x, labels, training=True)[2].imag / 1e-30
    product = sum((gradient[k] * directions[k]).sum() for k in trained)
    size = sum(np.linalg.norm(gradient[k]) for k in trained)
    rounding = np.finfo(widest).eps * sum(np.linalg.norm(v) for v in params.values())  # gradients are differences here
    assert abs(product - wanted) <= 0.1 * TOLERANCES[widest] * size + 10 * rounding


@pytest.mark.parametrize("name", sorted(optimizers.STATES))
def test_optimizers_follow_their_formulas(backend, mode, name, widest):
    model = models.load("mnist_mlp", dropout=False)
    optimizer = getattr(optimizers, name)(learning_rate=0.01, decay=0.5)
    params = _params(model, widest)
    trainer = backend.trainer(model, params, optimizer, mode)
    states = {k: optimizers.init(optimizer, v) for k, v in params.items()}
    for step in range(2):
        x, labels = _batch(model, step, widest, 3)
        trainer.step(backend.to_device(x), backend.to_device(labels))
        for k, g in _gradient(backend, mode, model, params, x, labels).items():
            params[k], states[k] = optimizers.update(optimizer, np, params[k], g, states[k], step)
    for k, value in trainer.params().items():
        np.testing.assert_allclose(value, params[k], rtol=0, atol=TOLERANCES[widest], err_msg=k)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_and_prediction_leave_dropout_out_and_take_the_moving_moments(backend, mode, name, widest):
    _skip_unless_quick(backend, mode, name)
    model = models.load(name)
    params, (x, labels) = _params(model, widest), _batch(model, 0, widest, 7)
    for mean, variance in model.moments:
        params[mean], params[variance] = params[mean] + 0.25, params[variance] * 1.5
    trainer = backend.trainer(model, params, model.optimizer, mode)
    loss, right = trainer.evaluate(backend.to_device(x), backend.to_device(labels))
    logits, wanted, _ = _contract_loss(model, params, x, labels)
    predicted = logits.argmax(axis=-1) if logits.ndim == 2 else logits > 0
    assert float(backend.to_numpy(loss)) == pytest.approx(float(wanted), rel=TOLERANCES[widest])
    assert int(backend.to_numpy(right)) == (predicted == labels).sum()
    logits_of_few = backend.to_numpy(trainer.predict(backend.to_device(x[:3])))
    np.testing.assert_allclose(logits_of_few, logits[:3], rtol=0, atol=TOLERANCES[widest] * np.abs(logits).max())


def test_moving_moments_follow_those_of_the_batches(backend, mode, widest):
    name = "text_generator"
    model = models.load(name)
    params = _params(model, widest)
    trainer = backend.trainer(model, params, optimizers.sgd(learning_rate=1e-12), mode)
    inputs, normalise = [], contract.OPS["batch_norm"].reference

    def recorded(x, *others):
        inputs.append(x)
        return normalise(x, *others, training=True)

    ops = SimpleNamespace(**{op: entry.reference for op, entry in contract.OPS.items()} | {"batch_norm": recorded})
    wanted = {name: params[name] for pair in model.moments for name in pair}
    for step in range(2):
        x, labels = _batch(model, step, widest, 5)
        model.apply(ops, params, x)
        trainer.step(backend.to_device(x), backend.to_device(labels))
        for (mean, variance), values in zip(model.moments, inputs, strict=True):
            wanted[mean] = 0.99 * wanted[mean] + 0.01 * values.mean(axis=0)
            wanted[variance] = 0.99 * wanted[variance] + 0.01 * values.var(axis=0)
        inputs.clear()
    after = trainer.params()
    for name, value in wanted.items():
        np.testing.assert_allclose(
            after[name], value, rtol=TOLERANCES[widest], atol=1e-3 * TOLERANCES[widest], err_msg=name
        )
    for name in model.constants:
        np.testing.assert_array_equal(after[name], 0, err_msg=name)


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_comes_from_the_seed(backend, mode, name):
    _skip_unless_quick(backend, mode, name)

    def losses(seed, **changes):
        model = models.load(name, **changes)
        trainer = backend.trainer(model, _params(model, "float32"), model.optimizer, mode, seed=seed)
        batch = [backend.to_device(v) for v in _batch(model, 0, "float32", 7)]
        return [float(backend.to_numpy(trainer.step(*batch))) for _ in range(3)]

    first = losses(1)
    assert first == pytest.approx(losses(1), rel=1e-5)
    assert abs(first[0] - losses(2)[0]) > 1e-4
    assert abs(first[0] - losses(1, dropout=False)[0]) > 1e-4


def test_dropout_draws_anew_at_each_step(backend, mode, widest):
    model = models.load("mnist_mlp")
    trainer = backend.trainer(model, _params(model, widest), optimizers.sgd(learning_rate=1e-12), mode)
    batch = [backend.to_device(v) for v in _batch(model, 0, widest, 7)]
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


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", ["mnist_mlp", "text_generator"])
def test_a_restored_trainer_goes_on_as_if_nothing_had_happened(backend, mode, name, steps, tmp_path):
    """With dropout, moving moments and the optimizer's state, by way of a file."""
    if _compiles_for_long(backend, mode) and steps == 0:
        pytest.skip("it would be compiled once more")
    model = models.load(name)

    def trainer(seed):
        params = {k: v.astype("float32") for k, v in model.weights(np.random.default_rng(seed)).items()}
        return backend.trainer(model, params, model.optimizer, mode, seed=3)

    def train(trainer, steps):
        batches = [[backend.to_device(v) for v in _batch(model, step, "float32", 7)] for step in steps]
        return [float(backend.to_numpy(trainer.step(*batch))) for batch in batches]

    first = trainer(1)
    train(first, range(steps))
    checkpoint.save(tmp_path / "a.npz", first.state(), {"record": "epoch", "epoch": 1})
    wanted = train(first, range(steps, steps + 3))
    second = trainer(2)
    second.restore(checkpoint.load(tmp_path / "a.npz")[0])
    assert train(second, range(steps, steps + 3)) == pytest.approx(wanted, rel=1e-6)
    for key, value in first.params().items():
        np.testing.assert_allclose(second.params()[key], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=key)
    assert all(np.asarray(value).dtype.kind in "fiu" for value in second.state().values())


@pytest.mark.parametrize("name", sorted(optimizers.STATES))
def test_every_optimizer_is_restored(backend, name, widest):
    model, mode = models.load("mnist_mlp", dropout=False), backend.MODES[0]
    optimizer = getattr(optimizers, name)(learning_rate=0.01, decay=0.5)
    batch = [backend.to_device(v) for v in _batch(model, 0, widest, 5)]
    first, second = (backend.trainer(model, _params(model, widest), optimizer, mode) for _ in range(2))
    first.step(*batch)
    second.restore(first.state())
    for trainer in (first, second):
        trainer.step(*batch)
    for key, value in first.params().items():
        np.testing.assert_allclose(second.params()[key], value, rtol=1e-3 * TOLERANCES[widest], atol=1e-15, err_msg=key)


def test_unknown_modes_are_refused(backend):
    model = models.load("mnist_mlp")
    with pytest.raises(ValueError, match="unknown mode 'warp'; choose from"):
        backend.trainer(model, _params(model, "float32"), model.optimizer, "warp")
