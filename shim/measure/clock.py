"""The clock: how a program is built, warmed up, calibrated and timed, the same way wherever anything is timed.

A block is one loop of calls with a single synchronisation at its end, so that asynchronous backends may overlap host
and device as they do in use. This module needs only the standard library.
"""

from __future__ import annotations

import functools
import gc
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from shim.cases import Case

#: The kernel's list of those who cannot wait for a sleeping CPU ("PM Quality of Service" in its documentation).
CPU_LATENCY = Path("/dev/cpu_dma_latency")

Call = Callable[[], Any]
Synchronize = Callable[[Any], None]


@dataclass(frozen=True)
class Prepared:
    """A case on a backend, ready for the clock. ``run`` is the built program, or the trainer of a model.

    ``renew`` returns the call of an op on fresh copies of its arrays: where arrays lie in memory can cost as much as
    what is done with them, and one place is too few samples of it. A trainer keeps its own.
    """

    call: Call
    renew: Callable[[], Call]
    synchronize: Synchronize
    build_seconds: float
    first_call_seconds: float
    run: Any


def prepare(backend: ModuleType, case: Case, mode: str, seed: int = 0) -> Prepared:
    """Build a case, put its arrays on the device and call it once; building and first call are timed apart.

    Nothing here says that the result is right: that is for :func:`shim.parity.verify`, before any further timing.
    """
    make = _trainer if case.is_model else _program
    run, renew, build_seconds = make(backend, case, mode, seed)
    call = renew()
    start = perf_counter()
    backend.synchronize(call())
    return Prepared(call, renew, backend.synchronize, build_seconds, perf_counter() - start, run)


def bind(program: Any, args: Sequence[Any], dy: Any = None) -> Call:
    """Return the bare program with its arguments: forward, or forward and backward where ``dy`` is given."""
    return functools.partial(program.bare, *args) if dy is None else functools.partial(program.bare, list(args), dy)


def _program(backend: ModuleType, case: Case, mode: str, seed: int) -> tuple[Any, Callable[[], Call], float]:
    backward = case.direction != "forward"
    args, dy = case.arrays(seed)

    def renew() -> Call:
        on_device = [backend.to_device(value) for value in args]
        gradient = backend.to_device(dy) if backward else None
        backend.synchronize((on_device, gradient) if backward else on_device)
        return bind(program, on_device, gradient)

    start = perf_counter()
    program = build_program(backend, case, mode)
    return program, renew, perf_counter() - start


def build_program(backend: ModuleType, case: Case, mode: str) -> Any:
    """Build the program of a case of an op."""
    from shim import contract

    options = dict(case.options)
    if case.direction == "forward":
        return backend.forward(case.op, options, mode)
    first = {"first": False} if case.direction == contract.WEIGHTS else {}
    return backend.forward_backward(case.op, options, mode, **first)


def _trainer(backend: ModuleType, case: Case, mode: str, seed: int) -> tuple[Any, Callable[[], Call], float]:
    from shim import cases, models

    model = models.load(case.op, **dict(case.options))
    params = model.initial(seed, case.dtype)
    x, labels = (backend.to_device(value) for value in model.batch(seed, case.dtype, dict(case.dims)["N"]))
    backend.synchronize((x, labels))
    start = perf_counter()
    trainer = backend.trainer(model, params, model.optimizer, mode, seed)
    if case.direction == cases.OPTIMIZER_STEP:
        call = trainer.updater(models.gradients(model, params, seed))
    elif case.direction == cases.PREDICT:
        call = functools.partial(trainer.predict, x)
    else:
        call = functools.partial(trainer.step if case.trains else trainer.gradients, x, labels)
    return trainer, lambda: call, perf_counter() - start


def block(call: Call, synchronize: Synchronize, loops: int) -> tuple[float, float, float]:
    """Time ``loops`` calls; return (seconds a call, CPU seconds of all threads, wall seconds)."""
    with _collector_off():
        cpu = process_time()
        start = perf_counter()
        for _ in repeat(None, loops):
            outputs = call()
        synchronize(outputs)
        wall = perf_counter() - start
        cpu = process_time() - cpu
    return wall / loops, cpu, wall


def calibrate(call: Call, synchronize: Synchronize, seconds: float) -> int:
    """Return the number of calls that takes about ``seconds``, at least 1."""
    loops = 1
    while True:
        each, _, wall = block(call, synchronize, loops)
        wanted = max(1, round(seconds / each)) if each > 0 else 10 * loops
        if wall >= 0.5 * seconds or wanted <= loops:
            return wanted
        loops = min(wanted, 10 * loops)


def warm_up(call: Call, synchronize: Synchronize, chunk_seconds: float = 0.01, limit_seconds: float = 1.0) -> float:
    """Call until two chunks in a row bring no further gain of 5 %, or until ``limit_seconds``; return the seconds."""
    start = perf_counter()
    loops, best, calm = 1, float("inf"), 0
    while calm < 2 and perf_counter() - start < limit_seconds:
        each, _, wall = block(call, synchronize, loops)
        if wall >= 0.5 * chunk_seconds:
            calm = 0 if each < 0.95 * best else calm + 1
            best = min(best, each)
        loops = max(1, min(10 * loops, round(chunk_seconds / each))) if each > 0 else 10 * loops
    return perf_counter() - start


def rewarm(
    call: Call,
    synchronize: Synchronize,
    loops: int,
    seconds: float,
    steady: float = float("inf"),
    limit_seconds: float = 0.08,
) -> float:
    """Call untimed after a pause, ``loops`` calls at a time, for ``seconds`` and until a call takes what it should.

    Return the seconds that it took.

    ``steady`` is the seconds of a call in the steady state; a quarter more will do. A process that was stopped may
    find all its threads on one CPU, and the system takes a while to spread them. ``limit_seconds`` bounds the wait.
    """
    start = perf_counter()
    while True:
        each, _, _ = block(call, synchronize, loops)
        elapsed = perf_counter() - start
        if elapsed >= limit_seconds or (elapsed >= seconds and each <= 1.25 * steady):
            return elapsed


@contextmanager
def awake(wanted: bool = True) -> Iterator[bool]:
    """Keep idle CPUs from going to sleep, where this process may; yield whether they are kept awake.

    A thread that waits lets its CPU sleep. To wake it takes microseconds, in a virtual machine tens of them and never
    as many as before, on everything that hands work from thread to thread. While the file is open, idle CPUs of Linux
    poll instead. By default only root may open it.
    """
    if not wanted:
        yield False
        return
    try:
        held = CPU_LATENCY.open("wb", buffering=0)
    except OSError:
        yield False
        return
    with held:
        held.write(struct.pack("i", 0))  # microseconds that waking up may take
        yield True


@contextmanager
def _collector_off() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
