"""What table and page both need from a run: its rows case by case, who is fastest, and what is missing."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from shim import statistics
from shim.explain import ceilings
from shim.measure.clock import CPU_LATENCY
from shim.report import colours, device, words

NOT_MEASURED = "not measured"
Labels = dict[tuple[str, str | None], str]


@dataclass(frozen=True)
class Entry:
    """One contestant in one case. ``row`` is None where nothing was measured; ``note`` then says why."""

    contestant: str
    row: statistics.Row | None
    parity: float | None = None
    note: str = ""
    limit: ceilings.Limit | None = None
    device: device.DeviceTimes | None = None

    @property
    def seconds(self) -> float:
        """The median time, for sorting; infinite where there is none."""
        return self.row.time.value if self.row and math.isfinite(self.row.time.value) else math.inf


@dataclass(frozen=True)
class Outcome:
    """Who is fastest: ``kind`` is ``fastest``, ``tie``, ``unknown`` or ``none`` (fewer than two to compare)."""

    kind: str
    contestants: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = [words.line(name, 60) for name in self.contestants]
        if self.kind == "fastest":
            return f"fastest: {names[0]}"
        if self.kind == "tie":
            return f"tie: {words.listing(names)}"
        if self.kind == "unknown":
            return f"unknown: {words.listing(names, 'or')}"
        return "no comparison"


@dataclass(frozen=True)
class CaseResult:
    """A case with its contestants, fastest first, and who won."""

    name: words.CaseName
    entries: tuple[Entry, ...]
    outcome: Outcome

    def entry(self, contestant: str) -> Entry | None:
        """Return what there is of a contestant."""
        return next((entry for entry in self.entries if entry.contestant == contestant), None)

    def kernel_ratio(self, contestant: str, baseline: str) -> float | None:
        """Return the kernel time of a contestant divided by that of the baseline, where both have one."""
        own, other = (entry.device if (entry := self.entry(name)) else None for name in (contestant, baseline))
        return own.kernel / other.kernel if own and other and other.kernel else None

    @property
    def unit(self) -> words.Unit:
        """The unit of time that fits all contestants of the case."""
        return words.unit(entry.row.time.value for entry in self.entries if entry.row)


@dataclass(frozen=True)
class Startup:
    """What a contestant costs before its first result, in seconds: medians over the rounds."""

    contestant: str
    import_seconds: float | None
    setup_seconds: float | None


@dataclass(frozen=True)
class Training:
    """The epochs of one contestant on one model, in order."""

    model: str
    contestant: str
    epochs: tuple[dict[str, Any], ...]
    build: dict[str, Any]

    def values(self, key: str) -> list[float]:
        """Return a column of the epochs; NaN where an epoch lacks it."""
        return [math.nan if epoch.get(key) is None else float(epoch[key]) for epoch in self.epochs]

    @property
    def epoch_seconds(self) -> float:
        """The median training time of an epoch after the first, which also compiles."""
        return float(median(self.values("train_seconds")[1:] or self.values("train_seconds")))


_TALLIED = (
    ("tie", "is a tie", "are ties"),
    ("unknown", "is undecided", "are undecided"),
    ("none", "has nothing to compare", "have nothing to compare"),
)


@dataclass(frozen=True)
class Summary:
    """A run, made ready to show."""

    run: Any
    baseline: str
    contestants: tuple[str, ...]
    cases: tuple[CaseResult, ...]
    startups: tuple[Startup, ...]
    trainings: tuple[Training, ...]
    failures: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]

    @property
    def on_device(self) -> bool:
        """Whether any row has times on a GPU itself."""
        return any(entry.device for case in self.cases for entry in case.entries)

    @property
    def groups(self) -> dict[str, list[CaseResult]]:
        """The cases by heading, in the order of the run."""
        groups: dict[str, list[CaseResult]] = defaultdict(list)
        for case in self.cases:
            groups[case.name.group].append(case)
        return dict(groups)

    @property
    def tally(self) -> str:
        """How often each contestant is fastest, as a sentence."""
        kinds = Counter(case.outcome.kind for case in self.cases)
        wins = Counter(case.outcome.contestants[0] for case in self.cases if case.outcome.kind == "fastest")
        parts = [
            f"{words.line(name, 60)} {'is fastest in' if place == 0 else 'in'} {many:,}"
            for place, (name, many) in enumerate(wins.most_common())
        ]
        for kind, one, several in _TALLIED:
            if kinds[kind]:
                parts.append(f"{kinds[kind]:,} {one if kinds[kind] == 1 else several}")
        return f"Of {words.count(len(self.cases), 'case')}, {words.listing(parts)}."


def summarise(run: Any, baseline: str | None = None) -> Summary:
    """Make a run ready to show. Raises ``ValueError`` if ``baseline`` is not a contestant of the run."""
    config = run.header.get("config", {})
    labels = statistics.labels(run)
    chosen = statistics.choose_baseline(list(labels.values()), baseline or config.get("baseline")) or ""
    cases = _case_results(run, chosen, labels, run.failures)
    failures = tuple(f | {"contestant": _label(f, labels)} for f in run.failures if not _is_unsupported(f))
    return Summary(
        run=run,
        baseline=chosen,
        contestants=tuple(dict.fromkeys([*labels.values(), *(failure["contestant"] for failure in failures)])),
        cases=cases,
        startups=_startups(run.workers),
        trainings=_trainings(run, labels),
        failures=failures,
        warnings=_warnings(run, cases, failures),
    )


def _label(record: dict[str, Any], labels: Labels) -> str:
    target, mode = str(record.get("target") or "?"), record.get("mode")
    return labels.get((target, mode)) or statistics.label(target, mode)


def _case_results(
    run: Any, baseline: str, labels: Labels, failures: Sequence[dict[str, Any]]
) -> tuple[CaseResult, ...]:
    config = run.header.get("config", {})
    parities: dict[tuple[Any, ...], float] = {}
    for build in run.builds:
        if (worst := (build.get("parity") or {}).get("worst")) is not None:
            key = build["case"], build["target"], build["mode"]
            parities[key] = max(float(worst), parities.get(key, 0.0))
    entries: dict[str, dict[str, Entry]] = {case: {} for case in config.get("cases", ()) if not run.epochs}
    rows = statistics.rows(run, baseline or None)
    limits, on_device = ceilings.limits(run, rows), device.times(run, labels)
    for row in rows:
        note = _failure_of(row.target, row.mode, row.case, failures)
        parity = parities.get((row.case, row.target, row.mode))
        at = row.case, row.contestant
        entries.setdefault(row.case, {})[row.contestant] = Entry(
            row.contestant, row, parity, note, limits.get(at), on_device.get(at)
        )
    planned = [(entry["target"], entry.get("mode")) for entry in config.get("targets", ())]
    for case, found in entries.items():
        for target, mode in planned:
            if not statistics.takes_part(config, case, labels[target, mode]):
                continue
            note = _failure_of(target, mode, case, failures) or NOT_MEASURED
            found.setdefault(labels[target, mode], Entry(labels[target, mode], None, None, note))
    return tuple(
        CaseResult(
            words.case_name(case),
            tuple(sorted(found.values(), key=lambda entry: entry.seconds)),
            _outcome(found.values(), baseline),
        )
        for case, found in entries.items()
    )


def _failure_of(target: str, mode: str | None, case: str, failures: Sequence[dict[str, Any]]) -> str:
    """Say why a row is not there, or failed in one round; a failure without a mode or a case is one of all of them."""
    for failure in failures:
        at_fault = failure.get("target") == target and failure.get("mode") in (None, mode)
        if at_fault and failure.get("case") is None:
            return "failed in all cases, see the failures"
        if at_fault and failure.get("case") == case:
            how = "not offered" if _is_unsupported(failure) else "failed"
            return f"{how}: {words.reason(failure.get('reason', ''))}"
    return ""


def _is_unsupported(failure: dict[str, Any]) -> bool:
    """Whether a contestant does not offer a case at all, which is told beside the case and is no failure."""
    return failure.get("stage") == "unsupported" and failure.get("case") is not None


def _outcome(entries: Iterable[Entry], baseline: str) -> Outcome:
    """Name the fastest only if the samples show that it beats each of the others."""
    rows = sorted(
        (e.row for e in entries if e.row and math.isfinite(e.seconds) and colours.backend(e.contestant) != "null"),
        key=lambda row: row.time.value,
    )
    if len(rows) < 2:
        return Outcome("none")
    best = rows[0]
    verdicts = {other.contestant: _beats(best, other, baseline) for other in rows[1:]}
    rivals = [name for name, verdict in verdicts.items() if verdict != "faster"]
    if not rivals:
        return Outcome("fastest", (best.contestant,))
    kind = "tie" if all(verdicts[name] == "tie" for name in rivals) else "unknown"
    return Outcome(kind, (best.contestant, *rivals))


def _beats(best: statistics.Row, other: statistics.Row, baseline: str) -> str:
    if best.ratio is not None and other.contestant == baseline:
        return best.ratio.verdict
    if other.ratio is not None and best.contestant == baseline:
        return {"slower": "faster"}.get(other.ratio.verdict, other.ratio.verdict)
    return statistics.ratio(best.samples, other.samples, best.paces).verdict


def _startups(workers: Iterable[dict[str, Any]]) -> tuple[Startup, ...]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for worker in workers:
        found[str(worker.get("target"))].append(worker)

    def middle(target: str, key: str) -> float | None:
        values = [float(w[key]) for w in statistics.undisturbed(found[target]) if w.get(key) is not None]
        return median(values) if values else None

    return tuple(Startup(t, middle(t, "import_seconds"), middle(t, "setup_seconds")) for t in found)


def _trainings(run: Any, labels: Labels) -> tuple[Training, ...]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for epoch in run.epochs:
        found[str(epoch.get("model", "?")), _label(epoch, labels)].append(epoch)
    builds = {(build.get("case"), _label(build, labels)): build for build in run.builds}
    return tuple(
        Training(*key, tuple(sorted(records, key=lambda epoch: epoch["epoch"])), builds.get(key, {}))
        for key, records in found.items()
    )


def _warnings(run: Any, cases: Sequence[CaseResult], failures: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Say what keeps the run from being a complete one, most serious first."""
    found = []
    entries = [entry for case in cases for entry in case.entries]
    missing = sum(entry.row is None and entry.note == NOT_MEASURED for entry in entries)
    if not run.complete:
        reason = run.end.get("reason") if run.end else None
        how = (
            f" It ended with: {words.line(reason, 200)}."
            if reason
            else " It has no end record: it is still going on or was killed."
        )
        found.append(f"This run is unfinished.{how} What was measured until then is below.")
    if missing:
        found.append(f"{words.count(missing, 'row')} of {len(entries):,} not measured.")
    if failures:
        failed = sum(entry.note.startswith("failed") for entry in entries)
        found.append(
            f"{words.count(len(failures), 'failure')} recorded; {words.count(failed, 'row')} of the results affected."
        )
    found += device.warnings(run)
    beyond = [case.name for case in cases for entry in case.entries if entry.limit and entry.limit.implausible]
    if beyond:
        found.append(
            f"{words.count(len(beyond), 'row')} faster than the ceilings measured here allow, so look twice: "
            f"{'; '.join(map(str, dict.fromkeys(beyond)))}."
        )
    rows = [entry.row for entry in entries if entry.row]
    if short := sum(row.rounds < _planned_rounds(run, row) for row in rows):
        found.append(f"{words.count(short, 'row')} with fewer rounds than planned.")
    rounds = [row.rounds for row in rows]
    speedups = [s for s in (record.get("parallel_speedup") for record in run.rounds) if isinstance(s, (int, float))]
    if speedups and max(speedups) > 1.2 * min(speedups):
        found.append(
            f"In some rounds the CPUs together were worth {min(speedups):.1f} of one, in others {max(speedups):.1f}: "
            "at times they share a core, as those of a virtual machine may. That widens the intervals."
        )
    pace = statistics.pace_of(run)
    slow = sum(pace(block) > statistics.SLOWER for block in run.blocks)
    if slow and slow >= 0.01 * len(run.blocks):
        waited = sum(record.get("waited_seconds", 0.0) for record in run.rounds)
        found.append(
            f"{slow / len(run.blocks):.0%} of the blocks were timed while the machine was slower than at its best "
            f"by more than {statistics.SLOWER - 1:.0%}, although they waited for {waited:.0f} s in all. "
            "A row is of one pace, that of which it has more rounds: "
            f"{words.count(sum(row.slow for row in rows), 'row')} of {len(rows)} of the slower one."
        )
    if any(worker.get("awake") is False for worker in run.workers):
        found.append(
            "Idle CPUs could go to sleep: this user may not keep them awake. That widens the intervals of whatever "
            f"hands work from thread to thread. Until the next start of Linux, this helps: sudo chmod o+w {CPU_LATENCY}"
        )
    if rounds and max(rounds) < statistics.ROUNDS_FOR_A_VERDICT:
        found.append(
            f"Only {words.count(max(rounds), 'round')} measured: a verdict needs at least "
            f"{statistics.ROUNDS_FOR_A_VERDICT}, so every one is unknown."
        )
    return tuple(found)


def _planned_rounds(run: Any, row: statistics.Row) -> int:
    """Return in how many rounds a row takes part: those that name it, or as many as were asked for."""
    listed = [record for record in run.rounds if "cases" in record]
    planned: int = run.header.get("config", {}).get("rounds", 0)
    taken = (r for r in listed if row.case in r["cases"] and statistics.takes_part(r, row.case, row.contestant))
    return sum(1 for _ in taken) if listed else planned
