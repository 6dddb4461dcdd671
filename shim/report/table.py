"""A run in the terminal, and as JSON. Eighty columns suffice; wider ones give the implementation its own column."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from shim.report import words
from shim.report.summary import CaseResult, Entry, Summary, summarise
from shim.statistics import Row

#: Below this the implementations stand under the table of a case.
WIDE = 110
STYLES = {"faster": "green", "slower": "", "tie": "dim", "unknown": "dim italic"}
LEGEND = (
    ("time", "median time of one call; in brackets the interval that holds it with 95 % confidence"),
    ("ratio", "time / time of {baseline}: 0.5 is half its time, 2 is twice its time"),
    ("faster, slower", "the whole interval of the ratio is on one side of 1, and it is no tie"),
    ("tie", "the whole interval is within 3 % of 1: too close to matter"),
    ("unknown", "the samples do not decide; more rounds would"),
    ("limit", "what the row is nearest to, and how near: compute 80 % is 80 % of the fastest product measured here"),
)
KERNEL_TIME = (
    "kernel time",
    "durations of a call's kernels and copies on the device, added up; its buffers may be in the L2",
)


def print_run(run: Any, console: Console, baseline: str | None = None) -> None:
    """Print a run: each case with its contestants, fastest first, then failures and how to read it all.

    Raises ``ValueError`` for an unknown baseline.
    """
    summary = summarise(run, baseline)
    _print_warnings(summary, console)
    longest = max((len(words.line(name, 40)) for name in summary.contestants), default=0)
    for case in summary.cases:
        _print_case(case, summary.baseline, longest, console)
    for model in dict.fromkeys(training.model for training in summary.trainings):
        console.print(Text(f"{words.line(model)}: training", style="bold"))
        console.print(_training_table(model, summary))
    if summary.failures:
        _print_failures(summary, console)
    if summary.cases:
        console.print(Text(summary.tally, style="bold"))
        console.print()
        console.print(_legend(summary.baseline, (*LEGEND, KERNEL_TIME) if summary.on_device else LEGEND))


def _print_warnings(summary: Summary, console: Console) -> None:
    for warning in summary.warnings:
        console.print(Text(f"WARNING: {warning}", style="bold red"))
    if not summary.run.complete and "sweeps" in summary.run.header.get("config", {}):
        console.print(Text(f"Go on with: shim bench --resume {shlex.quote(str(summary.run.path))}", style="bold"))
    if summary.warnings:
        console.print()


def _print_case(case: CaseResult, baseline: str, longest: int, console: Console) -> None:
    style = "bold green" if case.outcome.kind == "fastest" else "bold"
    name, outcome = str(case.name), str(case.outcome)
    gap = "  " if len(name) + len(outcome) + 2 <= console.width else "\n"
    console.print(Text.assemble((name, "bold"), gap, (outcome, style)))
    wide = console.width >= WIDE
    measured = [(entry.contestant, entry.row) for entry in case.entries if entry.row]
    if measured:
        console.print(_case_table(case, baseline, longest, wide))
    if not wide and measured:
        _print_under(f"implementations  {_implementations(measured)}", "dim", console)
        if kernels := [f"{words.line(e.contestant, 40)} {e.device}" for e in case.entries if e.device]:
            _print_under(f"kernel time  {', '.join(kernels)}", "dim", console)
        if limits := [f"{words.line(e.contestant, 40)} {e.limit}" for e in case.entries if e.limit]:
            _print_under(f"limits  {', '.join(limits)}", "dim", console)
    for entry in case.entries:
        if entry.note:
            _print_under(f"{words.line(entry.contestant, 40)}: {words.line(entry.note, 200)}", "red", console)
    console.print()


def _implementations(measured: Sequence[tuple[str, Row]]) -> str:
    paths: dict[str, list[str]] = defaultdict(list)
    for contestant, row in measured:
        paths[words.line(row.implementation, 200)].append(words.line(contestant, 40))
    return "; ".join(f"{', '.join(names)}: {path}" for path, names in paths.items())


def _print_under(text: str, style: str, console: Console) -> None:
    console.print(Padding(Text(text, style=style), (0, 0, 0, 2), expand=False))


def _case_table(case: CaseResult, baseline: str, longest: int, wide: bool) -> Table:
    """Return the table of a case; columns are as wide in every case, so that tables stand in line."""
    unit = case.unit
    table = empty_table(wide, "contestant", f">time, {unit.name}", "", ">ratio", "", "verdict")
    for column, width in zip(table.columns, (longest, 8, 14, 6, 14, 13), strict=True):
        column.min_width = width
    on_device = wide and any(entry.device for entry in case.entries)
    if on_device:
        table.add_column("kernel time", justify="right", no_wrap=True, header_style="dim")
    limited = wide and any(entry.limit for entry in case.entries)
    if limited:
        table.add_column("limit", style="dim", no_wrap=True, min_width=14)
    if wide:
        table.add_column("implementation", overflow="fold", style="dim")
    for entry in case.entries:
        contestant, row = entry.contestant, entry.row
        if row is None:
            continue
        ratio = row.ratio
        cells: list[str | Text] = [
            Text(words.line(contestant, 40)),
            unit.write(row.time.value),
            Text(words.interval(unit.write(row.time.low), unit.write(row.time.high)), style="dim"),
        ]
        if contestant == baseline:
            cells += [Text("1.000", style="dim"), "", Text("baseline", style="dim")]
        elif ratio is None:
            cells += [words.DASH, "", Text("no baseline", style="dim")]
        else:
            between = words.interval(words.ratio(ratio.low), words.ratio(ratio.high))
            verdict = Text(words.verdict(ratio), style=STYLES.get(ratio.verdict, ""))
            cells += [words.ratio(ratio.value), Text(between, style="dim"), verdict]
        if on_device:
            cells.append(words.duration(entry.device.kernel) if entry.device else words.DASH)
        if limited:
            cells.append(str(entry.limit or words.DASH))
        if wide:
            cells.append(Text(words.line(row.implementation, 200)))
        table.add_row(*cells)
    return table


def _training_table(model: str, summary: Summary) -> Table:
    table = empty_table(
        True, "contestant", ">epochs", ">accuracy", ">test loss", ">loss", ">epoch", ">first epoch", "data"
    )
    for training in summary.trainings:
        if training.model == model:
            last = training.epochs[-1]
            table.add_row(
                Text(words.line(training.contestant, 40)),
                str(len(training.epochs)),
                words.percent(last.get("test_accuracy")),
                words.number(last.get("test_loss")),
                words.number(last.get("loss")),
                words.duration(training.epoch_seconds),
                words.duration(training.epochs[0].get("train_seconds")),
                Text(words.line(last.get("source", ""), 40)),
            )
    return table


def empty_table(roomy: bool, *columns: str) -> Table:
    """Return an empty table; a column whose heading starts with ``>`` holds numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2 if roomy else 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in columns:
        numeric = heading.startswith(">")
        table.add_column(
            heading.removeprefix(">"),
            justify="right" if numeric else "left",
            header_style="dim",
            overflow="fold",
            no_wrap=numeric,
        )
    return table


def _print_failures(summary: Summary, console: Console) -> None:
    console.print(Text(words.count(len(summary.failures), "failure"), style="bold red"))
    for failure in summary.failures:
        where = words.line(failure["contestant"], 40)
        if failure.get("case"):
            where += f", {words.case_name(str(failure['case']))}"
        told = words.line(words.reason(failure.get("reason", "")), 400)
        _print_under(f"{where}: {words.line(failure.get('stage', ''), 40)}: {told}", "red", console)
    console.print()


def _legend(baseline: str, entries: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for word, meaning in entries:
        table.add_row(Text(word, style="dim"), Text(meaning.format(baseline=words.line(baseline, 40)), style="dim"))
    return table


def as_json(run: Any, baseline: str | None = None) -> dict[str, Any]:
    """Return what the table says as numbers that JSON can hold; times in seconds, NaN as None.

    Raises ``ValueError`` for an unknown baseline.
    """
    summary = summarise(run, baseline)
    header = run.header
    return {
        "schema": 1,
        "run": {key: header.get(key) for key in ("id", "started", "command", "config", "environment")},
        "complete": run.complete,
        "warnings": list(summary.warnings),
        "baseline": summary.baseline or None,
        "cases": [
            {
                "case": case.name.id,
                "outcome": case.outcome.kind,
                "fastest": list(case.outcome.contestants),
                "rows": [_row_as_json(entry, summary.baseline) for entry in case.entries],
            }
            for case in summary.cases
        ],
        "workers": [vars(startup) for startup in summary.startups],
        "training": [
            {"model": t.model, "contestant": t.contestant, "epochs": [_plain(epoch) for epoch in t.epochs]}
            for t in summary.trainings
        ],
        "failures": [_plain(failure) for failure in summary.failures],
    }


def _row_as_json(entry: Entry, baseline: str) -> dict[str, Any]:
    row = entry.row
    if row is None:
        return {"contestant": entry.contestant, "note": entry.note}
    compared = row.ratio is not None and entry.contestant != baseline
    found = {
        "contestant": entry.contestant,
        "target": row.target,
        "mode": row.mode,
        "seconds": {"median": row.time.value, "low": row.time.low, "high": row.time.high},
        "ratio": {key: getattr(row.ratio, key) for key in ("value", "low", "high", "verdict")} if compared else None,
        "implementation": row.implementation,
        "parity": entry.parity,
        "limit": vars(entry.limit) if entry.limit else None,
        "device": vars(entry.device) if entry.device else None,
        "cpu_per_wall": row.cpu_per_wall,
        "build_seconds": row.build_seconds,
        "first_call_seconds": row.first_call_seconds,
        "rounds": row.rounds,
        "samples": row.samples,
        "note": entry.note,
    }
    return {key: _plain(value) for key, value in found.items()}


def _plain(value: Any) -> Any:
    """Replace what JSON has no word for, NumPy's scalars and not-a-number, all the way down."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
