"""The process that is measured: one backend, asked over a pipe, one JSON object a line.

Started by :mod:`shim.measure.process` with the interpreter of the target's environment. Its environment variables
and CPUs are set before the framework is imported. Requests are ``{"command": "load" | "prepare" | "calibrate" |
"block" | "device" | "ceilings" | "pace" | "profile" | "quit", ...}``; each is answered by ``{"ok": true, ...}`` or
``{"ok": false, "stage", "reason"}``, and a failure is never the end of the process. The end of standard input is. While
a request is answered, idle CPUs are kept awake; while a block is timed, threads stay where they are.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

SAMPLES = 5  # parts of a block that are timed one by one, where calls are short enough
REWARM_SECONDS = 0.005  # of untimed calls before a block, at least


class Failed(Exception):
    """A request failed; ``stage`` says in which part of it."""

    def __init__(self, stage: str, error: BaseException) -> None:
        super().__init__(describe_error(error))
        self.stage = stage


@dataclass
class Ready:
    """A case that is ready for the clock: calls in a part of a block, parts, seconds of a call, CPUs of threads."""

    prepared: Any
    loops: int
    samples: int = SAMPLES
    steady: float = float("inf")
    places: dict[int, int] = field(default_factory=dict)

    def time_part(self) -> tuple[float, float, float]:
        """Time one part of a block on fresh copies of the arrays; what comes back is that of ``clock.block``."""
        from shim.measure import clock

        synchronize, before = self.prepared.synchronize, self.prepared.call
        self.prepared = replace(self.prepared, call=self.prepared.renew())  # both at once: these lie elsewhere
        if self.prepared.call is not before:
            del before
            clock.block(self.prepared.call, synchronize, min(self.loops, 2) + self.loops // 8)
        return clock.block(self.prepared.call, synchronize, self.loops)


class Session:
    """The backend of this process, the cases that agree with the contract, and those that are ready for the clock."""

    def __init__(self) -> None:
        self.name = ""
        self.awake = True  # whether idle CPUs are to be kept awake while this process answers
        self.pinned = True  # whether threads are to stay where they are put during a block
        self.backend: Any = None
        self.checked: dict[tuple[str, str], Any] = {}
        self.ready: dict[tuple[str, str], Ready] = {}

    def load(
        self,
        backend: str,
        device: str = "cpu",
        precision: str = "float32",
        threads: int | None = None,
        awake: bool = True,
        pinned: bool = True,
    ) -> dict[str, Any]:
        """Import a backend and set it up; both are timed.

        ``awake`` is whether idle CPUs are to be kept awake, ``pinned`` whether threads are to stay where they are put.
        """
        from shim.backends import load
        from shim.measure import clock

        with clock.awake() as kept:
            pass
        if not awake and not kept:
            raise Failed("setup", RuntimeError(f"CPUs sleep here anyway: this user may not open {clock.CPU_LATENCY}"))
        self.awake, self.pinned = awake, pinned and device == "cpu"
        start = perf_counter()
        try:
            self.name, self.backend = backend, load(backend)
        except Exception as error:
            raise Failed("import", error) from error
        imported = perf_counter()
        try:
            self.backend.setup(device=device, precision=precision, threads=threads)
            setup_seconds = perf_counter() - imported
            description = self.backend.describe()
        except Exception as error:
            raise Failed("setup", error) from error
        return {
            "import_seconds": imported - start,
            "setup_seconds": setup_seconds,
            "awake": kept if awake else None,
            "describe": description,
            "modes": list(self.backend.MODES),
            "cpus": sorted(os.sched_getaffinity(0)),
            "pid": os.getpid(),
        }

    def prepare(self, case: str, mode: str, cache: str | None = None) -> dict[str, Any]:
        """Build a case, call it once and check it against the contract."""
        from pathlib import Path

        from shim import cases, parity
        from shim.measure import clock
        from shim.protocol import Unsupported, fuses

        parsed = cases.parse(case)
        try:
            prepared = clock.prepare(self.backend, parsed, mode)
            implementation = self.backend.implementation(parsed, mode)
        except Unsupported as error:
            raise Failed("unsupported", error) from error
        except Exception as error:
            raise Failed("build", error) from error
        program = None if parsed.is_model else prepared.run
        try:
            if self.backend.MODES == ("null",):  # it computes nothing, to show what the harness itself costs
                passed = {"passed": None, "worst": None, "id": None}
            else:
                passed = parity.verify(self.backend, parsed, mode, program, Path(cache) if cache else None)
        except Exception as error:
            raise Failed("parity", error) from error
        self.checked[case, mode] = prepared
        more = {"by_rows": prepared.run.by_rows} if parsed.trains else {}
        if parsed.direction == cases.GRADIENTS:
            more = {"fused": fuses(self.backend, mode)}
        return {
            "build_seconds": prepared.build_seconds,
            "first_call_seconds": prepared.first_call_seconds,
            "implementation": implementation,
            "parity": passed,
            **more,
        }

    def calibrate(self, case: str, mode: str, block_seconds: float, placement: str | None = None) -> dict[str, Any]:
        """Warm a case up that has been checked, find out how many calls fill a block, and where threads are best put.

        ``placement`` is what was found out in another process; it is taken unless it does harm here.
        """
        from shim.measure import clock, pinning

        prepared = self.checked[case, mode]
        try:
            before = pinning.seconds()
            warm_seconds = clock.warm_up(prepared.call, prepared.synchronize, block_seconds / SAMPLES)
            loops = clock.calibrate(prepared.call, prepared.synchronize, block_seconds / SAMPLES)
            ready = Ready(prepared, loops)
            if not self.pinned or placement == pinning.FREE:
                placement = pinning.FREE
            elif placement:
                placement = pinning.confirm(placement, before, lambda: ready.time_part()[0])
            else:
                placement = pinning.choose(before, lambda: ready.time_part()[0])
            ready.places = pinning.plan(placement, before)
            with pinning.pinned(ready.places):
                each = sorted(clock.block(ready.prepared.call, prepared.synchronize, loops)[0] for _ in range(3))[1]
        except Exception as error:
            raise Failed("warm-up", error) from error
        if each > 0:
            ready.samples = min(SAMPLES, max(1, round(block_seconds / (loops * each))))
        ready.steady = each
        self.ready[case, mode] = ready
        return {"warm_seconds": warm_seconds, "placement": placement}

    def block(self, case: str, mode: str) -> dict[str, Any]:
        """Time one block of a case that is ready, after a few untimed calls."""
        from shim.measure import clock, pinning

        ready = self.ready[case, mode]
        call, synchronize = ready.prepared.call, ready.prepared.synchronize
        try:
            with pinning.pinned(ready.places):
                rewarm_seconds = clock.rewarm(call, synchronize, ready.loops, REWARM_SECONDS, ready.steady)
                del call
                timed = [ready.time_part() for _ in range(ready.samples)]
            ready.steady = max(each for each, _, _ in timed)
        except Exception as error:
            raise Failed("block", error) from error
        seconds, cpu, wall = zip(*timed, strict=True)
        return {
            "loops": ready.loops,
            "seconds": seconds,
            "cpu_seconds": sum(cpu),
            "wall_seconds": sum(wall),
            "rewarm_seconds": rewarm_seconds,
        }

    def device(self, case: str, mode: str) -> dict[str, Any]:
        """Measure what a case that is ready takes on the GPU itself; blocks after it would be timed under CUPTI."""
        from shim.measure import activities, device

        prepared = self.ready[case, mode].prepared
        try:
            return device.measure(prepared.call, prepared.synchronize)
        except activities.DeviceClockUnavailable as error:
            raise Failed("unavailable", error) from error

    def ceilings(self, mode: str, dtypes: list[str], device: str, threads: int) -> dict[str, Any]:
        """Measure what this machine can do at most."""
        from shim.measure import ceilings

        return ceilings.measure(self.backend, mode, dtypes, device, threads)

    def pace(self, size: int = 512, repeats: int = 4) -> dict[str, Any]:
        """Return the least seconds of a matrix product by NumPy on all threads; no backend needs to be loaded."""
        import numpy as np

        a = np.ones((size, size), np.float32)
        out = np.matmul(a, a)
        times = []
        for _ in range(repeats):
            start = perf_counter()
            np.matmul(a, a, out=out)
            times.append(perf_counter() - start)
        return {"seconds": min(times)}

    def profile(self, case: str, mode: str, shown: str, steps: int | None, path: str) -> dict[str, Any]:
        """Profile a case that has been checked, and write its trace, which shows the target as ``shown``."""
        from pathlib import Path

        from shim import cases
        from shim.trace import session

        prepared = self.checked[case, mode]
        return session.profile(self.name, self.backend, prepared, cases.parse(case), mode, shown, steps, Path(path))


def describe_error(error: BaseException) -> str:
    """Return an error as one line, with its type where it is not one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    ours = type(error).__module__.startswith("shim.")
    return (text if ours or text == type(error).__name__ else f"{type(error).__name__}: {text}")[:500]


def answer(session: Session, request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request."""
    from shim.measure import clock

    command = request.pop("command")
    try:
        with clock.awake(session.awake):
            result: dict[str, Any] = getattr(session, command)(**request)
        return {"ok": True} | result
    except Failed as failure:
        return {"ok": False, "stage": failure.stage, "reason": str(failure)}
    except Exception as error:
        return {"ok": False, "stage": command, "reason": describe_error(error)}


def end_with(parent: int) -> bool:
    """Let this process be killed as soon as its parent is dead; return whether the parent still lives."""
    if sys.platform == "linux":
        # A stopped process sees no end of input: only the kernel can take it along when its parent is killed.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    return os.getppid() == parent


def main(parent: int, cpus: list[int]) -> None:
    """Answer requests until standard input ends."""
    if not end_with(parent):
        return
    if sys.platform == "linux":
        os.sched_setaffinity(0, cpus)
    faulthandler.enable()
    # Frameworks print: keep the pipe for replies and let whatever they print go to standard error.
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    session = Session()
    for line in requests:
        request = json.loads(line)
        if request["command"] == "quit":
            break
        print(json.dumps(answer(session, request), default=str), file=replies)
    sys.stderr.flush()
    os._exit(0)  # nothing here needs an orderly end, and some frameworks take seconds for theirs


if __name__ == "__main__":
    main(int(sys.argv[1]), [int(cpu) for cpu in sys.argv[2].split(",")])
