"""Every kernel against the contract, forward and backward, run on the CPU with threads in a drawn order."""

from __future__ import annotations

import numpy as np
import pytest
from emulator import Poisoned, average, dense, embedded, images, lstm

from shim import cases, contract, parity
from shim.backends import _cuda_updates, _handwritten
from shim.backends._cuda_conv2d import BLOCK, image_tile
from shim.backends._cuda_glue import SplitMix64
from shim.backends._cuda_kernels import FILES, FOLDER, Kernels
from shim.backends._cuda_ops import OPS
from shim.backends._cuda_tables import Touched, touched
from shim.backends._handwritten import Workspace
from shim.models import optimizers

CONFORMANCE = [case for case in parity.conformance_cases(("float32",)) if case.op in OPS]


#: what multiplies alone, and what drops nothing
WITHOUT_KERNELS = {
    ("dense", "forward"), ("dropout", "forward"), ("dropout", "forward_backward")
}  # fmt: skip


@pytest.mark.parametrize("case", CONFORMANCE, ids=str)
@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
def test_agrees_with_the_contract(emulator, case, deterministic):
    emulator.verify(case, deterministic=deterministic)
    assert emulator.launched or (case.op, case.direction) in WITHOUT_KERNELS


#: batch, steps, hidden units: every size of the kernels, below and at it, and every number of rows that a grid may have
SHAPES = [
    (130, 3, 1), (1, 1, 3), (37, 4, 3), (65, 2, 16), (5, 7, 17), (33, 2, 32), (2, 3, 48), (1, 6, 64), (129, 2, 64),
    (3, 3, 65), (2, 2, 80), (7, 3, 96), (2, 3, 97), (3, 2, 112), (1, 5, 127), (1, 4, 128), (130, 2, 128),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids="N{0[0]}-T{0[1]}-H{0[2]}".format)
@pytest.mark.parametrize("options", [{}, {"return_sequences": True, "reverse": True}], ids=["last", "all, reverse"])
def test_an_lstm_agrees_at_many_shapes(emulator, shape, options):
    emulator.verify(lstm(*shape, **options))


@pytest.mark.parametrize("shape", SHAPES[::3], ids="N{0[0]}-T{0[1]}-H{0[2]}".format)
@pytest.mark.parametrize("hard", ["sigmoid", "hard_sigmoid"])
def test_both_directions_agree_at_many_shapes(emulator, shape, hard):
    emulator.verify(lstm(*shape, op="bilstm", return_sequences=True, recurrent_activation=hard))


def test_hard_sigmoids_are_clipped(emulator):
    """Most gates are shut or wide open here, with a gradient of 0."""
    case = lstm(3, 4, 17, recurrent_activation="hard_sigmoid")
    arrays, dy = case.arrays()
    arrays[0] *= 10
    results = []
    for ops in (emulator.ops(), _handwritten):
        y, pullback = ops.lstm(Workspace(np), *arrays, **dict(case.options))
        results.append([y, *pullback(dy)])
    for actual, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_the_kernels_are_not_made_for_is_left_to_array_functions(emulator, dtype):
    hidden = 129 if dtype == "float32" else 3
    for op in ("lstm", "bilstm"):
        dims = {"N": 2, "T": 3, "I": 5, "H": hidden}
        emulator.verify(cases.case(op, "forward_backward", dims, dtype))
    if dtype == "float64":
        verify_update(emulator, "adam", dtype=dtype)
        emulator.verify(cases.case("embedding_average", "forward_backward", {"N": 2, "T": 3, "V": 5, "D": 7}, dtype))
    assert not emulator.launched


@pytest.mark.parametrize(("n", "outputs"), [(1, 1), (3, 32), (63, 33), (64, 7), (129, 5), (1000, 65)])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_layer_agrees_at_many_sizes(emulator, n, outputs, activation):
    emulator.verify(dense(n, outputs, activation=activation))
    assert emulator.launched == {"rectified_sums"}


@pytest.mark.parametrize("width", [1, 2, 3, 4, 17, 33, 50, 66, 100, 132, 260])
@pytest.mark.parametrize("padding_id", [None, 0])
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
def test_an_average_agrees_at_many_widths(emulator, width, padding_id, deterministic):
    emulator.verify(average(5, 37, 11, width, padding_id=padding_id), deterministic=deterministic)


@pytest.mark.parametrize(("n", "t"), [(1, 1), (130, 3), (3, 400), (2, 1100)])
def test_an_average_agrees_at_many_lengths(emulator, n, t):
    emulator.verify(average(n, t, 19, 6, padding_id=0))


def half(op, dtype, width, **options):
    return cases.case(op, "forward", {"N": 5, "T": 37, "V": 11, "D": width}, dtype, **options)


@pytest.mark.parametrize("dtype", contract.HALVES)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 8, 24, 50, 66, 100, 264, 520])
def test_tables_of_16_bits_agree_at_many_widths(emulator, dtype, width):
    for padding_id in (None, 0):
        emulator.verify(half("embedding_average", dtype, width, padding_id=padding_id))
    emulator.verify(half("embedding", dtype, width))
    vector = next(size for size in (8, 4, 2, 1) if width % size == 0)
    assert emulator.launched == {f"average_{dtype}_{vector}", f"gather_{dtype}_{vector}"}


@pytest.mark.parametrize("dtype", contract.HALVES)
def test_every_number_of_16_bits_is_its_own_average(emulator, dtype):
    contract.check_dtype(dtype)
    table = np.arange(2**16, dtype=np.uint16).view(dtype).reshape(-1, 8)
    ids = np.arange(len(table), dtype=np.int32).reshape(-1, 1)
    y, _ = emulator.ops().embedding_average(Workspace(Poisoned(), keep=False), ids, table)
    assert emulator.launched == {f"average_{dtype}_8"}
    np.testing.assert_array_equal(y.astype(np.float32), table.astype(np.float32))  # NaN too


@pytest.mark.parametrize("dtype", contract.HALVES)
def test_averages_are_rounded_to_the_nearest_number_of_16_bits(emulator, dtype):
    table = np.random.default_rng(0).normal(size=(400, 8)).astype(dtype)
    ids = np.arange(400, dtype=np.int32).reshape(-1, 2)
    y, _ = emulator.ops().embedding_average(Workspace(Poisoned(), keep=False), ids, table)
    assert emulator.launched == {f"average_{dtype}_8"}
    wanted = table.astype(np.float32).reshape(200, 2, 8).sum(axis=1) * np.float32(0.5)
    np.testing.assert_array_equal(y, wanted.astype(dtype))


@pytest.mark.parametrize("dtype", contract.HALVES)
def test_a_layer_of_16_bits_is_one_product(emulator, dtype):
    emulator.verify(cases.case("dense", "forward", {"N": 5, "I": 37, "O": 11}, dtype, activation="relu"))
    assert not emulator.launched


@pytest.mark.parametrize("op", ["dense", "embedding", "embedding_average"])
def test_gradients_of_16_bits_are_left_to_array_functions(emulator, op):
    emulator.verify(cases.case(op, "forward_backward", parity.SMALL[op], "float16"))
    assert not emulator.launched


@pytest.mark.parametrize("padding_id", [None, 0])
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
def test_the_gradient_of_a_table_as_rows(emulator, padding_id, deterministic):
    (ids, table), dy = average(5, 37, 60, 6).arrays()
    ids[1], ids[2, 5:] = 0, 0
    ops, work = emulator.ops(deterministic=deterministic), Workspace(Poisoned())
    ops.step = np.full(1, 7, np.int32)
    y, pullback = ops.embedding_average(work, ids, table, padding_id=padding_id, table_gradient="rows")
    [g] = pullback(dy)
    dense = ops.embedding_average(Workspace(Poisoned()), ids, table, padding_id=padding_id)[1](dy)[0]
    assert set(np.flatnonzero(g.stamps == 7)) == set(ids.ravel()) - ({0} if padding_id == 0 else set())
    np.testing.assert_allclose(g.values, dense, rtol=0, atol=1e-5)  # in another order
    np.testing.assert_allclose(y[1], table[0] if padding_id is None else 0, rtol=1e-6)
    np.testing.assert_array_equal(dense + g, g.values + dense if g.values.any() else 2 * dense)
    assert not g.values.any(), "a sum takes the gradient"


def test_tables_looked_up_twice_have_one_gradient(emulator):
    (ids, table), dy = average(5, 7, 60, 6).arrays()
    ops, found = emulator.ops(), []
    for k in range(2):
        found += ops.embedding_average(Workspace(Poisoned()), (ids + k) % 60, table, table_gradient="rows")[1](dy)
    first, second = (g.values.copy() for g in found)
    np.testing.assert_array_equal(found[0] + found[1], first + second)
    assert not found[0].values.any()
    assert not found[1].values.any()


@pytest.mark.parametrize("deterministic", [False, True], ids=["atomic", "deterministic"])
@pytest.mark.parametrize(("n", "t"), [(1, 200), (3, 129), (70, 3), (200, 1)])
def test_a_table_of_few_rows_has_long_runs(emulator, n, t, deterministic):
    for rows, padding_id in ((1, None), (2, 0), (3, None)):
        emulator.verify(average(n, t, rows, 6, padding_id=padding_id), deterministic=deterministic)


def test_the_gradient_of_a_table_forgets_the_call_before(emulator):
    (ids, table), dy = average(5, 7, 60, 6).arrays()
    for deterministic in (False, True):
        ops, work = emulator.ops(deterministic=deterministic), Workspace(Poisoned())
        first = ops.embedding_average(work, ids, table)[1](dy)[0].copy()
        ops.embedding_average(work, (ids + 7) % 60, table)[1](dy)
        np.testing.assert_allclose(ops.embedding_average(work, ids, table)[1](dy)[0], first, rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------------- convolution


@pytest.mark.parametrize("options", [{}, {"padding": "same", "activation": "relu"}], ids=["valid", "same, relu"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 3, 1), (5, 5, 1), (1, 1, 3), (2, 4, 3)])
def test_a_convolution_agrees_with_many_kernels(emulator, kernel, stride, options):
    emulator.verify(images(kernel, stride=stride, **options))
    assert emulator.launched == {"conv2d_forward", "conv2d_weights", "conv2d_images", "rectified_sums"}


@pytest.mark.parametrize(("n", "outputs"), [(1, 1), (5, 32), (2, 33), (3, 36), (420, 1)])
def test_a_convolution_agrees_at_many_sizes(emulator, n, outputs):
    emulator.verify(images(n=n, outputs=outputs, activation="relu"))


@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 1), 1), ((3, 3, 3), 2), ((9, 1, 3), 1), ((1, 27, 1), 1)])
def test_a_convolution_agrees_where_blocks_share_an_image(emulator, kernel, stride):
    dims = {"N": 2, "H": 23, "W": 35, **dict(zip("RSC", kernel, strict=True)), "O": 4}
    for padding in ("valid", "same"):
        emulator.verify(cases.case("conv2d", "forward_backward", dims, stride=stride, padding=padding))


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (2, 4), (9, 3), (27, 1), (1, 27)])
@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_a_block_has_a_thread_for_each_result_that_it_needs(kernel, stride):
    for length in (1, 7, 28, 33, 300):
        lines, columns = image_tile(kernel, stride, (length, length), length)
        assert 1 <= lines <= length
        assert 1 <= columns <= length
        lines, columns = (
            max(len({i for i in range(a, a + size + k - 1) if i % stride == 0}) for a in range(stride))
            for size, k in zip((lines, columns), kernel, strict=True)
        )
        assert lines * min(columns, length) <= BLOCK


@pytest.mark.parametrize("kernel", [(3, 3, 2), (3, 3, 4), (5, 5, 3)])
def test_a_convolution_of_more_channels_or_weights_is_left_to_array_functions(emulator, kernel):
    emulator.verify(images(kernel))
    assert not emulator.launched


# ----------------------------------------------------------------------------------------------------------- the glue


def glue(op, direction="forward_backward", options=(), **dims):
    return cases.case(op, direction, dims, **dict(options))


@pytest.mark.parametrize("pool", [2, 3])
@pytest.mark.parametrize(("height", "width"), [(4, 6), (7, 5), (3, 9), (13, 8)])
@pytest.mark.parametrize(("n", "c"), [(1, 1), (3, 4), (2, 6), (5, 12)])
def test_a_pool_agrees_at_many_sizes(emulator, pool, height, width, n, c):
    emulator.verify(glue("max_pool2d", options={"pool": pool}, N=n, H=height, W=width, C=c))


@pytest.mark.parametrize("c", [3, 4])
def test_the_first_of_equal_maxima_takes_the_gradient(emulator, c):
    rng = np.random.default_rng(0)
    x, dy = rng.integers(0, 2, (3, 7, 5, c)).astype(np.float32), rng.normal(size=(3, 3, 2, c)).astype(np.float32)
    x[0, 0, 1] = np.nan
    for (y, pullback), (wanted, wanted_pullback) in [
        (f(Workspace(Poisoned()), x) for f in (emulator.ops().max_pool2d, _handwritten.max_pool2d))
    ]:
        np.testing.assert_array_equal(y, wanted)
        finite = slice(1, None)
        np.testing.assert_array_equal(pullback(dy)[0][finite], wanted_pullback(dy)[0][finite])


def test_a_pool_of_many_places_is_left_to_array_functions(emulator):
    x = np.random.default_rng(0).normal(size=(1, 17, 17, 1)).astype(np.float32)
    y, pullback = emulator.ops().max_pool2d(Workspace(Poisoned()), x, pool=17)
    assert (y == x.max()).all()
    assert (pullback(y)[0] == np.where(x == x.max(), x, 0)).all()
    assert not emulator.launched


@pytest.mark.parametrize("size", [1, 3, 4, 1023, 1024, 1025, 2050])
@pytest.mark.parametrize("start", [0, 1])
def test_a_rectifier_agrees_at_many_sizes(emulator, size, start):
    x, dy = np.random.default_rng(0).normal(size=(2, size + 1)).astype(np.float32)[:, start:][:, :size]
    x[0] = 0
    y, pullback = emulator.ops().relu(Workspace(Poisoned()), x)
    np.testing.assert_array_equal(y, np.maximum(x, 0))
    np.testing.assert_array_equal(pullback(dy)[0], np.where(x > 0, dy, 0))


def verify_dropout(emulator, sizes=((5, 7), (1024,), (3, 2, 400)), **how):
    """Compare the masks of some calls, and the state that they leave, with those of array functions."""
    ops, drawn, words = emulator.ops(**how), SplitMix64(np, 1), SplitMix64(np, 1)
    drawn.state = words.state = np.uint64(2**64 - 5)
    for size in sizes:
        x, dy = np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)
        y, pullback = ops.dropout(Workspace(Poisoned()), x, rate=0.3, generator=drawn)
        wanted, wanted_pullback = _handwritten.dropout(Workspace(np), x, rate=0.3, generator=words)
        np.testing.assert_array_equal(y, wanted)
        np.testing.assert_array_equal(pullback(dy)[0], wanted_pullback(dy)[0])
        assert drawn.state == words.state


def test_dropout_draws_what_array_functions_draw(emulator):
    verify_dropout(emulator, [(n,) for n in (1, 2, 3, 4, 5, 1023, 1025, 3000)])


def test_the_steps_of_a_training_draw_words_of_their_own(emulator):
    """And at the same offsets in each."""
    ops, generator, drawn = emulator.ops(), SplitMix64(np, 1), []
    steps = _cuda_updates.Steps(ops, optimizers.sgd())
    wanted = SplitMix64(np, 1).words(10).tolist()
    for _ in range(2):
        assert [generator.take(size) for size in (2, 3)] == [0, 2]
        generator.begin()
        drawn += generator.words(5).tolist()
        steps.advance(generator)
    assert drawn == wanted
    assert generator.state == generator.array[0]


@pytest.mark.parametrize(("n", "classes"), [(1, 1), (1, 10), (3, 2), (8, 33), (9, 10), (128, 10), (5, 1000), (301, 7)])
def test_a_loss_agrees_at_many_sizes(emulator, n, classes):
    emulator.verify(glue("softmax_cross_entropy", N=n, K=classes))
    emulator.verify(glue("sigmoid_cross_entropy", N=n * classes))


def test_losses_of_large_logits_are_finite(emulator):
    logits = np.array([[1e4, -1e4, 0], [-3e4, 3e4, 1]], np.float32)
    labels, ops, dy = np.array([0, 0], np.int32), emulator.ops(), np.ones((), np.float32)
    loss, pullback = ops.softmax_cross_entropy(Workspace(Poisoned()), logits, labels)
    assert loss == 3e4
    np.testing.assert_array_equal(pullback(dy)[0], [[0, 0, 0], [-0.5, 0.5, 0]])
    loss, pullback = ops.sigmoid_cross_entropy(Workspace(Poisoned()), logits[:, 0].copy(), labels)
    assert loss == 5e3
    np.testing.assert_array_equal(pullback(dy)[0], [0.5, 0])


def test_a_loss_can_be_taken_again_and_again(emulator):
    """By the same blocks, which count each other."""
    ops, work = emulator.ops(), Workspace(Poisoned())
    for seed in range(3):
        (logits, labels), _ = glue("softmax_cross_entropy", N=50, K=3).arrays(seed)
        wanted = _handwritten.softmax_cross_entropy(Workspace(np), logits, labels)[0]
        np.testing.assert_allclose(ops.softmax_cross_entropy(work, logits, labels)[0], wanted, rtol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("n", "c"), [(1, 1), (4, 8), (3, 9), (37, 16), (128, 13), (300, 3)])
def test_a_normalisation_agrees_at_many_sizes(emulator, n, c, training):
    emulator.verify(glue("batch_norm", options={"training": training}, N=n, C=c))


def test_a_normalisation_tells_the_moments_of_the_batch(emulator):
    (x, *others), _ = glue("batch_norm", N=37, C=9).arrays()
    moments = []
    emulator.ops().batch_norm(Workspace(Poisoned()), x, *others, training=True, moments=moments)
    np.testing.assert_allclose(moments, [(x.mean(axis=0), x.var(axis=0))], rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------------- the optimizers


def verify_update(emulator, name, width=13, dtype="float32", height=211, rows=None, **how):
    """Take three steps on a table and compare it and its states with the formula in float64.

    ``rows`` is how many rows the gradient touches, some of them twice.
    """
    rng, optimizer, ops = np.random.default_rng(3), getattr(optimizers, name)(decay=0.1), emulator.ops(**how)
    p = rng.normal(size=(height, width)).astype(dtype)  # several blocks, the last one not full
    start, wanted = p.copy(), p.astype(np.float64)
    states, wanted_states = optimizers.init(optimizer, p), optimizers.init(optimizer, wanted)
    values, stamps = np.zeros_like(p), np.zeros(len(p), np.int32)
    for step in range(3):
        g = given = rng.normal(size=p.shape).astype(dtype)
        if rows:
            ids = rng.integers(0, len(p), rows, np.int32)
            ids[-1] = ids[0]
            g[np.setdiff1d(np.arange(len(p)), ids)] = 0
            values += g
            stamps[ids] = step + 1
            given = Touched(values, stamps, ids, np.full(1, step + 1, np.int32))
        ops.update(optimizer, np, step, p, given, states)
        assert not values.any(), "the gradient is not taken"
        wanted, wanted_states = optimizers.update(
            optimizer, np, wanted, g.astype(np.float64), wanted_states, np.float64(step)
        )
    verify_moved(p, states, start, wanted, wanted_states)


def verify_moved(p, states, start, wanted, wanted_states):
    moved = np.abs(wanted - start).max()
    allowed = parity.TRAINING["float32"] * moved + 8 * np.finfo(np.float32).eps * np.abs(wanted).max()
    assert np.abs(p - wanted).max() <= allowed
    for state, reference in zip(states, wanted_states, strict=True):
        assert np.abs(state - reference).max() <= 8e-6 * np.abs(reference).max()


@pytest.mark.parametrize("name", optimizers.STATES)
def test_an_optimizer_agrees_with_its_formula(emulator, name):
    verify_update(emulator, name)


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 12, 50, 64, 100])
@pytest.mark.parametrize("height", [211, 212])
def test_an_optimizer_takes_the_rows_of_a_table(emulator, name, width, height):
    verify_update(emulator, name, width, height=height, rows=75)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_an_optimizer_takes_the_same_rows_again_and_again(emulator, name):
    rng, optimizer, ops = np.random.default_rng(4), getattr(optimizers, name)(), emulator.ops()
    p, g = rng.normal(size=(2, 60, 12)).astype(np.float32)
    g[::3] = 0
    start, wanted, given = p.copy(), p.astype(np.float64), touched(np, g, np.array)
    states, wanted_states = optimizers.init(optimizer, p), optimizers.init(optimizer, wanted)
    for step in range(3):
        ops.update(optimizer, np, step, p, given, states)
        wanted, wanted_states = optimizers.update(optimizer, np, wanted, g, wanted_states, np.float64(step))
    verify_moved(p, states, start, wanted, wanted_states)


def verify_update_of_all(emulator, name, sizes=(1, 3, 4, 1023, 1024, 1025, 2048, 5000), **how):
    """Take a step on weights of many sizes at once, some of them not where vectors may begin."""
    rng, optimizer, ops = np.random.default_rng(5), getattr(optimizers, name)(), emulator.ops(**how)
    weights, gradients = ([rng.normal(size=n + 3).astype(np.float32)[k % 4 :][:n] for k, n in enumerate(sizes)]
                          for _ in range(2))  # fmt: skip
    starts = [p.copy() for p in weights]
    states = [optimizers.init(optimizer, p) for p in weights]
    rate = np.full(1, (optimizers.adam_rate if name == "adam" else optimizers.rate)(optimizer, 0), np.float32)
    _cuda_updates.update_all(ops, optimizer, weights, gradients, states, rate)
    for p, start, g, slots in zip(weights, starts, gradients, states, strict=True):
        wide = start.astype(np.float64)
        wanted = optimizers.update(optimizer, np, wide, g.astype(np.float64), optimizers.init(optimizer, wide), 0)
        verify_moved(p, slots, start, *wanted)


@pytest.mark.parametrize("name", optimizers.STATES)
@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_all_weights_are_updated_at_once(emulator, name, count):
    verify_update_of_all(emulator, name, [1 + 97 * k % 1500 for k in range(count)])


def verify_steps(emulator, **how):
    """Compare the learning rates of some steps, and the state of a generator, with those of the host."""
    for optimizer in (
        optimizers.adam(), optimizers.adam(0.003, decay=1e-4), optimizers.sgd(decay=1e-3), optimizers.rmsprop()
    ):  # fmt: skip
        rate = optimizers.adam_rate if optimizer.name == "adam" else optimizers.rate
        steps, generator = _cuda_updates.Steps(emulator.ops(**how), optimizer), SplitMix64(np, 3)
        assert (steps.step.item(), steps.rate.item()) == (1, np.float32(rate(optimizer, 0)))
        for count in (1, 2, 10, 1000, 100_000):
            steps.set(count - 1)
            wanted = int(generator.state)
            for words in (5, 7):
                wanted += words * 0x9E3779B97F4A7C15
                generator.take(words)
            steps.advance(generator)
            assert steps.step.item() == count + 1
            np.testing.assert_allclose(steps.rate.item(), rate(optimizer, count), rtol=3e-7)
            assert int(generator.state) == wanted % 2**64
        steps.advance()


def test_a_row_is_found_without_a_division():
    n = np.concatenate([np.arange(5000), 2**31 - 1 - np.arange(5000)]).astype(np.uint64)
    for width in [*range(1, 130), 999, 1000, 1024, 12345, 2**20 + 1]:
        factor, shift = _cuda_updates._reciprocal(width)
        assert (n * np.uint64(factor % 2**32) >> np.uint64(shift) == n // np.uint64(width)).all()


# --------------------------------------------------------------------------------------------- the checks themselves

#: kernel -> a check that fails if it is wrong; a kernel without one fails the test below
CHECKS = {
    "lstm_forward": lambda e, **how: e.verify(lstm(2, 4, 33, direction="forward", return_sequences=True), **how),
    "lstm_backward": lambda e, **how: e.verify(lstm(3, 4, 33, op="bilstm"), **how),
    "rectified_sums": lambda e, **how: e.verify(dense(600, 37, activation="relu"), **how),
    **{f"average_{k}": lambda e, k=k, **how: e.verify(average(3, 37, 11, 33 * k), **how) for k in (1, 2, 4)},
    **{
        f"{name}_{dtype}_{k}": lambda e, op=op, dtype=dtype, k=k, **how: e.verify(half(op, dtype, 33 * k), **how)
        for name, op in (("average", "embedding_average"), ("gather", "embedding"))
        for dtype in contract.HALVES
        for k in (1, 2, 4, 8)
    },
    **{f"scatter_{k}": lambda e, k=k, **how: e.verify(average(3, 9, 3, 3 * k), **how) for k in (1, 2, 4)},
    **{
        f"{name}_{k}": lambda e, k=k, **how: e.verify(average(3, 90, 2, 3 * k), deterministic=True, **how)
        for name in ("sum_runs", "join_runs")
        for k in (1, 2, 4)
    },
    **{
        f"{name}_{k}": lambda e, k=k, **how: e.verify(embedded(9, 25, 5, 33 * k), **how)
        for name in ("sum_table", "gather")
        for k in (1, 2, 4)
    },
    "conv2d_forward": lambda e, **how: e.verify(images(direction="forward", padding="same", activation="relu"), **how),
    "conv2d_weights": lambda e, **how: [
        e.verify(images(direction="weight_gradients", activation="relu", **sizes), **how)
        for sizes in ({}, {"n": 420, "outputs": 1})  # the second has several lines for each warp
    ],
    "conv2d_images": lambda e, **how: [
        e.verify(images(padding="same", outputs=outputs), **how)
        for outputs in (65, 36)  # the second is read in vectors
    ],
    **{name: lambda e, name=name, **how: verify_update_of_all(e, name, **how) for name in optimizers.STATES},
    **{f"descend_{k}": lambda e, k=k, **how: verify_update(e, "sgd", 3 * k, rows=75, **how) for k in (1, 2, 4)},
    "adam_touched_1": lambda e, **how: verify_update(e, "adam", 2, rows=75, **how),
    "adam_touched_4": lambda e, **how: verify_update(e, "adam", 13, rows=75, **how),
    "next_step": verify_steps,
    **{
        f"max_pool{way}_{k}": lambda e, k=k, **how: e.verify(glue("max_pool2d", N=3, H=5, W=4, C=3 * k), **how)
        for way in ("", "_back")
        for k in (1, 4)
    },
    **dict.fromkeys(("relu", "relu_back"), lambda e, **how: e.verify(glue("relu", N=3, **{"...": 7}), **how)),
    "dropout": verify_dropout,
    **dict.fromkeys(
        ("softmax_loss", "softmax_loss_back"),
        lambda e, **how: e.verify(glue("softmax_cross_entropy", N=21, K=35), **how),
    ),
    **dict.fromkeys(
        ("sigmoid_loss", "sigmoid_loss_back"), lambda e, **how: e.verify(glue("sigmoid_cross_entropy", N=270), **how)
    ),
    **dict.fromkeys(
        ("batch_norm", "batch_norm_back"),
        lambda e, **how: [
            e.verify(glue("batch_norm", options={"training": training}, N=37, C=9), **how) for training in (True, False)
        ],
    ),
}


@pytest.mark.parametrize("kernel", [kernel for file in FILES for kernel in Kernels(file).names])
def test_every_kernel_has_a_check_that_launches_it(emulator, kernel):
    CHECKS[kernel](emulator)
    assert kernel in emulator.launched


def test_every_file_is_listed():
    assert set(FILES) == {path.stem for path in FOLDER.glob("*.cu")}


def _check_of(file):
    """Return a check that launches all kernels of a file that synchronise, in blocks of several warps."""
    checks = {
        "lstm": "lstm_backward", "columns": "rectified_sums", "embedding_average": "average_1",
        "conv2d": "conv2d_images", "glue": "batch_norm",
    }  # fmt: skip
    return CHECKS[checks[file]] if file != "embedding_average" else _average_and_sum


def _average_and_sum(emulator, **how):
    CHECKS["average_1"](emulator, **how)
    CHECKS["sum_table_1"](emulator, **how)


BARRIER = "__syncthreads();"


@pytest.mark.parametrize(("file", "k"), [(f, k) for f in FILES for k in range(Kernels(f).text.count(BARRIER))])
def test_a_missing_barrier_is_seen(emulator, file, k):
    def remove(text):
        parts = text.split(BARRIER)
        return BARRIER.join(parts[: k + 1]) + BARRIER.join(parts[k + 1 :])

    assert remove(Kernels(file).text).count(BARRIER) == Kernels(file).text.count(BARRIER) - 1
    with pytest.raises(parity.ParityError):  # noqa: PT012 - in some order of the threads
        for seed in range(8):
            _check_of(file)(emulator, seed=seed, change=remove)


FAULTS = {
    "the other 16 bits": ("average_bfloat16_2", "FORWARD(SIZE, BFloat16,", "FORWARD(SIZE, Float16,"),
    "one number of a vector for all": ("average_float16_8", "wide(rows[k].v[e])", "wide(rows[k].v[0])"),
    "the head of a row for its rest": ("gather_bfloat16_4", "vector_at<SIZE>(row + column)", "vector_at<SIZE>(row)"),
    "a row looked for in vain": ("sum_table_1", "start += warps * LOOKED_AT", "start += (warps + 1) * LOOKED_AT"),
    "the row of another position": (
        "gather_1",
        "table + (size_t)__ldg(ids + at) * width",
        "table + (size_t)__ldg(ids) * width",
    ),
    "a tail without its gradient": ("adam_touched_4", "== now ? values[k] : 0.f", "== now ? 0.f : 0.f"),
    "a result not written": ("lstm_forward", "if (h && q == 1) h[", "if (h && q == 1 && s) h["),
    "another gate": ("lstm_forward", "__shfl_sync(ALL, a, lane + 1)", "__shfl_sync(ALL, a, lane)"),
    "one direction's weights for both": ("lstm_backward", "if (blockIdx.y) w_h = w_h_1", ""),
    "a state not kept": (
        "lstm_backward",
        "(place + stride) * HIDDEN + u] = state;",
        "(place + stride) * HIDDEN + u] = 0.f;",
    ),
    "one block's sums left out": ("rectified_sums", "for (int k = line; k", "for (int k = line + 1; k"),
    "the bias of what is rectified": ("rectified_sums", "y && !(__ldg(y + i) > 0.f) ? 0.f : ", ""),
    "the last step not closed": ("lstm_backward", "is_first_step ? 0.f :", "false ? 0.f :"),
    "a gradient cut off": ("lstm_backward", "carried_c[i] = of_c * step.f", "carried_c[i] = 0.f"),
    "the shares left out": ("scatter_1", "(k - first) * __ldg(shares + sample)", "(k - first)"),
    "one neighbour for all": ("scatter_2", "(k - first) * __ldg(shares", "__ldg(shares"),
    "neighbours added twice": ("scatter_4", " || (at % longest && __ldg(ids + at - 1) == id)", ""),
    "a run cut short": ("sum_runs_2", "int start = head; more;", "int start = head; start == head;"),
    "a run not joined": ("join_runs_4", "if (key == padding || __ldg", "if (key != padding || __ldg"),
    "rows of another sign": ("descend_1", "lr * g.v[e]", "lr * -g.v[e]"),
    "a gradient not cleared": ("descend_4", "if (clear) *reinterpret_cast", "if (false) *reinterpret_cast"),
    "the second state not kept": ("adam", "*reinterpret_cast<float4*>(w.b + i) = b", ""),
    "the bias of a weight for another": ("rmsprop", "CHOOSE(3) CHOOSE(4)", "CHOOSE(4)"),
    "no square": ("adadelta", "average(u, d * d, mix)", "average(u, d, mix)"),
    "a rate of the step before": ("next_step", "*step + 1", "*step"),
    "an edge taken for the image": ("conv2d_forward", "column + k >= 0 && ", ""),
    "the rectifier's gradient left out": ("conv2d_weights", "y ? __ldg(y + i) : 1.f", "1.f"),
    "one block's part left out": ("conv2d_weights", "step = gridDim.x * warps", "step = items"),
    "outputs left out": ("conv2d_images", "start += 32", "start += 64"),
    "outputs left out of vectors": ("conv2d_images", "k < size; k += 4", "k < size; k += 8"),
    "a result at the edge of a block left out": ("conv2d_images", "j / STRIDE > last_q", "j / STRIDE >= last_q"),
    "a window at the edge": ("max_pool_1", "line / p) * height + line % p", "line / p) * height + line % p + line / p"),
    "no first maximum": ("max_pool_4", "other.v[e] > best.v[e] ||", "other.v[e] < best.v[e] ||"),
    "an edge left out": ("max_pool_back_1", "if (row < p && column < q)", "if (column < q)"),
    "a place for another": ("max_pool_back_4", "place.v[e] == k ?", "place.v[0] == k ?"),
    "the negative ones kept": ("relu", "x < 0.f ? 0.f : x; }", "x; }"),
    "the gradient of another": ("relu_back", "__ldg(y + i + k)", "__ldg(y + i)"),
    "sixteen bits for all": ("dropout", "z >> 16 * k", "z >> 16"),
    "classes left out": ("softmax_loss", "k < classes; k += 32) sum", "k < 32; k += 32) sum"),
    "another label": ("softmax_loss_back", "k == label ?", "k == label + 1 ?"),
    "other blocks left out": ("sigmoid_loss", "k < (int)gridDim.x", "k < 1"),
    "no label": ("sigmoid_loss_back", "sigmoid - __ldg(labels + sample)", "sigmoid - 1.f"),
    "rows left out": ("batch_norm", "sum_of_column(m, shared) / rows", "sum_of_column(m, shared) / (rows + 1)"),
    "a gradient of inference": ("batch_norm_back", "scale * (training ?", "scale * (!training ?"),
    "a tail left out": ("sgd", "k < min(start + CHUNK, w.size)", "k + 1 < min(start + CHUNK, w.size)"),
    "the next row forgotten": ("adam_touched_4", "__ldg(stamps + last) == now", "false"),
    "another row": ("adam_touched_1", "first = (Word)i * factor >> shift", "first = (Word)i * factor >> (shift + 1)"),
}


@pytest.mark.parametrize(("kernel", "old", "new"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_kernel_is_seen(emulator, kernel, old, new):
    file = next(file for file in FILES if kernel in Kernels(file).names)
    assert Kernels(file).text.count(old) >= 1
    with pytest.raises((parity.ParityError, AssertionError)):
        CHECKS[kernel](emulator, change=lambda text: text.replace(old, new))


@pytest.mark.parametrize(
    "case",
    [
        lstm(5, 4, 65),
        lstm(5, 4, 65, op="bilstm"),
        average(5, 37, 2, 50),
        glue("softmax_cross_entropy", N=70, K=5),
        glue("sigmoid_cross_entropy", N=600),
        glue("batch_norm", options={"training": True}, N=70, C=9),
    ],
    ids=lambda case: case.op,
)
def test_results_do_not_depend_on_the_order_of_the_threads(emulator, case):
    args, dy = case.arrays()
    results = []
    for seed in (1, 2, 3):
        ops = emulator.ops(seed, deterministic=True)
        y, pullback = getattr(ops, case.op)(Workspace(Poisoned()), *args, **dict(case.options))
        results.append([y, *pullback(dy)])
    for others in results[1:]:
        for first, other in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(first, other)
