"""CIFAR-10: 50,000 + 10,000 photographs of 32 x 32 pixels in ten classes, and the example's random shifts.

The archive holds pickles written by Python 2, which are read by the restricted unpickler of ``shim.data.archive``.
"""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path

import numpy as np

from shim.data import archive

FILES = ("cifar-10-python.tar.gz", "cifar-10-batches-py.tar.gz", "cifar10_small.npz")
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
EMBEDDED = "photos9.npz"
STAND_IN = "50,000 + 10,000 squares cut from nine photographs; the class is the photograph"
COUNTS = {"train": 50000, "test": 10000}
SIDE = 32
BATCHES = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}
BATCH = 10000  # images of a member
SHIFT = 0.1  # of the side, at most
SEED = 20170608


def read(path: Path, mend: str) -> dict[str, np.ndarray]:
    """Return x_* (count, 32, 32, 3) and y_* (count), both integers. Raises ``DataError``.

    An .npz file may hold only the first images of each part.
    """
    if path.suffix == ".npz":
        arrays = archive.read(path, ("x_train", "y_train", "x_test", "y_test"), mend)
        arrays = {name: value.reshape(-1) if name[0] == "y" else value for name, value in arrays.items()}
        counts = {part: min(count, len(arrays[f"x_{part}"])) for part, count in COUNTS.items()}
    else:
        arrays, counts = _read_tar(path, mend), COUNTS
    shapes: dict[str, tuple[int, ...]] = {f"x_{part}": (n, SIDE, SIDE, 3) for part, n in counts.items()}
    shapes |= {f"y_{part}": (n,) for part, n in counts.items()}
    try:
        archive.check(arrays, shapes, {name: 255 if name[0] == "x" else 9 for name in shapes})
    except ValueError as error:
        raise archive.DataError(f"{path} does not hold CIFAR-10: {error}; {mend}") from None
    return arrays


def _read_tar(path: Path, mend: str) -> dict[str, np.ndarray]:
    arrays = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for part, names in BATCHES.items():
                found = [_read_batch(tar, f"cifar-10-batches-py/{name}") for name in names]
                arrays[f"x_{part}"], arrays[f"y_{part}"] = (np.concatenate(a) for a in zip(*found, strict=True))
    except (OSError, EOFError, MemoryError, tarfile.TarError, zlib.error) as error:
        raise archive.DataError(f"cannot read {path}: {error or type(error).__name__}; {mend}") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise archive.DataError(f"{path} is damaged or not the file it should be: {error}; {mend}") from error
    return arrays


def _read_batch(tar: tarfile.TarFile, name: str) -> tuple[np.ndarray, np.ndarray]:
    member = tar.extractfile(name)
    if member is None:
        raise ValueError(f"{name} is no file")
    batch = archive.unpickle(member, encoding="bytes")
    pixels, labels = batch[b"data"], np.asarray(batch[b"labels"])
    if pixels.shape != (BATCH, 3 * SIDE * SIDE) or labels.shape != (BATCH,):
        raise ValueError(f"{name} has images {pixels.shape} and labels {labels.shape}")
    return pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels


def is_part(arrays: dict[str, np.ndarray]) -> bool:
    """Return whether there are fewer images than CIFAR-10 has."""
    return len(arrays["x_train"]) < COUNTS["train"] or len(arrays["x_test"]) < COUNTS["test"]


def embedded(path: Path) -> dict[str, np.ndarray]:
    """Return seeded squares of the embedded photographs: test squares from the right fifth, the others left of it."""
    with np.load(path, allow_pickle=False) as stored:
        photos = [stored[name] for name in stored.files]
    rng = np.random.default_rng(SEED)
    arrays: dict[str, np.ndarray] = {}
    for part, count in COUNTS.items():
        x, labels = np.empty((count, SIDE, SIDE, 3), np.uint8), rng.integers(0, len(photos), count)
        for label, photo in enumerate(photos):
            border = photo.shape[1] * 4 // 5
            pixels = photo[:, :border] if part == "train" else photo[:, border:]
            squares = np.lib.stride_tricks.sliding_window_view(pixels, (SIDE, SIDE), axis=(0, 1))
            chosen = np.flatnonzero(labels == label)
            top, left = (rng.integers(0, size, len(chosen)) for size in squares.shape[:2])
            x[chosen] = squares[top, left].transpose(0, 2, 3, 1)
        arrays |= {f"x_{part}": x, f"y_{part}": labels}
    return arrays


def prepare(arrays: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Return x_* (count, 32, 32, 3) in 0..1 and int32 labels; where there are fewer images they are repeated."""
    prepared = {}
    for part, count in COUNTS.items():
        x, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        rows = np.arange(count) % len(x)
        scaled = x.astype(dtype) / np.array(255, dtype)
        prepared[f"x_{part}"] = scaled if len(x) == count else scaled[rows]
        prepared[f"y_{part}"] = labels.astype(np.int32)[rows]
    return prepared


def augment(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift each image by up to a tenth of its side either way and mirror half of them, edges repeated.

    As Keras 2's ``ImageDataGenerator``: shifts are drawn from the uniform distribution and each pixel takes the
    nearest one. Shapes: x (N, H, W, C); result as x.
    """
    n, height, width = x.shape[:3]
    places = []
    for side in (height, width):
        shift = rng.uniform(-SHIFT, SHIFT, n) * side
        places.append(np.clip(np.rint(np.arange(side) + shift[:, None]), 0, side - 1).astype(np.intp))
    rows, columns = places
    mirrored = rng.random(n) < 0.5
    columns[mirrored] = columns[mirrored, ::-1]
    moved: np.ndarray = x[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved
