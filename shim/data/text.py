"""Nietzsche: windows of 40 characters, one every 3, and the character after each, as Keras' example cuts them.

The text is lower-cased and its characters are numbered in their order.
"""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import numpy as np

from shim.data import archive

FILES = ("nietzsche.txt",)
URL = "https://s3.amazonaws.com/text-datasets/nietzsche.txt"
SHA256 = "23cf69874ab69d3d256099ab530ea4be24d47d9675b673bcc67cbcd6298ec647"
EMBEDDED = "pride_and_prejudice.txt.xz"
STAND_IN = "the first part of Pride and Prejudice, as many windows as Nietzsche's text has"
CHARACTERS, STEPS, STRIDE = 57, 40, 3  # distinct characters; a window's length and distance
COUNT = 200285


def read(path: Path, mend: str) -> dict[str, np.ndarray]:
    """Return the text as ids (characters) int32, and the characters. Raises ``DataError`` unless it is Nietzsche's."""
    try:
        arrays = encode(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise archive.DataError(f"cannot read {path}: {error}; {mend}") from None
    characters = len(arrays["alphabet"])
    if (count := windows(len(arrays["ids"]))) != COUNT or characters != CHARACTERS:
        raise archive.DataError(
            f"{path} does not hold Nietzsche's text: it has {count} windows of {STEPS} characters and {characters} "
            f"different ones, expected {COUNT} and {CHARACTERS}; {mend}"
        )
    return arrays


def embedded(path: Path) -> dict[str, np.ndarray]:
    """Return the embedded text in the form of :func:`read`."""
    try:
        return encode(lzma.decompress(path.read_bytes()).decode())
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise archive.DataError(f"cannot read {path}: {error}; install shim again") from None


def encode(text: str) -> dict[str, np.ndarray]:
    """Return the lower-cased text as int32 ids, and the character of each id as its code point, uint32."""
    points = np.frombuffer(text.lower().encode("utf-32-le"), np.uint32)
    characters, ids = np.unique(points, return_inverse=True)
    return {"ids": ids.reshape(-1).astype(np.int32), "alphabet": characters}


def windows(length: int) -> int:
    """Return the number of windows of a text, each with a character after it."""
    return len(range(0, length - STEPS, STRIDE))


def prepare(arrays: dict[str, np.ndarray], dtype: str) -> dict[str, Any]:
    """Return x_train (200285, 40) int32, y_train (200285) int32 and the alphabet; there is nothing to test on."""
    ids = arrays["ids"]
    cut = np.lib.stride_tricks.sliding_window_view(ids, STEPS + 1)[::STRIDE][:COUNT]
    none = np.zeros((0, STEPS), np.int32), np.zeros(0, np.int32)
    alphabet = arrays["alphabet"].tobytes().decode("utf-32-le")
    train = {"x_train": cut[:, :STEPS], "y_train": cut[:, STEPS]}
    return train | {"x_test": none[0], "y_test": none[1], "alphabet": alphabet}


def sample(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw windows and next characters at random, frequent ones more often. Shapes (size, 40) and (size)."""
    drawn = (CHARACTERS ** rng.random((size, STEPS + 1))).astype(np.int32)
    return drawn[:, :STEPS], drawn[:, STEPS]
