"""What profilers say, in one form: events on threads, their self times, one table, one file for a trace viewer.

A profile covers whole steps. An event named :data:`STEP` on the calling thread spans each of them; whatever lies
outside is left out. Events of one thread nest, and the self time of an event is its duration without the events inside
it, so that the self times of a thread add up to the time in which it had any event open. Times are in microseconds.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

STEP = "shim step"
REST = "rest"  # what belongs to no op of the model: the framework itself


class ProfileIncomplete(RuntimeError):
    """A profiler has lost what happened; the message says what to do."""


@dataclasses.dataclass(slots=True)
class Event:
    """Something that one thread did for a while. ``detail`` tells it from others of its name, ``op`` is whose it is."""

    name: str
    start: float
    duration: float
    thread: str
    op: str | None = None
    detail: str | None = None
    self_time: float = 0.0

    @property
    def end(self) -> float:
        return self.start + self.duration


def nest(events: Iterable[Event]) -> list[Event]:
    """Set the self times of events, and their op where they have none to that of the event around them.

    An event that sticks out of the one it begins in, as clocks of two kinds have it, is cut there. Return the events by
    thread and start.
    """
    ordered = sorted(events, key=lambda e: (e.thread, e.start, -e.duration))
    around: list[Event] = []
    for event in ordered:
        while around and (around[-1].thread != event.thread or around[-1].end <= event.start):
            around.pop()
        event.self_time = event.duration
        if around:
            event.duration = event.self_time = min(event.duration, around[-1].end - event.start)
            around[-1].self_time -= event.duration
            event.op = event.op or around[-1].op
        around.append(event)
    return ordered


def short_threads(events: Iterable[Event]) -> None:
    """Number the threads of each pool from 1, in the place of identifiers that are different in every process."""
    numbers: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for event in events:
        pool, found, _ = event.thread.rpartition("/")
        if found and event.thread not in numbers:
            counts[pool] += 1
            numbers[event.thread] = f"{pool} {counts[pool]}"
        event.thread = numbers.get(event.thread, event.thread)


def within_steps(events: Sequence[Event]) -> list[Event]:
    """Return the events that begin inside a step, cut at its end, and the steps themselves."""
    steps = sorted((e for e in events if e.name == STEP), key=lambda e: e.start)
    starts = [step.start for step in steps]
    kept = list(steps)
    for event in events:
        place = bisect.bisect_right(starts, event.start) - 1
        if event.name != STEP and place >= 0 and event.start < steps[place].end:
            event.duration = min(event.duration, steps[place].end - event.start)
            kept.append(event)
    return kept


def rows(events: Iterable[Event], steps: int) -> list[dict[str, Any]]:
    """Return the table, the longest self time first: op, name, calls and self seconds a step, share of all of them."""
    found: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.name != STEP:
            entry = found.setdefault((event.name, event.op or REST), [0, 0.0])
            entry[0] += 1
            entry[1] += event.self_time
    total = sum(time for _, time in found.values()) or 1.0
    return [
        {
            "op": op,
            "name": name,
            "calls": calls / steps,
            "self_seconds": time / steps / 1e6,
            "share": time / total,
        }
        for (name, op), (calls, time) in sorted(found.items(), key=lambda item: (-item[1][1], item[0]))
    ]


def totals(events: Sequence[Event]) -> dict[str, Any]:
    """Set the self times beside the time of the profiled steps; all in seconds a step.

    ``wall`` is a step under the profiler, ``self`` the sum of all self times and ``threads`` its parts. ``uncovered``
    is the part of a step in which no thread has an event open, ``overlap`` what ``self`` counts more than once because
    several have: self = wall - uncovered + overlap.
    """
    steps = [e for e in events if e.name == STEP]
    others = [e for e in events if e.name != STEP]
    each = 1e-6 / len(steps)
    threads: dict[str, float] = {}
    for event in others:
        threads[event.thread] = threads.get(event.thread, 0.0) + event.self_time * each
    wall, covered = sum(e.duration for e in steps) * each, _covered(others) * each
    added = sum(threads.values())
    uncovered, overlap = (max(0.0, round(x, 12)) for x in (wall - covered, added - covered))
    return {"wall": wall, "self": added, "threads": threads, "uncovered": uncovered, "overlap": overlap}


def _covered(events: Iterable[Event]) -> float:
    """Return the length of the union of events."""
    covered, until = 0.0, float("-inf")
    for event in sorted(events, key=lambda e: e.start):
        covered += max(0.0, event.end - max(event.start, until))
        until = max(until, event.end)
    return covered


def chrome_trace(events: Sequence[Event], about: dict[str, Any]) -> dict[str, Any]:
    """Return events in Chrome's trace event format; ``about`` names the process and goes along."""
    caller = next(e.thread for e in events if e.name == STEP)
    names = sorted({e.thread for e in events}, key=lambda name: (name != caller, name))
    numbers = {name: number for number, name in enumerate(names, 1)}
    zero = min(e.start for e in events)
    named: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": name}}
        for name, number in numbers.items()
    ]
    title = f"{about['case']} on {about['target']}"
    named.insert(0, {"ph": "M", "pid": 1, "tid": 1, "name": "process_name", "args": {"name": title}})
    complete = [
        {
            "ph": "X",
            "pid": 1,
            "tid": numbers[e.thread],
            "name": e.name,
            "cat": e.op or REST,
            "ts": round(e.start - zero, 3),
            "dur": round(e.duration, 3),
            "args": {"op": e.op or REST} | ({"detail": e.detail} if e.detail else {}),
        }
        for e in events
    ]
    return {"traceEvents": named + complete, "displayTimeUnit": "ms", "otherData": about}
