"""The conformance checks themselves: a faultless backend passes and every kind of fault is caught, by its name."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from broken import FAULTS, backend, caught

from shim import cases, contract, parity


def test_a_faultless_backend_passes():
    assert caught(None) == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_fault_is_caught(fault):
    assert set(caught(fault)) == FAULTS[fault][0]


#: seen by halves with their default options; "a result a little off" is less than their last digit
IN_HALVES = set(FAULTS) - {"hard sigmoids of Keras 3", "off-by-one padding", "a result a little off", "wrong dtype",
                           "gradient in the wrong dtype"}  # fmt: skip


@pytest.mark.parametrize("fault", [None, *sorted(IN_HALVES)])
def test_the_fault_is_caught_in_halves(fault):
    in_float16 = [case for case in parity.half_cases() if case.dtype == "float16"]
    assert set(caught(fault, cases=in_float16)) == (FAULTS[fault][0] if fault else set())


def test_the_reference_of_halves_is_float64():
    case = cases.case("dense", "forward_backward", parity.SMALL["dense"], "bfloat16")
    reference, ((x, w, b), dy) = parity._op_reference(case), case.arrays()
    assert {array.dtype.name for array in (x, w, b, dy)} == {"bfloat16"}
    assert {array.dtype.name for array in reference.values()} == {"float64"}
    x, w, b, dy = (array.astype(np.float64) for array in (x, w, b, dy))
    np.testing.assert_allclose(reference["y"], x @ w + b, rtol=1e-12)
    np.testing.assert_allclose(reference["g1"], x.T @ dy, rtol=1e-12)


FULL_SIZE = {
    "dense": cases.case("dense", "forward_backward", {"N": 32, "I": 128, "O": 33}, activation="relu"),
    "conv2d": cases.case(
        "conv2d", "forward_backward", {"N": 4, "H": 15, "W": 15, "C": 8, "R": 3, "S": 3, "O": 9}, padding="same"
    ),
    "lstm": cases.case("lstm", "forward_backward", {"N": 8, "T": 20, "I": 24, "H": 16}),
    "embedding_average": cases.case("embedding_average", "forward_backward", {"N": 8, "T": 40, "V": 500, "D": 10}),
}


@pytest.mark.parametrize(
    ("fault", "op"), [(fault, op) for fault, (ops, _, _) in FAULTS.items() for op in sorted(ops & set(FULL_SIZE))]
)
def test_the_fault_is_caught_at_full_size(fault, op):
    case = FULL_SIZE[op]
    if fault == "hard sigmoids of Keras 3":
        case = cases.case(op, case.direction, dict(case.dims), recurrent_activation="hard_sigmoid")
    parity.verify(backend(), case, "eager")
    with pytest.raises(parity.ParityError):
        parity.verify(backend(fault), case, "eager")


def test_full_size_gradients_are_compared_along_a_direction():
    reference = parity._op_reference(FULL_SIZE["dense"])
    assert set(reference) == {"y", "products"}


def test_a_direction_is_the_product_with_the_gradient():
    case = cases.case("lstm", "forward_backward", parity.SMALL["lstm"], "float64")
    args, dy = case.arrays()
    directions = [np.random.default_rng(k).standard_normal(a.shape) for k, a in enumerate(args)]
    products = contract.reference_directional(contract.op("lstm").reference, args, dy, directions)
    gradients = contract.reference_vjp(contract.op("lstm").reference, args, dy)
    wanted = [(g * d).sum() for g, d in zip(gradients, directions, strict=True)]
    np.testing.assert_allclose(products, wanted, rtol=1e-12)


def test_references_are_kept_and_used_again(tmp_path):
    case = FULL_SIZE["dense"]
    parity.verify(backend(), case, "eager", cache=tmp_path)
    (stored,) = tmp_path.glob("*.npz")
    with np.load(stored) as arrays:
        wrong = {name: value + 1 for name, value in arrays.items()}
    np.savez(stored, **wrong)
    with pytest.raises(parity.ParityError):
        parity.verify(backend(), case, "eager", cache=tmp_path)


def test_a_loss_that_drifts_is_caught():
    wanted = np.array([2.0, 1.5, 1.0])
    assert parity.compare_losses(wanted * (1 + 5e-5), wanted, "float32") == pytest.approx(0.5)
    with pytest.raises(parity.ParityError):
        parity.compare_losses(wanted * (1 + 2e-4), wanted, "float32")
    with pytest.raises(parity.ParityError):
        parity.compare_losses([np.nan, 1.5, 1.0], wanted, "float32")


@pytest.mark.parametrize(
    ("op", "approximates", "passes"), [("lstm", True, True), ("lstm", False, False), ("dense", True, False)]
)
def test_only_recurrences_may_be_off_by_more_where_a_backend_says_so(op, approximates, passes):
    exact = backend()
    case, entry = cases.case(op, "forward", parity.SMALL[op]), contract.op(op)
    longest = entry.longest_sum(entry.all_dims(dict(case.dims), dict(case.options)))
    off = 2 * parity.FACTOR * np.finfo(np.float32).eps * longest**0.5

    def forward(*how):
        run = exact.forward(*how)

        def program(*args):
            y = run(*args)
            return y + y.dtype.type(off * abs(y).max())

        return program

    other = SimpleNamespace(**vars(exact) | {"forward": forward, "approximates": lambda: approximates})
    if passes:
        parity.verify(other, case, "eager")
    else:
        with pytest.raises(parity.ParityError, match="the result differs"):
            parity.verify(other, case, "eager")
