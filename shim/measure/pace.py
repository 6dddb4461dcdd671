"""Is the machine as fast as it was? Asked before the blocks of each case, which wait for better times where it is not.

A virtual machine's CPUs are moved between those of its host, every few seconds or minutes: two that share a cache may
land on parts of the chip that do not, where a thread takes five times as long to see what another one wrote, or on the
two halves of one core. Other programs and a throttled clock do the like. A ratio measured in such times is that of
another machine, and differs from the usual one by up to half. A matrix product on all CPUs shows each of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep

from shim import environments
from shim.measure import process

SLOWER = 1.2  # times the best so far is too slow
PAUSE_SECONDS = 0.2  # between two looks
#: What is too slow for so long is how fast the machine now is.
PATIENCE_SECONDS = 60.0


class Pace:
    """The pace of a run, which is its own measure: nothing is known before the first look.

    ``seconds`` is the longest that all waiting together may take. Without a worker that answers nobody waits.
    """

    def __init__(self, threads: int, cpus: Sequence[int], seconds: float) -> None:
        self.seconds, self.waited = seconds, 0.0
        self.best = float("inf")
        variables = environments.variables() | process.variables(threads, "cpu")
        self._worker: process.Worker | None = process.Worker(Path(sys.executable), variables, cpus)

    def look(self) -> float:
        """Return how many times as long a product takes as in the best of times so far."""
        if self._worker is None:
            return 1.0
        try:
            seconds = float(self._worker.ask("pace")["seconds"])
        except (process.WorkerDied, KeyError):
            self.close()
            return 1.0
        self.best = min(self.best, seconds)
        return seconds / self.best

    def wait(self) -> float:
        """Wait until the machine is fast enough, or for as long as may be; return the pace as :meth:`look` does."""
        pace, begun = self.look(), monotonic()
        while pace > SLOWER and self.waited + monotonic() - begun < self.seconds:
            sleep(PAUSE_SECONDS)
            if monotonic() - begun > PATIENCE_SECONDS:
                self.best *= pace
            pace = self.look()
        self.waited += monotonic() - begun
        return pace

    def close(self) -> None:
        """End the worker."""
        if self._worker:
            self._worker.kill()
            self._worker = None
