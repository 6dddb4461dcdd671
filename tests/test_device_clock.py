"""The device's clock without a device: its arithmetic on records made up by hand, and what is said without CUPTI."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import fake_backends
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import cases, environments
from shim.measure import activities, bench, device, process, rounds, runfile
from shim.measure.activities import Activity
from shim.report.summary import summarise

FLUSH = 1000
CASE = "dense/forward/N5-I7-O3/float32"
OTHER = "dense/forward/N2-I3-O2/float32"
STATE = {"calls": 2, "kernel_seconds": [1e-6], "span_seconds": [2e-6], "kernels": 1.0, "longest": []}
without_cupti = pytest.mark.skipif(importlib.util.find_spec("cupti") is not None, reason="cupti-python is here")


def kernel(start, end, name="k", stream=0):
    return Activity("kernel", name, start, end, stream=stream)


def memset(start, end, size=FLUSH):
    return Activity("memset", "memset", start, end, size)


kinds = st.sampled_from(["kernel", "memcpy"])
names = st.sampled_from(["gemm", "adam", "average_2"])
#: What is done one after the other: (kind, name, gap before it, duration) in nanoseconds
in_turn = st.lists(st.tuples(kinds, names, st.integers(0, 50), st.integers(0, 900)), max_size=12)


def laid_out(parts, start=1):
    found = []
    for kind, name, gap, duration in parts:
        start += gap
        found.append(Activity(kind, name, start, start + duration))
        start += duration
    return found


# ------------------------------------------------------------------------------------------------------ arithmetic


def test_durations_are_added_and_a_span_has_the_gaps():
    found = [kernel(100, 300), Activity("memcpy", "memcpy", 450, 500), memset(500, 600)]
    assert device.kernel_seconds(found) == pytest.approx(350e-9)
    assert device.span_seconds(found) == pytest.approx(500e-9)


def test_on_two_streams_the_sum_counts_both_and_the_span_the_time_once():
    found = [kernel(100, 300, stream=1), kernel(100, 300, stream=2)]
    assert device.kernel_seconds(found) == pytest.approx(400e-9)
    assert device.span_seconds(found) == pytest.approx(200e-9)


def test_nothing_takes_no_time():
    assert device.kernel_seconds([]) == device.span_seconds([]) == 0
    assert device.longest([], 1) == []


@given(in_turn)
def test_in_turn_the_span_is_the_sum_and_the_gaps_whatever_the_order_of_the_records(parts):
    found = laid_out(parts)
    gaps = sum(gap for _, _, gap, _ in parts[1:])
    assert device.span_seconds(found[::-1]) == pytest.approx(device.kernel_seconds(found) + gaps / 1e9, abs=1e-15)


@given(st.lists(in_turn, min_size=1, max_size=5), in_turn, st.randoms(use_true_random=False))
def test_each_call_with_a_cold_cache_is_found_without_its_flush(calls, before, random):
    found, windows = laid_out(before), []
    for parts in calls:
        start = max((a.end for a in found), default=0) + 1
        found.append(memset(start, start + 40))
        windows.append(laid_out(parts, start + 41))
        found += windows[-1]
    random.shuffle(found)
    assert [sorted(window) for window in device.after_flushes(found, FLUSH)] == [sorted(w) for w in windows]


def test_a_memset_of_the_call_itself_is_no_flush():
    own = memset(50, 60, FLUSH - 1)
    assert device.after_flushes([memset(10, 40), own, kernel(70, 90)], FLUSH) == [[own, kernel(70, 90)]]


@given(in_turn, st.integers(1, 4))
def test_names_share_the_whole_kernel_time(parts, calls):
    found = laid_out(parts)
    rows = device.longest(found, calls)
    assert sum(row["seconds"] for row in rows) * calls == pytest.approx(device.kernel_seconds(found), abs=1e-15)
    assert sum(row["number"] for row in rows) * calls == pytest.approx(len(found))
    assert [row["seconds"] for row in rows] == sorted((row["seconds"] for row in rows), reverse=True)


def test_only_the_longest_names_are_kept_and_cut():
    found = [kernel(1, 10 + k, "x" * k + "y" * 300) for k in range(device.TOP + 5)]
    rows = device.longest(found, 1)
    assert len(rows) == device.TOP
    assert all(len(row["name"]) == device.LONGEST for row in rows)
    assert rows[0]["seconds"] == pytest.approx((9 + device.TOP + 4) / 1e9)


def test_a_summary_is_of_one_call():
    hot = [kernel(0, 100, "gemm"), Activity("memcpy", "memcpy", 100, 150), kernel(200, 300, "gemm"), kernel(300, 310)]
    found = device.summary([[hot], [hot]], 2)
    assert found["kernel_seconds"] == pytest.approx([130e-9] * 2)
    assert found["span_seconds"] == pytest.approx([155e-9] * 2)
    assert (found["calls"], found["kernels"]) == (2, 1.5)  # a copy is no kernel
    assert found["longest"][0] == {"name": "gemm", "number": 1, "seconds": pytest.approx(100e-9)}


def test_a_span_never_goes_over_the_gap_between_two_calls():
    found = device.summary([[[kernel(0, 100)], [kernel(10**9, 10**9 + 100)]]], 2)
    assert found["span_seconds"] == pytest.approx([100e-9])


# --------------------------------------------------------------------------------------------------- without CUPTI


@without_cupti
def test_without_cupti_the_command_that_installs_it_is_named():
    with pytest.raises(activities.DeviceClockUnavailable, match=r"not installed; .*pip install cupti-python==13\.0\.1"):
        device.measure(lambda: None, lambda outputs: None)
    with pytest.raises(activities.DeviceClockUnavailable):
        activities.records(lambda: None, lambda outputs: None)


def test_without_a_driver_there_is_nothing_to_flush(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", missing)
    with pytest.raises(activities.DeviceClockUnavailable, match=r"libcuda\.so\.1 cannot be loaded"), activities.Flush():
        pass


@without_cupti
def test_a_worker_says_what_is_missing_and_goes_on():
    cpus = sorted(os.sched_getaffinity(0))[:1]
    environ = environments.variables() | process.variables(1, "cpu")
    worker = process.Worker(Path(sys.executable), environ, cpus)
    try:
        row = {"case": CASE, "mode": "eager"}
        assert worker.ask("load", backend="numpy", threads=1)["ok"]
        assert worker.ask("prepare", **row)["ok"]
        assert worker.ask("calibrate", **row, block_seconds=0.001)["ok"]
        reply = worker.ask("device", **row)
        assert (reply["ok"], reply["stage"]) == (False, "unavailable")
        assert "pip install cupti-python" in reply["reason"]
        assert worker.ask("block", **row)["ok"]
    finally:
        worker.kill()


# ---------------------------------------------------------------------------------------------------- in comparisons


@pytest.fixture
def compare(tmp_path, monkeypatch):
    fake_backends.install(tmp_path, monkeypatch)
    monkeypatch.setattr(rounds, "CEILINGS", 0)  # a GPU's product is too large for the CPU that computes here

    def compare(**options):
        chosen = [cases.parse(CASE), cases.parse(OTHER)]
        brief = {"rounds": 2, "sweeps": 1, "block_seconds": 0.002}
        return bench.run(tmp_path / "run.jsonl", targets=["gpu"], cases=chosen, **brief | options)

    return compare


@without_cupti
def test_a_comparison_goes_on_without_device_times_and_says_so_once(compare):
    run = compare(device="cuda")
    assert run.complete
    assert not run.failures
    assert not run.devices
    (warning,) = run.warnings
    assert (warning["target"], warning["stage"]) == ("gpu", "device")
    (told,) = (text for text in summarise(run).warnings if "on the device" in text)
    assert "times on the device of gpu" in told
    assert "pip install cupti-python" in told


def _answering(monkeypatch, reply):
    """Let workers answer as a GPU would; return what they were asked for."""
    asked, ask = [], process.Worker.ask

    def answer(worker, command, **request):
        if command != "device":
            return ask(worker, command, **request)
        asked.append(request["case"])
        return dict(reply)

    monkeypatch.setattr(process.Worker, "ask", answer)
    return asked


def test_each_row_is_timed_on_the_device_once(compare, monkeypatch):
    asked = _answering(monkeypatch, {"ok": True, "hot": STATE, "cold": STATE})
    run = compare(device="cuda")
    assert sorted(asked) == sorted([CASE, OTHER])
    assert [(d["round"], d["target"], d["mode"]) for d in run.devices] == [(0, "gpu", "eager")] * 2
    assert {d["case"] for d in run.devices} == {CASE, OTHER}
    assert run.devices[0]["hot"] == STATE


def test_a_case_whose_records_are_lost_costs_no_other_one(compare, monkeypatch):
    asked = _answering(monkeypatch, {"ok": False, "stage": "device", "reason": "CUPTI has lost records"})
    run = compare(device="cuda")
    assert len(asked) == 2
    assert [warning["case"] for warning in run.warnings] == sorted([CASE, OTHER])
    assert run.complete


def test_on_a_cpu_no_device_is_asked_for(compare, monkeypatch):
    asked = _answering(monkeypatch, {})
    assert compare(device="cpu").complete
    assert not asked


def test_what_was_timed_before_an_interruption_is_not_timed_again(compare, monkeypatch, tmp_path):
    asked = _answering(monkeypatch, {"ok": True, "hot": STATE, "cold": STATE})
    path = compare(device="cuda").path
    lines = path.read_text().splitlines(keepends=True)
    second = next(k for k, line in enumerate(lines) if '"round": 1,' in line)
    path.write_text("".join(lines[:second]))
    asked.clear()
    run = bench.resume(path)
    assert run.complete
    assert not asked
    assert len(runfile.read(path).devices) == 2
