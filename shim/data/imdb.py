"""IMDB: 25,000 + 25,000 film reviews as word ids, as ``keras.datasets.imdb`` stores and prepares them.

The file holds each review as a list of word ranks, 1 for the most frequent word. Keras shuffles the reviews with seed
113, puts a 1 before each, shifts the ranks by 3, and writes 2 for every id beyond the vocabulary. With ``ngrams=2``
each pair of neighbours that occurs in the training reviews has an id too, and a review's pairs follow its words.
Reviews are then cut to their last ids, or padded with zeros in front.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np

from shim.data import archive

FILES = ("imdb.npz",)
URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/imdb.npz"
SHA256 = "69664113be75683a8fe16e3ed0ab59fda8886cb3cd7ada244f7d9544e4676b9f"
EMBEDDED = "rt_sentences.npz"
STAND_IN = "7,030 + 1,500 sentences of film reviews, repeated to 25,000 + 25,000"
PARTS = ("train", "test")
COUNT = 25000
VOCABULARY = 20000
WITH_PAIRS = 1205419  # rows for words and pairs; the pairs of Keras' file need 1,205,230 of them
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


def prepare(
    arrays: dict[str, np.ndarray], dtype: str, steps: int = 100, ngrams: int = 1, pairs: int | None = None
) -> dict[str, np.ndarray]:
    """Return x_* (25000, steps) int32 and y_* (25000) int32; ids have no float ``dtype``.

    ``pairs`` keeps that many of the pairs, the most frequent ones. Raises ``ValueError`` unless ``ngrams`` is 1 or 2.
    """
    if ngrams not in (1, 2):
        raise ValueError(f"ngrams must be 1 or 2, got {ngrams}")
    prepared, known = {}, None
    for part in PARTS:
        ids, offsets = mark(arrays[f"x_{part}"], arrays[f"off_{part}"])
        if ngrams == 2:
            if known is None and pairs is not None:
                known = frequent_pairs(ids, offsets, pairs)
            ids, offsets, known = add_pairs(ids, offsets, known)
        x = pad(ids, offsets, steps)
        rows = np.arange(COUNT) % len(x)
        prepared[f"x_{part}"], prepared[f"y_{part}"] = x[rows], arrays[f"y_{part}"].astype(np.int32)[rows]
    return prepared


def mark(ids: np.ndarray, offsets: np.ndarray, vocabulary: int = VOCABULARY) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids (int32) and offsets of reviews with a start mark each, and 2 for ids beyond the vocabulary.

    ``ids`` are all reviews in a row, ``offsets`` where each starts and the last ends.
    """
    marked = np.insert(ids.astype(np.int32), offsets[:-1], START)
    marked[marked >= vocabulary] = UNKNOWN
    return marked, offsets.astype(np.int64) + np.arange(len(offsets))


def add_pairs(
    ids: np.ndarray, offsets: np.ndarray, known: np.ndarray | None = None, vocabulary: int = VOCABULARY
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ids and offsets of reviews with the ids of their known pairs at the end, and the pairs known.

    A pair (a, b) is stored as ``a * vocabulary + b``; the k-th one that is known has the id ``vocabulary + 1 + k``.
    Where none are given, all are known. As ``add_ngram`` of Keras' example, which numbers them in another order.
    """
    pairs, owners, reviews = _pairs(ids, offsets, vocabulary)
    if known is None:
        known, places = np.unique(pairs, return_inverse=True)
    else:
        places = np.searchsorted(known, pairs)
        found = np.append(known, -1)[places] == pairs
        places, owners = places[found], owners[found]
    # A stable sort by review, words first, is a merge: each id moves by what stands before it.
    counts = np.bincount(owners, minlength=len(offsets) - 1)
    added = np.zeros(len(offsets), np.int64)
    np.cumsum(counts, out=added[1:])
    merged = np.empty(len(ids) + len(places), np.int32)
    merged[np.arange(len(ids)) + added[reviews]] = ids
    merged[np.arange(len(places)) + offsets[owners + 1]] = vocabulary + 1 + places
    return merged, offsets + added, known


def frequent_pairs(ids: np.ndarray, offsets: np.ndarray, count: int, vocabulary: int = VOCABULARY) -> np.ndarray:
    """Return the ``count`` most frequent pairs of neighbours, in their order, as :func:`add_pairs` takes them."""
    pairs, many = np.unique(_pairs(ids, offsets, vocabulary)[0], return_counts=True)
    return np.sort(pairs[np.argsort(-many, kind="stable")[:count]])


def _pairs(ids: np.ndarray, offsets: np.ndarray, vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of neighbours within reviews, the review of each pair, and the review of each id."""
    pairs = ids[:-1] * np.int64(vocabulary) + ids[1:]
    reviews = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    inside = reviews[:-1] == reviews[1:]
    return pairs[inside], reviews[:-1][inside], reviews


def pad(ids: np.ndarray, offsets: np.ndarray, steps: int) -> np.ndarray:
    """Return the last ``steps`` ids of each review, zeros in front of shorter ones, as (reviews, steps) int32."""
    places = offsets[1:, None] - np.arange(steps, 0, -1)
    x: np.ndarray = ids[np.maximum(places, 0)].astype(np.int32)
    x[places < offsets[:-1, None]] = 0
    return x
