"""How long a GPU takes for something, to choose among algorithms: not for figures that are reported."""

from __future__ import annotations

import functools

import numpy as np

WAIT = 10**6  # cycles of the clock that the GPU waits

#: Keeps the GPU busy until the host has queued what is to be timed.
SPIN = 'extern "C" __global__ void spin(long long n) { for (long long t = clock64(); clock64() - t < n;); }'


@functools.cache
def _spin(cupy):
    return cupy.RawKernel(SPIN, "spin")


def seconds(cupy, run, rounds=2, repeats=10):
    """Return the seconds of a run, the least of some rounds; the first one is not timed."""
    events, stream, best = [cupy.cuda.Event() for _ in range(2)], cupy.cuda.get_current_stream(), float("inf")
    run()
    for _ in range(rounds):
        _spin(cupy)((1,), (1,), (np.int64(WAIT),))
        events[0].record(stream)
        for _ in range(repeats):
            run()
        events[1].record(stream)
        events[1].synchronize()
        best = min(best, cupy.cuda.get_elapsed_time(*events) * 1e-3 / repeats)
    return best
