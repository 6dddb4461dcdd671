"""Two convolutions, a pooling and a dense layer on MNIST digits: Keras' example ``mnist_cnn``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shim.models import Model, initializers, optimizers

SIDE, CLASSES = 28, 10


def apply(ops: Any, params: Mapping[str, Any], x: Any) -> Any:
    x = ops.conv2d(x, params["conv_1_w"], params["conv_1_b"], activation="relu")
    x = ops.conv2d(x, params["conv_2_w"], params["conv_2_b"], activation="relu")
    x = ops.max_pool2d(x, pool=2)
    x = ops.dropout(x, rate=0.25)
    x = ops.flatten(x)
    x = ops.dense(x, params["hidden_w"], params["hidden_b"], activation="relu")
    x = ops.dropout(x, rate=0.5)
    return ops.dense(x, params["output_w"], params["output_b"])


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    params: dict[str, np.ndarray] = {}
    params["conv_1_w"], params["conv_1_b"] = initializers.conv2d(rng, 3, 3, 1, 32)
    params["conv_2_w"], params["conv_2_b"] = initializers.conv2d(rng, 3, 3, 32, 64)
    params["hidden_w"], params["hidden_b"] = initializers.dense(rng, 12 * 12 * 64, 128)
    params["output_w"], params["output_b"] = initializers.dense(rng, 128, CLASSES)
    return params


def sample(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.random((size, SIDE, SIDE, 1)), rng.integers(0, CLASSES, size)


def prepare(x: np.ndarray) -> np.ndarray:
    """Make images (N, 28, 28, 1) of rows of pixels (N, 784)."""
    return x.reshape(-1, SIDE, SIDE, 1)


MODEL = Model(
    name="mnist_cnn",
    apply=apply,
    weights=weights,
    sample=sample,
    loss="softmax_cross_entropy",
    optimizer=optimizers.adadelta(learning_rate=1.0),
    data="mnist",
    batch_size=128,
    epochs=12,
    prepare=prepare,
)
