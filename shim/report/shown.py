"""Runs of every kind, read for the site: what each one is called, what it says in sentences, how its page is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from shim import article as benchmark
from shim import cases, statistics
from shim.explain import attribution, causes, hypotheses
from shim.explain import winmap as mapping
from shim.measure import runfile
from shim.report import article, article_page, explanation, page, winmap, words
from shim.report import causes as tested
from shim.report.summary import Summary, summarise

_TIME_OF_FILE = re.compile(r"^\d{8}-\d{6}-")


@dataclass(frozen=True)
class Shown:
    """What the site shows of one run: ``name`` tells it from others of its kind, ``render`` makes its page."""

    kind: str
    name: str
    title: str
    started: str
    sentences: Sequence[str]
    facts: Mapping[str, Any]
    files: Sequence[Path]
    render: Callable[[Any], str]
    summary: Summary | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.name


def show(path: Path, baseline: str | None = None) -> Shown:
    """Read a run file, or the folder of a run of the article. Raises ``ValueError`` for what is neither.

    Ratios are to ``baseline`` where it takes part, otherwise to what the run has chosen.
    """
    if path.is_dir():
        return _article(benchmark.read(path), baseline)
    run = runfile.read(path)
    summary = summarise(run, baseline if baseline in statistics.labels(run).values() else None)
    shown = Shown(
        kind="train" if run.epochs or "model" in run.header["config"] else "bench",
        name=words.line(_TIME_OF_FILE.sub("", path.stem), 60),
        title=page.title(summary),
        started=str(run.header.get("started", "")),
        sentences=list(page.overview(summary)),
        facts=page.of_run(run),
        files=[path],
        render=partial(page.of_summary, summary),
        summary=summary,
    )
    if _is_map(run):
        found = mapping.read(run)
        told = [*winmap.sentences(found), *winmap.crossings(found)]
        name = f"{winmap.subject(found)}, {words.DIRECTIONS[found.direction]}"
        render: Any = partial(winmap.render, run, found)
        return replace(shown, kind="map", name=name, title=winmap.title(found), sentences=told, render=render)
    if "only" in run.header["config"]:
        with suppress(ValueError):  # then none of its causes is known any more
            findings = causes.judge_all(run, hypotheses.CAUSES)
            told = list(tested.sentences(findings))
            title, render = tested.title(findings), partial(tested.render, run, findings)
            return replace(shown, kind="causes", title=title, sentences=told, render=render)
    if any(cases.OPTIMIZER_STEP in id for id in run.header["config"].get("cases", ())):
        with suppress(ValueError):  # then it is a comparison like any other
            e = attribution.explain(run, *list(statistics.labels(run).values())[:2])
            title, told, render = explanation.title(e), list(explanation.sentences(e)), explanation.render
            return replace(
                shown, kind="explain", name=title, title=title, sentences=told, render=partial(render, run, e)
            )
    return shown


def _is_map(run: Any) -> bool:
    """Return whether a run has just the cases of a whole map."""
    ids = run.header["config"].get("cases", ())
    try:
        mapping.grid_of_cases(ids)
    except (IndexError, ValueError):
        return False
    return True


def _article(found: benchmark.Article, baseline: str | None) -> Shown:
    summary = article.summary(found, baseline if baseline in found.plan["targets"] else None)
    runs = [run for runs in found.runs.values() for run in runs]
    header = runs[0].header if runs else {}
    return Shown(
        kind="article",
        name=words.line(_TIME_OF_FILE.sub("", found.folder.name), 60),
        title=article_page.title(summary),
        started=str(header.get("started", "")),
        sentences=list(article_page.sentences(summary)),
        facts=article_page.facts(found),
        files=[found.folder / benchmark.PLAN, *(run.path for run in runs)],
        render=partial(article_page.render, summary),
    )


def newest(folder: Path, baseline: str | None = None) -> tuple[list[Shown], list[str]]:
    """Return the newest run of each kind and name in a folder, and why others could not be read."""
    found: dict[tuple[str, str], Shown] = {}
    problems = []
    paths = [*folder.glob("*.jsonl"), *(plan.parent for plan in folder.glob(f"*/{benchmark.PLAN}"))]
    for path in sorted(paths, key=lambda path: path.name, reverse=True):
        try:
            shown = show(path, baseline)
        except Exception as error:  # whatever is wrong with one file costs its page, not the site
            problems.append(f"{path.name}: {error}")
            continue
        if shown.key not in found or shown.started > found[shown.key].started:
            found[shown.key] = shown
    return sorted(found.values(), key=lambda shown: shown.started, reverse=True), problems
