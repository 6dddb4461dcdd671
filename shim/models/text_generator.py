"""An LSTM over character vectors with two heads: the article's own ``text_generator_keras``.

The main head has two hidden layers, each without bias and batch-normalised. The auxiliary head sits on the LSTM itself
and keeps its gradient alive; its loss counts a fifth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shim.data import text
from shim.models import Model, initializers, optimizers

WIDTH, UNITS = 300, 128
HIDDEN = (("hidden_1", UNITS, 512), ("hidden_2", 512, 256))


def apply(ops: Any, params: Mapping[str, Any], ids: Any) -> tuple[Any, Any]:
    x = ops.embedding(ids, params["embedding"])
    x = ops.lstm(x, params["lstm_w_x"], params["lstm_w_h"], params["lstm_b"])
    auxiliary = ops.dense(x, params["auxiliary_w"], params["auxiliary_b"])
    for layer, _, _ in HIDDEN:
        x = ops.dense(x, params[f"{layer}_w"], params[f"{layer}_b"])
        moments = params[f"{layer}_mean"], params[f"{layer}_variance"]
        x = ops.batch_norm(x, params[f"{layer}_gamma"], params[f"{layer}_beta"], *moments)
        x = ops.relu(x)
    return ops.dense(x, params["output_w"], params["output_b"]), auxiliary


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    params = {"embedding": initializers.embedding(rng, text.CHARACTERS, WIDTH)}
    params["lstm_w_x"], params["lstm_w_h"], params["lstm_b"] = initializers.lstm(rng, WIDTH, UNITS)
    params["auxiliary_w"], params["auxiliary_b"] = initializers.dense(rng, UNITS, text.CHARACTERS)
    for layer, inputs, outputs in HIDDEN:
        params[f"{layer}_w"], params[f"{layer}_b"] = initializers.dense(rng, inputs, outputs)
        params |= {f"{layer}_{name}": np.zeros(outputs) for name in ("beta", "mean")}
        params |= {f"{layer}_{name}": np.ones(outputs) for name in ("gamma", "variance")}
    params["output_w"], params["output_b"] = initializers.dense(rng, HIDDEN[-1][2], text.CHARACTERS)
    return params


MODEL = Model(
    name="text_generator",
    apply=apply,
    weights=weights,
    sample=text.sample,
    loss=(("softmax_cross_entropy", 1.0), ("softmax_cross_entropy", 0.2)),
    optimizer=optimizers.adam(decay=1e-4),
    data="nietzsche",
    batch_size=128,
    epochs=10,
    constants=("hidden_1_b", "hidden_2_b"),  # the zeros of layers without bias
    moments=(("hidden_1_mean", "hidden_1_variance"), ("hidden_2_mean", "hidden_2_variance")),
)
