"""Every op of every backend against the contract: each option, dtype and mode, forward and every gradient."""

from __future__ import annotations

import functools
import inspect

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shim import cases, contract, parity
from shim.protocol import Backend, Program, Unsupported, directions, dtypes, offers


@pytest.mark.parametrize("case", parity.conformance_cases(), ids=str)
def test_agrees_with_the_contract(backend, mode, case):
    agrees_or_is_refused(backend, mode, case)


@pytest.mark.parametrize("case", parity.half_cases(), ids=str)
def test_agrees_in_halves(backend, case):
    agrees_or_is_refused(backend, backend.MODES[0], case)


def agrees_or_is_refused(backend, mode, case):
    if offers(backend, case):
        parity.verify(backend, case, mode)
    else:
        with pytest.raises(Unsupported, match=" only"):
            parity.verify(backend, case, mode)


SHAPES = {
    "dense": {"N": (1, 9), "I": (1, 9), "O": (1, 9)},
    "conv2d": {"N": (1, 3), "H": (3, 9), "W": (3, 9), "C": (1, 4), "R": (1, 3), "S": (1, 3), "O": (1, 5)},
    "lstm": {"N": (1, 5), "T": (1, 6), "I": (1, 5), "H": (1, 5)},
    "bilstm": {"N": (1, 4), "T": (1, 5), "I": (1, 4), "H": (1, 4)},
    "embedding_average": {"N": (1, 6), "T": (1, 9), "V": (1, 12), "D": (1, 5)},
}


@st.composite
def random_cases(draw, op, direction, dtypes):
    entry = contract.op(op)
    dims = {axis: draw(st.integers(*bounds)) for axis, bounds in SHAPES[op].items()}
    options = {name: draw(st.sampled_from(list(choices))) for name, choices in entry.options.items()}
    return cases.case(op, direction, dims, draw(st.sampled_from(dtypes)), **options)


@pytest.mark.parametrize("op", SHAPES)
def test_agrees_at_random_shapes(backend, op):
    examples = 25 if backend.MODES[0] == "eager" else 4  # a compiled mode compiles each of them anew

    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(random_cases(op, directions(backend)[-1], dtypes(backend)))
    def agrees(case):
        parity.verify(backend, case, backend.MODES[0])

    agrees()


@pytest.mark.parametrize("op", ["lstm", "bilstm"])
def test_hard_sigmoids_are_clipped(backend, mode, op):
    """Most gates are shut or wide open here, with a gradient of 0; few are at small arguments."""
    direction, dtype = directions(backend)[-1], dtypes(backend)[-1]
    case = cases.case(op, direction, parity.SMALL[op], dtype, recurrent_activation="hard_sigmoid")
    args, dy = case.arrays()
    args[0] = args[0] * 10
    run, given = getattr(backend, direction)(op, dict(case.options), mode), [backend.to_device(a) for a in args]
    y, grads = (run(*given), []) if direction == "forward" else run(given, backend.to_device(dy))
    reference = functools.partial(contract.op(op).reference, **dict(case.options))
    args, dy, tolerance = [a.astype(np.float64) for a in args], dy.astype(np.float64), 5e3 * np.finfo(dtype).eps
    np.testing.assert_allclose(backend.to_numpy(y), reference(*args), rtol=0, atol=tolerance)
    gradients = contract.reference_vjp(reference, args, dy)
    for actual, wanted in zip(grads, gradients if grads else [], strict=True):
        np.testing.assert_allclose(backend.to_numpy(actual), wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_defines_the_protocol(backend):
    assert backend.DEVICES
    assert backend.MODES
    for name, wanted in inspect.getmembers(Backend, inspect.isfunction):
        if name.startswith("_"):
            continue
        parameters = list(inspect.signature(wanted).parameters)[1:]
        actual = list(inspect.signature(getattr(backend, name)).parameters)
        assert actual[: len(parameters)] == parameters, name


@pytest.mark.parametrize("op", contract.OPS)
def test_has_the_signature_of_the_contract(backend, op):
    assert inspect.signature(getattr(backend, op)) == inspect.signature(contract.op(op).reference)


@pytest.mark.parametrize("op", ["dense", "conv2d", "lstm", "bilstm", "embedding_average"])
def test_checked_call_agrees_with_the_program(backend, op):
    case = cases.case(op, "forward", parity.SMALL[op])
    args, _ = case.arrays()
    args = [backend.to_device(a) for a in args]
    called = backend.to_numpy(getattr(backend, op)(*args))
    built = backend.to_numpy(backend.forward(op)(*args))
    np.testing.assert_allclose(called, built, rtol=1e-5, atol=1e-6)


def test_results_of_two_calls_are_independent(backend, mode):
    case = cases.case("dense", directions(backend)[-1], parity.SMALL["dense"])
    (x, w, b), dy = case.arrays()

    def result(*args):
        args = [backend.to_device(a) for a in args]
        return run(*args) if case.direction == "forward" else run(args, backend.to_device(dy))[0]

    run = getattr(backend, case.direction)("dense", {}, mode)
    first = result(x, w, b)
    kept = backend.to_numpy(first).copy()
    assert not np.array_equal(backend.to_numpy(result(-x, w, b)), kept)
    np.testing.assert_array_equal(backend.to_numpy(first), kept)


def test_other_weights_are_used_at_once(backend, mode):
    (x, w, b), _ = cases.case("dense", "forward", parity.SMALL["dense"]).arrays()
    run = backend.forward("dense", {}, mode)
    for weights in (w, -w, w):
        y = backend.to_numpy(run(*(backend.to_device(a) for a in (x, weights, b))))
        np.testing.assert_allclose(y, x @ weights + b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_arrays_survive_the_way_to_the_device_and_back(backend, dtype):
    value = np.arange(15).reshape(3, 5).astype(dtype)
    if dtype not in (*dtypes(backend), "int32"):
        with pytest.raises(Unsupported, match=f"not in {dtype}"):
            backend.to_device(value)
        return
    back = backend.to_numpy(backend.to_device(value))
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(back, value)


@pytest.mark.parametrize("dtype", contract.HALVES)
def test_halves_survive_the_way_to_the_device_and_back(backend, dtype):
    case = cases.case("embedding", "forward", parity.SMALL["embedding"], dtype)
    if not offers(backend, case):
        pytest.skip("another test has it refused")
    (_, table), _ = case.arrays()
    array = backend.to_device(table)
    assert contract.dtype_name(array) == dtype
    back = backend.to_numpy(array)
    wanted, table[:] = table.copy(), 0
    assert back.dtype == wanted.dtype
    np.testing.assert_array_equal(back, wanted)


def test_the_device_array_does_not_follow_the_host_array(backend):
    value = np.ones((3, 5), np.float32)
    array = backend.to_device(value)
    value[:] = 2
    np.testing.assert_array_equal(backend.to_numpy(array), np.ones((3, 5)))


def test_dropout_keeps_the_mean_and_the_expected_share(backend):
    x = backend.to_device(np.ones((200, 500), np.float32))
    y = backend.to_numpy(backend.dropout(x, rate=0.25))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.01  # seven standard deviations


@pytest.mark.parametrize("direction", contract.DIRECTIONS)
def test_dropout_has_one_mask_for_result_and_gradient(backend, mode, direction):
    case = cases.case("dropout", direction, {"N": 30, "...": 70}, rate=0.25)
    if offers(backend, case):
        parity.verify(backend, case, mode)
    else:
        with pytest.raises(Unsupported, match="forward only"):
            parity.verify(backend, case, mode)


def test_a_program_of_dropout_draws_anew_at_each_call(backend, mode):
    x = backend.to_device(np.ones((30, 70), np.float32))
    run = backend.forward("dropout", {"rate": 0.25}, mode)
    first, then = (backend.to_numpy(run(x)).copy() for _ in range(2))
    assert (first != then).any()


WRONG = {
    "shape": (lambda a: [a[0], a[1][:-1], a[2]], "w has shape"),
    "rank": (lambda a: [a[0][0], a[1], a[2]], "x has shape"),
    "dtype": (lambda a: [a[0], a[1].astype(np.float16), a[2]], "share one of|computes in float32"),
    "integers": (lambda a: [a[0].astype(np.int32), a[1], a[2]], "share one of"),
    "count": (lambda a: a[:2], "takes 3 arguments"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused(backend, change, message):
    args, _ = cases.case("dense", "forward", parity.SMALL["dense"]).arrays()
    args = change(args)
    with pytest.raises((ValueError, Unsupported), match=message):
        backend.dense(*map(backend.to_device, args))
    with pytest.raises((ValueError, Unsupported), match=message):
        backend.forward("dense")(*map(backend.to_device, args))


@pytest.mark.parametrize(("wrong", "message"), [(11, "= 11 is outside 0..10"), (-1, "= -1 is outside 0..10")])
def test_ids_out_of_range_are_refused(backend, wrong, message):
    (ids, table), _ = cases.case("embedding_average", "forward", parity.SMALL["embedding_average"]).arrays()
    ids[3, 2] = wrong
    args = backend.to_device(ids), backend.to_device(table)
    with pytest.raises(ValueError, match=r"ids\[3, 2\] " + message):
        backend.embedding_average(*args)
    with pytest.raises(ValueError, match=message):
        backend.forward("embedding_average")(*args)


def test_a_wrong_output_gradient_is_refused(backend):
    args, dy = cases.case("dense", "forward_backward", parity.SMALL["dense"]).arrays()
    trains = "forward_backward" in directions(backend)
    with pytest.raises(ValueError if trains else Unsupported, match="dy has shape" if trains else "no gradients"):
        backend.forward_backward("dense")([backend.to_device(a) for a in args], backend.to_device(dy[:, :-1]))


@pytest.mark.parametrize(
    ("op", "options", "wrong_mode", "message"),
    [
        ("convolution", {}, None, "unknown op 'convolution'; the ops are: dense"),
        ("conv2d", {"padding": "full"}, None, "padding='full' is not one of 'valid', 'same'"),
        ("conv2d", {"stride": 0}, None, "stride=0 is not one of"),
        ("conv2d", {"strides": 1}, None, "no option 'strides'; it has: stride"),
        ("dense", {}, "warp", "unknown mode 'warp'; choose from"),
    ],
)
def test_unknown_names_are_refused_with_the_choices(backend, op, options, wrong_mode, message):
    with pytest.raises(ValueError, match=message):
        backend.forward(op, options, wrong_mode)


@pytest.mark.parametrize("setting", [{"device": "tpu"}, {"precision": "float8"}])
def test_unknown_settings_are_refused(backend, setting):
    with pytest.raises(ValueError, match="choose from"):
        backend.setup(**setting)


def test_a_program_checks_its_first_call_only(backend):
    run = backend.forward("dense")
    assert isinstance(run, Program)
    assert not isinstance(run.bare, Program)


def test_names_the_path_of_every_case(backend, mode):
    for case in cases.case_set("article"):
        assert backend.implementation(case, mode).strip()


def test_describes_itself(backend):
    described = backend.describe()
    assert {"device", "precision", "threads", "versions"} <= set(described)
