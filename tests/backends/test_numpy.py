"""What only the NumPy backend has: workspaces that outlive a call, hand-written blocks, a tape, updates in place."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest

from shim import cases, contract, models, parity
from shim.backends import _handwritten, _handwritten_conv2d, _handwritten_lstm, _updates
from shim.backends import numpy as backend
from shim.backends._handwritten import Workspace
from shim.backends._tape import Tape
from shim.models import optimizers

MODE = backend.MODES[0]
VIEWS = ("flatten",)  # documented: a view of the argument


def _case(op, dims=None, dtype="float64", **options):
    return cases.case(op, "forward_backward", dims or parity.SMALL[op], dtype, **options)


def _arrays(y, grads):
    return [y, *grads]


# --------------------------------------------------------------------------------------------------- workspaces


@pytest.mark.parametrize("op", [op for op in contract.OPS if op not in VIEWS])
def test_two_results_share_no_memory(op):
    args, dy = _case(op).arrays()
    run = backend.forward_backward(op)
    first, second = _arrays(*run(args, dy)), _arrays(*run(args, dy))
    shared = [k for k, (a, b) in enumerate(zip(first, second, strict=True)) if np.shares_memory(a, b)]
    assert shared == ([1] if op.startswith("embedding") else [])  # documented: the gradient of a table is reused
    assert not any(np.shares_memory(a, b) for a in first for b in [*args, dy])
    assert not any(np.shares_memory(a, b) for k, a in enumerate(first) for b in first[:k])


@pytest.mark.parametrize("op", contract.OPS)
def test_a_second_call_with_other_values_is_right(op):
    args, dy = _case(op).arrays()
    run = backend.forward_backward(op)
    run([a * 3 if a.dtype.kind == "f" else (a + 1) % (a.max() + 1) for a in args], dy * 2)
    parity.verify(backend, _case(op), MODE, run=run)


@pytest.mark.parametrize("op", contract.OPS)
def test_a_program_follows_its_batch_size_and_dtype(op):
    run, dims = backend.forward_backward(op), parity.SMALL[op]
    for changed, dtype in ((dims, "float64"), (dims | {"N": dims["N"] + 2}, "float64"), (dims, "float32")):
        run(*_case(op, changed, dtype).arrays())
        parity.verify(backend, _case(op, changed, dtype), MODE, run=run)


@pytest.mark.parametrize("op", ["embedding", "embedding_average"])
def test_the_gradient_of_a_table_is_cleared_where_it_was_written(op):
    run = backend.forward_backward(op)
    (_, table), dy = _case(op).arrays()
    for ids in ([[1, 2, 2]], [[0, 4, 4]], [[3, 3, 3]]):
        ids = np.array(ids * len(dy), np.int32)
        values = dy[:, :3] if op == "embedding" else dy
        _, (gradient,) = run((ids, table), values)
        assert set(np.flatnonzero(gradient.any(axis=1))) == set(ids[0])


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("op", ["lstm", "bilstm"])
def test_a_forward_program_that_keeps_two_steps_gives_the_same_result(op, steps):
    case = _case(op, parity.SMALL[op] | {"T": steps}, return_sequences=True)
    args, dy = case.arrays()
    y = backend.forward(op, dict(case.options))(*args)
    np.testing.assert_array_equal(y, backend.forward_backward(op, dict(case.options))(args, dy)[0])


# -------------------------------------------------------------------------------------------------------- blocks


@pytest.mark.parametrize("block", [1, 100, 1500])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kernel", [(3, 2), (1, 1), (2, 4)])
def test_conv2d_in_blocks_of_images_and_of_lines(monkeypatch, block, stride, padding, kernel):
    monkeypatch.setattr(_handwritten_conv2d, "BLOCK", block)
    dims = {"N": 3, "H": 6, "W": 5, "C": 2, "R": kernel[0], "S": kernel[1], "O": 3}
    parity.verify(backend, _case("conv2d", dims, stride=stride, padding=padding, activation="relu"), MODE)


@pytest.mark.parametrize("channels", [3, 4])  # below four the patches lie the other way round
def test_conv2d_with_few_and_many_channels(channels):
    parity.verify(backend, _case("conv2d", parity.SMALL["conv2d"] | {"C": channels}), MODE)


@pytest.mark.parametrize("op", ["lstm", "bilstm"])
def test_lstm_slopes_in_blocks_of_steps(monkeypatch, op):
    monkeypatch.setattr(_handwritten_lstm, "BLOCK", 2 * 5 * 4 * 3 * 2)
    parity.verify(backend, _case(op, return_sequences=True), MODE)


@pytest.mark.parametrize("padding_id", [None, 0])
def test_embedding_average_in_blocks_of_samples(monkeypatch, padding_id):
    monkeypatch.setattr(_handwritten, "BLOCK", 2 * 7 * 3)
    monkeypatch.setattr(_handwritten, "SAMPLES", 2)
    parity.verify(backend, _case("embedding_average", padding_id=padding_id), MODE)


def test_max_pool2d_in_blocks(monkeypatch):
    monkeypatch.setattr(_handwritten, "BLOCK", 1)
    parity.verify(backend, _case("max_pool2d", pool=3), MODE)


def test_rows_of_an_id_that_repeats_often_are_all_summed():
    rng = np.random.default_rng(0)
    ids = np.concatenate([np.full(77, 4), rng.integers(0, 9, 50), [11]]).astype(np.int32)
    rng.shuffle(ids)
    rows = rng.standard_normal((len(ids), 3))
    wanted = np.zeros((12, 3))
    np.add.at(wanted, ids, rows)
    unique, sums = _handwritten._sum_rows(np, ids, rows)
    actual = np.zeros((12, 3))
    actual[unique] = sums
    assert len(unique) == len(set(ids.tolist()))
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-13)


def test_of_equal_maxima_the_first_one_gets_the_gradient():
    x = np.zeros((1, 5, 4, 1))
    _, (dx,) = backend.forward_backward("max_pool2d")([x], np.array([[[[1.0], [2.0]], [[3.0], [4.0]]]]))
    wanted = np.zeros((5, 4))
    wanted[:4:2, ::2] = [[1, 2], [3, 4]]
    np.testing.assert_array_equal(dx[0, :, :, 0], wanted)


def test_views_are_taken_as_arguments():
    case = _case("conv2d", padding="same", activation="relu")
    args, dy = case.arrays()
    wanted = _arrays(*backend.forward_backward("conv2d", dict(case.options))(args, dy))
    views = [np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0) for a in (*args, dy)]
    assert not views[0].flags.c_contiguous
    actual = _arrays(*backend.forward_backward("conv2d", dict(case.options))(views[:-1], views[-1]))
    for a, b in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-13)


# ------------------------------------------------------------------------------------------------------ the tape


def _gradients(function, **params):
    tape = Tape(functools.partial(Workspace, np))
    variables = tape.start({name: np.array(value, float) for name, value in params.items()})
    loss = function(**variables)
    return tape.gradients([(loss, 1.0)], variables.values())


def _sum(x):
    """Sum all values through an op: the mean of x as a dense layer to one output."""
    n, width = x.shape
    total = backend.dense.bare(x, np.ones((width, 1)), np.zeros(1))[:, 0]
    return total.tape.call(lambda work, v: (v.sum(), lambda dy, first=True: [np.full(n, dy)]), (total,), {})


def test_a_variable_used_twice_gets_the_sum_of_its_gradients():
    x = np.array([[1.0, -2.0], [3.0, 4.0]])
    (gradient,) = _gradients(lambda x: _sum(backend.concat.bare(x, backend.relu.bare(x))), x=x)
    np.testing.assert_array_equal(gradient, 1 + (x > 0))


def test_a_variable_that_is_not_used_gets_zeros():
    used, unused = _gradients(lambda x, y: _sum(x), x=np.ones((3, 5)), y=np.ones((2, 7)))
    np.testing.assert_array_equal(used, np.ones((3, 5)))
    np.testing.assert_array_equal(unused, np.zeros((2, 7)))


def test_indexing_brings_the_gradient_back_to_its_place():
    (gradient,) = _gradients(lambda x: _sum(backend.concat.bare(x, x)), x=np.ones((3, 1)))
    np.testing.assert_array_equal(gradient, np.full((3, 1), 2))
    tape = Tape(functools.partial(Workspace, np))
    x = tape.start({"x": np.arange(6.0).reshape(3, 2)})["x"]
    column = x[:, 0]
    assert column.shape == (3,)
    np.testing.assert_array_equal(tape._records[0][2](np.array([1.0, 2, 3]))[0], [[1, 0], [2, 0], [3, 0]])


@pytest.mark.parametrize("op", ["dense", "conv2d", "lstm", "bilstm"])
def test_the_gradient_of_the_data_can_be_left_out(op):
    args, dy = _case(op).arrays()
    everything = _handwritten.OPS[op](Workspace(np), *args)[1](dy)
    without = _handwritten.OPS[op](Workspace(np), *args)[1](dy, first=False)
    assert without[0] is None
    for a, b in zip(without[1:], everything[1:], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tape_that_does_not_record_keeps_nothing():
    tape = Tape(functools.partial(Workspace, np), recording=False)
    x = tape.start({"x": np.ones((3, 5))})["x"]
    assert backend.relu.bare(x).tape is tape
    assert tape._records == []


# ------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("name", sorted(optimizers.STATES))
def test_updates_in_pieces_follow_the_formula(monkeypatch, name):
    monkeypatch.setattr(_updates, "BLOCK", 4)
    optimizer, rng = getattr(optimizers, name)(learning_rate=0.1, decay=0.5), np.random.default_rng(0)
    p = rng.standard_normal((3, 5))
    wanted, state = p.copy(), optimizers.init(optimizer, p)
    states = optimizers.init(optimizer, p)
    for step in range(3):
        g = rng.standard_normal((5, 3)).T
        wanted, state = optimizers.update(optimizer, np, wanted, g, state, step)
        _updates.update(optimizer, np, step, p, g, states)
    for a, b in zip((p, *states), (wanted, *state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_updates_by_rows_follow_the_formula(monkeypatch, name):
    """Two pieces that share a row, and rows without a gradient."""
    monkeypatch.setattr(_updates, "BLOCK", 4)
    optimizer, rng = getattr(optimizers, name)(learning_rate=0.1, decay=0.5), np.random.default_rng(0)
    p = rng.standard_normal((7, 3))
    wanted, state = p.copy(), optimizers.init(optimizer, p)
    states = optimizers.init(optimizer, p)
    for step in range(3):
        pieces = [(np.array(ids), rng.standard_normal((2, 3))) for ids in ([5, step], [step, 6])]
        g = np.zeros_like(p)
        for ids, rows in pieces:
            g[ids] += rows
        wanted, state = optimizers.update(optimizer, np, wanted, g, state, step)
        _updates.update(optimizer, np, step, p, _handwritten.Rows(pieces), states)
    for a, b in zip((p, *states), (wanted, *state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def _tiny(loss="softmax_cross_entropy"):
    apply = lambda ops, params, x: ops.dense(x, params["w"], params["b"])  # noqa: E731
    return SimpleNamespace(apply=apply, loss=loss, dropout=True, constants=(), moments=(), table_gradient="dense")


def test_weights_in_any_memory_order_are_trained():
    w = np.asfortranarray(np.random.default_rng(0).standard_normal((7, 5)))
    trainer = backend.trainer(_tiny(), {"w": w, "b": np.zeros(5)}, optimizers.sgd(0.1), MODE)
    trainer.step(np.ones((3, 7)), np.array([0, 1, 1], np.int32))
    assert (trainer.params()["w"] != w).all()


def test_evaluation_between_steps_changes_nothing():
    model = models.load("imdb_bidirectional_lstm", dropout=False)
    batches = [model.batch(k, "float64", 3 + k) for k in range(2)]
    trainers = [backend.trainer(model, model.initial(0, "float64"), model.optimizer, MODE) for _ in range(2)]
    losses = [[], []]
    for x, labels in batches:
        for trainer, seen in zip(trainers, losses, strict=True):
            seen.append(float(trainer.step(x, labels)))
        trainers[1].evaluate(*batches[1])
    assert losses[0] == losses[1]


def test_losses_of_two_steps_are_separate_arrays():
    trainer = backend.trainer(_tiny(), {"w": np.ones((7, 5)), "b": np.zeros(5)}, optimizers.sgd(0.1), MODE)
    batch = np.arange(21.0).reshape(3, 7), np.array([0, 1, 1], np.int32)
    first = trainer.step(*batch)
    kept = float(first)
    trainer.step(*batch)
    assert isinstance(first, np.ndarray)
    assert float(first) == kept


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dropout_passes_the_gradient_where_it_passed_the_value(dtype):
    x = np.random.default_rng(0).standard_normal((101, 103)).astype(dtype)
    run = functools.partial(_handwritten.dropout, Workspace(np), x, rate=0.2, generator=backend._SFC64(1))
    y, pullback = run()
    dy = np.ones_like(x)
    (dx,) = pullback(dy)
    assert y.dtype == dx.dtype == x.dtype
    np.testing.assert_allclose(y, x * dx, rtol=1e-6)
    assert abs((dx == 0).mean() - 0.2) < 0.02


# ------------------------------------------------------------------------------------------------------ settings


def test_setup_sets_the_threads_of_the_blas():
    before = backend.describe()["threads"]
    try:
        backend.setup(threads=1)
        assert backend.describe()["threads"] == 1
    finally:
        backend.setup(threads=before)
    assert backend.describe()["threads"] == before
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        backend.setup(threads=0)


def test_describe_names_the_blas():
    (name,) = backend.describe()["libraries"]
    assert name in backend.implementation(_case("dense"))
