"""Tested causes in words, as a table in the terminal, as JSON and as a page that loads nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from shim.explain.causes import Cause, Finding
from shim.measure.runfile import plain
from shim.report import colours, page, words
from shim.report.table import empty_table
from shim.statistics import Estimate

MOST = 0.5  # share of the gap from which on a cause is not one among several
STYLES = {"confirmed": "bold green", "refuted": "red", "undecided": "dim"}


def sentences(findings: Sequence[Finding]) -> Iterator[str]:
    """Say how many causes are confirmed, then of each of these what it explains."""
    kinds = Counter(finding.verdict for finding in findings)
    counts = [f"{kinds[verdict]} {verdict}" for verdict in STYLES if kinds[verdict]]
    yield f"{words.count(len(findings), 'suspected cause')} tested: {words.listing(counts)}."
    yield from (answer(finding) for finding in findings if finding.verdict == "confirmed")


def answer(finding: Finding) -> str:
    """Answer a cause's question in words; only a confirmed cause is called one."""
    cause, effect = finding.cause, finding.effect
    if finding.verdict == "confirmed":
        gap, rest = _times(finding.gap), _times(finding.rest)
        return (
            f"{cause.question} {'Because' if finding.share >= MOST else 'In part because'} {cause.hypothesis}: "
            f"{gap} times the time of {cause.fast}, without that {rest}."
        )
    measured = f" Measured: {_times(effect)} {_interval(effect)}, predicted: {_range(cause)}." if finding.rounds else ""
    if finding.verdict == "refuted":
        return (
            f"{cause.question} Not shown to be because {cause.hypothesis}: {words.line(finding.note, 300)}.{measured}"
        )
    return f"{cause.question} Unknown whether because {cause.hypothesis}: {words.line(finding.note, 300)}.{measured}"


def _times(estimate: Estimate) -> str:
    return words.times(estimate.value) if math.isfinite(estimate.value) else words.DASH


def _interval(estimate: Estimate) -> str:
    ends = (words.times(end) if math.isfinite(end) else words.DASH for end in (estimate.low, estimate.high))
    return words.interval(*ends)


def _range(cause: Cause) -> str:
    return " to ".join(f"{end:g}" for end in cause.predicted)


def _cells(finding: Finding) -> dict[str, str]:
    return {
        "name": finding.cause.name,
        "gap": _times(finding.gap),
        "rest": _times(finding.rest),
        "effect": _times(finding.effect),
        "interval": _interval(finding.effect),
        "predicted": _range(finding.cause),
        "verdict": finding.verdict,
    }


def print_findings(findings: Sequence[Finding], console: Console) -> None:
    """Print what became of the causes: a table, then an answer to each question."""
    table = empty_table(False, ">cause", ">gap", ">left", ">effect", ">interval", ">predicted", "verdict")
    table.columns[0].justify = "left"
    for finding in findings:
        *cells, verdict = _cells(finding).values()
        table.add_row(*map(Text, cells), Text(verdict, style=STYLES[verdict]))
    console.print(table)
    console.print()
    for finding in findings:
        console.print(Text(f"{finding.cause.name}: {answer(finding)}", style=STYLES[finding.verdict]))


def print_list(causes: Iterable[Cause], console: Console) -> None:
    """Print the causes that can be tested, with their predictions."""
    table = empty_table(False, ">cause", "question, suspected cause and switch", ">predicted")
    table.columns[0].justify = "left"
    for cause in causes:
        text = f"{cause.question} Because {cause.hypothesis}? Switch: {cause.switch}."
        table.add_row(*map(Text, (cause.name, text, _range(cause))))
    console.print(table)


def list_as_json(causes: Iterable[Cause]) -> dict[str, Any]:
    """Return the causes that can be tested as what JSON can hold."""
    return {"schema": 1, "causes": [_cause_as_json(cause) for cause in causes]}


def _cause_as_json(cause: Cause) -> dict[str, Any]:
    rows = {
        side: [dict(zip(("case", "contestant"), row, strict=True)) for row in getattr(cause, side)] for side in _SIDES
    }
    texts = ("name", "question", "hypothesis", "switch", "because")
    return {name: getattr(cause, name) for name in texts} | {"predicted": list(cause.predicted)} | rows


_SIDES = ("gap", "rest")


def as_json(run: Any, findings: Iterable[Finding]) -> dict[str, Any]:
    """Return findings as numbers that JSON can hold, with the rows and the run file that are their evidence."""

    def numbers(estimate: Estimate) -> dict[str, float]:
        return {"median": estimate.value, "low": estimate.low, "high": estimate.high}

    result: dict[str, Any] = plain(
        {
            "schema": 1,
            "run_file": str(run.path),
            "findings": [
                {"cause": _cause_as_json(f.cause), "verdict": f.verdict, "note": f.note, "rounds": f.rounds}
                | {"gap": numbers(f.gap), "rest": numbers(f.rest), "effect": numbers(f.effect)}
                | {
                    "evidence": [
                        {"case": case, "contestant": name, "seconds": numbers(time)}
                        for (case, name), time in zip(f.cause.rows, f.times, strict=True)
                    ]
                }
                for f in findings
            ],
        }
    )
    return result


def title(findings: Sequence[Finding]) -> str:
    """Name findings by how many there are."""
    return words.count(len(findings), "suspected cause")


def render(run: Any, findings: Sequence[Finding], site: Any = None) -> str:
    """Return findings as a page, which may be one of a ``site``: see :class:`shim.report.site.Place`."""
    names = [name for finding in findings for _, name in finding.cause.rows]
    ends = [
        e for f in findings for e in (*f.cause.predicted, f.effect.low, f.effect.high) if math.isfinite(e) and e > 0
    ]
    scale = 98 / max([abs(math.log(end)) for end in ends] + [1e-9])
    rows = [
        _cells(finding)
        | {
            "answer": answer(finding),
            "finding": finding,
            "bar": _bar(finding, scale),
            "evidence": list(_evidence(finding)),
        }
        for finding in findings
    ]
    return page.fill(
        "causes.html",
        **page.of_run(run),
        site=site,
        title=title(findings),
        sentences=list(sentences(findings)),
        rows=rows,
        styles=colours.styles(names),
    )


def _evidence(finding: Finding) -> Iterator[tuple[str, str, str]]:
    for (case, name), time in zip(finding.cause.rows, finding.times, strict=True):
        yield case, name, words.duration(time.value)


def _bar(finding: Finding, scale: float) -> dict[str, Any]:
    """Return where the effect, its interval and the prediction lie on an axis of logarithms with 1 in the middle."""

    def place(value: float) -> str:
        return f"{scale * math.log(value):.2f}"

    low, high = (scale * math.log(end) for end in finding.cause.predicted)
    known = all(math.isfinite(end) and end > 0 for end in (finding.effect.low, finding.effect.high))
    measured = (
        [place(end) for end in (finding.effect.low, finding.effect.value, finding.effect.high)] if known else None
    )
    return {"x": f"{low:.2f}", "width": f"{high - low:.2f}", "measured": measured}


def write(run: Any, findings: Sequence[Finding], path: Path) -> Path:
    """Write findings as a page and return its path."""
    return page.save(render(run, findings), path)
