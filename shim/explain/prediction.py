"""Times of shapes that were left out, by a model of the work that is fitted to other shapes.

The model of a contestant on an op is a sum: a call, the steps of an LSTM, the operations, the operations if channels
filled whole vectors, and the bytes of the input, the weights and the result, each times a constant. The constants are
those with the least sum of relative errors on measured times, none of them negative; a sum of squares would follow the
few shapes where another algorithm is taken. How far it holds is seen where it was not fitted: each half of the shapes
of a map is predicted from the other half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from shim import cases, contract
from shim.explain.winmap import WinMap

TERMS = ("call", "steps", "operations", "vector_operations", "input", "weights", "result")
LANES = 16  # float32 in a vector of 512 bits, or in two of 256
CHANNELS = {"dense": "IO", "conv2d": "CO", "lstm": "IH", "bilstm": "IH"}  # axes along which vectors lie
FEWEST = 2 * len(TERMS)  # shapes in a half


@dataclass(frozen=True)
class Prediction:
    """The model of one contestant.

    ``constants`` are in seconds a unit (operation, byte) of each of :data:`TERMS`, fitted to all shapes.
    ``seconds`` are the times of the shapes by case id, each predicted from the half of the map that it is not in, and
    ``error`` is the median of their relative errors.
    """

    contestant: str
    constants: Mapping[str, float]
    seconds: Mapping[str, float]
    error: float


def amounts(case: cases.Case) -> list[float]:
    """Return how much of each of :data:`TERMS` a case has."""
    op, dims = contract.op(case.op), dict(case.dims)
    steps = dims["T"] if case.op in ("lstm", "bilstm") else 0
    first, *weights = (math.prod(op.shape(argument.axes, dims)) for argument in op.arguments)
    elements = first, sum(weights), math.prod(op.result_shape(dims, dict(case.options)))
    filled = dims | {axis: -(-dims[axis] // LANES) * LANES for axis in CHANNELS.get(case.op, "")}
    in_vectors = cases.case(case.op, case.direction, filled, case.dtype, **dict(case.options))
    flops = case.work().flops, in_vectors.work().flops
    return [1.0, float(steps), *flops, *(float(np.dtype(case.dtype).itemsize * n) for n in elements)]


def fit(amount: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Return the constants that fit times best: ``amount`` (shapes, terms) and ``seconds`` (shapes) give (terms)."""
    relative = amount / seconds[:, None]
    scale = np.where(relative.any(axis=0), relative.max(axis=0), 1.0)
    shapes, terms = relative.shape
    # What is minimised is the sum of bounds, one a shape, of the error's absolute value.
    error, bound = relative / scale, np.eye(shapes)
    within = np.block([[error, -bound], [-error, -bound]])
    weights = np.concatenate([np.zeros(terms), np.ones(shapes)])
    found = optimize.linprog(weights, within, np.repeat([1.0, -1.0], shapes))
    result: np.ndarray = found.x[:terms] / scale
    return result


def predict(found: WinMap, seed: int = 0) -> list[Prediction]:
    """Return the model of each contestant of a map that has enough shapes."""
    return [
        _predict(name, {cell.case: cell.seconds[name] for cell in cells}, seed)
        for name in found.contestants
        if len(cells := [cell for cell in found.cells.values() if name in cell.seconds]) >= 2 * FEWEST
    ]


def _predict(name: str, times: Mapping[str, float], seed: int) -> Prediction:
    amount = np.array([amounts(cases.parse(id)) for id in times])
    seconds = np.array(list(times.values()))
    order = np.random.default_rng(seed).permutation(len(seconds))
    predicted = np.empty_like(seconds)
    for known, left_out in _halves(order):
        predicted[left_out] = amount[left_out] @ fit(amount[known], seconds[known])
    error = float(np.median(np.abs(predicted / seconds - 1)))
    constants = dict(zip(TERMS, fit(amount, seconds).tolist(), strict=True))
    return Prediction(name, constants, dict(zip(times, predicted.tolist(), strict=True)), error)


def _halves(order: Sequence[int] | np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    first, second = np.array_split(np.asarray(order), 2)
    return [(first, second), (second, first)]
