"""Waiting for the machine: as long as may be, and no longer than it helps."""

from __future__ import annotations

import json
import os
import signal
import struct

import psutil
import pytest

from shim.measure import clock, pace


@pytest.fixture
def times(monkeypatch):
    """A clock that only sleeping moves, and the seconds slept."""
    slept = []

    def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(pace, "sleep", sleep)
    monkeypatch.setattr(pace, "monotonic", lambda: sum(slept))
    return slept


@pytest.fixture
def made():
    """Return a function that makes a pace whose looks find these seconds, the last of them for ever."""

    def make(*found, seconds=100.0, folder=None):
        it = pace.Pace(1, sorted(os.sched_getaffinity(0))[:1], seconds, folder)
        make.paces.append(it)
        left = list(found)
        it._worker.ask = lambda command: {"ok": True, "seconds": left.pop(0) if len(left) > 1 else left[0]}
        return it

    make.paces = []
    yield make
    for it in make.paces:
        it.close()


def files_held():
    """Return the files that this process has open."""
    return [file.path for file in psutil.Process().open_files()]


def test_a_look_multiplies_matrices_on_these_cpus():
    cpus = sorted(os.sched_getaffinity(0))
    it = pace.Pace(len(cpus), cpus, 1.0)
    try:
        looks = [it.look() for _ in range(3)]
    finally:
        it.close()
    assert looks[0] == 1.0
    assert min(looks) == 1.0 <= max(looks)
    assert 1e-5 < it.best < 1.0


def test_nobody_waits_while_the_machine_is_fast(made, times):
    it = made(1.0, 1.1, 0.9, 1.0)
    assert [it.wait() for _ in range(4)] == pytest.approx([1.0, 1.1, 1.0, 1 / 0.9])
    assert times == []
    assert it.waited == 0


def test_a_slow_machine_is_waited_for(made, times):
    it = made(1.0, 1.5, 1.5, 1.5, 1.1)
    assert it.wait() == 1.0
    assert it.wait() == pytest.approx(1.1)
    assert times == [pace.PAUSE_SECONDS] * 3
    assert it.waited == pytest.approx(3 * pace.PAUSE_SECONDS)


def test_all_waiting_together_has_an_end(made, times):
    it = made(1.0, 2.0, seconds=5.0)
    assert [it.wait() for _ in range(3)] == [1.0, 2.0, 2.0]
    assert sum(times) == pytest.approx(5.0, abs=2 * pace.PAUSE_SECONDS)


def test_what_is_slow_for_long_is_how_fast_the_machine_is(made, times):
    """It is said to be slow all the same, and better times are waited for once they have come back."""
    it = made(1.0, *[1.5] * 400, 1.0, 1.5, 1.0, seconds=1000.0)
    assert [it.wait() for _ in range(3)] == [1.0, 1.5, 1.5]
    assert sum(times) == pytest.approx(pace.PATIENCE_SECONDS, abs=2 * pace.PAUSE_SECONDS)
    while it.wait() > 1:
        pass
    assert sum(times) == pytest.approx(pace.PATIENCE_SECONDS, abs=2 * pace.PAUSE_SECONDS)
    assert it.wait() == 1.0
    assert sum(times) == pytest.approx(pace.PATIENCE_SECONDS, abs=3 * pace.PAUSE_SECONDS)


def test_what_earlier_runs_have_seen_counts(made, times, tmp_path):
    made(0.5, folder=tmp_path / "cache").look()
    for it in made.paces:
        it.close()
    it = made(1.0, seconds=2.0, folder=tmp_path / "cache")
    assert it.wait() == 2.0
    assert sum(times) == pytest.approx(2.0, abs=2 * pace.PAUSE_SECONDS)
    it.close()
    assert list(json.loads((tmp_path / "cache" / "pace.json").read_text()).values()) == [0.5]


@pytest.mark.parametrize("text", ["", "[]", '{"a": null}', "\\", '{"a": "fast"}'])
def test_a_damaged_memory_is_none(made, tmp_path, text):
    (tmp_path / "pace.json").write_text(text)
    it = made(1.0, folder=tmp_path)
    assert it.look() == 1.0
    it.close()
    assert list(json.loads((tmp_path / "pace.json").read_text()).values()) == [1.0]


def test_a_memory_that_cannot_be_written_is_done_without(made, tmp_path):
    (tmp_path / "file").touch()
    it = made(1.0, folder=tmp_path / "file")
    it.look()
    it.close()


def test_without_its_worker_nobody_waits(times):
    it = pace.Pace(1, sorted(os.sched_getaffinity(0))[:1], 100.0)
    os.kill(it._worker._process.pid, signal.SIGKILL)
    try:
        assert [it.wait(), it.wait()] == [1.0, 1.0]
    finally:
        it.close()
    assert times == []


def test_cpus_are_kept_awake_while_a_file_is_open(tmp_path, monkeypatch):
    path = tmp_path / "cpu_dma_latency"
    path.touch()
    monkeypatch.setattr(clock, "CPU_LATENCY", path)
    assert str(path) not in files_held()
    with clock.awake() as kept:
        assert kept
        assert struct.unpack("i", path.read_bytes()) == (0,)
        assert str(path) in files_held()
    assert str(path) not in files_held()


def test_where_they_may_not_be_kept_awake_or_need_not_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "CPU_LATENCY", tmp_path / "missing" / "cpu_dma_latency")
    with clock.awake() as kept:
        assert not kept
    monkeypatch.setattr(clock, "CPU_LATENCY", tmp_path / "cpu_dma_latency")
    with clock.awake(wanted=False) as kept:
        assert not kept
    assert not (tmp_path / "cpu_dma_latency").exists()
