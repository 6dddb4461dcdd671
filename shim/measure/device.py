"""The device's own clock: what a GPU does meanwhile, from CUPTI's activity records, the same for every framework.

CUPTI sees all kernels of a process, whichever library launched them, also those of CUDA graphs, one by one. Three times
of a call come of it. *Kernel time* is the sum of the durations of its kernels, copies and memsets; of those that run at
the same time on several streams each counts in full. The *span* goes from the first start to the last end, which is
what device events would show: it has the gaps in which the device waits for the host, too. The third is the wall clock
of :mod:`shim.measure.clock`. *Hot* calls follow one another on the same buffers; before each *cold* one a buffer of
twice the L2 cache is overwritten, which counts for nothing, and the host waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any

from shim.measure.activities import Activity, Flush, RecordsLost, recording
from shim.measure.clock import Call, Synchronize

SAMPLES, SECONDS, MOST = 5, 0.06, 100  # of each state: samples, seconds in all, calls of a sample at most
TOP, LONGEST = 8, 100  # names that are kept, and their characters


def kernel_seconds(activities: Iterable[Activity]) -> float:
    """Return the sum of all durations."""
    return sum(a.end - a.start for a in activities) / 1e9


def span_seconds(activities: Sequence[Activity]) -> float:
    """Return the time from the first start to the last end; 0 without any activity."""
    return (max(a.end for a in activities) - min(a.start for a in activities)) / 1e9 if activities else 0.0


def after_flushes(activities: Iterable[Activity], flush_bytes: int) -> list[list[Activity]]:
    """Return what follows each memset of ``flush_bytes``, without it and without what was before the first."""
    windows: list[list[Activity]] = []
    for a in sorted(activities, key=lambda a: a.start):
        if a.kind == "memset" and a.bytes == flush_bytes:
            windows.append([])
        elif windows:
            windows[-1].append(a)
    return windows


def longest(activities: Iterable[Activity], calls: int) -> list[dict[str, Any]]:
    """Return the names that take most, each with its number and its seconds in one of ``calls`` calls."""
    numbers: Counter[str] = Counter()
    nanoseconds: Counter[str] = Counter()
    for a in activities:
        numbers[a.name[:LONGEST]] += 1
        nanoseconds[a.name[:LONGEST]] += a.end - a.start
    ordered = sorted(nanoseconds, key=lambda name: (-nanoseconds[name], name))[:TOP]
    return [{"name": n, "number": numbers[n] / calls, "seconds": nanoseconds[n] / 1e9 / calls} for n in ordered]


def summary(samples: Sequence[Sequence[Sequence[Activity]]], calls: int) -> dict[str, Any]:
    """Return the times of one call in each sample of ``calls`` calls, and what they are made of.

    A sample is a list of windows; a span goes over a window, never over the gap between two.
    """
    everything = [a for windows in samples for window in windows for a in window]
    return {
        "calls": calls,
        "kernel_seconds": [sum(map(kernel_seconds, windows)) / calls for windows in samples],
        "span_seconds": [sum(map(span_seconds, windows)) / calls for windows in samples],
        "kernels": sum(a.kind == "kernel" for a in everything) / (calls * len(samples)),
        "longest": longest(everything, calls * len(samples)),
    }


# ------------------------------------------------------------------------------------------------------- measuring


def measure(call: Call, synchronize: Synchronize, seconds: float = SECONDS) -> dict[str, Any]:
    """Return the ``hot`` and the ``cold`` times of a call that is warm, each as :func:`summary` has them.

    It takes about ``2 * seconds``, and at least three calls in each state. Raises as
    :func:`shim.measure.activities.recording` does.
    """

    def hot(calls: int) -> None:
        for _ in range(calls):
            outputs = call()
        synchronize(outputs)

    def cold(calls: int) -> None:
        for _ in range(calls):
            flush()
            synchronize(call())

    with recording() as take, Flush() as flush:
        calls, samples = _sampled(hot, take, seconds)
        found = {"hot": summary([[sample] for sample in samples], calls)}
        if not found["hot"]["longest"]:
            raise RecordsLost("CUPTI has seen nothing run on the device")
        calls, samples = _sampled(cold, take, seconds)
        windows = [after_flushes(sample, flush.bytes) for sample in samples]
        if any(len(sample) != calls for sample in windows):
            raise RecordsLost("CUPTI has lost records of calls with a cold cache")
    return found | {"cold": summary(windows, calls)}


def _sampled(
    run: Callable[[int], None], take: Callable[[], list[Activity]], seconds: float
) -> tuple[int, list[list[Activity]]]:
    """Return how many calls a sample has, and the samples."""
    run(1)
    start = perf_counter()
    run(1)
    each = perf_counter() - start
    calls = max(1, min(MOST, round(seconds / SAMPLES / each)))
    samples = max(1, min(SAMPLES, round(seconds / (calls * each))))
    take()
    found = []
    for _ in range(samples):
        run(calls)
        found.append(take())
    return calls, found
