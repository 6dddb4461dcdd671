"""JAX: ``jax.profiler``, whose trace of XLA's thunks ``jax.profiler.ProfileData`` reads without TensorBoard.

XLA keeps the names of ``jax.named_scope`` beside each instruction of the compiled program, but not in the trace: there
an event has the name of its instruction. A fusion may serve several ops at once, and is then all of theirs.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax

from shim.backends import _jax_trainer
from shim.cases import PREDICT, Case
from shim.measure import clock
from shim.models import optimizers
from shim.trace import naming
from shim.trace.events import Event

PROFILER = "jax.profiler"


def record(backend: Any, case: Case, mode: str, steps: int) -> list[Event]:
    """Profile some steps of a case and return their events."""
    with naming.scoped(jax.named_scope, (optimizers, "update"), (_jax_trainer, "_descend")):
        prepared = clock.prepare(backend, case, mode)
        naming.warm(prepared)
        ops = _ops(case, prepared)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            naming.run(prepared, steps, jax.profiler.TraceAnnotation)
        (path,) = Path(folder).glob("plugins/profile/*/*.xplane.pb")
        return _read(jax.profiler.ProfileData.from_file(str(path)), ops)


def _ops(case: Case, prepared: clock.Prepared) -> dict[str, str]:
    """Return the ops of each instruction of a model's compiled program; of a case of one op there is nothing to say."""
    trainer = prepared.run
    if case.trains:
        lower = partial(trainer._step.lower, trainer._state)
    elif case.direction == PREDICT:
        lower = partial(trainer._prediction.lower, *trainer._state[:2])
    else:
        return {}
    text = lower(*prepared.call.args).compile().as_text()  # type: ignore[attr-defined]
    return naming.fused(_instructions(text))


def _instructions(text: str) -> Iterator[tuple[str, str, str, str | None]]:
    computation = ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            computation = line.removeprefix("ENTRY ").split()[0].lstrip("%")
        elif match := re.match(r"\s+(?:ROOT )?%([\w.-]+) = .*? ([a-z][\w-]*)\(", line):
            if match[2] in naming.SHARED:
                continue
            full = re.search(r'op_name="([^"]*)"', line)
            called = re.search(r"(?:calls|to_apply)=%([\w.-]+)", line)
            yield computation, match[1], full[1] if full else "", called[1] if called else None


def _read(profile: Any, ops: dict[str, str]) -> list[Event]:
    events = []
    for plane in profile.planes:
        for line in plane.lines:
            for e in line.events:
                if not e.duration_ns or e.name.startswith("end: "):
                    continue
                instruction = dict(e.stats).get("hlo_op")
                name = re.sub(r"\.\d+$", "", e.name) if instruction else e.name
                times = e.start_ns / 1e3, e.duration_ns / 1e3
                events.append(Event(name, *times, line.name, ops.get(str(instruction)), instruction))
    return events
