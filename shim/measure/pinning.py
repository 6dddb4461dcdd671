"""Threads that each have a CPU: those of a pool on different ones, while a block lasts.

A system may put two threads that are to work side by side on one CPU and leave them there for as long as a block, and
it moves them as it likes: the same calls then take one time or another, up to half as long again. OpenMP knows the
remedy as ``OMP_PROC_BIND``. Pools that are not OpenMP's have none, so the system is asked, for all backends alike. Only
Linux can be; elsewhere all threads are free.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from time import monotonic

TASKS = Path("/proc/self/task")
#: What pays depends on whether threads work at the same time or one after another. All of a pool are on CPUs ``apart``,
#: or the thread that calls has one ``alone`` and the pool the others.
FREE, APART, ALONE = PLACEMENTS = "free", "apart", "alone"
GAIN = 1.05  # times as fast as the one before it is what a placement has to be
HARM = 1.15  # times as slow as free threads, which are fast at times and slow at others, and they stay free
TURNS, SECONDS = 7, 1.0  # for choosing, and after how long two turns suffice
WORKS = 0.1  # of the time of the busiest thread; one that works less need not be placed


def seconds() -> dict[int, float]:
    """Return for how long each thread of this process has been running; none where the system does not tell."""
    found = {}
    for task in TASKS.iterdir() if TASKS.exists() else ():
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended, or times are not kept
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return found


def plan(placement: str, before: Mapping[int, float]) -> dict[int, int]:
    """Return a CPU for the first thread, and by turns for those that have worked since ``before``, in order of age.

    The threads of a pool are made one after another, so no two of them share a CPU as long as there are enough. The
    plan is empty where threads are to be free, there are no two of them or no two CPUs.
    """
    worked = {thread: now - before.get(thread, 0.0) for thread, now in sorted(seconds().items())}
    least = WORKS * max(worked.values(), default=0.0)
    pool = [thread for thread, spent in worked.items() if spent > least and thread != os.getpid()]
    cpus = sorted(os.sched_getaffinity(0)) if pool and placement != FREE else []
    if len(cpus) < 2:
        return {}
    turns = itertools.cycle(cpus[1:] + cpus[:1] if placement == APART else cpus[1:])
    return {os.getpid(): cpus[0]} | dict(zip(pool, turns, strict=False))


def choose(before: Mapping[int, float], time: Callable[[], float]) -> str:
    """Return the placement with which ``time`` gives the least; ``free`` only where any other does harm.

    Where free threads are matters to ``time``, and will be otherwise in the next block.
    """
    plans = {placement: plan(placement, before) for placement in PLACEMENTS}
    if not plans[APART]:
        return FREE
    medians = _medians(plans, time, TURNS)
    best = ALONE if GAIN * medians[ALONE] < medians[APART] else APART
    return FREE if medians[best] > HARM * medians[FREE] else best


def confirm(placement: str, before: Mapping[int, float], time: Callable[[], float]) -> str:
    """Return the placement that was chosen in another process, or ``free`` if it does harm in this one."""
    plans = {FREE: {}, placement: plan(placement, before)}
    if not plans[placement]:
        return FREE
    medians = _medians(plans, time, 3)
    return FREE if medians[placement] > HARM * medians[FREE] else placement


def _medians(plans: Mapping[str, Mapping[int, int]], time: Callable[[], float], turns: int) -> dict[str, float]:
    times: dict[str, list[float]] = {placement: [] for placement in plans}
    begun = monotonic()
    for turn in range(turns):
        if turn > 1 and monotonic() - begun > SECONDS:
            break
        for placement, places in plans.items():
            with pinned(places):
                times[placement].append(time())
    return {placement: median(found) for placement, found in times.items()}


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
