"""NumPy has no profiler: every NumPy function that the backend calls is timed around the call.

The backend's hand-written ops take the array module as an argument, so a module that records takes NumPy's place.
What is written as an operator or a method (``y += b``, ``dz.sum()``) is not seen, and stays with the op around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from shim.backends._handwritten_programs import Programs
from shim.cases import Case
from shim.measure import clock
from shim.trace import naming
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
    calls: Counter[str] = Counter()

    def numbered(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls[op] += 1
            label = f"{op} {calls[op]}"
            y, pullback = recorder.call(op, function, label)(*args, **options)
            return y, recorder.call(f"{op} gradient", pullback, label)

        return call

    @contextmanager
    def step(name: str) -> Iterator[None]:
        calls.clear()
        with recorder.scope(name):
            yield

    def recorded(programs: Programs) -> Programs:
        ops = {op: numbered(op, function) for op, function in programs.ops.items()}
        update = recorder.call("update", programs.update, naming.OPTIMIZER)
        return replace(programs, xp=_Recorded(recorder, "numpy", programs.xp), ops=ops, update=update)

    with ExitStack() as stack:
        stack.enter_context(naming.replaced(backend, "_programs", recorded))
        prepared = clock.prepare(backend, case, mode)
        naming.warm(prepared)
        recorder.events.clear()
        naming.run(prepared, steps, step)
    return recorder.events
