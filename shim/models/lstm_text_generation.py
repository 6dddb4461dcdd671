"""An LSTM that guesses the next character of Nietzsche's text: Keras' example ``lstm_text_generation``.

``inputs=onehot`` copies a vector of 57 numbers for each character to the device, as the example does. ``inputs=ids``
copies one number and looks that vector up there; the layers and the results are the same.
``recurrent_activation=hard_sigmoid`` is the LSTM of 2017, when Keras 2 had it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from shim import contract
from shim.data import text
from shim.models import Model, initializers, optimizers

OPTIONS = {"inputs": ("onehot", "ids"), "recurrent_activation": contract.GATES}
UNITS = 128


def apply(ops: Any, params: Mapping[str, Any], x: Any, *, recurrent_activation: str) -> Any:
    if "onehot" in params:
        x = ops.embedding(x, params["onehot"])
    weights = params["lstm_w_x"], params["lstm_w_h"], params["lstm_b"]
    x = ops.lstm(x, *weights, recurrent_activation=recurrent_activation)
    return ops.dense(x, params["output_w"], params["output_b"])


def weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    params: dict[str, np.ndarray] = {}
    params["lstm_w_x"], params["lstm_w_h"], params["lstm_b"] = initializers.lstm(rng, text.CHARACTERS, UNITS)
    params["output_w"], params["output_b"] = initializers.dense(rng, UNITS, text.CHARACTERS)
    return params


def _weights_for_ids(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return weights(rng) | {"onehot": np.eye(text.CHARACTERS)}


def onehot(ids: np.ndarray) -> np.ndarray:
    """Make (N, T, 57) float32 of ids (N, T)."""
    vectors: np.ndarray = np.eye(text.CHARACTERS, dtype=np.float32)[ids]
    return vectors


def _as_they_are(ids: np.ndarray) -> np.ndarray:
    return ids


def sample(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    ids, labels = text.sample(rng, size)
    return onehot(ids), labels


def build(inputs: str = "onehot", recurrent_activation: str = "sigmoid") -> Model:
    """Return the model with one-hot vectors or ids (``inputs="ids"``) as its input."""
    with_ids = inputs == "ids"
    return Model(
        name="lstm_text_generation",
        apply=functools.partial(apply, recurrent_activation=recurrent_activation),
        weights=_weights_for_ids if with_ids else weights,
        sample=text.sample if with_ids else sample,
        loss="softmax_cross_entropy",
        optimizer=optimizers.rmsprop(learning_rate=0.01),
        data="nietzsche",
        batch_size=128,
        epochs=10,
        prepare=_as_they_are if with_ids else onehot,
        constants=("onehot",) if with_ids else (),
    )


MODEL = build()
