"""The clock counts what the device does, once synchronised, and nothing that is not asked for: on simulated time."""

from __future__ import annotations

import gc
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import cases, protocol
from shim.measure import clock

LAUNCH, KERNEL = 1e-5, 1e-3  # seconds on the host and on the device


class Device:
    """An asynchronous device in simulated time: a call returns at once, and its work is done in order."""

    def __init__(self, kernel, first):
        self.now = self.busy_until = 0.0
        self.calls = 0
        self.kernel, self.first = kernel, list(first)  # seconds of a call, and of the first calls

    def call(self):
        self.now += LAUNCH
        self.busy_until = max(self.busy_until, self.now) + (self.first.pop(0) if self.first else self.kernel)
        self.calls += 1
        return self.calls

    def synchronize(self, outputs):
        assert outputs == self.calls  # the last outputs, or the wait may be for too little
        self.now = max(self.now, self.busy_until)


@pytest.fixture
def device(monkeypatch):
    return simulated(monkeypatch)


def simulated(monkeypatch, kernel=KERNEL, first=()):
    device = Device(kernel, first)
    monkeypatch.setattr(clock, "perf_counter", lambda: device.now)
    monkeypatch.setattr(clock, "process_time", lambda: 2 * device.now)
    return device


def test_a_block_ends_when_the_device_is_done(device):
    each, cpu, wall = clock.block(device.call, device.synchronize, 10)
    assert wall == pytest.approx(LAUNCH + 10 * KERNEL)
    assert each == wall / 10
    assert cpu == pytest.approx(2 * wall)


def test_a_clock_that_does_not_wait_is_found_out(device):
    _, _, wall = clock.block(device.call, lambda outputs: None, 10)
    assert wall < KERNEL


def test_time_is_linear_in_calls(device):
    one, ten = (clock.block(device.call, device.synchronize, loops)[2] for loops in (1, 10))
    assert 8.5 <= ten / one <= 11.5


def test_the_collector_is_off_and_comes_back(device):
    seen = []
    clock.block(lambda: seen.append(gc.isenabled()) or device.call(), device.synchronize, 2)
    assert seen == [False, False]
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        clock.block(lambda: 1 / 0, device.synchronize, 1)
    assert gc.isenabled()


@given(seconds=st.floats(1e-4, 1.0), kernel=st.floats(1e-4, 2.0))
def test_loops_fill_the_time_asked_for(seconds, kernel):
    with pytest.MonkeyPatch.context() as patch:
        device = simulated(patch, kernel)
        loops = clock.calibrate(device.call, device.synchronize, seconds)
        _, _, wall = clock.block(device.call, device.synchronize, loops)
        assert device.now < 30 * max(seconds, kernel)  # finding out stays cheap
    assert loops == 1 or 0.5 * seconds <= wall <= 1.5 * seconds


def test_warming_up_ends_when_nothing_is_gained(monkeypatch):
    slower_at_first = [0.5, 0.2, *(KERNEL * (1 + 0.9**k) for k in range(30))]
    device = simulated(monkeypatch, first=slower_at_first)
    seconds = clock.warm_up(device.call, device.synchronize)
    assert not device.first
    assert seconds == pytest.approx(device.now)
    assert seconds < 1.0


def test_warming_up_is_bounded(monkeypatch):
    device = simulated(monkeypatch, first=[0.5 * 0.9**k for k in range(100)])
    assert clock.warm_up(device.call, device.synchronize, limit_seconds=1.0) < 2.0


@pytest.mark.parametrize(("kernel", "calls"), [(1.0, 1), (0.015, 2), (0.006, 4), (1e-3, 20)])
def test_a_pause_is_followed_by_calls_for_some_time(monkeypatch, kernel, calls):
    device = simulated(monkeypatch, kernel)
    seconds = clock.rewarm(device.call, device.synchronize, max(1, round(0.004 / kernel)), 0.02)
    assert device.calls == calls  # whole chunks
    assert seconds == pytest.approx(device.now)


def test_a_pause_is_over_when_calls_take_what_they_should(monkeypatch):
    device = simulated(monkeypatch, first=[1.5 * KERNEL] * 30)
    clock.rewarm(device.call, device.synchronize, 4, 0.01, steady=KERNEL)
    assert device.calls == 36  # eight chunks with slow calls, and one that is as fast as before


def test_waiting_for_the_steady_state_is_bounded(monkeypatch):
    device = simulated(monkeypatch, 2 * KERNEL)
    assert 0.08 <= clock.rewarm(device.call, device.synchronize, 4, 0.01, steady=KERNEL) < 0.1


class Recorder:
    """A backend that notes what is done with it; arrays carry a mark once they are on the device."""

    MODES = ("eager",)

    def __init__(self):
        self.done = Counter()

    def to_device(self, value):
        self.done["to_device"] += 1
        return SimpleNamespace(value=value, shape=value.shape, dtype=value.dtype)

    def synchronize(self, outputs):
        self.done["synchronize"] += 1

    def forward(self, op, options, mode):
        assert (op, options, mode) == ("dense", {"activation": "relu"}, "eager")
        return protocol.Program(self.bare, self.never)

    def forward_backward(self, op, options, mode):
        return protocol.Program(self.bare_backward, self.never)

    def bare(self, x, w, b):
        self.done["bare"] += 1
        assert [a.shape for a in (x, w, b)] == [(3, 5), (5, 2), (2,)]

    def bare_backward(self, args, dy):
        self.done["bare"] += 1
        assert [a.shape for a in (*args, dy)] == [(3, 5), (5, 2), (2,), (3, 2)]

    def never(self, *args):
        raise AssertionError("checks must stay off the clock")


@pytest.mark.parametrize(("direction", "arrays"), [("forward", 3), ("forward_backward", 4)])
def test_a_case_is_called_bare_on_arrays_of_the_device(direction, arrays):
    backend = Recorder()
    case = cases.parse(f"dense/{direction}/N3-I5-O2-activation=relu/float32")
    prepared = clock.prepare(backend, case, "eager")
    assert backend.done == {"to_device": arrays, "bare": 1, "synchronize": 2}
    clock.block(prepared.call, prepared.synchronize, 5)
    assert backend.done == {"to_device": arrays, "bare": 6, "synchronize": 3}
    prepared.renew()()
    assert backend.done == {"to_device": 2 * arrays, "bare": 7, "synchronize": 4}, "the same program on fresh arrays"
    assert prepared.build_seconds >= 0
    assert prepared.first_call_seconds > 0
