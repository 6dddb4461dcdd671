"""IMDB: 25,000 + 25,000 film reviews as word ids, as ``keras.datasets.imdb`` stores and prepares them.

The file holds each review as a list of word ranks, 1 for the most frequent word. Keras shuffles the reviews with seed
113, puts a 1 before each, shifts the ranks by 3, and writes 2 for every id beyond the vocabulary. Reviews are then
cut to their last 100 ids, or padded with zeros in front.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np

from shim.data import archive

FILE = "imdb.npz"
SHA256 = "69664113be75683a8fe16e3ed0ab59fda8886cb3cd7ada244f7d9544e4676b9f"
EMBEDDED = "rt_sentences.npz"
STAND_IN = "7,030 + 1,500 sentences of film reviews, repeated to 25,000 + 25,000"
PARTS = ("train", "test")
COUNT = 25000
VOCABULARY, STEPS = 20000, 100
START, UNKNOWN, SHIFT, SEED = 1, 2, 3, 113


def read(path: Path, mend: str) -> dict[str, np.ndarray]:
    """Return the reviews in Keras' order: x_* all ids (shifted) in a row, off_* where each starts, and y_*.

    Raises ``DataError`` unless the file is what ``keras.datasets.imdb`` reads.
    """
    arrays = archive.read(path, ("x_train", "y_train", "x_test", "y_test"), mend)
    order = np.random.RandomState(SEED)
    result = {}
    try:
        archive.check(arrays, {"y_train": (COUNT,), "y_test": (COUNT,)}, {"y_train": 1, "y_test": 1})
        for part in PARTS:
            chosen = np.arange(COUNT)
            order.shuffle(chosen)
            ids, result[f"off_{part}"] = _flatten(arrays[f"x_{part}"][chosen])
            if not (ids.min() >= 1 and ids.max() < 2**31 - SHIFT):
                raise ValueError(f"x_{part} has word ranks in {ids.min()}..{ids.max()}, expected 1 and above")
            result[f"x_{part}"] = ids + SHIFT
            result[f"y_{part}"] = arrays[f"y_{part}"][chosen]
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise archive.DataError(f"{path} does not hold IMDB: {error}; {mend}") from None
    return result


def _flatten(lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.zeros(len(lists) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, lists), np.int64, len(lists)), out=offsets[1:])
    return np.fromiter(chain.from_iterable(lists), np.int64, offsets[-1]), offsets


def embedded(path: Path) -> dict[str, np.ndarray]:
    """Return the embedded sentences in the form of :func:`read`; :func:`prepare` repeats them."""
    names = tuple(f"{kind}_{part}" for part in PARTS for kind in ("x", "off", "y"))
    return archive.read(path, names, "install shim again")


def prepare(arrays: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Return x_* (25000, 100) int32 and y_* (25000) int32; ids have no float ``dtype``."""
    prepared = {}
    for part in PARTS:
        x = pad(arrays[f"x_{part}"], arrays[f"off_{part}"])
        rows = np.arange(COUNT) % len(x)
        prepared[f"x_{part}"], prepared[f"y_{part}"] = x[rows], arrays[f"y_{part}"].astype(np.int32)[rows]
    return prepared


def pad(ids: np.ndarray, offsets: np.ndarray, steps: int = STEPS, vocabulary: int = VOCABULARY) -> np.ndarray:
    """Return the last ``steps`` ids of each review with its start mark, zeros in front of shorter ones, as int32.

    ``ids`` are all reviews in a row, ``offsets`` where each starts and the last ends. Shape (reviews, steps).
    """
    starts, ends = offsets[:-1, None].astype(np.int64), offsets[1:, None].astype(np.int64)
    places = ends - np.arange(steps, 0, -1)
    x: np.ndarray = ids[np.maximum(places, 0)].astype(np.int32)
    x[x >= vocabulary] = UNKNOWN
    x[places == starts - 1] = START
    x[places < starts - 1] = 0
    return x
