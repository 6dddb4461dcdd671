"""The page "Backends" in the site of ``asv publish``: the backends beside each other, which asv itself does not show.

Times and ratios to one backend with their intervals, each row from the newest commit that has it. For every result asv
keeps the samples of one process, taken at another time than those of the next backend: good enough to see what
changed, and the page says that ``shim bench`` is the tool for a claim.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from asv.console import log
from asv.publishing import OutputPublisher
from asv.results import iter_results
from markupsafe import Markup

import shim.report
from shim import statistics
from shim.report import colours, words
from tools.asv_backends import VERSIONS

PAGE = "backends.html"
NAVIGATION = '<li id="nav-li-regressions">'
STYLE_SHEET = Path(shim.report.__file__).parent / "templates" / "page.css"


@dataclass(frozen=True)
class Point:
    """One result: its commit, the commit's place in the history, asv's value, and the samples if it kept them."""

    commit: str
    revision: int
    value: float
    samples: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One benchmark with one choice of its other parameters; ``ratios`` are to the machine's baseline."""

    label: str
    link: str
    commit: str
    points: dict[str, Point]
    ratios: dict[str, statistics.Ratio]


@dataclass(frozen=True)
class Group:
    """The rows of one benchmark and the backends it has."""

    heading: str
    unit: str
    backends: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class Machine:
    """What was measured on one machine."""

    name: str
    commit: str
    backends: list[str]
    baseline: str | None
    groups: list[Group]
    versions: dict[str, str]


class Comparison(OutputPublisher):
    """Writes the page and the link to it."""

    name = "backends"
    button_label = "Backends"
    description = "The backends beside each other"
    order = 50

    @classmethod
    def publish(cls, conf, repo, benchmarks, graphs, revisions):
        machines = collect(conf.results_dir, benchmarks, revisions)
        folder = Path(conf.html_dir)
        (folder / PAGE).write_text(render(conf.project, machines), encoding="utf-8")
        link_from(folder / "index.html", cls, PAGE)
        log.info(f"{sum(len(group.rows) for machine in machines for group in machine.groups)} rows")


def link_from(index: Path, publisher: type[OutputPublisher], address: str) -> None:
    """Put a link to what a publisher wrote into the navigation of asv's own page."""
    entry = f'<li id="nav-li-{publisher.name}"><a href="{address}">{publisher.button_label}</a></li>'
    insert(index, f"{entry}\n\t", NAVIGATION)


def insert(index: Path, html: str, before: str) -> None:
    """Put ``html`` into asv's own page."""
    text = index.read_text(encoding="utf-8")
    index.write_text(text.replace(before, f"{html}{before}"), encoding="utf-8")


def points(results_dir: str, benchmarks: dict[str, Any], revisions: dict[str, int]) -> Iterator[tuple[Any, ...]]:
    """Yield (machine, benchmark, other parameters, backend, point) for each result that there is a backend to."""
    for results in iter_results(results_dir):
        revision = revisions.get(results.commit_hash)
        if revision is None:
            continue
        for name in sorted(results.get_result_keys(benchmarks)):
            benchmark = benchmarks[name]
            names, values = benchmark["param_names"], benchmark["params"]
            if "backend" not in names:
                continue
            found = results.get_result_value(name, values)
            samples = results.get_result_samples(name, values) or [None] * len(found)
            for chosen, value, sample in zip(itertools.product(*values), found, samples, strict=True):
                if value is None or not math.isfinite(value):
                    continue
                others = dict(zip(names, chosen, strict=True))
                backend = others.pop("backend").strip("'")
                point = Point(results.commit_hash, revision, value, tuple(sample or ()))
                yield results.params["machine"], name, tuple(others.items()), backend, point


def collect(results_dir: str, benchmarks: dict[str, Any], revisions: dict[str, int]) -> list[Machine]:
    """Return what the page shows: of every row the newest commit that has it."""
    found: dict[str, dict[tuple[str, Any], dict[str, Point]]] = {}
    for machine, name, others, backend, point in points(results_dir, benchmarks, revisions):
        row = found.setdefault(machine, {}).setdefault((name, others), {})
        newest = max((p.revision for p in row.values()), default=point.revision)
        if point.revision > newest:
            row.clear()
        if point.revision >= newest:
            row[backend] = point
    order = backend_order(benchmarks)
    versions = read_versions(Path(results_dir) / VERSIONS)
    return [_machine(name, rows, benchmarks, order, versions) for name, rows in sorted(found.items())]


def backend_order(benchmarks: dict[str, Any]) -> list[str]:
    """Return all values of the parameter ``backend``, in the order of the suite."""
    axes = [
        values[names.index("backend")]
        for names, values in ((b["param_names"], b["params"]) for b in benchmarks.values())
        if "backend" in names
    ]
    return list(dict.fromkeys(text.strip("'") for values in sorted(axes, key=len, reverse=True) for text in values))


def read_versions(path: Path) -> dict[tuple[str, str], str]:
    """Return (commit, target) -> version of the framework, from the notes of the environment plugin."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
            found[entry["commit"], entry["target"]] = entry["version"] or ""
        except (ValueError, KeyError, TypeError):
            continue  # a note that was cut off costs one version number, not the page
    return found


def _machine(
    name: str, rows: dict[Any, Any], benchmarks: dict[str, Any], order: list[str], versions: dict[tuple[str, str], str]
) -> Machine:
    present = {backend for points_of in rows.values() for backend in points_of}
    backends = [backend for backend in order if backend in present]
    newest = max((p for points_of in rows.values() for p in points_of.values()), key=lambda point: point.revision)
    baseline = statistics.choose_baseline([backend for backend in backends if backend != "null"])
    groups = []
    for benchmark in benchmarks.values():
        found = [(others, points_of) for (of, others), points_of in rows.items() if of == benchmark["name"]]
        if found:
            columns = [backend for backend in backends if backend in backend_order({"": benchmark})]
            made = [_row(benchmark, others, points_of, baseline) for others, points_of in found]
            groups.append(Group(_heading(benchmark), benchmark["unit"], columns, made))
    return Machine(
        name=words.line(name),
        commit=newest.commit,
        backends=backends,
        baseline=baseline,
        groups=groups,
        versions={b: found for b in backends if b != "null" and (found := versions.get((newest.commit, b)))},
    )


def _heading(benchmark: dict[str, Any]) -> str:
    return words.line(benchmark.get("pretty_name") or benchmark["name"])


def _row(benchmark: dict[str, Any], others: Any, points_of: dict[str, Point], baseline: str | None) -> Row:
    query = "&".join(f"p-{quote(key, safe='')}={quote(text, safe='')}" for key, text in others)
    base = points_of.get(baseline) if benchmark["unit"] == "seconds" else None
    return Row(
        label=", ".join(words.line(text.strip("'")) for _, text in others) or _heading(benchmark),
        link=f"index.html#{quote(benchmark['name'], safe='')}" + (f"?{query}" if query else ""),
        commit=next(iter(points_of.values())).commit,
        points=points_of,
        ratios={name: ratio(point, base) for name, point in points_of.items() if base and name != baseline},
    )


def ratio(point: Point, base: Point) -> statistics.Ratio:
    """Return the ratio of two results with the 95 % bootstrap interval of the ratio of medians.

    Only the scatter within one process is in it. Without samples the interval is NaN and the verdict unknown.
    """
    value = point.value / base.value
    if min(len(point.samples), len(base.samples)) < 8:
        return statistics.Ratio(value, math.nan, math.nan)
    rng = np.random.default_rng(0)
    medians = [
        np.median(rng.choice(np.array(samples), (statistics.RESAMPLES, len(samples))), axis=1)
        for samples in (point.samples, base.samples)
    ]
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    return statistics.Ratio(value, float(low), float(high), verdict(low, high))


def verdict(low: float, high: float) -> str:
    """Return what an interval says, more carefully than ``shim bench`` does: a difference is one beyond the margin."""
    if low >= 1 / statistics.MARGIN and high <= statistics.MARGIN:
        return "tie"
    return "faster" if high < 1 / statistics.MARGIN else "slower" if low > statistics.MARGIN else "unknown"


def render(project: str, machines: Sequence[Machine]) -> str:
    """Return the page; everything that comes from results is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    labels = [backend for machine in machines for backend in machine.backends]
    return environment.get_template("asv_comparison.html").render(
        project=project,
        machines=machines,
        words=words,
        styles=colours.styles(labels),
        style_sheet=Markup(STYLE_SHEET.read_text(encoding="utf-8")),
    )
