"""Causes, tested: why one contestant is slower than another, as a prediction that is measured and may turn out wrong.

A *cause* names a gap, the time of a slow contestant divided by that of a fast one on a case, and a *switch* that takes
the suspected cause away and nothing else. Its *effect* is the gap divided by what is left of it after the switch, a
factor above 1. How large it should be is written down in :mod:`shim.explain.hypotheses` before anything is measured. A
cause is confirmed only if the whole interval of its effect lies above 1 and overlaps the predicted range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shim import cases, settings, statistics

ROUNDS, SWEEPS = 8, 4


@dataclass(frozen=True)
class Cause:
    """A suspected cause. Contestants are labels, cases are ids; those ``without`` the cause are None if they stay.

    ``predicted`` is the range of the effect and ``because`` the arithmetic that it follows from.
    """

    name: str
    question: str
    hypothesis: str
    case: str
    slow: str
    fast: str
    switch: str
    predicted: tuple[float, float]
    because: str
    slow_without: str | None = None
    fast_without: str | None = None
    case_without: str | None = None

    @property
    def gap(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """The rows whose times make the gap, as (case, contestant): the slow one and the fast one."""
        return (self.case, self.slow), (self.case, self.fast)

    @property
    def rest(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """The rows whose times make what is left of the gap without the cause."""
        case = self.case_without or self.case
        return (case, self.slow_without or self.slow), (case, self.fast_without or self.fast)

    @property
    def rows(self) -> tuple[tuple[str, str], ...]:
        """The rows that are the evidence, each once."""
        return tuple(dict.fromkeys((*self.gap, *self.rest)))

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that have to be there, settings and modes left out."""
        return tuple(dict.fromkeys(settings.split(name.partition(":")[0])[0] for _, name in self.rows))


@dataclass(frozen=True)
class Finding:
    """What became of a cause: ``confirmed``, ``refuted`` or ``undecided``, and why in ``note``.

    ``gap`` and ``rest`` are ratios of the slow one to the fast one, with the cause and without it, ``effect`` the first
    divided by the second. ``times`` are those of ``cause.rows``, in seconds.
    """

    cause: Cause
    verdict: str
    note: str
    gap: statistics.Ratio
    rest: statistics.Ratio
    effect: statistics.Ratio
    times: tuple[statistics.Estimate, ...]
    rounds: int

    @property
    def share(self) -> float:
        """The part of the gap that the effect makes, as a share of logarithms, since factors multiply."""
        return math.log(self.effect.value) / math.log(self.gap.value)


def choose(names: Sequence[str], known: Mapping[str, Cause]) -> list[Cause]:
    """Return the causes with these names, all without any; ``ValueError`` with the choices for an unknown one."""
    for name in names:
        if name not in known:
            raise ValueError(f"unknown cause {name!r}; the causes are: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names or known)]


def wanted(chosen: Iterable[Cause]) -> dict[str, list[str]]:
    """Return the contestants that each case needs, by its id."""
    found: dict[str, list[str]] = {}
    for case, contestant in dict.fromkeys(row for cause in chosen for row in cause.rows):
        found.setdefault(case, []).append(contestant)
    return found


def plan(chosen: Sequence[Cause]) -> dict[str, Any]:
    """Return what :func:`shim.measure.bench.run` is to do for these causes."""
    only = wanted(chosen)
    targets = list(dict.fromkeys(name for names in only.values() for name in names))
    # workers need not start one by one: how long they take to build does not matter here
    return {"targets": targets, "cases": [cases.parse(id) for id in only], "only": only, "alone": 0}


def judge_all(run: Any, known: Mapping[str, Cause]) -> list[Finding]:
    """Return what a run says of each of the causes that it has rows of; ``ValueError`` if it has none."""
    planned = set(run.header.get("config", {}).get("cases", ()))
    labels = set(statistics.labels(run).values())
    tested = [c for c in known.values() if all(case in planned and name in labels for case, name in c.rows)]
    if not tested:
        raise ValueError(f"{run.path} has the rows of no known cause; make it with: shim causes")
    samples = {(row.case, row.contestant): row.samples for row in statistics.rows(run)}
    return [judge(cause, samples, list(_reasons(run, cause))) for cause in tested]


def judge(cause: Cause, samples: Mapping[tuple[str, str], statistics.Samples], reasons: Sequence[str] = ()) -> Finding:
    """Judge a cause by the samples of its rows; ``reasons`` say why some of them may be missing."""
    (gap, gaps), (rest, rests) = (_ratios(samples, *pair) for pair in (cause.gap, cause.rest))
    effect = statistics.ratio(gaps, rests)
    verdict, note = _verdict(cause, gap, effect)
    rounds = statistics.round_count(statistics.paired_ratios(gaps, rests))
    times = tuple(statistics.median_time(samples.get(row, ())) for row in cause.rows)
    note = "; ".join(reasons) if reasons and not rounds else note
    return Finding(cause, verdict, note, gap, rest, effect, times, rounds)


def _ratios(
    samples: Mapping[tuple[str, str], statistics.Samples], slow: tuple[str, str], fast: tuple[str, str]
) -> tuple[statistics.Ratio, statistics.Samples]:
    """Return the ratio of two rows and that of each of their blocks, laid out as samples are."""
    pair = samples.get(slow, ()), samples.get(fast, ())
    return statistics.ratio(*pair), statistics.paired_ratios(*pair).tolist()


def _verdict(cause: Cause, gap: statistics.Ratio, effect: statistics.Ratio) -> tuple[str, str]:
    low, high = cause.predicted
    if gap.verdict in ("faster", "tie"):
        return "refuted", f"{cause.slow} is not slower than {cause.fast} here"
    if gap.verdict == "unknown" or not effect.low <= effect.high:
        return "undecided", "the samples do not decide"
    if effect.high < low or effect.low > high:
        return (
            "refuted",
            "the effect is smaller than predicted" if effect.high < low else "the effect is larger than predicted",
        )
    if effect.low > 1:
        return "confirmed", ""
    return "undecided", "the samples do not decide"


def _reasons(run: Any, cause: Cause) -> Iterator[str]:
    names = statistics.labels(run)
    for failure in run.failures:
        label = names.get((failure["target"], failure.get("mode")), failure["target"])
        if any(name in (label, failure["target"]) and failure.get("case") in (None, case) for case, name in cause.rows):
            yield f"{label}: {failure['reason']}"
