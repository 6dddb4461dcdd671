"""Where the gap between two backends on a model comes from: its ops, its optimizer, the call itself, and the rest.

The ops that a training step calls are recorded from the model and timed one by one, in the same interleaved run as the
step and the optimizer alone. Each of these times contains the cost of being called at all, so that of an empty call is
taken off every part and counted once. All ops of a batch are also timed together, as the step without its optimizer.
What that takes beyond the ops alone is *fusion*, mostly below zero, of a contestant that compiles a model as a whole.
Of one that calls op after op it is the *sequence*: an op alone finds in the caches what it had there the call before.
Where a step differentiates a table by the rows that a batch looks up, the backward pass is that of a table of as many
rows. What the parts do not add up to is the *residual*.

Each part is the median of its shares of the step in the same sweep, times the step: what slows the machine for a while
slows both, and cancels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shim import cases, models, statistics
from shim.explain import effects
from shim.explain.effects import Effect
from shim.measure.ceilings import EMPTY

ROUNDS = 8
#: kind of the term for what all ops together take beyond the ops alone, by whether they are one program -> its name
_NAMES = {"fusion": "fusion across ops", "sequence": "sequence of ops"}
_Part = tuple[str, str, int, Effect, str]  # name, kind, count, time, case


@dataclass(frozen=True)
class Term:
    """A part of a training step: what it takes on each backend, in seconds, and the second less the first.

    ``kind`` is ``forward``, ``backward``, ``fusion``, ``sequence``, ``optimizer``, ``call`` or ``residual``; ``count``
    how often a step has it; ``case`` is the id of the one that its times come from; those of the forward pass are taken
    off ``backward``, and those of all ops off ``fusion`` and ``sequence``, which are 0 for a contestant without it.
    """

    name: str
    kind: str
    count: int
    first: statistics.Estimate
    second: statistics.Estimate
    gap: statistics.Estimate
    case: str = ""


@dataclass(frozen=True)
class Explanation:
    """The step of a model on two backends, taken apart. ``terms`` add up to ``gap``, the residual last.

    ``ratio`` is the time of the second divided by that of the first, with its verdict on the second.
    ``missing`` names parts that could not be timed on both, which are then in the residual, with the reason.
    ``together`` maps contestants to the kind of the term for all ops together, ``apart`` those without one to the
    reason; ``by_rows`` are those whose step differentiates tables by the rows that a batch looks up.
    """

    model: str
    first: str
    second: str
    step: tuple[statistics.Estimate, statistics.Estimate]
    ratio: statistics.Ratio
    gap: statistics.Estimate
    terms: tuple[Term, ...]
    missing: tuple[str, ...]
    together: Mapping[str, str]
    apart: Mapping[str, str]
    by_rows: tuple[str, ...]
    rounds: int

    @property
    def residual(self) -> Term:
        return self.terms[-1]

    @property
    def residual_share(self) -> float:
        """The residual of the gap as a share of the slower step."""
        return abs(self.residual.gap.value) / max(step.value for step in self.step)

    @property
    def verdict(self) -> str:
        """The verdict on the second: that of the ratio, but ``unknown`` where the interval of the gap includes 0."""
        if self.ratio.verdict in ("faster", "slower") and self.gap.low <= 0 <= self.gap.high:
            return "unknown"
        return self.ratio.verdict

    def share(self, term: Term) -> float:
        """Return a term's part of the gap; NaN if there is no gap to speak of."""
        return term.gap.value / self.gap.value if self.verdict in ("faster", "slower") else math.nan


def wanted(model: models.Model, size: int | None = None, dtype: str = "float32") -> list[cases.Case]:
    """Return the cases that an explanation of a model needs, the training step first; ``size`` is that of the batch."""
    return _wanted(model, models.record(model, "forward_backward", size, dtype), size, dtype, (False, True))


def _wanted(
    model: models.Model, recorded: Sequence[cases.Case], size: int | None, dtype: str, ways: Sequence[bool]
) -> list[cases.Case]:
    whole = [
        cases.of_model(model.name, direction, size, dtype, dict(model.options))
        for direction in (cases.TRAIN_STEP, cases.OPTIMIZER_STEP, cases.GRADIENTS)
    ]
    ops = [case for op in recorded for by_rows in ways for case in _passes(op, by_rows)]
    return list(dict.fromkeys([*whole, *_empty(dtype).values(), *ops]))


def all_parts(run: Any) -> Sequence[str]:
    """Return the cases of the next round of a run: all, since a sum needs every part in the same rounds."""
    found: Sequence[str] = run.header["config"]["cases"]
    return found


def _forward(case: cases.Case) -> cases.Case:
    return cases.case(case.op, "forward", dict(case.dims), case.dtype, **dict(case.options))


def _passes(case: cases.Case, by_rows: bool) -> tuple[cases.Case, cases.Case]:
    """Return the cases whose difference is the backward pass of an op: forward, and with gradients."""
    dims = dict(case.dims)
    if by_rows and case.op.startswith("embedding"):
        dims["V"] = min(dims["V"], dims["N"] * dims["T"])
        case = cases.case(case.op, case.direction, dims, case.dtype, **dict(case.options))
    return _forward(case), case


def _empty(dtype: str) -> dict[str, cases.Case]:
    return {d: cases.case(case.op, d, dict(case.dims), dtype) for d, case in EMPTY.items()}


def explain(run: Any, first: str, second: str) -> Explanation:
    """Take the gap between two contestants of a run apart.

    Raises ``ValueError`` if the run has no training step of one model, or not of both contestants.
    """
    known = list(statistics.labels(run).values())
    for name in (first, second):
        if name not in known:
            raise ValueError(f"{name!r} is not in this run; its contestants are: {', '.join(known) or 'none'}")
    step = _step_of(run)
    model = models.load(step.op, **dict(step.options))
    samples = {(row.case, row.contestant): row.samples for row in statistics.rows(run)}
    size = dict(step.dims)["N"]
    recorded = models.record(model, "forward_backward", size, step.dtype)
    whole, missing = [], []
    by_rows = tuple(name for name in (first, second) if _built(run, step, name, "by_rows"))
    parts_of_step = _wanted(model, recorded, size, step.dtype, (False, True) if by_rows else (False,))
    (ops,) = (case for case in parts_of_step if case.direction == cases.GRADIENTS)
    for case in parts_of_step:
        if case == ops:
            continue
        lacking = [name for name in (first, second) if (case.id, name) not in samples]
        if lacking and case == step:
            raise ValueError(f"{run.path} has no time of {case} on {' and '.join(lacking)}; {_reason(run, case)}")
        if lacking:
            missing.append(f"{case} on {' and '.join(lacking)}: {_reason(run, case)}")
        else:
            whole.append(case)
    fused = {name: _built(run, ops, name, "fused") for name in (first, second)}
    apart = {name: "this run is from before that was recorded" for name, known in fused.items() if known is None}
    apart |= {name: _reason(run, ops, name) for name in (first, second) if (ops.id, name) not in samples}
    if any(case not in whole and not case.is_model for case in parts_of_step):  # the term would hold what they take
        apart = {name: apart.get(name, "not all of its ops were timed on both") for name in (first, second)}
    together = {name: "fusion" if known else "sequence" for name, known in fused.items() if name not in apart}
    keys = [(case.id, name) for case in whole for name in (first, second)]
    keys += [(ops.id, name) for name in together]
    shares = {
        (case, name): statistics.paired_ratios(samples[case, name], samples[step.id, name]).tolist()
        for case, name in keys
    }
    rounds = effects.common_rounds(shares.values())
    if not rounds:
        raise ValueError(f"{run.path} has no round in which everything was timed on {first} and {second}")
    steps = {name: effects.median(samples[step.id, name], rounds) for name in (first, second)}
    times = {key: effects.median(share, rounds) * steps[key[1]] for key, share in shares.items()}
    parts = []
    for name in (first, second):
        own = {case: times[case.id, name] for case in whole}
        found = list(_parts(model, recorded, own, name in by_rows))
        for kind in sorted(set(together.values())):
            effect = times[ops.id, name] if together.get(name) == kind else None
            found = _with_all_ops(found, kind, ops, effect)
        parts.append(found)
    return Explanation(
        model=model.label,
        first=first,
        second=second,
        step=(steps[first].estimate(), steps[second].estimate()),
        ratio=statistics.ratio(samples[step.id, second], samples[step.id, first]),
        gap=(steps[second] - steps[first]).estimate(),
        terms=tuple(_terms(parts, [steps[first], steps[second]], step)),
        missing=tuple(missing),
        together=together,
        apart=apart,
        by_rows=by_rows,
        rounds=len(rounds),
    )


def _step_of(run: Any) -> cases.Case:
    found = [id for id in run.header.get("config", {}).get("cases", ()) if id.split("/")[1:2] == [cases.TRAIN_STEP]]
    if len(found) != 1:
        raise ValueError(f"{run.path} has {len(found)} training steps, and one is needed; make it with: shim explain")
    return cases.parse(found[0])


def _reason(run: Any, case: cases.Case, name: str | None = None) -> str:
    named = statistics.labels(run)
    reasons = [
        f["reason"]
        for f in run.failures
        if f.get("case") in (None, case.id) and (name is None or named.get((f["target"], f.get("mode"))) == name)
    ]
    return str(reasons[0]) if reasons else "it was not measured"


def _built(run: Any, case: cases.Case, name: str, what: str) -> bool | None:
    """Return what is recorded of a case as a contestant built it, None in runs from before it was recorded."""
    named = statistics.labels(run)
    builds = [b for b in run.builds if b["case"] == case.id and named[b["target"], b["mode"]] == name]
    return next((build[what] for build in builds if what in build), None)


def _parts(
    model: models.Model, recorded: Sequence[cases.Case], times: Mapping[cases.Case, Effect], by_rows: bool
) -> Iterator[_Part]:
    """Yield the parts of a step on one backend, the cost of the call taken off."""
    empty = _empty(recorded[0].dtype)
    call, call_with_gradients = (times.get(empty[direction]) for direction in ("forward", "forward_backward"))
    if call is None or call_with_gradients is None:
        raise ValueError(f"an empty call was not timed: {' and '.join(map(str, empty.values()))}")
    counts = Counter(recorded)
    names = _names(list(counts))
    for case, count in counts.items():
        without, with_gradients = _passes(case, by_rows)
        forward, before, both = times.get(_forward(case)), times.get(without), times.get(with_gradients)
        if forward is None or before is None or both is None:
            continue
        yield names[case], "forward", count, (forward - call) * count, _forward(case).id
        if case.direction != "forward":
            backward = both - before - call_with_gradients + call
            yield names[case], "backward", count, backward * count, with_gradients.id
    optimizer = next((case for case in times if case.direction == cases.OPTIMIZER_STEP), None)
    if optimizer is not None:
        yield model.optimizer.name, "optimizer", 1, times[optimizer] - call, optimizer.id
    yield "the call itself", "call", 1, call_with_gradients, empty["forward_backward"].id


def _with_all_ops(parts: Sequence[_Part], kind: str, case: cases.Case, together: Effect | None) -> list[_Part]:
    """Return the parts with a term for what all ops take together beyond the ops alone, or for nothing."""
    *ops, call = [part for part in parts if part[1] != "optimizer"]
    alone = effects.total(part[3] for part in (*ops, call))
    beyond = alone * 0 if together is None else together - alone
    return [*ops, (_NAMES[kind], kind, 1, beyond, case.id), *(p for p in parts if p[1] == "optimizer"), call]


def _names(ops: Sequence[cases.Case]) -> dict[cases.Case, str]:
    """Name ops for people, with the shape where one op stands there several times."""
    several = Counter(case.op for case in ops)
    return {case: f"{case.op} {case.shape.replace('-', ' ')}" if several[case.op] > 1 else case.op for case in ops}


def _terms(parts: Sequence[Sequence[_Part]], steps: Sequence[Effect], step: cases.Case) -> Iterator[Term]:
    for (name, kind, count, first, case), (_, _, _, second, _) in zip(*parts, strict=True):
        yield _term(name, kind, count, first, second, case)
    first, second = (
        whole - effects.total(part[3] for part in found) for whole, found in zip(steps, parts, strict=True)
    )
    yield _term("residual", "residual", 1, first, second, step.id)


def _term(name: str, kind: str, count: int, first: Effect, second: Effect, case: str) -> Term:
    return Term(name, kind, count, first.estimate(), second.estimate(), (second - first).estimate(), case)
