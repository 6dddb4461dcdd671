"""An LSTM over character vectors with two heads: the article's own ``text_generator_keras``.

The main head has two hidden layers, each without bias and batch-normalised. The auxiliary head sits on the LSTM itself
and keeps its gradient alive; its loss counts a fifth.

``recurrent_activation=hard_sigmoid`` is the LSTM of 2017, when Keras 2 had it. ``optimizer=sgd`` is plain descent, and
with ``table_gradient=rows`` a step of it moves only the vectors in the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from shim import contract
from shim.data import text
from shim.models import Model, initializers, optimizers

OPTIONS = {"recurrent_activation": contract.GATES, **optimizers.TABLES}
WIDTH, UNITS = 300, 128
HIDDEN = (("hidden_1", UNITS, 512), ("hidden_2", 512, 256))


def apply(ops: Any, params: Mapping[str, Any], ids: Any, *, recurrent_activation: str) -> tuple[Any, Any]:
    x = ops.embedding(ids, params["embedding"])
    weights = params["lstm_w_x"], params["lstm_w_h"], params["lstm_b"]
    x = ops.lstm(x, *weights, recurrent_activation=recurrent_activation)
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


def build(recurrent_activation: str = "sigmoid", optimizer: str = "adam", table_gradient: str = "dense") -> Model:
    """Return the model as the article has it, or with the given :data:`OPTIONS`."""
    return Model(
        name="text_generator",
        apply=functools.partial(apply, recurrent_activation=recurrent_activation),
        weights=weights,
        sample=text.sample,
        loss=(("softmax_cross_entropy", 1.0), ("softmax_cross_entropy", 0.2)),
        optimizer=getattr(optimizers, optimizer)(decay=1e-4),
        data="nietzsche",
        batch_size=128,
        epochs=10,
        constants=("hidden_1_b", "hidden_2_b"),  # the zeros of layers without bias
        moments=(("hidden_1_mean", "hidden_1_variance"), ("hidden_2_mean", "hidden_2_variance")),
        table_gradient=table_gradient,
    )


MODEL = build()
