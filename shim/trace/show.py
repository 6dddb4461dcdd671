"""A profile as a table in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shim.report import words

ROWS = 25


def print_profile(profile: dict[str, Any], console: Console) -> None:
    """Print the longest rows of a profile, the sum of the others, and how the self times compare with the step."""
    about = f"{profile['case']} on {profile['target']}, mode {profile['mode']}"
    title = f"{about}: {profile['steps']} steps under {profile['profiler']}, times per step"
    console.print(Text(words.clean(title)))
    table = Table("op", "name")
    for column in ("calls", "self time", "share"):
        table.add_column(column, justify="right")
    rows, others = profile["rows"][:ROWS], profile["rows"][ROWS:]
    for row in rows:
        table.add_row(*map(Text, (words.clean(row["op"]), words.clean(row["name"]), *_numbers(row))))
    if others:
        rest = {key: sum(row[key] for row in others) for key in ("calls", "self_seconds", "share")}
        table.add_row("", f"{len(others)} more", *_numbers(rest))
    console.print(table)
    console.print(Text("\n".join(_sums(profile))), soft_wrap=True)


def _numbers(row: dict[str, Any]) -> tuple[str, str, str]:
    return f"{row['calls']:.4g}", words.duration(row["self_seconds"]), f"{100 * row['share']:.1f} %"


def _sums(profile: dict[str, Any]) -> list[str]:
    median, least, most = profile["measured"]
    wall, overlap, uncovered = (profile[key] for key in ("wall", "overlap", "uncovered"))
    threads = ", ".join(f"{words.clean(name)} {words.duration(s)}" for name, s in profile["threads"].items())
    spread = words.interval(words.duration(least), words.duration(most))
    return [
        f"step without the profiler   {words.duration(median)} {spread}",
        f"step under the profiler     {words.duration(wall)}, {words.times(wall / median)} times as long",
        f"self times, added up        {words.duration(profile['self'])}: {threads}",
        f"  in no event               {words.duration(uncovered)} of the step under the profiler",
        f"  counted more than once    {words.duration(overlap)}: threads at work, or waiting, at the same time",
    ]
