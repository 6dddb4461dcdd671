"""A worker process as its parent sees it: started, asked one thing at a time, stopped in between, never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

#: Seconds without an answer after which a worker counts as hanging.
TIMEOUTS = dict.fromkeys(("load", "calibrate", "block", "ceilings", "device", "pace"), 300.0) | {
    "prepare": 900.0,
    "profile": 600.0,
}


class WorkerDied(RuntimeError):
    """A worker is gone; the message says how."""


def variables(threads: int, device: str) -> dict[str, str]:
    """Return what is set for every worker, whatever its backend, before its framework is imported."""
    count = str(threads)
    chosen = {
        "OMP_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "NPROC": count,  # XLA's thread pool
        "TF_NUM_INTRAOP_THREADS": count,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }
    if device == "cpu":
        return chosen | {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    # Several workers share the GPU, and these two would take its memory for themselves.
    return chosen | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}


def _line(command: str, request: Mapping[str, Any]) -> bytes:
    return (json.dumps({"command": command} | dict(request)) + "\n").encode()


class Worker:
    """One worker process. It runs only while it is asked something; otherwise it is stopped (SIGSTOP).

    An idle worker is not enough: threads that spin after their last call slow down whoever comes next.
    """

    def __init__(self, python: Path, environ: Mapping[str, str], cpus: Sequence[int]) -> None:
        self._said = tempfile.TemporaryFile()
        command = [str(python), "-P", "-m", "shim.measure.worker", str(os.getpid()), ",".join(map(str, cpus))]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environ,
            start_new_session=True,  # Ctrl-C is for the parent alone
        )
        self._rest = b""
        self._alive = True
        self._posted: deque[bytes] = deque()
        self._collected: deque[bytes] = deque()

    def post(self, command: str, **request: Any) -> None:
        """Send a request ahead: the worker goes on with it at once, and :meth:`ask` for it brings the reply."""
        self._posted.append(_line(command, request))
        with contextlib.suppress(BrokenPipeError):  # ask will tell
            self._send(self._posted[-1])

    def collect(self) -> None:
        """Wait until what was posted is answered, and stop the worker; :meth:`ask` finds the replies, or fails.

        This is for a thread of its own, before anything is asked.
        """
        with contextlib.suppress(EOFError, OSError, ValueError):  # a time-out as well; ask will tell
            for line in tuple(self._posted):
                timeout = TIMEOUTS[json.loads(line)["command"]]
                self._collected.append(self._read_line(monotonic() + timeout))
        self._signal(signal.SIGSTOP)

    def ask(self, command: str, **request: Any) -> dict[str, Any]:
        """Return the reply to a request. Raises :class:`WorkerDied` if there will be none.

        Requests that were posted are asked for in the same order, before any other.
        """
        line = _line(command, request)
        try:
            if self._posted:
                posted = self._posted.popleft()
                assert posted == line
            else:
                self._send(line)
            reply = self._collected.popleft() if self._collected else self._read_line(monotonic() + TIMEOUTS[command])
        except (BrokenPipeError, EOFError):
            raise WorkerDied(self._ending()) from None
        except TimeoutError:
            self.kill()
            raise WorkerDied(f"gave no answer to {command!r} within {TIMEOUTS[command]:.0f} s") from None
        if not self._posted:
            self._signal(signal.SIGSTOP)
        found: dict[str, Any] = json.loads(reply)
        return found

    def _send(self, line: bytes) -> None:
        assert self._process.stdin
        self._signal(signal.SIGCONT)
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def _read_line(self, deadline: float) -> bytes:
        assert self._process.stdout
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - monotonic()))
            if not ready:
                raise TimeoutError
            part = os.read(pipe, 1 << 16)
            if not part:
                raise EOFError
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _ending(self) -> str:
        """Say how the process ended, with the last thing it said."""
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            status = 0
        how = f"exited with status {status}"
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
            how += " (out of memory?)" if -status == signal.SIGKILL else ""
        self._said.seek(0)
        lines = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        self.kill()
        return f"{how}: {lines[-1].strip()[:300]}" if lines and status >= 0 else how

    def kill(self) -> None:
        """End the process and whatever it started, at once; a second time does nothing."""
        if not self._alive:
            return
        self._alive = False
        self._signal(signal.SIGKILL)
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()
        self._said.close()
