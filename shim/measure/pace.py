"""Is the machine as fast as it was? Asked before the blocks of each case, which wait for better times where it is not.

A virtual machine's CPUs are moved between those of its host, every few seconds or minutes: two that share a cache may
land on parts of the chip that do not, where a thread takes five times as long to see what another one wrote, or on the
two halves of one core. Other programs and a throttled clock do the like. A ratio measured in such times is that of
another machine, and differs from the usual one by up to half. A matrix product on all CPUs shows each of them.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep

from shim import environments, files
from shim.measure import machine, process
from shim.statistics import SLOWER

PAUSE_SECONDS = 0.2  # between two looks
PATIENCE_SECONDS = 60.0  # what is too slow for so long has become usual


class Pace:
    """How fast this machine is, beside the best that this run and earlier ones have seen of it.

    ``seconds`` is the longest that all waiting together may take. Without a worker that answers nobody waits.
    """

    def __init__(self, threads: int, cpus: Sequence[int], seconds: float, folder: Path | None = None) -> None:
        self.seconds, self.waited = seconds, 0.0
        self._path = folder / "pace.json" if folder else None
        self._machine = f"{machine.cpu_model()}, {threads} threads"
        self.best = self._usual = self._known().get(self._machine, math.inf)
        variables = environments.variables() | process.variables(threads, "cpu")
        self._worker: process.Worker | None = process.Worker(Path(sys.executable), variables, cpus)

    def look(self) -> float:
        """Return how many times as long a product takes as in the best of times."""
        if self._worker is None:
            return 1.0
        try:
            seconds = float(self._worker.ask("pace")["seconds"])
        except (process.WorkerDied, KeyError):
            self._stop()
            return 1.0
        self.best, self._usual = min(self.best, seconds), min(self._usual, seconds)
        return seconds / self.best

    def wait(self) -> float:
        """Wait until the machine is fast enough, or for as long as may be; return the pace as :meth:`look` does."""
        pace, begun = self.look(), monotonic()
        while pace * self.best > SLOWER * self._usual and self.waited + monotonic() - begun < self.seconds:
            sleep(PAUSE_SECONDS)
            pace = self.look()
            if monotonic() - begun > PATIENCE_SECONDS:
                self._usual = max(self._usual, pace * self.best)
        self.waited += monotonic() - begun
        return pace

    def close(self) -> None:
        """End the worker, and keep what is known of this machine for later runs."""
        self._stop()
        known = self._known()
        if self._path and self.best < known.get(self._machine, math.inf):
            with contextlib.suppress(OSError):  # it is of use, but of no importance
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with files.replacing(self._path) as opened:
                    opened.write(json.dumps(known | {self._machine: self.best}).encode())

    def _stop(self) -> None:
        if self._worker:
            self._worker.kill()
            self._worker = None

    def _known(self) -> dict[str, float]:
        if self._path is None:
            return {}
        try:
            return {str(name): float(seconds) for name, seconds in json.loads(self._path.read_text()).items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}
