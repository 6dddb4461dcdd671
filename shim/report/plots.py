"""Dot plots with intervals and training curves, drawn by matplotlib as SVG that stands inside a page.

Text stays text, in the page's font and colour, so that a plot follows light and dark, can be searched and is read out.
"""

from __future__ import annotations

import math
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Affine2D, Transform, blended_transform_factory

from shim import statistics
from shim.report import colours, words

WIDTH = 4.2  # inches; a plot fills a phone's width and half a desk's
FONT = 9.0  # points
_LINE = 0.205  # inches a contestant
_HEADING = 0.30  # inches a case
_INK, _PAPER = "#010203", "#030201"  # stand for the page's colours until the SVG is finished
_FAINT = 0.16
_RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "shim",
    "text.parse_math": False,
    "font.size": FONT,
    "font.family": "DejaVu Sans",
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.linewidth": 0.6,
    "axes.unicode_minus": False,
}


@dataclass(frozen=True)
class Dot:
    """One value with its interval, in seconds or as a ratio."""

    contestant: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Strip:
    """A heading and the dots below it, one a line."""

    heading: str
    dots: Sequence[Dot]


def times(
    strips: Sequence[Strip],
    styles: Mapping[str, colours.Style],
    title: str,
    identity: str,
    label: str = "time of one call, logarithmic",
) -> str:
    """Draw median times (seconds) with their intervals on a logarithmic axis; return SVG."""

    def axis(axes: Axes) -> None:
        _log_ticks(axes, words.round_duration)
        axes.set_xlabel(label)

    return _dot_plot(strips, styles, axis, title, _describe(strips, words.duration), identity)


def ratios(
    strips: Sequence[Strip], styles: Mapping[str, colours.Style], baseline: str, title: str, identity: str
) -> str:
    """Draw ratios to the baseline on a logarithmic axis, with a line at 1 and the band that counts as a tie."""

    def axis(axes: Axes) -> None:
        axes.axvspan(1 / statistics.MARGIN, statistics.MARGIN, color=_INK, alpha=_FAINT, linewidth=0)
        axes.axvline(1.0, color=_INK, linewidth=0.9)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0.8), max(high, 1.25))
        _log_ticks(axes, "{:g}".format)
        axes.set_xlabel(f"time / time of {words.line(baseline, 24)}, logarithmic")

    return _dot_plot(strips, styles, axis, title, _describe(strips, words.ratio), identity)


def curves(
    lines: Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]],
    styles: Mapping[str, colours.Style],
    title: str,
    identity: str,
    from_zero: bool = False,
    label: str = "epoch",
) -> str:
    """Draw the lines of each contestant, ``{contestant: [(epochs, values), ...]}``, one for each run; return SVG."""
    with matplotlib.rc_context(_RC):
        figure, axes = _figure(2.6 + 0.2 * math.ceil(len(lines) / 2))
        for name, runs in lines.items():
            style, legend = styles[name], words.line(name, 24)
            for epochs, values in runs:
                axes.plot(epochs, values, color=style.colour, linewidth=1.4, label=legend, **_marker(style))
                legend = "_"  # further lines have no place in it
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=label == "epoch"))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(color=_INK, alpha=_FAINT, linewidth=0.5)
        axes.set_xlabel(label)
        axes.margins(x=0.03, y=0.08)
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        rows = math.ceil(len(lines) / 2)
        height = figure.get_figheight()
        axes.set_position((0.11, 0.48 / height, 0.86, 1 - (0.62 + 0.2 * rows) / height))
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, borderaxespad=0.3)
        last = {name: [words.number(values[-1]) for _, values in runs if len(values)] for name, runs in lines.items()}
        ends = [f"{name} {' and '.join(values)}" for name, values in last.items() if values]
        return _svg(figure, title, f"Last values: {', '.join(ends)}.", identity)


def _describe(strips: Sequence[Strip], write: Callable[[float], str]) -> str:
    """Say in words what a dot plot shows, for those who do not see it."""
    return " ".join(
        f"{strip.heading}: {', '.join(f'{dot.contestant} {write(dot.value)}' for dot in strip.dots)}."
        for strip in strips
    )


def _dot_plot(
    strips: Sequence[Strip],
    styles: Mapping[str, colours.Style],
    finish: Callable[[Axes], None],
    title: str,
    description: str,
    identity: str,
) -> str:
    with matplotlib.rc_context(_RC):
        rows = sum(len(strip.dots) for strip in strips)
        body = rows * _LINE + len(strips) * _HEADING
        figure, axes = _figure(body + 0.55)
        names = [words.line(dot.contestant, 22) for strip in strips for dot in strip.dots]
        left = 0.15 + 0.088 * max(map(len, names), default=4)
        axes.set_position((left / WIDTH, 0.5 / (body + 0.55), 1 - (left + 0.16) / WIDTH, body / (body + 0.55)))
        axes.set_xscale("log")
        axes.set_ylim(-body, 0)
        _dots(axes, strips, styles)
        axes.margins(x=0.06)
        finish(axes)
        axes.yaxis.set_major_locator(NullLocator())
        axes.spines[["left", "top", "right"]].set_visible(False)
        return _svg(figure, title, description, identity)


def _dots(axes: Axes, strips: Sequence[Strip], styles: Mapping[str, colours.Style]) -> None:
    """Place headings, names and dots from the top down; one artist a contestant, however many dots it has."""
    # x of a name as a share of the axes, y in inches like the data
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    left = -axes.get_position().x0 / axes.get_position().width
    under = {"facecolor": _PAPER, "edgecolor": "none", "pad": 1.5}
    placed: dict[str, list[tuple[float, Dot]]] = {}
    y = 0.0
    for strip in strips:
        y -= _HEADING
        heading = words.line(strip.heading, 64)
        axes.text(
            left, y + 0.08, heading, transform=beside, va="center", weight="bold", bbox=under, fontsize=FONT - 0.5
        )
        for dot in strip.dots:
            y -= _LINE
            middle = y + _LINE / 2
            name = words.line(dot.contestant, 22)
            axes.text(-0.02, middle, name, transform=beside, va="center_baseline", ha="right", fontsize=FONT - 0.5)
            placed.setdefault(dot.contestant, []).append((middle, dot))
    for contestant, dots in placed.items():
        heights = [height for height, _ in dots]
        style = styles[contestant]
        axes.hlines(heights, [d.low for _, d in dots], [d.high for _, d in dots], color=style.colour, linewidth=2.2)
        axes.plot([d.value for _, d in dots], heights, linestyle="none", **_marker(style))
    guides = [height for dots in placed.values() for height, _ in dots]
    axes.hlines(guides, 0, 1, transform=axes.get_yaxis_transform(), color=_INK, alpha=_FAINT / 2, linewidth=0.5)


def _marker(style: colours.Style) -> dict[str, Any]:
    return {
        "marker": style.marker,
        "fillstyle": "full" if style.fill == "none" else style.fill,
        "markersize": 6.0,
        "markerfacecolor": _PAPER if style.fill == "none" else style.colour,
        "markerfacecoloralt": _PAPER,
        "markeredgecolor": _INK if style.fill == "full" else style.colour,
        "markeredgewidth": 0.5 if style.fill == "full" else 1.4,
    }


def _log_ticks(axes: Axes, write: Callable[[float], str]) -> None:
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    digits: tuple[float, ...] = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.6 else (1.0, 2.0, 5.0)
    if decades < 0.7:
        digits = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    axes.xaxis.set_major_locator(LogLocator(subs=digits, numticks=12 if decades < 3.5 else 5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axes.grid(axis="x", color=_INK, alpha=_FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def _svg(figure: Figure, title: str, description: str, identity: str) -> str:
    """Return the figure as an ``svg`` element with title and description, fit to stand in a page beside others."""
    stream = StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has its own fonts
        figure.savefig(stream, format="svg")
    root = ET.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        _inline(element, identity)
    width, height = figure.get_size_inches() * 72
    root.attrib = {
        "viewBox": f"0 0 {width:g} {height:g}",
        "width": f"{width * 4 / 3:.0f}",
        "role": "img",
        "aria-labelledby": f"{identity}-title",
        "aria-describedby": f"{identity}-desc",
    }
    for name, text in (("desc", description), ("title", title)):
        element = ET.Element(name, {"id": f"{identity}-{name}"})
        element.text = words.line(text)
        root.insert(0, element)
    return ET.tostring(root, encoding="unicode")


def _inline(element: ET.Element, identity: str) -> None:
    """Drop namespaces, make ids the plot's own, and put the page's colour and font in the place of ours."""
    element.tag = element.tag.rpartition("}")[2]
    for key, value in list(element.attrib.items()):
        del element.attrib[key]
        key = key.rpartition("}")[2]
        if key == "id":
            value = f"{identity}-{value}"
        elif key == "href":
            value = value.replace("#", f"#{identity}-", 1)
        elif key in ("style", "clip-path"):
            value = value.replace("url(#", f"url(#{identity}-").replace(_INK, "currentColor")
            value = value.replace(_PAPER, "var(--paper)")
            value = value.replace("'DejaVu Sans'", "inherit")
        element.attrib[key] = value


def marker(style: colours.Style) -> str:
    """Return a contestant's marker alone, as a small SVG that says nothing to a screen reader."""
    shape = MarkerStyle(style.marker, fillstyle=style.fill)  # type: ignore[arg-type]
    place = shape.get_transform() + Affine2D().scale(10, -10).translate(7, 7)
    full = style.fill == "full"
    ink, width = ("currentColor", 0.6) if full else (style.colour, 1.6)
    drawn = [_outline(shape.get_path(), place, "none" if style.fill == "none" else style.colour, ink, width)]
    if (other := shape.get_alt_path()) is not None:
        place = shape.get_alt_transform() + Affine2D().scale(10, -10).translate(7, 7)
        drawn.append(_outline(other, place, "none", ink, width))
    return f'<svg class="mark" viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{"".join(drawn)}</svg>'


def _outline(path: Path, place: Transform, fill: str, ink: str, width: float) -> str:
    polygons = path.transformed(place).to_polygons(closed_only=False)
    text = " ".join("M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in np.asarray(points)) + "Z" for points in polygons)
    return f'<path d="{text}" fill="{fill}" stroke="{ink}" stroke-width="{width}"/>'
