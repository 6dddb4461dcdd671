"""A folder of pages that need no network: runs of every kind, each claim linked to the samples that it rests on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import shim
from shim.measure.rounds import Silent
from shim.report import colours, evidence, page, words
from shim.report.shown import Shown

INDEX, ENVIRONMENT, RUNS = "index.html", "environment.html", "runs"
#: kind of run -> stem of its pages, name in the navigation, command that makes one
SECTIONS = {
    "bench": ("ratios", "Ratios", "shim bench --set article"),
    "map": ("maps", "Win maps", "shim map dense"),
    "explain": ("why", "Why", "shim explain mnist_mlp torch tensorflow"),
    "causes": ("causes", "Causes", "shim causes"),
    "article": ("article", "Article 2017", "shim article --scale 0.02 --epochs 3"),
    "train": ("training", "Training", "shim train mnist_mlp"),
}
GENERATOR = '<meta name="generator" content="shim site">'


@dataclass(frozen=True)
class Link:
    """A page in the navigation; ``current`` is what ``aria-current`` says of it: ``page``, ``true`` or nothing."""

    name: str
    address: str
    current: str = ""


@dataclass(frozen=True)
class Place:
    """Where a page is in the site, for its templates.

    ``links`` are the sections, ``beside`` the pages of its own one, ``files`` names and addresses of its run files.
    """

    root: str
    links: Sequence[Link]
    beside: Sequence[Link] = ()
    files: Sequence[tuple[str, str]] = ()
    cases: Mapping[str, str] = field(default_factory=dict)
    contestants: Sequence[str] = ()
    generator: str = GENERATOR

    def samples(self, case: str, contestant: str | None = None) -> str | None:
        """Return the address of the samples of a case, or of a contestant in it; None where there are none."""
        address = self.cases.get(words.line(case))
        part = f"#contestant-{self.contestants.index(contestant)}" if contestant in self.contestants else ""
        return None if address is None else f"{self.root}{address}{part}"

    def below(self) -> Place:
        """Return the place of a page of samples, in a folder of its own and not in the navigation itself."""
        links, beside = (
            [Link(link.name, f"../{link.address}", link.current and "true") for link in links]
            for links in (self.links, self.beside)
        )
        files = [(name, f"../{address}") for name, address in self.files]
        return replace(self, root="../", links=links, beside=beside, files=files)


Pages = dict[str, list[tuple[Place, str, Shown]]]  # kind -> place, address and contents of each page


def write(
    folder: Path, shown: Iterable[Shown], *, problems: Sequence[str] = (), history: str = "", progress: Any = None
) -> Path:
    """Write the site anew and return the path of its first page.

    ``problems`` say what could not be read; ``history`` is the address of asv's pages, seen from the first page.
    Raises ``ValueError`` for a folder that holds something else than a site.
    """
    folder = Path(folder)
    index = folder / INDEX
    ours = index.is_file() and GENERATOR in index.read_text(encoding="utf-8", errors="replace")[:2000]
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something else than a site of shim; name another folder with --output")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".shim-site-") as temporary:
        made = Path(temporary) / "site"
        pages = _places(list(shown), history)
        _write_runs(made, pages, progress or Silent())
        _write_front(made, pages, problems, history)
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return index


def _places(shown: Sequence[Shown], history: str) -> Pages:
    """Lay the site out: kinds in the order of the navigation, runs of a kind in the order given."""
    stems: dict[str, dict[str, Shown]] = {}
    for kind, (stem, _, _) in SECTIONS.items():
        if found := [one for one in shown if one.kind == kind]:
            stems[kind] = {stem if k == 1 else f"{stem}-{k}": one for k, one in enumerate(found, 1)}
    firsts = {kind: f"{next(iter(found))}.html" for kind, found in stems.items()}
    return {
        kind: [
            (_place(stem, one, found, list(_links(firsts, history, kind))), f"{stem}.html", one)
            for stem, one in found.items()
        ]
        for kind, found in stems.items()
    }


def _place(stem: str, one: Shown, section: Mapping[str, Shown], links: Sequence[Link]) -> Place:
    known = (".json", ".jsonl")
    return Place(
        root="",
        links=links,
        beside=[
            Link(f"{other.name}, {other.facts['started']}", f"{s}.html", "page" if s == stem else "")
            for s, other in section.items()
        ],
        files=[
            (path.name, f"{RUNS}/{stem}/{k}{path.suffix if path.suffix in known else known[1]}")
            for k, path in enumerate(one.files, 1)
        ],
        cases=evidence.addresses(stem, one.summary) if one.summary else {},
        contestants=one.summary.contestants if one.summary else (),
    )


def _links(firsts: Mapping[str, str], history: str, current: str) -> Iterator[Link]:
    """Yield the navigation; ``firsts`` are the first pages of the kinds of runs."""
    named = {INDEX: "Overview", **{address: SECTIONS[kind][1] for kind, address in firsts.items()}}
    for address, name in (named | {ENVIRONMENT: "Environment"}).items():
        yield Link(name, address, "page" if address == firsts.get(current, current) else "")
    if history:
        yield Link("History", history)


def _write_runs(folder: Path, pages: Pages, progress: Any) -> None:
    """Write the page of each run, its samples, and copies of its files."""
    all_pages = [page for section in pages.values() for page in section]
    progress.start(sum(1 + len(place.cases) for place, _, _ in all_pages), "pages")
    try:
        for place, address, one in all_pages:
            progress.advance(address)
            page.save(one.render(place), folder / address)
            for path, (_, copy) in zip(one.files, place.files, strict=True):
                (folder / copy).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / copy)
            if one.summary:
                for case in evidence.write(folder, one.summary, place.cases, place.below()):
                    progress.advance(f"{address}, {case}")
    finally:
        progress.stop()


def _write_front(folder: Path, pages: Pages, problems: Sequence[str], history: str) -> None:
    """Write the overview and the environments of all runs."""
    firsts = {kind: section[0][1] for kind, section in pages.items()}
    compared = ((place, one.summary) for place, _, one in pages.get("bench", ()) if one.summary)
    place, summary = next(compared, (None, None))
    values = {
        "header": {"environment": {"shim": shim.__version__}},
        "sections": [(SECTIONS[kind], [found[1:] for found in section]) for kind, section in pages.items()],
        "missing": [names for kind, names in SECTIONS.items() if kind not in pages],
        "problems": problems,
        "history": history,
        "glance_at": place,
        "summary": summary,
        "styles": colours.styles(summary.contestants) if summary else {},
    }
    for address, template in ((INDEX, "overview.html"), (ENVIRONMENT, "machines.html")):
        own = Place("", list(_links(firsts, history, address)))
        page.save(page.fill(template, site=own, **page.scripted(), **values), folder / address)
