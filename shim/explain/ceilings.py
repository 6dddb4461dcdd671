"""The least work of a case against what the machine can do at most: which resource limits a row, and how nearly.

A *share* is the least time that a resource needs for the work, divided by the measured time. The resource with the
largest share is the limiting one; 100 % cannot be passed. Work is counted by the contract, so a method that gets by
with less (Winograd's convolution) may pass 100 % of compute, and is then marked as implausible until it is looked at.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shim import cases, models, statistics
from shim.models import optimizers

#: A row may pass a ceiling by this much: both are measured.
TOLERANCE = 1.05


@dataclass(frozen=True)
class Demand:
    """What a case asks for at least. ``resident`` are the bytes that it touches, which say where in memory they are.

    ``traffic`` is ``bandwidth``, or ``optimizer`` where the bytes are those of the optimizer's update.
    """

    flops: float
    bytes: float
    resident: float
    traffic: str = "bandwidth"


@dataclass(frozen=True)
class Limit:
    """The resource that limits a row and the share of the measured time that it needs at least."""

    resource: str
    share: float
    implausible: bool

    def __str__(self) -> str:
        return f"{self.resource} {100 * self.share:.0f} %"


@functools.cache
def demand(case: cases.Case) -> Demand:
    """Return what one call of a case needs at least. Raises ``ValueError`` for an unknown op or model."""
    if not case.is_model:
        once = cases.case(case.op, "forward", dict(case.dims), case.dtype, **dict(case.options)).work().bytes
        work = case.work()
        return Demand(work.flops, work.bytes, once)
    model = models.load(case.op, **dict(case.options))
    direction = "forward" if case.direction == cases.PREDICT else "forward_backward"
    recorded = models.record(model, direction, dict(case.dims)["N"], case.dtype)
    flops = 0.0 if case.direction == cases.OPTIMIZER_STEP else float(sum(c.work().flops for c in recorded))
    if case.direction in (cases.PREDICT, cases.GRADIENTS):
        return Demand(flops, 0.0, 0.0)  # which part of its weights has to come from memory is not known
    params = model.initial()
    entries = sum(params[name].size for name in models.trained(model, params))
    arrays = 2 + optimizers.STATES[model.optimizer.name]  # weight, gradient, states: all read, all but one written
    resident = float(arrays * entries * np.dtype(case.dtype).itemsize)
    return Demand(flops, resident * (2 - 1 / arrays), resident, "optimizer")


class Ceilings:
    """The best that was measured in a run: product rates by dtype, copy rates by size, empty calls by contestant."""

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        self.flops_per_second: dict[str, float] = defaultdict(float)
        self._copies: dict[int, float] = defaultdict(float)
        self._calls: dict[tuple[str, str, str], float] = defaultdict(lambda: math.inf)
        for record in records:
            for dtype, rate in (record.get("flops_per_second") or {}).items():
                self.flops_per_second[dtype] = max(self.flops_per_second[dtype], rate)
            for copy in record.get("copies") or ():
                self._copies[copy["bytes"]] = max(self._copies[copy["bytes"]], copy["bytes_per_second"])
            for direction, seconds in record["call_seconds"].items():
                key = record["target"], record["mode"], direction
                self._calls[key] = min(self._calls[key], seconds)

    def bytes_per_second(self, resident: float) -> float:
        """Return the best rate of a copy that touches as much as ``resident`` bytes or more; NaN if none was made."""
        level = max((size for size in self._copies if size <= resident), default=min(self._copies, default=0))
        return max((rate for size, rate in self._copies.items() if size >= level), default=math.nan)

    def call_seconds(self, target: str, mode: str, direction: str) -> float:
        """Return the time of an empty call; NaN if it is not known. Whatever has gradients counts as with gradients."""
        direction = "forward" if direction in ("forward", cases.PREDICT) else "forward_backward"
        return self._calls.get((target, mode, direction), math.nan)

    def limit(self, case: cases.Case, target: str, mode: str, time: statistics.Estimate) -> Limit | None:
        """Return what limits a row; None where nothing is known of the machine or nothing was computed."""
        if target == "null":
            return None
        needed = demand(case)
        least = {
            "compute": needed.flops / (self.flops_per_second.get(case.dtype) or math.nan),
            needed.traffic: needed.bytes / self.bytes_per_second(needed.resident),
            "latency": self.call_seconds(target, mode, case.direction),
        }
        shares = {name: seconds / time.value for name, seconds in least.items() if not math.isnan(seconds)}
        if not shares or not time.value > 0:
            return None
        resource = max(shares, key=lambda name: shares[name])
        slowest = time.high if time.high > time.value else time.value
        passed = {name for name in shares if least[name] > TOLERANCE * slowest} - {"latency"}
        if resource == "latency":
            return Limit(resource, min(shares[resource], 1.0), bool(passed))
        return Limit(resource, shares[resource], bool(passed))


def limits(run: Any, rows: Iterable[statistics.Row]) -> dict[tuple[str, str], Limit]:
    """Return what limits each row of a run, by case and contestant; rows of unknown cases are left out."""
    found: dict[tuple[str, str], Limit] = {}
    if not run.ceilings:
        return found
    ceilings = Ceilings(run.ceilings)
    for row in rows:
        try:
            limit = ceilings.limit(cases.parse(row.case), row.target, row.mode, row.time)
        except ValueError:  # a case of another version of shim
            continue
        if limit:
            found[row.case, row.contestant] = limit
    return found
