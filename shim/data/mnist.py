"""MNIST: 60,000 + 10,000 handwritten digits of 28 x 28 pixels, as ``keras.datasets.mnist`` stores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shim.data import archive

FILES = ("mnist.npz",)
URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
EMBEDDED = "mnist_5000.npz"
STAND_IN = "5,000 + 1,000 digits of MNIST, repeated to 60,000 + 10,000"
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
COUNTS = {"train": 60000, "test": 10000}


def read(path: Path, mend: str, counts: dict[str, int] = COUNTS) -> dict[str, np.ndarray]:
    """Return the file's arrays: x_* (count, 28, 28) and y_* (count). Raises ``DataError``."""
    arrays = archive.read(path, ARRAYS, mend)
    shapes = {f"{kind}_{part}": (n, 28, 28)[: 3 if kind == "x" else 1] for part, n in counts.items() for kind in "xy"}
    try:
        archive.check(arrays, shapes, {name: 255 if name[0] == "x" else 9 for name in shapes})
    except ValueError as error:
        raise archive.DataError(f"{path} does not hold MNIST: {error}; {mend}") from None
    return arrays


def embedded(path: Path) -> dict[str, np.ndarray]:
    """Return the embedded digits, repeated until there are as many as in MNIST."""
    arrays = read(path, "install shim again", {"train": 5000, "test": 1000})
    return {name: array[np.arange(COUNTS[name[2:]]) % len(array)] for name, array in arrays.items()}


def prepare(arrays: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Return x_* (count, 784) in 0..1 and int32 labels, as Keras' examples use them."""
    prepared = {
        f"x_{part}": arrays[f"x_{part}"].reshape(-1, 784).astype(dtype) / np.array(255, dtype) for part in COUNTS
    }
    return prepared | {f"y_{part}": arrays[f"y_{part}"].astype(np.int32) for part in COUNTS}
