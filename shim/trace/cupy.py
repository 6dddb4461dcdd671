"""CuPy: CUPTI's records of what the GPU does, on the clock of which the calls of ops are timed from Python.

A kernel belongs to the op during whose call the host launched it. A CUDA graph is launched as a whole, outside of all
ops: of its kernels only those of our own say by their name whose they are, without the number of the call. The table
has what the device does, so that what is in no event is time in which the device waits for the host.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable
from typing import Any

from shim.backends import _cuda_trainer
from shim.cases import Case
from shim.measure import activities, clock
from shim.measure.activities import Activity
from shim.trace import handwritten, naming
from shim.trace.events import STEP, Event
from shim.trace.recorder import Recorder

PROFILER = "CUPTI"
LONGEST = 80  # characters of a kernel's name in the table; C++ ones are longer
#: Beginnings of the names of the kernels in ``shim/backends/kernels`` -> op; the first that fits counts.
OWN = {
    "lstm": "lstm",
    "rectified_sums": "dense",
    "conv2d": "conv2d",
    "average": "embedding_average",
    "scatter|sum_runs|join_runs|sum_table|gather|descend": "embedding",
    "max_pool": "max_pool2d",
    "relu": "relu",
    "dropout": "dropout",
    "batch_norm": "batch_norm",
    "softmax_loss": "softmax_cross_entropy",
    "sigmoid_loss": "sigmoid_cross_entropy",
    "sgd|rmsprop|adam|adadelta|next_step": naming.OPTIMIZER,
}


def record(backend: Any, case: Case, mode: str, steps: int) -> list[Event]:
    """Profile some steps of a case and return their events."""
    with activities.recording(*activities.LAUNCHES) as take:
        zero = activities.now()  # microseconds since 1970 would have no digits left for parts of one
        recorder = Recorder(lambda: activities.now() - zero)
        names = handwritten.Names(recorder)

        def recorded(make: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **options: names.recorded(make(*args, **options))

        with (
            naming.replaced(backend, "_programs", names.recorded),
            naming.replaced(backend, "programs", recorded),  # a trainer makes its own
            naming.replaced(_cuda_trainer, "update_all", names.optimizer),
        ):
            prepared = clock.prepare(backend, case, mode)
            naming.warm(prepared)
            take()
            recorder.events.clear()
            naming.run(prepared, steps, names.step)
        return events(recorder.events, take(), zero)


def events(calls: Iterable[Event], found: Iterable[Activity], zero: int) -> list[Event]:
    """Return the steps among ``calls``, and what the device did; ``found`` is in nanoseconds, counted from ``zero``."""
    spans = sorted(calls, key=lambda call: call.start)
    ordered = sorted(found, key=lambda a: a.start)
    launched = {a.correlation: (a.start - zero) / 1e3 for a in reversed(ordered) if a.kind == "launch"}
    result = [span for span in spans if span.name == STEP]
    until: dict[int, float] = {}
    for a in ordered:
        if a.kind == "launch":
            continue
        start, end = (a.start - zero) / 1e3, (a.end - zero) / 1e3
        start = max(start, until.get(a.stream, start))  # the next kernel of a stream may start before the last one ends
        until[a.stream] = end = max(start, end)
        op = _during(spans, launched.get(a.correlation)) or _by_name(a.name)
        result.append(Event(a.name[:LONGEST], start, end - start, f"stream/{a.stream}", op, a.name))
    return result


def _during(spans: list[Event], moment: float | None) -> str | None:
    """Return the op of the innermost call at a moment, None outside of all."""
    if moment is None:
        return None
    before = bisect.bisect_right(spans, moment, key=lambda span: span.start)
    return next((spans[k].op for k in range(before - 1, -1, -1) if spans[k].end >= moment), None)


def _by_name(name: str) -> str | None:
    return next((op for own, op in OWN.items() if re.match(rf"({own})(_|$)", name)), None)
