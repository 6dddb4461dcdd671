"""What a worker does for a profile: time the step without a profiler, then profile it, and bring both together."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path
from typing import Any

from shim.cases import OPTIMIZER_STEP, Case
from shim.measure import clock
from shim.trace import events as tracing
from shim.trace import naming

BLOCKS, BLOCK_SECONDS = 9, 0.02
SECONDS, LEAST, MOST = 0.1, 3, 50  # of profiled steps: about so long, so many


def profile(
    name: str, backend: Any, prepared: clock.Prepared, case: Case, mode: str, shown: str, steps: int | None, path: Path
) -> dict[str, Any]:
    """Return the table and the times of a case, and write its trace; ``prepared`` is the program without any names.

    ``measured`` holds the median, the least and the most seconds of a step on the clock that comparisons go by.
    """
    adapter = importlib.import_module(f"shim.trace.{name}")
    measured = _measure(prepared)
    steps = steps or min(MOST, max(LEAST, round(SECONDS / measured[0])))
    events = tracing.nest(tracing.within_steps(adapter.record(backend, case, mode, steps)))
    recorded = sum(event.name == tracing.STEP for event in events)
    if recorded != steps:
        raise tracing.ProfileIncomplete(
            f"{adapter.PROFILER} recorded {recorded} of {steps} steps; ask for fewer with --steps"
        )
    tracing.short_threads(events)
    for event in events:
        if event.name == tracing.STEP:
            event.op = None
        elif case.direction == OPTIMIZER_STEP:
            event.op = naming.OPTIMIZER
        elif not case.is_model:
            event.op = case.op
    about = {"case": case.id, "target": shown, "mode": mode, "profiler": adapter.PROFILER, "steps": steps}
    path.write_text(json.dumps(tracing.chrome_trace(events, about)), encoding="utf-8")
    rows = tracing.rows(events, steps)
    return about | {"measured": measured, "rows": rows} | tracing.totals(events)


def _measure(prepared: clock.Prepared) -> list[float]:
    call, synchronize = prepared.call, prepared.synchronize
    clock.warm_up(call, synchronize)
    loops = clock.calibrate(call, synchronize, BLOCK_SECONDS)
    samples = [clock.block(call, synchronize, loops)[0] for _ in range(BLOCKS)]
    return [statistics.median(samples), min(samples), max(samples)]
