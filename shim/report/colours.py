"""One colour and one marker for each backend, the same in every plot and table.

The colours are those of Okabe and Ito, "Color Universal Design" (2008), which people with any common kind of colour
vision can tell apart; the marker says the same once more, for print and for those who see no colour. Other modes and
versions of a backend keep its colour and shape and are drawn hollow or half filled.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

#: backend -> colour, matplotlib marker
BACKENDS = {
    "numpy": ("#0072B2", "s"),
    "tensorflow": ("#E69F00", "o"),
    "jax": ("#CC79A7", "^"),
    "torch": ("#D55E00", "D"),
    "cupy": ("#56B4E9", "s"),
    "cntk": ("#009E73", "v"),
    "null": ("#999999", "X"),
}
_OTHERS = (("#F0E442", "P"), ("#009E73", "p"), ("#56B4E9", "h"), ("#F0E442", "<"), ("#009E73", ">"), ("#56B4E9", "*"))
_FILLS = ("full", "none", "left", "right", "bottom", "top")


@dataclass(frozen=True)
class Style:
    """How one contestant is drawn: colour, matplotlib marker and how much of the marker is filled."""

    colour: str
    marker: str
    fill: str


def backend(contestant: str) -> str:
    """Return the backend of a contestant's label: ``tensorflow`` for ``tensorflow@2.16.2/no-onednn:xla``."""
    return contestant.split(":")[0].split("/")[0].split("@")[0]


def styles(contestants: Iterable[str]) -> dict[str, Style]:
    """Give each contestant its style; the shortest label of a backend, its plain mode, gets the full marker."""
    found: dict[str, Style] = {}
    seen: dict[str, int] = {}
    for label in sorted(set(contestants), key=lambda label: (len(label), label)):
        name = backend(label)
        engine = name.removeprefix("keras-")  # Keras has its engine's colour and a marker of its own
        colour, marker = BACKENDS.get(engine) or _OTHERS[zlib.crc32(engine.encode("utf-8", "replace")) % len(_OTHERS)]
        marker = marker if engine == name else "P"
        found[label] = Style(colour, marker, _FILLS[seen.get(name, 0) % len(_FILLS)])
        seen[name] = seen.get(name, 0) + 1
    return found
