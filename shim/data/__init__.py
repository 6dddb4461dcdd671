"""The data sets of the models, read with NumPy alone.

A file is looked for in the folder ``$SHIM_DATA``, then in the cache ``.shim/data``, which :func:`fetch` fills from
Keras' download. Where there is none, embedded data of the same shapes and counts take its place. They are labelled
as such: accuracy on them says nothing about MNIST or IMDB.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shim.data import imdb, mnist
from shim.data.archive import DataError

__all__ = ["DataError", "Dataset", "fetch", "find", "load", "names"]

_MODULES: dict[str, Any] = {"mnist": mnist, "imdb": imdb}


@dataclass(frozen=True)
class Dataset:
    """A data set ready for training; ``source`` is ``real`` or ``embedded``, ``origin`` says in words which."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    source: str
    origin: str


def names() -> tuple[str, ...]:
    """Return the name of every data set."""
    return tuple(_MODULES)


def load(name: str, dtype: str = "float32") -> Dataset:
    """Return a data set from the first place that has it, inputs in ``dtype`` unless they are ids.

    Nothing is downloaded: call :func:`fetch` before. Raises ``ValueError`` for an unknown name and
    :class:`DataError` for a file that is damaged or holds something else.
    """
    module, path = _module(name), find(name)
    if path is None:
        source, origin = "embedded", module.STAND_IN
        arrays = module.embedded(Path(__file__).parent / "embedded" / module.EMBEDDED)
    else:
        source, origin = "real", str(path)
        arrays = module.read(path, _mend(path))
    return Dataset(**module.prepare(arrays, dtype), source=source, origin=origin)


def find(name: str) -> Path | None:
    """Return the file of a data set in ``$SHIM_DATA`` or the cache, ``None`` if it is in neither."""
    places = [_cache()]
    if given := os.environ.get("SHIM_DATA"):
        if not Path(given).is_dir():
            raise DataError(f"SHIM_DATA={given} is not a folder; set it to one with {_module(name).FILE}, or unset it")
        places.insert(0, Path(given))
    found = [place / _module(name).FILE for place in places]
    return next((path for path in found if path.exists()), None)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def fetch(name: str, progress: Any = None, log: Callable[[str], None] = _to_stderr) -> Path | None:
    """Return the file of a data set, downloaded into the cache if need be; ``None`` means embedded data.

    One try with a short timeout; ``SHIM_OFFLINE=1`` skips it. ``log`` is told why there is no file, ``progress`` has
    ``start(total, description)``, ``advance(text)`` and ``stop()``. Needs pooch, which the tool's environment has.
    """
    module = _module(name)
    if path := find(name):
        return path
    if os.environ.get("SHIM_OFFLINE", "0") not in ("", "0"):
        reason = "SHIM_OFFLINE is set"
    else:
        from shim.data import download

        try:
            return download.fetch(module.FILE, module.SHA256, _cache(), progress)
        except download.DownloadFailed as error:
            reason = str(error)
    log(
        f"{name}: embedded data take the place of {module.FILE} ({reason}): {module.STAND_IN}. "
        f"Times are comparable, accuracy is not. To use the real data, put {module.FILE} into a folder "
        "and set SHIM_DATA to it."
    )
    return None


def _module(name: str) -> Any:
    if name not in _MODULES:
        raise ValueError(f"unknown data set {name!r}; the data sets are: {', '.join(_MODULES)}")
    return _MODULES[name]


def _cache() -> Path:
    from shim import environments

    return environments.home() / "data"


def _mend(path: Path) -> str:
    if path.parent == _cache():
        return f"to download it again, run: rm {path}"
    return "replace the file, or to do without it run: unset SHIM_DATA"
