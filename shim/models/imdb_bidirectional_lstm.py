"""A bidirectional LSTM over the last 100 words of a film review: Keras' example ``imdb_bidirectional_lstm``.

``recurrent_activation=hard_sigmoid`` is the LSTM of 2017, when Keras 2 had it. ``optimizer=sgd`` is plain descent, and
with ``table_gradient=rows`` a step of it moves only the vectors in the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from shim import contract
from shim.models import Model, initializers, optimizers

OPTIONS = {"recurrent_activation": contract.GATES, **optimizers.TABLES}
VOCABULARY, STEPS, WIDTH, UNITS = 20000, 100, 128, 64


def apply(ops: Any, params: Mapping[str, Any], ids: Any, *, recurrent_activation: str) -> Any:
    x = ops.embedding(ids, params["embedding"])
    x = ops.bilstm(
        x,
        params["forward_w_x"],
        params["forward_w_h"],
        params["forward_b"],
        params["reverse_w_x"],
        params["reverse_w_h"],
        params["reverse_b"],
        recurrent_activation=recurrent_activation,
    )
    x = ops.dropout(x, rate=0.5)
    return ops.dense(x, params["output_w"], params["output_b"])[:, 0]


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    params = {"embedding": initializers.embedding(rng, VOCABULARY, WIDTH)}
    for way in ("forward", "reverse"):
        params |= zip((f"{way}_w_x", f"{way}_w_h", f"{way}_b"), initializers.lstm(rng, WIDTH, UNITS), strict=True)
    params["output_w"], params["output_b"] = initializers.dense(rng, 2 * UNITS, 1)
    return params


def sample(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw ids as frequent as words are (Zipf's law), so that they repeat within a batch as in real text."""
    ids = (VOCABULARY ** rng.random((size, STEPS))).astype(np.int32)
    ids[0, : STEPS // 4] = 0  # one padded review
    return ids, rng.integers(0, 2, size)


def build(recurrent_activation: str = "sigmoid", optimizer: str = "adam", table_gradient: str = "dense") -> Model:
    """Return the model as the example has it, or with the given :data:`OPTIONS`."""
    return Model(
        name="imdb_bidirectional_lstm",
        apply=functools.partial(apply, recurrent_activation=recurrent_activation),
        weights=weights,
        sample=sample,
        loss="sigmoid_cross_entropy",
        optimizer=getattr(optimizers, optimizer)(),
        data="imdb",
        batch_size=32,
        epochs=4,
        table_gradient=table_gradient,
    )


MODEL = build()
