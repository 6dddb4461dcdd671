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
    """Holds the events of one thread, on the clock of ``time.perf_counter``."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def call(self, name: str, function: Callable[..., Any], op: str | None = None) -> Callable[..., Any]:
        """Return a function whose calls are recorded."""

        @functools.wraps(function, assigned=())
        def recorded(*args: Any, **options: Any) -> Any:
            start = perf_counter_ns()
            try:
                return function(*args, **options)
            finally:
                self._add(name, start, op)

        return recorded

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Record what happens inside as one event."""
        start = perf_counter_ns()
        try:
            yield
        finally:
            self._add(name, start, None)

    def _add(self, name: str, start: int, op: str | None) -> None:
        self.events.append(Event(name, start / 1e3, (perf_counter_ns() - start) / 1e3, THREAD, op))
