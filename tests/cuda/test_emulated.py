"""Every kernel against the contract, forward and backward, run on the CPU with threads in a drawn order."""

from __future__ import annotations

import numpy as np
import pytest
from emulator import Poisoned, average, dense, images, lstm

from shim import cases, parity
from shim.backends import _handwritten
from shim.backends._cuda_kernels import FILES, FOLDER, Kernels
from shim.backends._cuda_ops import OPS
from shim.backends._handwritten import Rows, Workspace
from shim.models import optimizers

CONFORMANCE = [case for case in parity.conformance_cases(("float32",)) if case.op in OPS]


@pytest.mark.parametrize("case", CONFORMANCE, ids=str)
@pytest.mark.parametrize("deterministic", [False, True], ids=["", "deterministic"])
def test_agrees_with_the_contract(emulator, case, deterministic):
    emulator.verify(case, deterministic=deterministic)
    assert emulator.launched or (case.op, case.direction) == ("embedding", "forward")  # which only takes rows


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


@pytest.mark.parametrize("padding_id", [None, 0])
def test_the_gradient_of_a_table_as_rows(emulator, padding_id):
    (ids, table), dy = average(5, 37, 60, 6).arrays()
    ids[1], ids[2, 5:] = 0, 0
    ops = emulator.ops()
    y, pullback = ops.embedding_average(Workspace(Poisoned()), ids, table, padding_id=padding_id, table_gradient="rows")
    [rows] = pullback(dy)
    dense = ops.embedding_average(Workspace(Poisoned()), ids, table, padding_id=padding_id)[1](dy)[0]
    places, values = rows.summed(np)
    assert set(places) == set(ids.ravel()) - ({0} if padding_id == 0 else set())
    assert len(set(places)) == len(places) < len(table)
    scattered = np.zeros_like(table)
    scattered[places] = values
    np.testing.assert_allclose(scattered, dense, rtol=0, atol=1e-5)  # in another order
    np.testing.assert_allclose(y[1], table[0] if padding_id is None else 0, rtol=1e-6)


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
    assert emulator.launched == {"conv2d_forward", "conv2d_weights", "conv2d_images"}


@pytest.mark.parametrize(("n", "outputs"), [(1, 1), (5, 32), (2, 33), (420, 1)])
def test_a_convolution_agrees_at_many_sizes(emulator, n, outputs):
    emulator.verify(images(n=n, outputs=outputs, activation="relu"))


@pytest.mark.parametrize("kernel", [(3, 3, 2), (3, 3, 4), (5, 5, 3)])
def test_a_convolution_of_more_channels_or_weights_is_left_to_array_functions(emulator, kernel):
    emulator.verify(images(kernel))
    assert not emulator.launched


# ----------------------------------------------------------------------------------------------------- the optimizers


def verify_update(emulator, name, rows=False, dtype="float32", **how):
    """Take three steps on a table and compare it and its states with the formula in float64."""
    rng, optimizer, ops = np.random.default_rng(3), getattr(optimizers, name)(decay=0.1), emulator.ops(**how)
    p = rng.normal(size=(211, 13)).astype(dtype)  # several blocks, the last one not full
    start, wanted = p.copy(), p.astype(np.float64)
    states, wanted_states = optimizers.init(optimizer, p), optimizers.init(optimizer, wanted)
    for step in range(3):
        g = rng.normal(size=p.shape).astype(dtype)
        given = g
        if rows:
            pieces = [rng.permutation(len(p))[:n].astype(np.int32) for n in (70, 5)]
            given = Rows([(ids, g[ids].copy()) for ids in pieces])
            uses = np.bincount(np.concatenate(pieces), minlength=len(p))
            g = g * uses[:, None]
        ops.update(optimizer, np, step, p, given, states)
        wanted, wanted_states = optimizers.update(
            optimizer, np, wanted, g.astype(np.float64), wanted_states, np.float64(step)
        )
    moved = np.abs(wanted - start).max()
    allowed = parity.TRAINING["float32"] * moved + 8 * np.finfo(np.float32).eps * np.abs(wanted).max()
    assert np.abs(p - wanted).max() <= allowed
    for state, reference in zip(states, wanted_states, strict=True):
        assert np.abs(state - reference).max() <= 8e-6 * np.abs(reference).max()


@pytest.mark.parametrize("name", optimizers.STATES)
def test_an_optimizer_agrees_with_its_formula(emulator, name):
    verify_update(emulator, name)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_an_optimizer_takes_rows(emulator, name):
    verify_update(emulator, name, rows=True)


# --------------------------------------------------------------------------------------------- the checks themselves

#: kernel -> a check that fails if it is wrong; a kernel without one fails the test below
CHECKS = {
    "lstm_forward": lambda e, **how: e.verify(lstm(2, 4, 33, direction="forward", return_sequences=True), **how),
    "lstm_backward": lambda e, **how: e.verify(lstm(3, 4, 33, op="bilstm"), **how),
    "rectified_sums": lambda e, **how: e.verify(dense(200, 37, activation="relu"), **how),
    **{f"average_{k}": lambda e, k=k, **how: e.verify(average(3, 37, 11, 33 * k), **how) for k in (1, 2, 4)},
    **{f"scatter_{k}": lambda e, k=k, **how: e.verify(average(3, 9, 11, 3 * k), **how) for k in (1, 2, 4)},
    **{
        f"sum_runs_{k}": lambda e, k=k, **how: e.verify(average(3, 9, 11, 3 * k), deterministic=True, **how)
        for k in (1, 2, 4)
    },
    "conv2d_forward": lambda e, **how: e.verify(images(direction="forward", padding="same", activation="relu"), **how),
    "conv2d_weights": lambda e, **how: [
        e.verify(images(direction="weight_gradients", activation="relu", **sizes), **how)
        for sizes in ({}, {"n": 420, "outputs": 1})  # the second has several lines for each warp
    ],
    "conv2d_images": lambda e, **how: e.verify(images(padding="same"), **how),
    **{name: lambda e, name=name, **how: verify_update(e, name, **how) for name in optimizers.STATES},
    "sgd_rows": lambda e, **how: verify_update(e, "sgd", rows=True, **how),
    "adam_rows": lambda e, **how: verify_update(e, "adam", rows=True, **how),
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
        "conv2d": "conv2d_weights",
    }  # fmt: skip
    return CHECKS[checks[file]]


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
    "a result not written": ("lstm_forward", "if (h && q == 1) h[", "if (h && q == 1 && s) h["),
    "another gate": ("lstm_forward", "__shfl_sync(ALL, a, lane + 1)", "__shfl_sync(ALL, a, lane)"),
    "one direction's weights for both": ("lstm_backward", "if (blockIdx.y) w_h = w_h_1", ""),
    "a state not kept": ("lstm_backward", "before[(place + stride) * HIDDEN + u] = state", ""),
    "one block's sums left out": ("rectified_sums", "for (int k = line; k", "for (int k = line + 1; k"),
    "the bias of what is rectified": ("rectified_sums", "y && !(__ldg(y + i) > 0.f) ? 0.f : ", ""),
    "the last step not closed": ("lstm_backward", "is_first_step ? 0.f :", "false ? 0.f :"),
    "a gradient cut off": ("lstm_backward", "carried_c[i] = of_c * step.f", "carried_c[i] = 0.f"),
    "the shares left out": ("scatter_1", "x.v[e] *= share", "x.v[e] *= 1.f"),
    "a run cut short": ("sum_runs_2", "for (int k = head; k < total", "for (int k = head; k < head + 1"),
    "the second state not kept": ("adam", "*v = average", "float w = *v; v = &w; *v = average"),
    "an edge taken for the image": ("conv2d_forward", "column + k >= 0 && ", ""),
    "the rectifier's gradient left out": ("conv2d_weights", "y && !(__ldg(y + i) > 0.f) ? 0.f : ", ""),
    "one block's part left out": ("conv2d_weights", "at += gridDim.x * warps", "at += images * p"),
    "outputs left out": ("conv2d_images", "o += 32", "o += 64"),
    "a tail left out": ("sgd", "if (i < size) step(i)", "if (i + 1 < size) step(i)"),
    "rows taken by place": ("adam_rows", "(size_t)slot * width", "(size_t)(i / width % 7) * width"),
}


@pytest.mark.parametrize(("kernel", "old", "new"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_kernel_is_seen(emulator, kernel, old, new):
    file = next(file for file in FILES if kernel in Kernels(file).names)
    assert Kernels(file).text.count(old) >= 1
    with pytest.raises((parity.ParityError, AssertionError)):
        CHECKS[kernel](emulator, change=lambda text: text.replace(old, new))


@pytest.mark.parametrize("op", ["lstm", "bilstm", "embedding_average"])
def test_results_do_not_depend_on_the_order_of_the_threads(emulator, op):
    case = average(5, 37, 11, 50) if op == "embedding_average" else lstm(5, 4, 65, op=op)
    args, dy = case.arrays()
    results = []
    for seed in (1, 2, 3):
        y, pullback = getattr(emulator.ops(seed, deterministic=True), op)(Workspace(Poisoned()), *args)
        results.append([y, *pullback(dy)])
    for others in results[1:]:
        for first, other in zip(results[0], others, strict=True):
            np.testing.assert_array_equal(first, other)
