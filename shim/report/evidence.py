"""The pages below a claim: of every case of a run its rounds, its raw samples in a file, the command to repeat it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from shim import statistics
from shim.report import colours, page, plots, words
from shim.report.summary import CaseResult, Summary

FOLDER = "samples"


@dataclass(frozen=True)
class Round:
    """The samples of one contestant in one round of fresh processes, in seconds of one call."""

    number: int
    blocks: int
    seconds: tuple[float, ...]
    implementation: str

    @property
    def median(self) -> float:
        return median(self.seconds)


def addresses(stem: str, summary: Summary) -> dict[str, str]:
    """Return for each case that has samples the page below the site's folder that will show them."""
    measured = [case for case in summary.cases if any(entry.row for entry in case.entries)]
    return {case.name.id: f"{FOLDER}/{stem}-{number}.html" for number, case in enumerate(measured, 1)}


def write(folder: Path, summary: Summary, pages: Mapping[str, str], place: Any) -> Iterator[str]:
    """Write the page and the samples of each case of a run, and yield its id once that is done."""
    labels = statistics.labels(summary.run)
    styles = colours.styles(summary.contestants)
    blocks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for block in summary.run.blocks:
        blocks[words.line(block["case"])].append(block)
    paths = {(b["target"], b["mode"], words.line(b["case"]), b["round"]): b for b in summary.run.builds}
    for case in summary.cases:
        if case.name.id not in pages:
            continue
        rounds: dict[str, list[Round]] = {}
        for (target, mode), contestant in labels.items():
            found: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for block in blocks[case.name.id]:
                if (block["target"], block["mode"]) == (target, mode) and block["seconds"]:
                    found[block["round"]].append(block)
            if found:
                rounds[contestant] = [
                    Round(
                        number,
                        len(parts),
                        tuple(seconds for part in parts for seconds in part["seconds"]),
                        str(paths.get((target, mode, case.name.id, number), {}).get("implementation", "")),
                    )
                    for number, parts in sorted(found.items())
                ]
        address = folder / pages[case.name.id]
        samples = address.with_suffix(".jsonl")
        page.save("".join(f"{json.dumps(block)}\n" for block in blocks[case.name.id]), samples)
        page.save(_render(case, rounds, summary, styles, samples.name, place), address)
        yield case.name.id


def _render(
    case: CaseResult,
    rounds: Mapping[str, list[Round]],
    summary: Summary,
    styles: Mapping[str, colours.Style],
    samples: str,
    place: Any,
) -> str:
    unit = case.unit
    lines = {
        contestant: [([float(r.number) for r in found], [r.median / unit.seconds for r in found])]
        for contestant, found in rounds.items()
    }
    caption = f"Median of each round, in {unit.name} of one call"
    figure = {"caption": caption, "svg": Markup(plots.curves(lines, styles, caption, "rounds", label="round"))}
    return page.fill(
        "samples.html",
        **page.of_run(summary.run),
        site=place,
        title=str(case.name),
        summary=summary,
        group={"heading": str(case.name), "cases": [case]},
        styles=styles,
        rounds=rounds,
        figures=[figure],
        samples=samples,
        sample_count=sum(len(r.seconds) for found in rounds.values() for r in found),
        again=words.again(
            case.name.id,
            [entry.contestant for entry in case.entries],
            summary.run.header.get("config", {}).get("threads"),
        ),
    )
