"""Keras' initial weights, drawn in float64 from a NumPy generator."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def glorot_uniform(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Draw a matrix from the uniform distribution within ``sqrt(6 / (rows + columns))`` of 0."""
    limit = (6 / (rows + columns)) ** 0.5
    return rng.uniform(-limit, limit, (rows, columns))


def orthogonal(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """Draw a matrix with orthonormal rows or columns, whichever are fewer, without a preferred direction."""
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.sign(np.diag(r))
    return q if rows >= columns else q.T


def embedding(rng: np.random.Generator, vocabulary: int, width: int) -> Array:
    """Draw a table of rows from the uniform distribution within 0.05 of 0. Shape (vocabulary, width)."""
    return rng.uniform(-0.05, 0.05, (vocabulary, width))


def dense(rng: np.random.Generator, inputs: int, outputs: int) -> tuple[Array, Array]:
    """Draw the matrix and the bias, which is 0, of a dense layer. Shapes (inputs, outputs) and (outputs)."""
    return glorot_uniform(rng, inputs, outputs), np.zeros(outputs)


def conv2d(rng: np.random.Generator, rows: int, columns: int, inputs: int, outputs: int) -> tuple[Array, Array]:
    """Draw the kernel and the bias, which is 0, of a convolution. Shapes (rows, columns, inputs, outputs), (outputs).

    Glorot's limit, with ``rows * columns`` times the channels as numbers of inputs and outputs.
    """
    limit = (6 / (rows * columns * (inputs + outputs))) ** 0.5
    return rng.uniform(-limit, limit, (rows, columns, inputs, outputs)), np.zeros(outputs)


def lstm(rng: np.random.Generator, inputs: int, units: int) -> tuple[Array, Array, Array]:
    """Draw the weights of an LSTM: w_x (inputs, 4 units), w_h (units, 4 units) and b (4 units).

    The bias is 1 for the forget gate, the second of i, f, g, o, and 0 for the others.
    """
    bias = np.zeros(4 * units)
    bias[units : 2 * units] = 1
    return glorot_uniform(rng, inputs, 4 * units), orthogonal(rng, units, 4 * units), bias
