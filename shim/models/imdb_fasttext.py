"""The average of the vectors of a film review's words and pairs of words: Keras' example ``imdb_fasttext``.

``ngrams=2`` is the article's model: about 1.2 million vectors, most of them of pairs; ``pairs=100000`` keeps the most
frequent of these, for a table of a tenth. ``ngrams=1`` is the example's own default, words alone. ``optimizer=sgd`` is
plain descent, and with ``table_gradient=rows`` a step of it moves only the vectors in the batch, so that it costs the
same whatever their number.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shim.data import imdb
from shim.models import Model, initializers, optimizers

OPTIONS: dict[str, Sequence[Any]] = {"ngrams": (2, 1), "pairs": (None, 100_000), **optimizers.TABLES}
STEPS, WIDTH = 400, 50
#: Adam's epsilon is that of Keras in 2017. The gradients of single words are as small as it: with today's default of
#: 1e-7 the losses of the article's epochs are up to 4 % higher.
OPTIMIZERS = {"adam": optimizers.adam(epsilon=1e-8), "sgd": optimizers.sgd()}


def apply(ops: Any, params: Mapping[str, Any], ids: Any) -> Any:
    x = ops.embedding_average(ids, params["embedding"])
    return ops.dense(x, params["output_w"], params["output_b"])[:, 0]


def weights(rng: np.random.Generator, *, vocabulary: int) -> dict[str, np.ndarray]:
    params = {"embedding": initializers.embedding(rng, vocabulary, WIDTH)}
    params["output_w"], params["output_b"] = initializers.dense(rng, WIDTH, 1)
    return params


def sample(rng: np.random.Generator, size: int, *, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw ids as frequent as words and pairs are (Zipf's law), a fifth of the places padding as in real batches."""
    ids = (vocabulary ** rng.random((size, STEPS))).astype(np.int32)
    ids[:, : STEPS // 5] = 0
    return ids, rng.integers(0, 2, size)


def build(ngrams: int = 2, pairs: int | None = None, optimizer: str = "adam", table_gradient: str = "dense") -> Model:
    """Return the model over words (``ngrams=1``), or words and pairs of neighbours (2): all, or the frequent ones."""
    vocabulary = imdb.VOCABULARY if ngrams == 1 else imdb.WITH_PAIRS if pairs is None else imdb.VOCABULARY + 1 + pairs
    return Model(
        name="imdb_fasttext",
        apply=apply,
        weights=functools.partial(weights, vocabulary=vocabulary),
        sample=functools.partial(sample, vocabulary=vocabulary),
        loss="sigmoid_cross_entropy",
        optimizer=OPTIMIZERS[optimizer],
        table_gradient=table_gradient,
        data="imdb",
        data_options={"steps": STEPS, "ngrams": ngrams, "pairs": pairs},
        batch_size=32,
        epochs=5,
    )


MODEL = build()
