"""Threads that each have a CPU: those of a pool on different ones, while a block lasts.

A system may put two threads that are to work side by side on one CPU and leave them there for as long as a block, and
it moves them as it likes: the same calls then take one time or another, up to half as long again. OpenMP knows the
remedy as ``OMP_PROC_BIND``. Pools that are not OpenMP's have none, so the system is asked, for all backends alike. Only
Linux can be; elsewhere no thread is pinned.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

TASKS = Path("/proc/self/task")
IN_THE_WAY = 1.1  # times as long as with free threads, and they stay free
WORKS = 0.02  # of the time of the busiest thread; one that works less need not be placed


def seconds() -> dict[int, float]:
    """Return for how long each thread of this process has been running; none where the system does not tell."""
    found = {}
    for task in TASKS.iterdir() if TASKS.exists() else ():
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended, or times are not kept
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def plans(before: Mapping[int, float]) -> list[dict[int, int]]:
    """Return ways to give each thread that has worked since ``before`` a CPU: by turns, in the order they were made in.

    The threads of a pool are made one after another, so no two of them share a CPU as long as there are enough. The
    first thread, which calls, works along with the pool or waits for it: its CPU is the pool's last one or its first.
    """
    worked = {thread: now - before.get(thread, 0.0) for thread, now in sorted(seconds().items())}
    least = WORKS * max(worked.values(), default=0.0)
    threads = [thread for thread, spent in worked.items() if spent > least]
    cpus = sorted(os.sched_getaffinity(0)) if threads else []
    if len(cpus) < 2:
        return []
    first, *pool = threads
    return [
        {first: cpus[0]} | {thread: cpus[turn % len(cpus)] for turn, thread in enumerate(pool, start)}
        for start in ((1, 0) if pool else (0,))
    ]


def choose(before: Mapping[int, float], time: Callable[[], float]) -> tuple[dict[int, int], float]:
    """Return the fastest of these plans and what ``time`` gives with it, in seconds a call.

    The plan is empty where there is none or threads are in each other's way with all of them.
    """
    places: dict[int, int] = {}
    free, least = time(), math.inf
    for plan in plans(before):
        with pinned(plan):
            taken = time()
        if taken < least:
            places, least = plan, taken
    return (places, least) if least < IN_THE_WAY * free else ({}, free)


@contextlib.contextmanager
def pinned(places: Mapping[int, int]) -> Iterator[None]:
    """Keep threads where ``places`` puts them; afterwards all, new ones too, may go wherever this one might before."""
    if not places:
        yield
        return
    everywhere = os.sched_getaffinity(0)
    for thread, cpu in places.items():
        _allow(thread, {cpu})
    try:
        yield
    finally:
        for thread in seconds():
            _allow(thread, everywhere)


def _allow(thread: int, cpus: Iterable[int]) -> None:
    with contextlib.suppress(OSError):  # it has ended
        os.sched_setaffinity(thread, cpus)
