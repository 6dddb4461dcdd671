"""The site and the pages of ``asv publish`` joined, so that each leads to the other."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shim import environments
from shim.report import site
from shim.report.shown import Shown

FOLDER = "shim"  # in asv's pages
COPY = "history"  # asv's pages, in a site that stands elsewhere
_PAGES = ("index.html", "backends.html")


def published() -> Path:
    """Return the folder of asv's pages, whether or not it has been written."""
    return environments.home().parent / ".asv" / "html"


def write(folder: Path | None, shown: Iterable[Shown], problems: Sequence[str], progress: Any = None) -> Path:
    """Write the site, with asv's pages if there are any, and return the path of its first page.

    Without a ``folder`` it goes where asv's pages lead to, or to ``site`` in the tool's own folder. A folder elsewhere
    gets a copy of asv's pages. Raises ``ValueError`` for a folder that holds something else than a site.
    """
    pages = published()
    if not (pages / "index.html").is_file():
        return site.write(folder or environments.home() / "site", shown, problems=problems, progress=progress)
    if folder is None or folder.resolve() == (pages / FOLDER).resolve():
        return site.write(pages / FOLDER, shown, problems=problems, history="../index.html", progress=progress)
    address = f"{COPY}/index.html"
    index = site.write(folder, shown, problems=problems, history=address, progress=progress)
    shutil.copytree(pages, folder / COPY, ignore=lambda at, names: [FOLDER] if Path(at) == pages else [])
    for name in _PAGES:
        path = folder / COPY / name
        if path.is_file():
            text = path.read_text(encoding="utf-8").replace(f'href="{FOLDER}/{site.INDEX}"', f'href="../{site.INDEX}"')
            path.write_text(text, encoding="utf-8")
    return index
