"""The data sets of the models, read with NumPy alone.

A file is looked for in the folder ``$SHIM_DATA``, then in the cache ``.shim/data``, which :func:`fetch` fills from
Keras' downloads. Where there is none, embedded data of the same shapes and counts take its place. They are labelled
as such: accuracy on them says nothing about the real data.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shim.data import cifar10, imdb, mnist, text
from shim.data.archive import DataError

__all__ = ["DataError", "Dataset", "check_name", "fetch", "find", "load", "names", "table"]

_MODULES: dict[str, Any] = {"mnist": mnist, "imdb": imdb, "cifar10": cifar10, "nietzsche": text}


@dataclass(frozen=True)
class Dataset:
    """A data set ready for training; the arrays to test on are empty where it has none.

    ``source`` is ``real``, ``part`` (real but fewer samples, repeated) or ``embedded``; ``origin`` says in words which.
    ``alphabet`` has a character for each id where the samples are text.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    source: str
    origin: str
    alphabet: str = ""


def names() -> tuple[str, ...]:
    """Return the name of every data set."""
    return tuple(_MODULES)


def load(name: str, dtype: str = "float32", **options: Any) -> Dataset:
    """Return a data set from the first place that has it, inputs in ``dtype`` unless they are ids.

    ``options`` are for its loader: ``steps`` and ``ngrams`` of ``imdb``. Nothing is downloaded: call :func:`fetch`
    before. Raises ``ValueError`` for an unknown name and
    :class:`DataError` for a file that is damaged or holds something else.
    """
    module, path = _module(name), find(name)
    if path is None:
        source, origin = "embedded", module.STAND_IN
        arrays = module.embedded(_embedded(module))
    else:
        arrays = module.read(path, _mend(path))
        is_part = getattr(module, "is_part", lambda arrays: False)(arrays)
        source, origin = "part" if is_part else "real", str(path)
    return Dataset(**module.prepare(arrays, dtype, **options), source=source, origin=origin)


def find(name: str) -> Path | None:
    """Return the file of a data set in ``$SHIM_DATA`` or the cache, ``None`` if it is in neither."""
    files, places = _module(name).FILES, [_cache()]
    if given := os.environ.get("SHIM_DATA"):
        if not Path(given).is_dir():
            raise DataError(f"SHIM_DATA={given} is not a folder; set it to one with {files[0]}, or unset it")
        places.insert(0, Path(given))
    found = [place / file for place in places for file in files]
    return next((path for path in found if path.exists()), None)


def table() -> list[dict[str, Any]]:
    """Return a row for each data set: name, source, path, bytes, sha256 and whether that is the known one."""
    from shim.data import download

    rows = []
    for name, module in _MODULES.items():
        found = find(name)
        path = found or _embedded(module)
        sha = download.sha256(path)
        rows.append(
            {
                "name": name,
                "source": "file" if found else "embedded",
                "path": str(path),
                "bytes": path.stat().st_size,
                "sha256": sha,
                "known": found is None or sha == module.SHA256,
                "content": module.STAND_IN if found is None else None,
                "url": module.URL,
            }
        )
    return rows


def _embedded(module: Any) -> Path:
    path: Path = Path(__file__).parent / "embedded" / module.EMBEDDED
    return path


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def fetch(name: str, progress: Any = None, log: Callable[[str], None] = _to_stderr) -> Path | None:
    """Return the file of a data set, downloaded into the cache if need be; ``None`` means embedded data.

    A file in the cache that is damaged is downloaded again. One try with a short timeout; ``SHIM_OFFLINE=1`` skips it.
    ``log`` is told why there is no file, ``progress`` has ``start(total, description)``, ``advance(text)`` and
    ``stop()``. Needs pooch, which the tool's environment has. Raises :class:`DataError` where a damaged file cannot be
    replaced.
    """
    from shim.data import download

    module, path = _module(name), find(name)
    if path and (path.parent != _cache() or download.sha256(path) == module.SHA256):
        return path
    if path:
        log(f"{name}: {path} is damaged: its checksum is not the known one")
    if os.environ.get("SHIM_OFFLINE", "0") not in ("", "0"):
        reason = "SHIM_OFFLINE is set"
    else:
        try:
            return download.fetch(module.URL, module.SHA256, _cache() / module.FILES[0], progress)
        except download.DownloadFailed as error:
            reason = str(error)
    if path:
        raise DataError(f"{path} is damaged and cannot be replaced ({reason}); to do without it, run: rm {path}")
    log(
        f"{name}: embedded data take the place of {module.FILES[0]} ({reason}): {module.STAND_IN}. "
        f"Times are comparable, accuracy is not. To use the real data, put {module.FILES[0]} into a folder "
        "and set SHIM_DATA to it."
    )
    return None


def check_name(name: str) -> None:
    """Raise ``ValueError`` with the choices unless ``name`` is a data set."""
    _module(name)


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
