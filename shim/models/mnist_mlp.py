"""Two hidden layers of 512 rectified units with dropout on MNIST digits: Keras' example ``mnist_mlp``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shim.models import Model, initializers, optimizers

PIXELS, UNITS, CLASSES = 784, 512, 10


def apply(ops: Any, params: Mapping[str, Any], x: Any) -> Any:
    x = ops.dense(x, params["hidden_1_w"], params["hidden_1_b"], activation="relu")
    x = ops.dropout(x, rate=0.2)
    x = ops.dense(x, params["hidden_2_w"], params["hidden_2_b"], activation="relu")
    x = ops.dropout(x, rate=0.2)
    return ops.dense(x, params["output_w"], params["output_b"])


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    params: dict[str, np.ndarray] = {}
    for name, inputs, outputs in (
        ("hidden_1", PIXELS, UNITS),
        ("hidden_2", UNITS, UNITS),
        ("output", UNITS, CLASSES),
    ):
        params[f"{name}_w"], params[f"{name}_b"] = initializers.dense(rng, inputs, outputs)
    return params


def sample(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.random((size, PIXELS)), rng.integers(0, CLASSES, size)


MODEL = Model(
    name="mnist_mlp",
    apply=apply,
    weights=weights,
    sample=sample,
    loss="softmax_cross_entropy",
    optimizer=optimizers.rmsprop(),
    data="mnist",
    batch_size=128,
    epochs=20,
)
