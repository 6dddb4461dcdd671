"""Parity of what has no single right result, dropout, and of optimizers alone: each check sees its faults."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import shim
from shim import cases, contract, parity
from shim.models import optimizers

NUMPY = shim.load("numpy")
DROPOUT = cases.case("dropout", "forward_backward", {"N": 30, "...": 70}, rate=0.25)
STEPS = [
    cases.of_model(name, cases.OPTIMIZER_STEP, 5, "float32", {})
    for name in ("mnist_mlp", "mnist_cnn", "text_generator")
]


def backend(**replaced):
    names = ("to_device", "to_numpy", "synchronize", "forward", "forward_backward", "trainer")
    return SimpleNamespace(**{name: getattr(NUMPY, name) for name in names} | replaced)


def dropout_with(change):
    def forward_backward(op, options, mode):
        run = NUMPY.forward_backward(op, options, mode).bare
        return lambda args, dy: change(*run(args, dy))

    return backend(forward_backward=forward_backward)


def test_dropout_passes_in_both_directions():
    for case in (DROPOUT, dataclasses.replace(DROPOUT, direction="forward")):
        assert parity.verify(backend(), case, "eager")["worst"] <= 1
        assert cases.parse(case.id) == case


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y, grads: (y * np.float32(0.75), grads), "the result differs"),
        (lambda y, grads: (y, [np.roll(grads[0], 1)]), "the gradient of x differs"),
        (lambda y, grads: (y, [grads[0] * np.float32(1.01)]), "the gradient of x differs"),
        (
            lambda y, grads: (np.where(np.arange(70) < 35, y * 0, y), [np.where(np.arange(70) < 35, 0, grads[0])]),
            "share",
        ),
        (lambda y, grads: (y.astype(np.float64), grads), "is float64"),
    ],
    ids=["not scaled", "another mask for the gradient", "gradient a little off", "drops too many", "dtype"],
)
def test_wrong_dropout_is_caught(change, message):
    with pytest.raises(parity.ParityError, match=message):
        parity.verify(dropout_with(change), DROPOUT, "eager")


@pytest.mark.parametrize("case", STEPS, ids=str)
def test_the_optimizer_alone_passes(case):
    assert parity.verify(backend(), case, "eager")["worst"] <= 1


@pytest.mark.parametrize("change", [{"learning_rate": 1.001}, {"rho": 0.8}, {"epsilon": 1e-3}], ids=str)
def test_a_wrong_constant_of_the_optimizer_is_caught(change):
    def trainer(model, params, optimizer, mode, seed=0):
        if "learning_rate" in change:
            change["learning_rate"] = 1.001 * optimizer.learning_rate
        return NUMPY.trainer(model, params, dataclasses.replace(optimizer, **change), mode, seed)

    with pytest.raises(parity.ParityError, match="the weight hidden_1_w differs"):
        parity.verify(backend(trainer=trainer), STEPS[0], "eager")


def test_gradients_in_the_place_of_others_are_caught():
    def trainer(*args, **options):
        made = NUMPY.trainer(*args, **options)
        return SimpleNamespace(
            params=made.params,
            updater=lambda gradients: made.updater({name: g[::-1] for name, g in gradients.items()}),
        )

    with pytest.raises(parity.ParityError, match="the weight"):
        parity.verify(backend(trainer=trainer), STEPS[0], "eager")


GRADIENTS = cases.of_model("mnist_mlp", cases.GRADIENTS, 5, "float32", {})


def with_gradients(change):
    """NumPy, whose trainer's gradients are those that a step of plain descent shows, after ``change``."""

    def trainer(model, params, optimizer, mode, seed=0):
        def gradients(x, labels):
            made = NUMPY.trainer(model, params, optimizers.sgd(learning_rate=1.0), mode)
            loss = made.step(x, labels)
            return loss, change({name: params[name] - value for name, value in made.params().items()})

        return SimpleNamespace(gradients=gradients)

    return backend(trainer=trainer)


def in_pieces(gradient):
    """A gradient of a table as pieces: every row by its id, the first one in two halves."""
    ids = np.arange(len(gradient))
    return [(ids, np.where(ids[:, None] == 0, gradient / 2, gradient)), (ids[:1], gradient[:1] / 2)]


def test_gradients_of_a_whole_model_pass():
    assert parity.verify(with_gradients(lambda gradients: gradients), GRADIENTS, "eager")["worst"] <= 1
    assert parity.verify(with_gradients(lambda g: g | {"output_w": in_pieces(g["output_w"])}), GRADIENTS, "eager")
    assert cases.parse(GRADIENTS.id) == GRADIENTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g | {"output_b": 1.01 * g["output_b"]}, "the gradient of output_b differs"),
        (lambda g: g | {"hidden_1_w": g["hidden_1_w"][:, ::-1]}, "the gradient of hidden_1_w differs"),
        (lambda g: g | {"output_w": g["output_w"].T}, "the gradient of output_w has shape"),
        (lambda g: {n: v for n, v in g.items() if n != "output_w"}, "expected hidden_1_w"),
        (lambda g: g | {"output_w": in_pieces(g["output_w"])[:1]}, "the gradient of output_w differs"),
    ],
)
def test_a_wrong_gradient_of_a_whole_model_is_caught(change, message):
    with pytest.raises(parity.ParityError, match=message):
        parity.verify(with_gradients(change), GRADIENTS, "eager")


@pytest.mark.parametrize("op", ["relu", "embedding", "dropout"])
def test_ops_without_weights_have_no_direction_for_them(op):
    with pytest.raises(
        ValueError, match="unknown direction 'weight_gradients'; the directions are: forward, forward_b"
    ):
        cases.case(op, contract.WEIGHTS, parity.SMALL[op])


def test_the_work_without_the_first_gradient():
    dims = {"N": 3, "I": 5, "O": 7}
    forward, both, weights = (
        cases.case("dense", d, dims).work() for d in ("forward", "forward_backward", contract.WEIGHTS)
    )
    assert weights.flops == 2 * forward.flops == 2 / 3 * both.flops
    assert both.bytes - weights.bytes == 4 * 3 * 5
