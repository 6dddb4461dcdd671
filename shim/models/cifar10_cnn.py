"""Four convolutions in two pairs on small photographs, shifted and mirrored at random: Keras' ``cifar10_cnn``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shim.data import cifar10
from shim.models import Model, initializers, optimizers

SIDE, CHANNELS, CLASSES = 32, 3, 10


def apply(ops: Any, params: Mapping[str, Any], x: Any) -> Any:
    for pair in ("pair_1", "pair_2"):
        x = ops.conv2d(x, params[f"{pair}_same_w"], params[f"{pair}_same_b"], padding="same", activation="relu")
        x = ops.conv2d(x, params[f"{pair}_valid_w"], params[f"{pair}_valid_b"], activation="relu")
        x = ops.max_pool2d(x, pool=2)
        x = ops.dropout(x, rate=0.25)
    x = ops.flatten(x)
    x = ops.dense(x, params["hidden_w"], params["hidden_b"], activation="relu")
    x = ops.dropout(x, rate=0.5)
    return ops.dense(x, params["output_w"], params["output_b"])


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    params: dict[str, np.ndarray] = {}
    for pair, inputs, outputs in (("pair_1", CHANNELS, 32), ("pair_2", 32, 64)):
        params[f"{pair}_same_w"], params[f"{pair}_same_b"] = initializers.conv2d(rng, 3, 3, inputs, outputs)
        params[f"{pair}_valid_w"], params[f"{pair}_valid_b"] = initializers.conv2d(rng, 3, 3, outputs, outputs)
    params["hidden_w"], params["hidden_b"] = initializers.dense(rng, 6 * 6 * 64, 512)
    params["output_w"], params["output_b"] = initializers.dense(rng, 512, CLASSES)
    return params


def sample(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.random((size, SIDE, SIDE, CHANNELS)), rng.integers(0, CLASSES, size)


MODEL = Model(
    name="cifar10_cnn",
    apply=apply,
    weights=weights,
    sample=sample,
    loss="softmax_cross_entropy",
    optimizer=optimizers.rmsprop(learning_rate=1e-4, decay=1e-6),
    data="cifar10",
    batch_size=32,
    epochs=20,
    augment=cifar10.augment,
)
