"""Text that a trained model goes on writing, as Keras' example prints it after each epoch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from shim.data import Dataset
from shim.models import Model

TEMPERATURES = (0.2, 0.5, 1.0, 1.2)  # those of the example: from the likeliest characters to daring ones
LENGTH = 400  # characters


def write(backend: Any, trainer: Any, model: Model, dataset: Dataset, seed: int, epoch: int) -> dict[str, Any]:
    """Let the model go on from a window of its data, once at each temperature; return the texts and the seconds.

    The window and the draws come from seed and epoch, so they are the same on every backend. The model must have been
    trained on text, that is on a data set with an ``alphabet``.
    """
    begun = time.perf_counter()
    rng = np.random.default_rng([seed, epoch, 2])
    window = dataset.x_train[rng.integers(len(dataset.x_train))]
    ids = np.tile(window, (len(TEMPERATURES), 1))
    for _ in range(LENGTH):
        last = np.ascontiguousarray(ids[:, -len(window) :])
        logits = backend.to_numpy(trainer.predict(backend.to_device(model.prepare(last))))
        ids = np.concatenate([ids, draw(rng, logits[:, : len(dataset.alphabet)], TEMPERATURES)[:, None]], axis=1)
    texts = ["".join(dataset.alphabet[k] for k in row) for row in ids]
    continued = [
        {"temperature": temperature, "text": text[len(window) :]}
        for temperature, text in zip(TEMPERATURES, texts, strict=True)
    ]
    return {"start": texts[0][: len(window)], "continued": continued, "seconds": time.perf_counter() - begun}


def draw(rng: np.random.Generator, logits: np.ndarray, temperatures: Any) -> np.ndarray:
    """Draw an id for each row of logits (N, K), divided by the row's temperature. Shape (N) int32."""
    scaled = logits.astype(np.float64) / np.asarray(temperatures)[:, None]
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True)).cumsum(axis=1)
    drawn = rng.random((len(logits), 1)) * weights[:, -1:]
    ids: np.ndarray = (weights <= drawn).sum(axis=1).astype(np.int32)
    return ids
