"""Reading .npz archives and pickles without trusting them.

``imdb.npz`` holds object arrays, which NumPy stores as a pickle, CIFAR-10 is a folder of pickles, and a pickle may
call anything. Here one may only rebuild arrays and plain Python values.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np


class DataError(RuntimeError):
    """A data file is damaged, not what its name says, or refused; the message names the command that mends it."""


def _rebuild(kind: type, shape: tuple[int, ...], code: Any) -> np.ndarray:
    return np.empty(0, dtype=object)  # the pickled state that follows brings shape, dtype and values


_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _rebuild,
    ("numpy._core.multiarray", "_reconstruct"): _rebuild,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks to call {module}.{name}, which no data file needs, and was refused")
        return _ALLOWED[module, name]


def unpickle(file: IO[bytes], encoding: str = "ASCII") -> Any:
    """Return what a pickle holds: plain values and arrays. Raises ``UnpicklingError`` where it asks for more."""
    return _ArrayUnpickler(file, encoding=encoding).load()


def read(path: Path, names: tuple[str, ...], mend: str) -> dict[str, np.ndarray]:
    """Return the arrays called ``names`` of an .npz file.

    Raises :class:`DataError`, which ends in ``mend``, where the file is damaged, incomplete or asks to run code.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            missing = [name for name in names if f"{name}.npy" not in archive.namelist()]
            if missing:
                raise ValueError(f"it has no array called {', '.join(missing)}")
            for name in names:
                with archive.open(f"{name}.npy") as member:
                    arrays[name] = _read_member(member)
    except (OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, pickle.UnpicklingError) as error:
        raise DataError(f"cannot read {path}: {error or type(error).__name__}; {mend}") from error
    except Exception as error:  # a damaged pickle or header can raise nearly anything
        raise DataError(f"{path} is damaged or not the file it should be: {error}; {mend}") from error
    return arrays


def _read_member(member: IO[bytes]) -> np.ndarray:
    version = np.lib.format.read_magic(member)
    read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}.get(version[0])
    if read_header is None:
        raise ValueError(f"its array format is version {version[0]}, known are 1 and 2")
    shape, _, dtype = read_header(member)
    if dtype.hasobject:
        array = unpickle(member)
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != object:
            raise ValueError("its pickled array does not match its header")
        return array
    member.seek(0)
    return np.lib.format.read_array(member, allow_pickle=False)


def check(arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], highest: dict[str, int]) -> None:
    """Raise ``ValueError`` unless the arrays are integers of these shapes within ``0 .. highest``."""
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
        if array.dtype.kind not in "iu":
            raise ValueError(f"{name} has dtype {array.dtype}, expected integers")
        if array.size and not (array.min() >= 0 and array.max() <= highest[name]):
            raise ValueError(f"{name} has values in {array.min()}..{array.max()}, expected 0..{highest[name]}")
