"""How numbers and names are written: units, digits, verdicts, and text that is safe to show."""

from __future__ import annotations

import math
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

DASH = "\N{EN DASH}"
OF_MODELS = {
    "train_step": "training step",
    "predict": "prediction",
    "optimizer_step": "optimizer step",
    "gradients": "gradients",
}
DIRECTIONS = {
    "forward": "forward",
    "forward_backward": "forward + backward",
    "weight_gradients": "forward + backward to the weights",
    **OF_MODELS,
}
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


@dataclass(frozen=True)
class Unit:
    """A unit of time and the number of decimals that fits the numbers of one table block."""

    name: str
    seconds: float
    decimals: int

    def write(self, seconds: Any) -> str:
        """Write a duration in this unit, without the unit's name; a dash where there is none."""
        if not _is_number(seconds):
            return DASH
        return f"{seconds / self.seconds:,.{self.decimals}f}"


def unit(durations: Iterable[Any]) -> Unit:
    """Choose a unit for durations in seconds: the smallest has three digits, at least one before the point."""
    known = [d for d in durations if _is_number(d) and d > 0]
    if not known:
        return Unit("s", 1.0, 2)
    smallest, largest = min(known), max(known)
    position = next((k for k, (seconds, _) in enumerate(_UNITS) if smallest >= 0.9995 * seconds), len(_UNITS) - 1)
    if position and largest / _UNITS[position][0] >= 1e5:
        position -= 1
    seconds, name = _UNITS[position]
    return Unit(name, seconds, max(0, min(3, 2 - math.floor(math.log10(1.0005 * smallest / seconds)))))


def duration(seconds: Any) -> str:
    """Write one duration with its unit: ``1.83 ms``."""
    if not _is_number(seconds):
        return DASH
    chosen = unit([abs(seconds)])
    return f"{chosen.write(seconds)} {chosen.name}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def round_duration(seconds: float) -> str:
    """Write a round duration, such as that of a tick: ``500 µs``, ``1 ms``."""
    size, name = next(((size, name) for size, name in _UNITS if seconds >= 0.9995 * size), _UNITS[-1])
    return f"{seconds / size:.4g} {name}"


def ratio(value: Any) -> str:
    """Write a ratio with three decimals, so that an interval's end close to 1 is told from 1."""
    if not _is_number(value):
        return DASH
    return f"{value:,.{3 if value < 10 else 1}f}" if value >= 0.01 else f"{value:.2g}"


def number(value: Any) -> str:
    """Write a plain number with three digits: ``0.546``, ``1.83``, ``12.3``, ``410``."""
    if not _is_number(value):
        return DASH
    magnitude = abs(value) or 1.0
    return f"{value:,.{max(0, min(3, 2 - math.floor(math.log10(1.0005 * magnitude))))}f}"


def interval(low: str, high: str) -> str:
    """Write an interval from its written ends: ``[1.80, 1.87]``."""
    return DASH if DASH in (low, high) else f"[{low}, {high}]"


def verdict(ratio: Any) -> str:
    """Say what a ratio to the baseline means: ``1.83x faster``, ``2.10x slower``, ``tie`` or ``unknown``."""
    if ratio is None:
        return "unknown"
    if ratio.verdict == "faster":
        return f"{times(1 / ratio.value)}x faster"
    if ratio.verdict == "slower":
        return f"{times(ratio.value)}x slower"
    return str(ratio.verdict)


def times(value: float) -> str:
    """Write how many times, with at least two decimals below 10, so that 1.05 does not become 1."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def moment(text: Any) -> str:
    """Write an ISO 8601 time for people: ``1 January 2026, 12:00 UTC``; other text stays as it is."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return line(text)
    return f"{time.day} {time:%B %Y, %H:%M} {time.tzname() or ''}".strip()


def percent(share: Any) -> str:
    """Write a share as a percentage with two decimals, as accuracies are: ``84.27 %``."""
    return f"{100 * share:.2f} %" if _is_number(share) else DASH


def clean(value: Any) -> str:
    """Return text that a terminal and an XML file can hold: no control or unpaired surrogate characters."""
    text = value if isinstance(value, str) else str(value)
    return "".join("\N{REPLACEMENT CHARACTER}" if _unsafe(c) else c for c in text.replace("\r\n", "\n"))


def _unsafe(character: str) -> bool:
    # Cf holds the marks that reverse the direction of text and could make one name look like another
    if character in "\n\t":
        return False
    return unicodedata.category(character) in ("Cc", "Cs", "Cf") or character in "\ufffe\uffff"


def line(value: Any, longest: int | None = None) -> str:
    """Return clean text on one line, cut with an ellipsis after ``longest`` characters."""
    text = re.sub(r"\s+", " ", clean(value)).strip()
    return text if longest is None or len(text) <= longest else text[: longest - 1].rstrip() + "…"


def reason(value: Any) -> str:
    """Return the telling line of a failure: the last of a traceback, otherwise the first."""
    lines = [text.strip() for text in clean(value).splitlines() if text.strip()]
    if not lines:
        return "no reason given"
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def listing(items: Sequence[str], last: str = "and") -> str:
    """Join names as a sentence does: ``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else "none"


def again(case: str, contestants: Sequence[str], threads: Any = None) -> str:
    """Return the command that measures a case again."""
    limit = ["--threads", str(threads)] if isinstance(threads, int) else []
    names = ",".join(line(name) for name in contestants)
    return shlex.join(["shim", "bench", "--case", line(case), "--backends", names, *limit])


def count(many: int, singular: str, plural: str | None = None) -> str:
    """Write a number of things: ``1 case``, ``2 cases``."""
    return f"{many:,} {singular if many == 1 else plural or singular + 's'}"


@dataclass(frozen=True)
class CaseName:
    """A case id taken apart for reading; an id of another form is its own ``op``."""

    id: str
    op: str
    direction: str = ""
    shape: str = ""
    dtype: str = ""

    @property
    def group(self) -> str:
        """The heading under which the case stands: its op, or the same of all models together."""
        return self.direction if self.direction in OF_MODELS.values() else self.op

    @property
    def within_group(self) -> str:
        """What tells the case from the others of its group."""
        first = self.op if self.group != self.op else self.direction
        return ", ".join(part for part in (first, self.shape, self.dtype) if part) or self.op

    def __str__(self) -> str:
        return ", ".join(part for part in (f"{self.op} {self.direction}".strip(), self.shape, self.dtype) if part)


def case_name(id: str) -> CaseName:
    """Take a case id apart: ``dense/forward/N2-I3-O4/float32`` is ``dense forward, N2 I3 O4, float32``."""
    id = line(id)
    parts = id.split("/")
    if len(parts) != 4:
        return CaseName(id, id)
    op, direction, shape, dtype = parts
    return CaseName(id, op, DIRECTIONS.get(direction, direction), shape.replace("-", " "), dtype)
