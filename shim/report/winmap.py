"""A win map in the terminal, as JSON and as a page: colours of the backends, and the same in words in every cell."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from shim.explain import prediction
from shim.explain.published import Figure, Listed
from shim.explain.winmap import RATE, Cell, WinMap
from shim.measure.runfile import plain
from shim.report import colours, page, words
from shim.report.table import empty_table


def sentences(found: WinMap) -> Iterator[str]:
    """Say who wins how often, and how sure that is."""
    kinds = Counter(cell.kind for cell in found.cells.values())
    wins = Counter(cell.fastest for cell in found.cells.values() if cell.kind == "winner")
    parts = [
        f"{words.line(name, 40)} wins {'in ' if k == 0 else ''}{many}"
        for k, (name, many) in enumerate(wins.most_common())
    ]
    parts += [
        f"{kinds[kind]} {word}" for kind, word in (("tie", "are ties"), ("unknown", "are undecided")) if kinds[kind]
    ]
    yield f"Of {words.count(len(found.cells), 'shape')} of {subject(found)}, {words.listing(parts)}."
    yield (
        f"Of the wins, no more than {100 * RATE:.0f} % are expected to be false (Benjamini-Hochberg over the map); "
        "within 3 % is a tie."
    )
    models = prediction.predict(found)
    if models:
        errors = [f"{words.line(model.contestant, 40)} {100 * model.error:.0f} %" for model in models]
        yield (
            "A model of the work (calls, steps, operations, bytes), fitted to one half of the shapes, "
            f"predicts the times of the other half with these median errors: {', '.join(errors)}."
        )


def crossings(found: WinMap) -> Iterator[str]:
    """Say where the winner changes, one sentence for each change."""
    names = [axis for axis, _ in found.grid.axes]
    for c in found.crossovers:
        others = ", ".join(f"{a} {v}" for a, v in zip(names, c.point, strict=True) if a != c.axis)
        yield (
            f"at {others}: {words.line(c.below, 40)} up to {c.axis} {c.low:,}, "
            f"{words.line(c.above, 40)} from {c.axis} {c.high:,}"
        )


def text_of(cell: Cell) -> str:
    """Write a cell: the winner and its lead over the runner-up, those that tie, or those that may win."""
    names = [words.line(name, 24) for name in cell.leaders]
    if not names:
        return "not measured"
    if cell.kind == "winner":
        return f"{names[0]} {words.times(cell.ratio)}x"
    others = f" +{len(names) - 2}" if len(names) > 2 else ""
    return f"{'=' if cell.kind == 'tie' else '?'} {', '.join(names[:2])}{others}"


def subject(found: WinMap) -> str:
    """Name what a map is of."""
    return found.grid.title if isinstance(found.grid, Listed) else found.grid.op


def _columns(found: WinMap) -> list[str]:
    if isinstance(found.grid, Listed):
        return ["fastest here", "its time"]
    axis, columns = found.grid.axes[2]
    return [f"{axis} {column:,}" for column in columns]


def _panels(found: WinMap) -> Iterator[tuple[str, list[tuple[str, list[Cell | None]]]]]:
    """Yield the panels of a map by name, each with its rows of cells by name: one row a shape of a list."""
    if isinstance(found.grid, Listed):
        yield "shape", [(_shape(cell), [cell]) for cell in found.cells.values()]
        return
    (first, panels), (row_axis, rows), (_, columns) = found.grid.axes
    for panel in panels:
        cells = [[found.cells.get((panel, row, column)) for column in columns] for row in rows]
        yield (
            f"{first} {panel:,}",
            [(f"{row_axis} {row:,}", line) for row, line in zip(rows, cells, strict=True)],
        )


def _shape(cell: Cell) -> str:
    return words.case_name(cell.case).shape


def _fastest(cell: Cell) -> str:
    return words.duration(cell.seconds.get(cell.fastest))


def figures(found: WinMap, cell: Cell) -> list[Figure]:
    """Return what others have published about the shape of a cell."""
    return found.grid.figures(cell.point, found.direction) if isinstance(found.grid, Listed) else []


def _published(figure: Figure) -> str:
    return f"{words.duration(figure.seconds)} on {figure.device}, {figure.library}: {figure.covers}"


def print_map(found: WinMap, console: Console) -> None:
    """Print a map: a table for each length of the first axis, then the sentences."""
    console.print(Text(f"{subject(found)}, {words.DIRECTIONS[found.direction]}", style="bold"))
    listed = isinstance(found.grid, Listed)
    for panel, rows in _panels(found):
        table = empty_table(True, panel, *_columns(found), *(["published, on other machines"] if listed else []))
        table.columns[0].style, table.columns[0].header_style = "bold", ""
        for row, cells in rows:
            texts = [
                Text(text_of(c) if c else words.DASH, style="" if c and c.kind == "winner" else "dim") for c in cells
            ]
            if listed and cells[0]:
                published = [_published(figure) for figure in figures(found, cells[0])]
                texts += [Text(_fastest(cells[0])), Text("\n".join(published) or words.DASH, style="dim")]
            table.add_row(row, *texts)
        console.print(table)
        console.print()
    for sentence in sentences(found):
        console.print(Text(sentence))
    if isinstance(found.grid, Listed):
        console.print(Text(f"{found.grid.note} Shapes from {found.grid.source}"))
    changes = list(crossings(found))
    if changes:
        console.print(Text(f"{words.count(len(changes), 'change')} of winner:", style="bold"))
    for change in changes:
        console.print(Text(f"  {change}"))
    for failure in found.failures:
        console.print(Text(words.line(failure, 300), style="red"))
    console.print(
        Text(
            "torch 1.40x: torch wins, the runner-up takes 1.40 times as long; = tie; ? undecided; +3: three more",
            style="dim",
        )
    )


def as_json(found: WinMap) -> dict[str, Any]:
    """Return a map as numbers and names that JSON can hold; times in seconds."""

    result: dict[str, Any] = plain(
        {
            "schema": 1,
            "op": found.grid.op,
            "shapes": found.grid.name if isinstance(found.grid, Listed) else None,
            "direction": found.direction,
            "axes": {axis: list(values) for axis, values in found.grid.axes},
            "contestants": list(found.contestants),
            "cells": [
                {
                    "point": dict(zip((axis for axis, _ in found.grid.axes), cell.point, strict=False)),
                    "case": cell.case,
                    "kind": cell.kind,
                    "leaders": cell.leaders,
                    "ratio": cell.ratio,
                    "p": cell.p,
                    "seconds": dict(cell.seconds),
                    "rounds": cell.rounds,
                    "published": [vars(figure) for figure in figures(found, cell)],
                }
                for cell in found.cells.values()
            ],
            "crossovers": [vars(c) for c in found.crossovers],
            "predictions": [vars(model) for model in prediction.predict(found)],
            "failures": list(found.failures),
        }
    )
    return result


def title(found: WinMap) -> str:
    """Name a map by its op and direction."""
    return f"Who wins where: {subject(found)}, {words.DIRECTIONS[found.direction]}"


def render(run: Any, found: WinMap, site: Any = None) -> str:
    """Return a map as the text of an HTML page, which may be one of a ``site``: see :class:`shim.report.site.Place`."""
    styles = colours.styles(found.contestants)
    listed = found.grid if isinstance(found.grid, Listed) else None
    panels = [
        {"name": panel, "rows": [(row, [_cell(cell, styles) for cell in cells]) for row, cells in rows]}
        for panel, rows in _panels(found)
    ]
    published = [
        {
            "shape": _shape(cell),
            "case": cell.case,
            "fastest": ", ".join(words.line(name, 40) for name in cell.leaders[:1]),
            "time": _fastest(cell),
            "figure": figure,
        }
        for cell in found.cells.values()
        for figure in figures(found, cell)
    ]
    return page.fill(
        "winmap.html",
        **page.of_run(run),
        site=site,
        title=title(found),
        found=found,
        styles=styles,
        panels=panels,
        columns=_columns(found)[:1] if listed else _columns(found),
        listed=listed,
        published=published,
        sentences=list(sentences(found)),
        crossings=list(crossings(found)),
    )


def _cell(cell: Cell | None, styles: dict[str, colours.Style]) -> dict[str, Any]:
    if cell is None:
        return {"text": words.DASH, "kind": "unknown", "title": "", "style": None, "case": ""}
    times = ", ".join(f"{words.line(name, 40)} {words.duration(seconds)}" for name, seconds in cell.seconds.items())
    style = styles.get(cell.fastest) if cell.kind == "winner" else None
    strength = 25 + 45 * min(1.0, math.log2(max(cell.ratio, 1.0)) / 2) if style else 0.0
    shown = {"text": text_of(cell), "kind": cell.kind, "title": f"{times}; {words.count(cell.rounds, 'round')}"}
    return shown | {"style": style, "strength": f"{strength:.0f}", "case": cell.case}


def write(run: Any, found: WinMap, path: Path) -> Path:
    """Write a map as a page and return its path."""
    return page.save(render(run, found), path)
