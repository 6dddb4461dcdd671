"""Threads that stay on their CPUs while a block is timed."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shim.measure import pinning

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked to keep a thread on a CPU")
CPUS = sorted(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(CPUS) < 2, reason="there is one CPU, on which all threads are")


@pytest.fixture
def pool():
    """Three threads, made one after another."""
    meeting = threading.Barrier(3)
    with ThreadPoolExecutor(3) as threads:
        yield [made.result() for made in [threads.submit(_number, meeting) for _ in range(3)]], threads


def _number(meeting):
    meeting.wait(10)
    return threading.get_native_id()


def _work(seconds, begun):
    while pinning.seconds()[threading.get_native_id()] - begun < seconds:
        pass


def _let_work(threads, count=3):
    """Let this many threads of a pool work at the same time, for 50 ms of their own each."""
    meeting = threading.Barrier(count)

    def work():
        meeting.wait(10)
        _work(0.05, pinning.seconds()[threading.get_native_id()])

    for done in [threads.submit(work) for _ in range(count)]:
        done.result()


@several
def test_threads_that_worked_take_turns_on_the_cpus(pool):
    numbers, threads = pool
    before = pinning.seconds()
    _let_work(threads)
    plans = pinning.plans(before)
    for plan, start in zip(plans, (1, 0), strict=True):
        assert set(numbers) <= set(plan)
        first, *others = sorted(plan)
        assert plan[first] == CPUS[0]
        assert [plan[thread] for thread in others] == [
            CPUS[turn % len(CPUS)] for turn in range(start, start + len(others))
        ]


def test_a_thread_that_did_nothing_has_no_place(pool):
    numbers, _ = pool
    before = pinning.seconds()
    _work(0.05, before[threading.get_native_id()])
    assert not [plan for plan in pinning.plans(before) if set(numbers) & set(plan)]


@several
@pytest.mark.parametrize(
    ("times", "chosen", "least"),
    [
        ({"free": 1.0, 0: 0.9, 1: 0.8}, 1, 0.8),
        ({"free": 1.0, 0: 1.05, 1: 1.5}, 0, 1.05),
        ({"free": 1.0, 0: 1.2, 1: 1.5}, None, 1.0),
    ],
)
def test_the_fastest_plan_is_taken_unless_free_threads_are_faster(monkeypatch, times, chosen, least):
    me = threading.get_native_id()
    plans = [{me: CPUS[0]}, {me: CPUS[1]}]
    monkeypatch.setattr(pinning, "plans", lambda before: plans)

    def time():
        where = os.sched_getaffinity(0)
        return times["free" if where == set(CPUS) else CPUS.index(*where)]

    assert pinning.choose({}, time) == ({} if chosen is None else plans[chosen], least)


@several
def test_threads_are_kept_where_they_are_put_and_then_let_go_with_what_they_started(pool):
    numbers, _ = pool
    first, second, _ = numbers
    release, started = threading.Event(), threading.Event()
    child = threading.Thread(target=lambda: (started.set(), release.wait(10)))
    with pinning.pinned({first: CPUS[0], second: CPUS[1], threading.get_native_id(): CPUS[1], 2**22: CPUS[0]}):
        assert os.sched_getaffinity(first) == {CPUS[0]}
        assert os.sched_getaffinity(second) == {CPUS[1]}
        child.start()
        assert started.wait(10)
        assert os.sched_getaffinity(child.native_id) == {CPUS[1]}
    for thread in (0, *numbers, child.native_id):
        assert os.sched_getaffinity(thread) == set(CPUS)
    release.set()
    child.join()


@several
def test_threads_are_let_go_after_an_error():
    with pytest.raises(ValueError, match="a block that fails"), pinning.pinned({threading.get_native_id(): CPUS[0]}):
        raise ValueError("a block that fails")
    assert os.sched_getaffinity(0) == set(CPUS)


def test_where_the_system_tells_nothing_no_thread_is_placed(tmp_path, monkeypatch):
    monkeypatch.setattr(pinning, "TASKS", tmp_path / "none")
    assert pinning.seconds() == {}
    assert pinning.plans({}) == []
    assert pinning.choose({}, lambda: 2.0) == ({}, 2.0)
    (tmp_path / "none" / "17").mkdir(parents=True)
    assert pinning.seconds() == {}
    (tmp_path / "none" / "17" / "schedstat").write_text("not kept\n")
    assert pinning.seconds() == {}
