"""CNTK: ``cntk.debugging``'s profiler with the timing of nodes, and the calls into CNTK timed from Python around it.

The profiler knows a node by its uid. Which op made it is noted while the graph is built.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from shim.backends import _cntk_graph as graph
from shim.backends import _cntk_training
from shim.backends._cntk_graph import C
from shim.cases import Case
from shim.measure import clock
from shim.trace import naming
from shim.trace.events import STEP, Event, ProfileIncomplete
from shim.trace.recorder import THREAD, Recorder

PROFILER = "cntk.debugging"


def record(backend: Any, case: Case, mode: str, steps: int) -> list[Event]:
    """Profile some steps of a case and return their events."""
    recorder, ops = Recorder(), _Ops()

    def recorded(name: str, op: str | None = None) -> Callable[..., Any]:
        return lambda function: recorder.call(name, function, op)

    calls = {"run": "Function.forward", "pull_back": "Function.backward", "clone": "Value.deep_clone"}
    with ExitStack() as stack:
        for name, shown in calls.items():
            stack.enter_context(naming.replaced(graph, name, recorded(shown)))
        stack.enter_context(naming.replaced(_cntk_training, "update", recorded("update", naming.OPTIMIZER)))
        stack.enter_context(naming.named(ops.wrap))
        C.debugging.set_node_timing(True)  # there is no way back: from here on this process times nodes
        prepared = clock.prepare(backend, case, mode)
        naming.warm(prepared)
        recorder.events.clear()
        with tempfile.TemporaryDirectory() as folder:
            C.debugging.start_profiler(folder, False)
            zero = perf_counter_ns() / 1e3  # the profiler counts from its start
            C.debugging.enable_profiler()
            naming.run(prepared, steps, recorder.scope)
            C.debugging.disable_profiler()
            C.debugging.stop_profiler()
            (path,) = Path(folder).glob("*_detail_.json")
            nodes = _nodes(json.loads(path.read_text()), zero, ops.found)
    last = max(event.start for event in recorder.events if event.name == STEP)
    if nodes and not any(node.start > last for node in nodes):
        raise ProfileIncomplete("CNTK's profiler has no room for so many nodes; ask for fewer steps with --steps")
    return recorder.events + nodes


class _Ops:
    """Which op made which node."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Note the nodes that a call of an op adds to the graph behind its result."""
        label = naming.label(name)
        assert label

        def call(*args: Any, **options: Any) -> Any:
            if not isinstance(args[0], _cntk_training.Symbol):  # a model that is looked at, not built
                return function(*args, **options)
            before = set().union(*(_uids(a.node) for a in args))
            y = function(*args, **options)
            self.found |= dict.fromkeys(_uids(y.node) - before, label)
            return y

        return call


def _uids(node: Any) -> set[str]:
    """Return the uids of all functions that a node follows from."""
    seen: set[str] = set()
    waiting = [node.root_function] if isinstance(node, C.Function) else [node.owner] if node.is_output else []
    while waiting:
        function = waiting.pop()
        if function.uid not in seen:
            seen.add(function.uid)
            waiting += [x.owner for x in function.inputs if x.is_output]
    return seen


def _nodes(entries: list[dict[str, Any]], zero: float, ops: dict[str, str]) -> list[Event]:
    """Pair the beginnings and ends of nodes, which do not nest."""
    events, begun = [], {}
    for entry in entries:
        key = entry["tid"], entry["name"]
        if entry["ph"] == "B":
            begun[key] = entry["ts"]
        elif key in begun:
            start, name = begun.pop(key), entry["name"]
            match = re.fullmatch(r"(\w+?)(\d+)(Forward|Backward)", name)
            shown = f"{match[1]} {match[3].lower()}" if match else name
            op = ops.get(f"{match[1]}{match[2]}") if match else None
            events.append(Event(shown, zero + start, entry["ts"] - start, THREAD, op, name))
    return events
