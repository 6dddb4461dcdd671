"""TensorFlow: ``tf.profiler``, whose xplane file the protocol buffers inside the tensorflow package itself read.

The names of ``tf.name_scope`` are part of every kernel's name, gradients included. XLA names its instructions itself;
whose they are stands in the compiled program, which the file holds too.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.compiler.xla.service import hlo_pb2
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from shim.backends import _tensorflow_optimizers
from shim.cases import Case
from shim.measure import clock
from shim.trace import naming
from shim.trace.events import Event

PROFILER = "tf.profiler"


def record(backend: Any, case: Case, mode: str, steps: int) -> list[Event]:
    """Profile some steps of a case and return their events."""
    with naming.scoped(tf.name_scope, (_tensorflow_optimizers, "update")):
        prepared = clock.prepare(backend, case, mode)
        naming.warm(prepared)
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        try:
            naming.run(prepared, steps, tf.profiler.experimental.Trace)
        finally:
            tf.profiler.experimental.stop()
        (path,) = Path(folder).glob("plugins/profile/*/*.xplane.pb")
        space = xplane_pb2.XSpace()
        space.ParseFromString(path.read_bytes())
    ops = naming.fused(instruction for plane in space.planes for instruction in _instructions(plane))
    return [event for plane in space.planes for line in plane.lines for event in _read(plane, line, ops)]


def _instructions(plane: Any) -> Iterator[tuple[str, str, str, str | None]]:
    """Yield the instructions of the XLA programs that a plane describes."""
    for stat in (stat for metadata in plane.event_metadata.values() for stat in metadata.stats):
        if plane.stat_metadata[stat.metadata_id].name != "Hlo Proto":
            continue
        program = hlo_pb2.HloProto()
        program.ParseFromString(stat.bytes_value)
        for computation in program.hlo_module.computations:
            for i in (i for i in computation.instructions if i.opcode not in naming.SHARED):
                called = str(i.called_computation_ids[0]) if i.opcode in ("fusion", "call") else None
                yield str(computation.id), i.name, i.metadata.op_name, called


def _read(plane: Any, line: Any, ops: dict[str, str]) -> list[Event]:
    events = []
    for e in line.events:
        name = plane.event_metadata[e.metadata_id].name
        if not e.duration_ps or name.startswith("end: "):
            continue
        start = line.timestamp_ns / 1e3 + e.offset_ps / 1e6
        if any(plane.stat_metadata[stat.metadata_id].name == "hlo_op" for stat in e.stats):
            short, op = re.sub(r"\.\d+$", "", name), ops.get(name)
        else:
            # A kernel is "node:type": nodes are many and named by place, so the table has one row for each type.
            node, _, kernel = name.rpartition(":")
            is_kernel = re.fullmatch(r"\w+", kernel) and re.fullmatch(r"[\w./-]+", node)
            op = naming.label(node) if is_kernel else None
            short = re.sub(r"(__inference_\w+?)_\d+$", r"\1", kernel if is_kernel else name)
        events.append(Event(short, start, e.duration_ps / 1e6, line.name or str(line.id), op, name))
    return events
