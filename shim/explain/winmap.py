"""Who wins where: a grid of shapes of an op, the winner in each cell, and where the winner changes.

A cell has a winner if one contestant is faster than each of the others: a t test of the rounds' paired log-ratios,
two-sided, the largest p-value over the others, under the Benjamini-Hochberg procedure over all cells of the map. Three
rounds say little about how much a ratio varies, the hundreds of ratios of a map say more: the test is the moderated one
of Smyth ("Linear Models and Empirical Bayes Methods for Assessing Differential Expression in Microarray Experiments",
2004), in which the variance of each is drawn towards that of all. All cells are measured in a few rounds, then those
that are undecided or lie where the leader changes once more as often as the time allows. That is two looks at the data,
so each has half of the false-discovery rate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from shim import cases, statistics
from shim.explain.published import LISTS, Listed

RATE = 0.05  # of false winners among the winners of a map
LOOKS = 2
FEWEST_FOR_A_PRIOR = 10  # gaps of a map
MOST_FREEDOM = 100.0
FIRST_ROUNDS = statistics.ROUNDS_FOR_A_VERDICT  # of the whole grid
#: Many cells, and few samples of each at first; times of building do not matter.
SETTINGS: dict[str, Any] = {"alone": 0, "rounds": 12, "sweeps": 2, "block_seconds": 0.006}


@dataclass(frozen=True)
class Grid:
    """The shapes of a map: three axes, the first one laid out in panels, the others as rows and columns.

    An axis may set several of the op's (``I=H``). ``fixed`` are axes that all cells share.
    """

    op: str
    axes: tuple[tuple[str, tuple[int, ...]], ...]
    fixed: tuple[tuple[str, int], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def cells(self, direction: str = "forward_backward", dtype: str = "float32") -> dict[tuple[int, ...], cases.Case]:
        """Return the case of each point of the grid."""
        found = {}
        for point in itertools.product(*(values for _, values in self.axes)):
            dims = dict(self.fixed)
            for (names, _), length in zip(self.axes, point, strict=True):
                dims |= dict.fromkeys(names.split("="), length)
            found[point] = cases.case(self.op, direction, dims, dtype, **dict(self.options))
        return found


#: At least 60 cells an op, of at most 3 billion operations with gradients: a tenth of a second where that is slow.
GRIDS = {
    grid.op: grid
    for grid in (
        Grid("dense", (("N", (1, 8, 64, 256)), ("I", (16, 64, 256, 1024)), ("O", (16, 64, 256, 1024)))),
        Grid(
            "conv2d",
            (("N", (1, 4, 16)), ("H=W", (4, 8, 16, 28)), ("C=O", (1, 4, 16, 32, 64))),
            (("R", 3), ("S", 3)),
            (("padding", "same"),),
        ),
        Grid("lstm", (("T", (2, 8, 32)), ("N", (1, 4, 16, 64)), ("I=H", (8, 16, 32, 64, 128)))),
        Grid(
            "embedding_average",
            (("N", (1, 16, 128)), ("V", (100, 1000, 10_000, 100_000)), ("T", (1, 8, 32, 128, 512))),
            (("D", 64),),
        ),
    )
}


@dataclass(frozen=True)
class Cell:
    """One shape. ``kind`` is ``winner``, ``tie`` or ``unknown``; ``leaders`` the winner, or those that may be it.

    ``ratio`` is the time of the runner-up divided by that of the fastest; ``p`` is the adjusted p-value.
    """

    point: tuple[int, ...]
    case: str
    kind: str
    leaders: tuple[str, ...]
    ratio: float
    p: float
    seconds: Mapping[str, float]
    rounds: int

    @property
    def fastest(self) -> str:
        return self.leaders[0] if self.leaders else ""


@dataclass(frozen=True)
class Crossover:
    """Two winners along one axis, the other lengths being those of ``point``; between them lie ties at most."""

    axis: str
    point: tuple[int, ...]
    low: int
    high: int
    below: str
    above: str


@dataclass(frozen=True)
class WinMap:
    """The cells of a grid, or of a list of shapes, by point, and where their winners change."""

    grid: Grid | Listed
    direction: str
    contestants: tuple[str, ...]
    cells: Mapping[tuple[int, ...], Cell]
    crossovers: tuple[Crossover, ...]
    failures: tuple[str, ...]


def grid_of(op: str, shapes: str | None = None) -> Grid | Listed:
    """Return the grid of an op, or its published ``shapes``; raise ``ValueError`` with the choices if it has none."""
    if shapes is None:
        if op not in GRIDS:
            raise ValueError(f"there is no map of {op!r}; there are maps of: {', '.join(GRIDS)}")
        return GRIDS[op]
    if (shapes, op) not in LISTS:
        found = ", ".join(f"{listed} of {name}" for listed, name in LISTS)
        raise ValueError(f"there are no shapes {shapes!r} of {op!r}; there are: {found}")
    return LISTS[shapes, op]


def grid_of_cases(ids: Sequence[str]) -> Grid | Listed:
    """Return the grid or list that has just these cases; raise ``ValueError`` if none has."""
    first = cases.parse(ids[0])
    for grid in (grid_of(first.op), *(listed for listed in LISTS.values() if listed.op == first.op)):
        if {case.id for case in grid.cells(first.direction, first.dtype).values()} == set(ids):
            return grid
    raise ValueError(f"these are not the cases of a map of {first.op}")


def read(run: Any, grid: Grid | Listed | None = None) -> WinMap:
    """Return the map that a run holds. Raises ``ValueError`` if its cases are not those of a grid."""
    ids = run.header.get("config", {}).get("cases", ())
    if not ids:
        raise ValueError(f"{run.path} has no cases")
    first = cases.parse(ids[0])
    try:
        grid = grid or grid_of_cases(ids)
    except ValueError as error:
        raise ValueError(f"{run.path} is no map: {error}") from None
    points = {case.id: point for point, case in grid.cells(first.direction, first.dtype).items()}
    names = tuple(statistics.labels(run).values())
    samples: dict[str, dict[str, statistics.Samples]] = {id: {} for id in ids}
    for row in statistics.rows(run):
        samples[row.case][row.contestant] = row.samples
    cells = {points[id]: _Judged.of(points[id], id, found) for id, found in samples.items()}
    decided = _decide(cells)
    failures = dict.fromkeys(f"{f['target']}, {f.get('case', 'all cells')}: {f['reason']}" for f in run.failures)
    return WinMap(grid, first.direction, names, decided, tuple(_crossovers(grid, decided)), tuple(failures))


@dataclass(frozen=True)
class Gap:
    """How much longer one contestant takes than another: mean and variance of the rounds' log-ratios."""

    mean: float
    variance: float
    rounds: int

    @classmethod
    def between(cls, a: statistics.Samples, b: statistics.Samples) -> Gap:
        """Return the gap of ``b`` over ``a`` from the medians of each round that both have."""
        logs = -np.log(statistics.paired_ratios(a, b))
        logs = logs[(~np.isnan(logs)).any(axis=1)]
        n = len(logs)
        if n < statistics.ROUNDS_FOR_A_VERDICT:
            return cls(math.nan, math.nan, n)
        medians = np.nanmedian(logs, axis=1)
        return cls(float(medians.mean()), max(float(medians.var(ddof=1)), 1e-12), n)

    def test(self, prior: Prior) -> tuple[float, float, float]:
        """Return the two-sided p-value of no gap and the ends of the gap's interval; 1 and NaN for too few rounds."""
        if math.isnan(self.mean):
            return 1.0, math.nan, math.nan
        freedom = self.rounds - 1 + prior.freedom
        variance = ((self.rounds - 1) * self.variance + prior.freedom * prior.variance) / freedom
        error = math.sqrt(variance / self.rounds)
        half = float(special.stdtrit(freedom, (1 + statistics.LEVEL) / 2)) * error
        return float(2 * special.stdtr(freedom, -abs(self.mean) / error)), self.mean - half, self.mean + half


@dataclass(frozen=True)
class Prior:
    """What all gaps of a map tell about the variance of each: as much as ``freedom`` more rounds of ``variance``."""

    freedom: float = 0.0
    variance: float = 0.0

    @classmethod
    def of(cls, gaps: Sequence[Gap]) -> Prior:
        """Return the prior that fits the variances of gaps best, by the moments of their logarithms (Smyth 2004, 6.2).

        Where they differ no more than chance makes them, the freedom is as large as is ever useful.
        """
        known = [gap for gap in gaps if not math.isnan(gap.mean)]
        if len(known) < FEWEST_FOR_A_PRIOR:
            return cls()
        half = np.array([gap.rounds - 1 for gap in known]) / 2
        logs = np.log([gap.variance for gap in known]) - special.digamma(half) + np.log(half)
        excess = float(logs.var(ddof=1) - special.polygamma(1, half).mean())
        if excess <= special.polygamma(1, MOST_FREEDOM / 2):
            return cls(MOST_FREEDOM, math.exp(logs.mean()))
        of_prior = float(optimize.brentq(lambda d: special.polygamma(1, d / 2) - excess, 1e-3, MOST_FREEDOM))
        return cls(of_prior, math.exp(logs.mean() + special.digamma(of_prior / 2) - math.log(of_prior / 2)))


@dataclass(frozen=True)
class _Judged:
    """A cell before the map is looked at as a whole: ``gaps`` of all others over the fastest."""

    point: tuple[int, ...]
    case: str
    seconds: dict[str, float]
    gaps: dict[str, Gap]
    rounds: int

    @classmethod
    def of(cls, point: tuple[int, ...], case: str, samples: Mapping[str, statistics.Samples]) -> _Judged:
        medians = {name: statistics.median_time(found).value for name, found in samples.items()}
        order = sorted((name for name in medians if math.isfinite(medians[name])), key=lambda name: medians[name])
        rounds = [statistics.round_count(statistics.as_matrix(samples[name])) for name in order]
        gaps = {other: Gap.between(samples[order[0]], samples[other]) for other in order[1:]}
        return cls(point, case, {name: medians[name] for name in order}, gaps, min(rounds, default=0))


def _decide(judged: Mapping[tuple[int, ...], _Judged]) -> dict[tuple[int, ...], Cell]:
    """Return the cells with their verdicts, the p-values adjusted over all of them."""
    prior = Prior.of([gap for cell in judged.values() for gap in cell.gaps.values()])
    tests = {point: {name: gap.test(prior) for name, gap in cell.gaps.items()} for point, cell in judged.items()}
    tested = {point: max(p for p, _, _ in found.values()) for point, found in tests.items() if found}
    adjusted = stats.false_discovery_control(list(tested.values())) if tested else []
    p_of = dict(zip(tested, map(float, adjusted), strict=True))
    return {point: _cell(cell, tests[point], p_of.get(point, math.nan)) for point, cell in judged.items()}


def _cell(judged: _Judged, tests: Mapping[str, tuple[float, float, float]], p: float) -> Cell:
    names = list(judged.seconds)
    ratio = judged.seconds[names[1]] / judged.seconds[names[0]] if len(names) > 1 else math.nan
    margin = math.log(statistics.MARGIN)
    ties = {name for name, (_, low, high) in tests.items() if -margin <= low and high <= margin}
    rivals = [name for name, (_, low, _) in tests.items() if name in ties or not low > 0]
    kind, leaders = "unknown", (*names[:1], *rivals)
    if tests and not rivals and p <= RATE / LOOKS:
        kind = "winner"
    elif rivals and ties.issuperset(rivals):
        kind = "tie"
    elif tests and not rivals:
        leaders = (names[0], names[1])
    return Cell(judged.point, judged.case, kind, tuple(leaders), ratio, p, judged.seconds, judged.rounds)


def _crossovers(grid: Grid | Listed, cells: Mapping[tuple[int, ...], Cell]) -> Iterator[Crossover]:
    for k, (axis, _) in enumerate(grid.axes):
        for line in _lines(cells, k):
            winners = [cell for cell in line if cell.kind == "winner"]
            for a, b in itertools.pairwise(winners):
                between = line[line.index(a) + 1 : line.index(b)]
                if a.fastest != b.fastest and all(cell.kind == "tie" for cell in between):
                    yield Crossover(axis, a.point, a.point[k], b.point[k], a.fastest, b.fastest)


def _lines(cells: Mapping[tuple[int, ...], Cell], k: int) -> list[list[Cell]]:
    """Return the cells that differ in axis ``k`` alone, in its order."""
    lines: dict[tuple[int, ...], list[Cell]] = {}
    for point in sorted(cells):
        lines.setdefault((*point[:k], *point[k + 1 :]), []).append(cells[point])
    return list(lines.values())


def doubtful(found: WinMap) -> list[str]:
    """Return the cases of cells that more samples may change: undecided ones, and those where the leader changes."""
    chosen = {cell.case for cell in found.cells.values() if cell.kind == "unknown" and len(cell.seconds) > 1}
    for k in range(len(found.grid.axes)):
        for line in _lines(found.cells, k):
            for a, b in itertools.pairwise(line):
                if a.fastest and b.fastest and a.fastest != b.fastest:
                    chosen |= {cell.case for cell in (a, b) if cell.kind != "tie"}
    return [cell.case for cell in found.cells.values() if cell.case in chosen]


class Chooser:
    """What :func:`shim.measure.bench.run` asks for the cases of the next round, until ``seconds`` are used up.

    The first rounds have the whole grid, however long they take. The later ones, all with the same cells, follow as
    long as one more is likely to end in time.
    """

    def __init__(self, grid: Grid | Listed, seconds: float) -> None:
        self._grid, self._seconds = grid, seconds
        self._start = self._last = monotonic()
        self._chosen: list[str] | None = None

    def __call__(self, run: Any) -> Sequence[str]:
        now = monotonic()
        whole = list(run.header["config"]["cases"])
        rounds = sum(record["record"] == "round_end" for record in run.rounds)
        took, self._last = now - self._last, now
        if rounds < FIRST_ROUNDS:
            return whole
        if self._chosen is None:
            self._chosen = doubtful(read(run, self._grid))
            took *= max(0.3, len(self._chosen) / len(whole))  # starting the workers takes as long as before
        if not self._chosen or now + took - self._start > self._seconds:
            return []
        return self._chosen
