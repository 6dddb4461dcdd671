"""``shim profile``: the kernels of one case or of a model's training step, from each framework's own profiler.

The target's process checks the case against the contract, times its step without a profiler, and profiles it: see
:mod:`shim.trace.session`. One module for each backend turns what its profiler says into events of one kind, those of
:mod:`shim.trace.events`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from shim import cases, environments
from shim.environments import Progress
from shim.measure import process

PROFILED = ("numpy", "tensorflow", "jax", "torch", "cntk", "cupy")
ON_GPU = ("cupy",)  # the others are profiled on the CPU
STAGES = ("load", "prepare", "profile")


class ProfileFailed(RuntimeError):
    """A target could not be profiled; the message says where it failed and why."""


def case(text: str) -> cases.Case:
    """Return the case with this id, or the training step of the model with this name."""
    return cases.parse(text) if "/" in text else cases.case_set("models", [text])[0]


def profile(
    text: str,
    target: str,
    progress: Progress,
    mode: str | None = None,
    steps: int | None = None,
    path: Path | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Profile a case or a model on a target, on ``threads`` CPUs or all; with ``path`` write the trace there.

    Return ``rows``, each with op, name, calls and self seconds a step and the share of all self times, and the times of
    a step in seconds: ``measured`` without the profiler (median, least, most), ``wall`` under it, ``self``,
    ``threads``, ``uncovered`` and ``overlap`` as :func:`shim.trace.events.totals` has them. Raises ``ValueError`` for
    bad input, ``OSError`` where the trace cannot be written, :class:`ProfileFailed` otherwise.
    """
    chosen, backend = case(text), environments.parse(target)[0]
    if backend not in PROFILED:
        reason = "it computes nothing" if backend == "null" else "there is no adapter for a profiler of it"
        raise ValueError(f"{backend!r} cannot be profiled: {reason}; choose from: {', '.join(PROFILED)}")
    python = environments.python(target)
    if path is not None:
        _check_writable(path)
    cpus = sorted(os.sched_getaffinity(0))
    if threads and threads > len(cpus):
        raise ValueError(f"{threads} threads were asked for, but this process may use only {len(cpus)} CPUs")
    cpus = cpus[:threads]
    device = "cuda" if backend in ON_GPU else "cpu"
    variables = environments.variables() | process.variables(len(cpus), device)
    progress.start(len(STAGES), f"profiling {target}")
    worker = process.Worker(python, variables, cpus)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            loaded = _ask(worker, target, progress, "load", backend=backend, device=device, threads=len(cpus))
            program = {"case": chosen.id, "mode": mode or loaded["modes"][0]}
            if program["mode"] not in loaded["modes"]:
                raise ValueError(f"unknown mode {mode!r}; the modes of {target} are: {', '.join(loaded['modes'])}")
            cache = str(environments.home() / "cache" / "parity")
            _ask(worker, target, progress, "prepare", **program, cache=cache)
            found = _ask(worker, target, progress, "profile", **program, shown=target, steps=steps, path=str(trace))
            if path is not None:
                shutil.copyfile(trace, path)
            return found
    finally:
        worker.kill()
        progress.stop()


def _ask(worker: process.Worker, target: str, progress: Progress, command: str, **request: Any) -> dict[str, Any]:
    try:
        reply = worker.ask(command, **request)
    except process.WorkerDied as error:
        raise ProfileFailed(f"{target} at {command!r}: the worker {error}") from None
    if not reply.pop("ok"):
        raise ProfileFailed(f"{target} at {reply['stage']!r}: {reply['reason']}")
    progress.advance(f"profiling {target}")
    return reply


def _check_writable(path: Path) -> None:
    """Raise the ``OSError`` of opening a file for writing; leave no new file behind."""
    there = path.exists()
    with path.open("ab"):
        pass
    if not there:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
