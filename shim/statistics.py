"""From raw samples to claims: medians, the ratio of two contestants, and whether samples support a verdict.

Samples are nested as they were taken, ``samples[round][sweep]`` in seconds a call, with None where one is missing. A
round is a fresh process, and processes differ (memory layout, start order), so the round is what is resampled:
rounds are drawn with replacement, jointly for both contestants, and bring their sweeps along whole. Drawing sweeps with
replacement as well would count their noise twice (Davison and Hinkley, "Bootstrap Methods and their Application",
1997, section 3.8). Percentiles are widened for few rounds (Hesterberg, "What Teachers Should Know About the
Bootstrap", 2015), and below six rounds, where no percentile interval of a median reaches 95 %, the interval is also at
least Student's t interval of the rounds' medians.

The ratio is the median of the ratios of neighbours, the blocks of the same round and sweep, which were timed one right
after the other: a drift of the machine cancels. Nothing is averaged and no outlier is dropped.

A machine that was slower for a while, as one that shares its CPUs with others is, was another machine: there each
backend loses its own share. So times and ratios are of one pace, see :func:`of_one_pace`. What was measured of the pace
before each block decides that, never a sample.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

Samples = Sequence[Sequence[float | None]]

#: What ratios compare with unless another one is named, in this order. The baseline's noise is part of every interval,
#: and the times of torch vary least.
BASELINES = ("torch", "tensorflow")
LEVEL = 0.95
MARGIN = 1.03  # a ratio between 1/MARGIN and MARGIN does not matter
SLOWER = 1.2  # the machine is slow where a block's pace, its time for a product over its best one, is above this
ROUNDS_FOR_A_VERDICT = 3
ROUNDS_FOR_PERCENTILES = 6
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A median and its 95 % interval, which is NaN for fewer than three rounds."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval, as a share of the value."""
        return (self.high - self.low) / 2 / self.value


@dataclass(frozen=True)
class Ratio(Estimate):
    """The time of one contestant divided by that of another, and what may be said of the first: see :func:`ratio`."""

    verdict: str = "unknown"


@dataclass(frozen=True)
class Row:
    """One contestant in one case. ``ratio`` is its time divided by the baseline's, None without common samples.

    ``samples`` are all there are, ``paces`` the machine's before each; ``slow`` is whether ``time`` and ``ratio`` are
    those of a slow machine.
    """

    case: str
    contestant: str
    target: str
    mode: str
    time: Estimate
    ratio: Ratio | None
    implementation: str
    cpu_per_wall: float
    first_call_seconds: float
    build_seconds: float
    rounds: int
    samples: list[list[float | None]]
    paces: list[list[float | None]]
    slow: bool


def median_time(samples: Samples) -> Estimate:
    """Return the median of all samples, in seconds, with its interval; all NaN without any."""
    return Estimate(*_median(as_matrix(samples)))


def ratio(a: Samples, b: Samples, paces: Samples = ()) -> Ratio:
    """Return the time of ``a`` divided by that of ``b``, from the samples that both have.

    If the machine's ``paces`` before them are given, they are of one pace.
    The verdict on ``a`` is ``tie`` if the whole interval lies within the margin of 3 %, else ``faster`` or ``slower``
    if it leaves out 1, else ``unknown``; with fewer than three rounds always ``unknown``.
    """
    ratios = of_one_pace(paired_ratios(a, b), paces)[0]
    value, low, high = _median(ratios)
    return Ratio(value, low, high, _verdict(low, high, round_count(ratios)))


def paired_ratios(a: Samples, b: Samples) -> np.ndarray:
    """Return the ratios of neighbours as (rounds, sweeps), NaN where one of the two is missing."""
    first, second = as_matrix(a), as_matrix(b)
    rounds, sweeps = (min(lengths) for lengths in zip(first.shape, second.shape, strict=True))
    ratios: np.ndarray = first[:rounds, :sweeps] / second[:rounds, :sweeps]
    return ratios


def of_one_pace(matrix: np.ndarray, paces: Samples) -> tuple[np.ndarray, bool]:
    """Return a (rounds, sweeps) matrix without what was measured at the rarer pace, and whether the slow pace stays.

    The pace that more rounds have stays, in doubt the fast one.
    """
    slow = np.zeros(matrix.shape, bool)
    measured = as_matrix(paces)[: len(matrix), : matrix.shape[1]] > SLOWER
    slow[: measured.shape[0], : measured.shape[1]] = measured
    fast, rest = np.where(slow, math.nan, matrix), np.where(slow, matrix, math.nan)
    stays = round_count(rest) > round_count(fast)
    return (rest if stays else fast), stays


def pace_of(run: Any) -> Callable[[Mapping[str, Any]], float]:
    """Return what tells a block's pace: what a product took before it as a multiple of the best time that is known."""

    def seconds(record: Mapping[str, Any]) -> float | None:
        found = record.get("product_seconds")
        return found if isinstance(found, (int, float)) and found > 0 else None

    best = min(filter(None, map(seconds, [*run.blocks, *run.rounds])), default=1.0)
    return lambda block: (seconds(block) or best) / best


def rows(run: Any, baseline: str | None = None) -> list[Row]:
    """Return every row of a run that has samples, case by case in the order of the run.

    ``baseline`` is a contestant's label; by default the run's own, else one of :data:`BASELINES`, else the first one.
    Raises ``ValueError`` for a contestant that is not in the run.
    """
    names = labels(run)
    baseline = choose_baseline(list(names.values()), baseline or run.header.get("config", {}).get("baseline"))
    blocks: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    builds: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for found, records in ((blocks, run.blocks), (builds, run.builds)):
        for record in records:
            found[record["case"], names[record["target"], record["mode"]]].append(record)
    samples = {key: _nest({_place(b): _middle(b["seconds"]) for b in records}) for key, records in blocks.items()}
    pace = pace_of(run)
    paces = {key: _nest({_place(block): pace(block) for block in records}) for key, records in blocks.items()}
    pairs = {name: pair for pair, name in names.items()}
    return [
        _row(case, name, pairs[name], samples, paces, baseline, blocks[case, name], builds[case, name])
        for case in dict.fromkeys([*run.header.get("config", {}).get("cases", ()), *(case for case, _ in blocks)])
        for name in pairs
        if (case, name) in samples
    ]


def labels(run: Any) -> dict[tuple[str, str | None], str]:
    """Return the label of each (target, mode) of a run, in its order."""
    found: dict[tuple[str, str | None], str] = {}
    first: dict[str, str | None] = {}
    for entry in run.header.get("config", {}).get("targets", ()):
        target, mode = entry["target"], entry.get("mode")
        found[target, mode] = entry.get("label") or label(target, mode, first.setdefault(target, mode))
    for record in [*run.blocks, *run.builds, *run.epochs]:
        target, mode = record["target"], record["mode"]
        found.setdefault((target, mode), label(target, mode, first.setdefault(target, mode)))
    return found


def takes_part(config: Mapping[str, Any], case: str, label: str) -> bool:
    """Return whether a contestant takes part in a case of a run; in those of ``shim causes`` not all do in all."""
    return label in config.get("only", {}).get(case, (label,))


def label(target: str, mode: str | None, default: str | None = None) -> str:
    """Return a contestant's name: its target, followed by ``:mode`` unless the mode is the backend's default."""
    return target if mode in (None, default) else f"{target}:{mode}"


def choose_baseline(contestants: Sequence[str], wanted: str | None = None) -> str | None:
    """Return ``wanted``, else the first of :data:`BASELINES` that takes part, else the first contestant, else None."""
    if wanted and wanted not in contestants:
        listed = ", ".join(contestants) or "none"
        raise ValueError(f"baseline {wanted!r} is not in this run; its contestants are: {listed}")
    return wanted or next((name for name in (*BASELINES, *contestants) if name in contestants), None)


def _row(
    case: str,
    name: str,
    pair: tuple[str, str | None],
    samples: dict[tuple[str, str], list[list[float | None]]],
    paces: dict[tuple[str, str], list[list[float | None]]],
    baseline: str | None,
    blocks: list[dict[str, Any]],
    builds: list[dict[str, Any]],
) -> Row:
    own, other = samples[case, name], samples.get((case, baseline or ""))
    pace = paces[case, name]
    found = Ratio(1.0, 1.0, 1.0, "tie") if name == baseline else ratio(own, other, pace) if other else None
    times, slow = of_one_pace(as_matrix(own), pace)
    return Row(
        case=case,
        contestant=name,
        target=pair[0],
        mode=pair[1] or "",
        time=Estimate(*_median(times)),
        ratio=None if found is None or math.isnan(found.value) else found,
        implementation=builds[-1].get("implementation", "") if builds else "",
        cpu_per_wall=_share(sum(b["cpu_seconds"] for b in blocks), sum(b["wall_seconds"] for b in blocks)),
        first_call_seconds=_middle([b["first_call_seconds"] for b in undisturbed(builds)]),
        build_seconds=_middle([b["build_seconds"] for b in undisturbed(builds)]),
        rounds=round_count(as_matrix(own)),
        samples=own,
        paces=pace,
        slow=slow,
    )


def undisturbed(records: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return the records of what was done while nothing else ran; all of them if there are none such."""
    return [record for record in records if record.get("alone", True)] or records


def _place(block: Mapping[str, Any]) -> tuple[int, int]:
    return block["round"], block["sweep"]


def _nest(found: Mapping[tuple[int, int], float]) -> list[list[float | None]]:
    """Return ``samples[round][sweep]``."""
    rounds, sweeps = (1 + max(indices) for indices in zip(*found, strict=True))
    return [[found.get((r, s)) for s in range(sweeps)] for r in range(rounds)]


def _middle(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else math.nan


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def as_matrix(samples: Samples) -> np.ndarray:
    """Return samples as (rounds, sweeps) with NaN where one is missing."""
    matrix = np.full((len(samples), max(map(len, samples), default=0)), math.nan)
    for row, sweeps in zip(matrix, samples, strict=True):
        row[: len(sweeps)] = [math.nan if value is None else value for value in sweeps]
    return matrix


def round_count(matrix: np.ndarray) -> int:
    """Return how many rounds of a matrix have a sample."""
    return int((~np.isnan(matrix)).any(axis=1).sum())


def _verdict(low: float, high: float, rounds: int) -> str:
    if rounds < ROUNDS_FOR_A_VERDICT:
        return "unknown"
    if low >= 1 / MARGIN and high <= MARGIN:
        return "tie"
    return "faster" if high < 1 else "slower" if low > 1 else "unknown"


# ------------------------------------------------------------------------------------------------------- intervals


def _median(matrix: np.ndarray) -> tuple[float, float, float]:
    """Return the median of a (rounds, sweeps) matrix and the ends of its interval."""
    known = ~np.isnan(matrix)
    matrix, known = matrix[known.any(axis=1)], known[known.any(axis=1)]
    rounds = len(matrix)
    if rounds == 0:
        return math.nan, math.nan, math.nan
    value = float(np.median(matrix[known]))
    if rounds < ROUNDS_FOR_A_VERDICT:
        return value, math.nan, math.nan
    below, above = resampled_medians(matrix[known], np.nonzero(known)[0], rounds)
    level = expanded_level(rounds)
    low, high = float(np.quantile(below, level)), float(np.quantile(above, 1 - level))
    if rounds < ROUNDS_FOR_PERCENTILES:
        t_low, t_high = _student_interval(np.log(np.nanmedian(matrix, axis=1)), rounds)
        low, high = min(low, t_low, value), max(high, t_high, value)
    return value, low, high


def resampled_medians(values: np.ndarray, round_of: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and the upper median of each resample; they differ where its size is even.

    Sorted once, a median is where the running count of drawn values passes half: no resample is ever sorted.
    """
    order = np.argsort(values, kind="stable")
    running = np.cumsum(_draws(rounds)[round_of[order]], axis=0, dtype=np.int32)
    total = running[-1].copy()
    running *= 2
    below_half, up_to_half = (running < total).sum(axis=0), (running <= total).sum(axis=0)
    return values[order][below_half], values[order][up_to_half]


@functools.cache
def _draws(rounds: int) -> np.ndarray:
    """Return how often each round was drawn by each resample, (rounds, RESAMPLES); the same for every row of a run."""
    rng = np.random.default_rng([rounds, 20170608])
    drawn = rng.integers(rounds, size=(RESAMPLES, rounds))
    return np.ascontiguousarray((drawn == np.arange(rounds)[:, None, None]).sum(axis=2, dtype=np.int32))


def expanded_level(rounds: int) -> float:
    """Return the percentile of the lower end, expanded so that few rounds give Student's instead of normal widths."""
    return float(special.ndtr(-math.sqrt(rounds / (rounds - 1)) * student(rounds)))


def _student_interval(logs: np.ndarray, rounds: int) -> tuple[float, float]:
    half = student(rounds) * logs.std(ddof=1) / math.sqrt(rounds)
    return math.exp(logs.mean() - half), math.exp(logs.mean() + half)


def student(rounds: int) -> float:
    return float(special.stdtrit(rounds - 1, (1 + LEVEL) / 2))
