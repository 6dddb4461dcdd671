"""Keras' ordinary downloads, checked by their SHA-256. Only the tool itself downloads; workers read the cache."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 5  # to connect, and between two pieces


class DownloadFailed(RuntimeError):
    """A file could not be downloaded, or is not the one expected."""


class _Percent:
    """What pooch calls a progress bar, telling ``progress`` each percent."""

    def __init__(self, progress: Any, description: str) -> None:
        self.progress, self.description = progress, description
        self.total, self.done, self.told = 0, 0, 0
        progress.start(100, description)

    def update(self, size: int) -> None:
        self.done += size
        while self.told < min(100 * self.done // max(self.total, 1), 100):
            self.progress.advance(self.description)
            self.told += 1

    def reset(self) -> None:  # pooch calls reset and update(total) at the end
        self.done = 0

    def close(self) -> None:  # fetch stops the progress, whether or not all went well
        pass


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, known: str, path: Path, progress: Any = None) -> Path:
    """Download ``url`` to ``path`` in one try and return the path; raise :class:`DownloadFailed` otherwise.

    A file that is there already is kept if its SHA-256 is the ``known`` one and replaced if not.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    bar = _Percent(progress, f"downloading {path.name}") if progress is not None else False
    downloader = pooch.HTTPDownloader(progressbar=bar, timeout=TIMEOUT_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Path(pooch.retrieve(url, f"sha256:{known}", path.name, path.parent, downloader=downloader))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum is a ValueError
        raise DownloadFailed(f"cannot download {url}: {_brief(error)}") from error
    finally:
        if progress is not None:
            progress.stop()


def _brief(error: Exception) -> str:
    if isinstance(error, ValueError):
        return "its checksum is not the known one"
    reason = getattr(error.args[0], "reason", error) if error.args else error
    return str(reason).splitlines()[0] if str(reason) else type(error).__name__
