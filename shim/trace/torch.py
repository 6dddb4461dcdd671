"""PyTorch: ``torch.profiler``. The backward pass is told by the sequence numbers that autograd gives its nodes.

``torch.compile`` would break its graph at every name of an op, and the profile would be that of another program. Its
kernels have names of their own, after the functions that they fuse, and all of them count as ``compiled``.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch._dynamo
import torch._inductor.config
from torch.profiler import ProfilerActivity, record_function

from shim.backends import _torch_trainer
from shim.cases import Case
from shim.measure import clock
from shim.trace import naming
from shim.trace.events import Event, nest

PROFILER = "torch.profiler"
COMPILED = "compiled"  # of the ops in one compiled graph it is not known whose a kernel is
_REGIONS = ("Torch-Compiled Region", "CompiledFunction")
_BACKWARD = "autograd::engine::evaluate_function: "


def record(backend: Any, case: Case, mode: str, steps: int) -> list[Event]:
    """Profile some steps of a case and return their events."""
    compiled = mode == "compile"
    if compiled:
        torch._dynamo.reset()  # it would take the graphs of the timed program, whose kernels have no names
    with (
        naming.scoped(record_function, (_torch_trainer.Trainer, "_update"), ops=not compiled),
        torch._inductor.config.patch("cpp.enable_kernel_profile", compiled),
    ):
        prepared = clock.prepare(backend, case, mode)
        naming.warm(prepared)
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
            naming.run(prepared, steps, record_function)
    pairs = [(_event(e), e.sequence_nr) for e in profiler.events()]
    nest(event for event, _ in pairs)
    return _backward(pairs)


def _event(e: Any) -> Event:
    times = e.time_range.start, e.time_range.elapsed_us()
    op = COMPILED if e.name.startswith(_REGIONS) else naming.label(e.name)
    name = re.sub(r"CompiledFxGraph \w+", "CompiledFxGraph", naming.shown(e.name))  # a hash, another one each time
    return Event(name, *times, f"thread {e.thread}", op, e.name)


def _backward(pairs: list[tuple[Event, int]]) -> list[Event]:
    """Give each node of the backward pass to the op that made it: the last event with its number before it."""
    made: dict[int, str | None] = {}
    for event, number in sorted(pairs, key=lambda pair: pair[0].start):
        if number < 0:
            continue
        if event.name.startswith(_BACKWARD):
            event.op = event.op or made.get(number)
        elif event.op:
            made[number] = event.op
    return [event for event, _ in pairs]
