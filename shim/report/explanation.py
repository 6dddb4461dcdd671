"""An attribution in words, as a table in the terminal, as JSON and as a page that loads nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from shim.explain.attribution import Explanation, Term
from shim.measure.runfile import plain
from shim.report import colours, page, words
from shim.report.table import empty_table
from shim.statistics import Estimate

#: Parts with less of the gap than this, or beyond so many, are not told in words.
WORTH_TELLING, MOST_TOLD = 0.05, 4


def sentences(e: Explanation) -> Iterator[str]:
    """Say in words who is faster, what makes most of the gap, and what remains unexplained."""
    first, second = (words.line(name, 60) for name in (e.first, e.second))
    times = [words.duration(step.value) for step in e.step]
    model = words.line(e.model, 60)
    if e.verdict == "tie":
        yield f"{first} and {second} tie on {model}: {times[0]} and {times[1]} a training step."
    elif e.verdict == "unknown":
        yield f"The samples do not decide between {first} and {second} on {model}: {times[0]} and {times[1]} a step."
    else:
        fast, slow = (second, first) if e.verdict == "faster" else (first, second)
        factor = words.times(max(e.ratio.value, 1 / e.ratio.value))
        yield f"{fast} is {factor}x faster than {slow} on {model}: {min(times, key=_by(times, e))} against " + (
            f"{max(times, key=_by(times, e))} a training step."
        )
        yield from _shares(e, fast)
    yield from together(e)
    if len(e.by_rows) == 1:
        other = second if e.by_rows[0] == e.first else first
        yield (
            f"{words.line(e.by_rows[0], 60)} differentiates tables by the rows that a batch looks up, "
            f"{other} lays out all of their gradient."
        )
    rest = e.residual
    yield (
        f"The parts leave {words.duration(abs(rest.gap.value))} of the gap unexplained, "
        f"{100 * e.residual_share:.0f} % of the slower step."
    )


_TOGETHER = {
    "fusion": "Fusion on {}, its ops compiled as one program instead of apart",
    "sequence": "Sequence on {}, its ops called one after another instead of each alone",
}


def together(e: Explanation) -> Iterator[str]:
    """Say what all ops take together beyond what they take alone on each of the two, or why that is not told."""
    for name, kind in e.together.items():
        term = next(term for term in e.terms if term.kind == kind)
        part = term.first if name == e.first else term.second
        low, high = (_signed(end) for end in (part.low, part.high))
        clear = "" if part.low > 0 or part.high < 0 else ", which the samples do not tell from nothing"
        about = _TOGETHER[kind].format(words.line(name, 60))
        yield f"{about}: {_signed(part.value)} {words.interval(low, high)}{clear}."
    if e.apart:
        reasons = (f"{words.line(name, 60)}: {words.line(reason, 200)}" for name, reason in e.apart.items())
        yield f"All ops together were not timed on {'; '.join(reasons)}."


def _signed(seconds: float) -> str:
    return f"{'-' if seconds < 0 else '+'}{words.duration(abs(seconds))}" if math.isfinite(seconds) else words.DASH


def _by(times: list[str], e: Explanation) -> Any:
    return lambda text: e.step[times.index(text)].value


def _shares(e: Explanation, fast: str) -> Iterator[str]:
    """Say what makes the gap and what goes against it, layers of one op taken together."""
    groups: dict[tuple[str, str], list[Term]] = {}
    for term in e.terms[:-1]:
        groups.setdefault((term.kind, term.name.split()[0]), []).append(term)
    shares = {_phrase(terms): sum(map(e.share, terms)) for terms in groups.values()}
    order = sorted(shares, key=lambda phrase: shares[phrase], reverse=True)
    told = [phrase for phrase in order if shares[phrase] >= WORTH_TELLING][:MOST_TOLD]
    if told:
        first, *rest = [f"{_percent(shares[phrase])} {{}}{phrase}" for phrase in told]
        yield f"{words.listing([first.format('of the gap is '), *(text.format('') for text in rest)])}."
    told_above = [_phrase(terms) for (kind, _), terms in groups.items() if kind in _TOGETHER]
    against = [phrase for phrase in reversed(order) if shares[phrase] <= -WORTH_TELLING and phrase not in told_above]
    against = against[:MOST_TOLD]
    if against:
        parts = [f"{phrase} ({_percent(-shares[phrase])})" for phrase in against]
        yield f"Against the gap, {fast} takes longer in {words.listing(parts)}."


def _phrase(terms: Sequence[Term]) -> str:
    term, count = terms[0], sum(term.count for term in terms)
    name = words.line(term.name, 80).split()[0]
    if term.kind in ("forward", "backward"):
        return f"the {term.kind} pass of {name}" if count == 1 else f"the {term.kind} passes of {count} {name} layers"
    if term.kind == "sequence":
        return f"the {words.line(term.name)}"
    return f"the optimizer ({name})" if term.kind == "optimizer" else words.line(term.name)


def _label(term: Term) -> str:
    times = f", {term.count} times" if term.count > 1 else ""
    if term.kind in ("forward", "backward"):
        return f"{words.line(term.name, 80)}, {term.kind}{times}"
    return f"optimizer, {words.line(term.name)}" if term.kind == "optimizer" else words.line(term.name)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else words.DASH


def _rows(e: Explanation, unit: words.Unit) -> Iterator[tuple[str, Term, list[str]]]:
    """Yield kind, term and cells; the last row is the whole step."""
    whole = Term("the whole step", "whole", 1, *e.step, e.gap, e.residual.case)
    for term in (*e.terms, whole):
        low, high = _write(unit, term.gap.low), _write(unit, term.gap.high)
        share = _percent(1.0 if term is whole and not math.isnan(e.share(whole)) else e.share(term))
        gap = _write(unit, term.gap.value)
        sign = "+" if term.gap.value > 0 and gap.strip("0.") else ""
        each = ((e.first, term.first), (e.second, term.second))
        lacks = [name for name, _ in each if term.kind in _TOGETHER and e.together.get(name) != term.kind]
        cells = [words.DASH if name in lacks else _write(unit, part.value) for name, part in each] + [sign + gap]
        yield term.kind, term, [_label(term), *cells, words.interval(low, high), share]


def _write(unit: words.Unit, seconds: float) -> str:
    """Write a duration that may be negative; what rounds to zero has no sign."""
    text = unit.write(seconds)
    return text if text.strip("-0.") else text.removeprefix("-")


def _unit(e: Explanation) -> words.Unit:
    """Return a unit in which the slower step has three digits or more and small parts still show."""
    return words.unit([max(step.value for step in e.step) / 10])


def print_explanation(e: Explanation, console: Console) -> None:
    """Print an attribution: words first, then the table."""
    for k, sentence in enumerate(sentences(e)):
        console.print(Text(sentence, style="bold" if k == 0 else ""))
    console.print()
    unit = _unit(e)
    contestants = (f">{words.line(name, 24)}" for name in (e.first, e.second))
    table = empty_table(True, f"part, {unit.name}", *contestants, ">difference", "interval", ">share")
    table.columns[4].no_wrap = True
    for kind, _, cells in _rows(e, unit):
        if kind in ("residual", "whole"):
            table.add_section()
        table.add_row(*map(Text, cells), style="bold" if kind == "whole" else "")
    console.print(table)
    for text in e.missing:
        console.print(Text(f"not timed, and therefore in the residual: {words.line(text, 300)}", style="red"))


def as_json(e: Explanation) -> dict[str, Any]:
    """Return an attribution as numbers that JSON can hold; times in seconds, NaN as None."""

    def numbers(estimate: Estimate) -> dict[str, float]:
        return {"median": estimate.value, "low": estimate.low, "high": estimate.high}

    result: dict[str, Any] = plain(
        {
            "schema": 2,
            "model": e.model,
            "first": e.first,
            "second": e.second,
            "sentences": list(sentences(e)),
            "step": [numbers(step) for step in e.step],
            "ratio": numbers(e.ratio) | {"verdict": e.verdict},
            "gap": numbers(e.gap),
            "residual_share": e.residual_share,
            "terms": [
                {"name": t.name, "kind": t.kind, "count": t.count}
                | {"first": numbers(t.first), "second": numbers(t.second), "gap": numbers(t.gap)}
                for t in e.terms
            ],
            "missing": e.missing,
            "together": dict(e.together),
            "apart": dict(e.apart),
            "by_rows": e.by_rows,
            "rounds": e.rounds,
        }
    )
    return result


def title(e: Explanation) -> str:
    """Name an attribution by its model and its two contestants."""
    return f"{words.line(e.model, 60)}: {words.line(e.first, 40)} and {words.line(e.second, 40)}"


def render(run: Any, e: Explanation, site: Any = None) -> str:
    """Return an attribution as a page, which may be one of a ``site``: see :class:`shim.report.site.Place`."""
    unit = _unit(e)
    styles = colours.styles([e.first, e.second])
    ends = [abs(v) for t in e.terms for v in (t.gap.value, t.gap.low, t.gap.high) if math.isfinite(v)]
    scale = 98 / max([*ends, 1e-12])
    rows: list[dict[str, Any]] = []
    for kind, term, cells in _rows(e, unit):
        keys = ("name", "first", "second", "gap", "interval", "share")
        colour = styles[e.second if term.gap.value > 0 else e.first].colour
        rows.append(
            dict(zip(keys, cells, strict=True))
            | {"kind": kind, "case": term.case, "bar": None if kind == "whole" else _bar(term.gap, scale, colour)}
        )
    return page.fill(
        "explanation.html",
        **page.of_run(run),
        site=site,
        title=title(e),
        e=e,
        sentences=list(sentences(e)),
        rows=rows,
        unit=unit,
    )


def _bar(gap: Estimate, scale: float, colour: str) -> dict[str, Any]:
    x = [f"{max(-99.0, min(99.0, scale * end)):.2f}" for end in (gap.low, gap.high) if math.isfinite(end)]
    length = scale * gap.value
    return {"x": f"{min(0.0, length):.2f}", "width": f"{abs(length):.2f}", "colour": colour, "range": x}


def write(run: Any, e: Explanation, path: Path) -> Path:
    """Write an attribution as a page and return its path."""
    return page.save(render(run, e), path)
