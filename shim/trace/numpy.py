"""NumPy has no profiler: every NumPy function that the backend calls is timed around the call.

The backend's hand-written ops take the array module as an argument, so a module that records takes NumPy's place.
What is written as an operator or a method (``y += b``, ``dz.sum()``) is not seen, and stays with the op around it.
"""

from __future__ import annotations

from typing import Any

from shim.cases import Case
from shim.measure import clock
from shim.trace import handwritten, naming
from shim.trace.events import Event
from shim.trace.recorder import Recorder

PROFILER = "timed calls of NumPy functions"


class _Recorded:
    """A module, or a ufunc with its methods, whose functions are recorded when they are called."""

    def __init__(self, recorder: Recorder, name: str, original: Any) -> None:
        self._recorder, self._name, self._original = recorder, name, original
        if callable(original):
            self._call = recorder.call(name, original)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._call(*args, **options)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._original, name)
        if callable(found) and not isinstance(found, type):
            found = _Recorded(self._recorder, f"{self._name}.{name}", found)
        setattr(self, name, found)
        return found


def record(backend: Any, case: Case, mode: str, steps: int) -> list[Event]:
    """Profile some steps of a case and return their events."""
    recorder = Recorder()
    names = handwritten.Names(recorder, lambda xp: _Recorded(recorder, "numpy", xp))
    with naming.replaced(backend, "_programs", names.recorded):
        prepared = clock.prepare(backend, case, mode)
        naming.warm(prepared)
        recorder.events.clear()
        naming.run(prepared, steps, names.step)
    return recorder.events
