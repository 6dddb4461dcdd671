"""Ops by hand, on NumPy's arrays or CuPy's, named while they run: what a backend computes with, with recorded calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from shim.backends._handwritten_programs import Programs
from shim.trace import naming
from shim.trace.recorder import Recorder


class Names:
    """Records each call of an op, of its gradient and of the optimizer, under the number of the call in a step.

    ``module`` may put another array module in the place of the backend's own.
    """

    def __init__(self, recorder: Recorder, module: Callable[[Any], Any] = lambda xp: xp) -> None:
        self._recorder, self._module = recorder, module
        self._calls: Counter[str] = Counter()

    def recorded(self, programs: Programs) -> Programs:
        """Return the same programs, recorded."""
        ops = {op: self._numbered(op, function) for op, function in programs.ops.items()}
        return replace(programs, xp=self._module(programs.xp), ops=ops, update=self.optimizer(programs.update))

    def optimizer(self, update: Callable[..., Any]) -> Callable[..., Any]:
        """Return what moves weights, recorded."""
        return self._recorder.call("update", update, naming.OPTIMIZER)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record a step; its calls are numbered from 1."""
        self._calls.clear()
        with self._recorder.scope(name):
            yield

    def _numbered(self, op: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self._calls[op] += 1
            label = f"{op} {self._calls[op]}"
            y, pullback = self._recorder.call(op, function, label)(*args, **options)
            return y, self._recorder.call(f"{op} gradient", pullback, label)

        return call
