"""A recorder for what no profiler sees: calls from Python, timed one by one around the call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import Any

from shim.trace.events import Event

THREAD = "python"


class Recorder:
    """Holds the events of one thread, on the clock of ``time.perf_counter`` or another one of nanoseconds."""

    def __init__(self, now: Callable[[], int] = perf_counter_ns) -> None:
        self.events: list[Event] = []
        self._now = now

    def call(self, name: str, function: Callable[..., Any], op: str | None = None) -> Callable[..., Any]:
        """Return a function whose calls are recorded."""

        @functools.wraps(function, assigned=())
        def recorded(*args: Any, **options: Any) -> Any:
            start = self._now()
            try:
                return function(*args, **options)
            finally:
                self._add(name, start, op)

        return recorded

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Record what happens inside as one event."""
        start = self._now()
        try:
            yield
        finally:
            self._add(name, start, None)

    def _add(self, name: str, start: int, op: str | None) -> None:
        self.events.append(Event(name, start / 1e3, (self._now() - start) / 1e3, THREAD, op))
