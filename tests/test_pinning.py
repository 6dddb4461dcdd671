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
@pytest.mark.parametrize(("placement", "cpus"), [(pinning.APART, CPUS[1:] + CPUS[:1]), (pinning.ALONE, CPUS[1:])])
def test_threads_that_worked_take_turns_on_the_cpus(pool, placement, cpus):
    numbers, threads = pool
    before = pinning.seconds()
    _let_work(threads)
    plan = pinning.plan(placement, before)
    assert set(plan) >= {os.getpid(), *numbers}
    assert plan.pop(os.getpid()) == CPUS[0]
    assert [plan[thread] for thread in sorted(plan)] == [cpus[turn % len(cpus)] for turn in range(len(plan))]
    assert pinning.plan(pinning.FREE, before) == {}


def test_threads_that_did_little_have_no_place(pool):
    numbers, _ = pool
    before = pinning.seconds()
    _work(0.05, before[threading.get_native_id()])
    assert not set(numbers) & set(pinning.plan(pinning.APART, before))


class Clock:
    """Give the time of a call by where the first thread of a pool of one is."""

    def __init__(self, monkeypatch, thread, **times):
        self.thread, self.times, self.asked = thread, times, []
        plans = {pinning.FREE: {}, pinning.APART: {thread: CPUS[1]}, pinning.ALONE: {thread: CPUS[0]}}
        monkeypatch.setattr(pinning, "plan", lambda placement, before: plans[placement])

    def __call__(self):
        places = {frozenset(CPUS): "free", frozenset(CPUS[1:2]): "apart", frozenset(CPUS[:1]): "alone"}
        self.asked.append(places[frozenset(os.sched_getaffinity(self.thread))])
        return self.times[self.asked[-1]]


@several
@pytest.mark.parametrize(
    ("free", "apart", "alone", "chosen"),
    [
        (1.0, 0.9, 0.8, "alone"),
        (1.0, 0.9, 0.88, "apart"),
        (1.0, 1.1, 1.5, "apart"),
        (1.0, 1.3, 1.1, "alone"),
        (1.0, 1.2, 1.16, "free"),
    ],
)
def test_threads_are_placed_where_they_are_fast(pool, monkeypatch, free, apart, alone, chosen):
    clock = Clock(monkeypatch, pool[0][0], free=free, apart=apart, alone=alone)
    assert pinning.choose({}, clock) == chosen
    assert clock.asked == ["free", "apart", "alone"] * pinning.TURNS
    assert os.sched_getaffinity(pool[0][0]) == set(CPUS)


@several
@pytest.mark.parametrize(("apart", "kept"), [(0.8, "apart"), (1.1, "apart"), (1.2, "free")])
def test_a_placement_found_in_another_process_is_kept_unless_it_does_harm(pool, monkeypatch, apart, kept):
    clock = Clock(monkeypatch, pool[0][0], free=1.0, apart=apart)
    assert pinning.confirm(pinning.APART, {}, clock) == kept


@several
def test_long_calls_are_tried_twice(pool, monkeypatch):
    monkeypatch.setattr(pinning, "monotonic", iter([0.0, *[2.0] * 10]).__next__)
    clock = Clock(monkeypatch, pool[0][0], free=1.0, apart=0.9, alone=1.0)
    assert pinning.choose({}, clock) == "apart"
    assert clock.asked == ["free", "apart", "alone"] * 2


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
    assert pinning.plan(pinning.APART, {}) == {}
    assert pinning.choose({}, None) == pinning.confirm(pinning.APART, {}, None) == pinning.FREE
    (tmp_path / "none" / "17").mkdir(parents=True)
    assert pinning.seconds() == {}
    (tmp_path / "none" / "17" / "schedstat").write_text("not kept\n")
    assert pinning.seconds() == {}
