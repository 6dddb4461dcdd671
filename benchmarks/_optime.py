"""A kind of benchmark for asv, ``timeop_``: a prepared case under the same clock as ``shim bench``.

asv's own ``time_`` repeats ``setup`` before every call, which here would compile and upload anew each time, and it does
not synchronise. A ``timeop_`` benchmark has a ``setup`` that leaves a :class:`shim.measure.clock.Prepared` in
``self.prepared``; it runs once in a process. The benchmark's function makes one synchronised call: that is what
``asv profile`` looks into, while the clock gets the bare call.
"""

from __future__ import annotations

import re
from time import perf_counter

from asv_runner.benchmarks import benchmark_types
from asv_runner.benchmarks._base import _get_first_attr
from asv_runner.benchmarks.peakmem import PeakMemBenchmark
from asv_runner.benchmarks.time import TimeBenchmark
from asv_runner.benchmarks.track import TrackBenchmark


class _LeftOut:
    """asv stores ``left_out`` beside the parameters, where the environment plugin sees what need not be started."""

    def __init__(self, name, func, attr_sources):
        super().__init__(name, func, attr_sources)
        self.left_out = list(_get_first_attr(attr_sources, "left_out", []))


class Track(_LeftOut, TrackBenchmark):
    """asv's kind ``track_``, without processes for cases outside the profile."""


class PeakMemory(_LeftOut, PeakMemBenchmark):
    """asv's kind ``peakmem_``, without processes for cases outside the profile."""


class OpTimeBenchmark(_LeftOut, TimeBenchmark):
    """Time a prepared case: seconds a call, one synchronisation a sample.

    asv's attributes mean what they mean elsewhere: ``number`` calls a sample (0: as many as take ``sample_time``
    seconds), ``repeat`` samples (or least, most, and seconds after which the least suffice), ``warmup_time`` at most.
    """

    name_regex = re.compile("^(Timeop[A-Z_].+)|(timeop_.+)$")

    def run(self, *params):
        """Return the samples in the form that makes asv compute a median and its interval, and keep the samples."""
        from shim.measure import clock, pinning

        prepared = _get_first_attr(self._attr_sources, "prepared", None)
        call, synchronize = prepared.call, prepared.synchronize
        before, placement = pinning.seconds(), pinning.FREE
        if self.warmup_time:
            clock.warm_up(call, synchronize, limit_seconds=self.warmup_time)
        least, most, seconds = self.repeat if isinstance(self.repeat, (list, tuple)) else (self.repeat, self.repeat, 0)
        with clock.awake():
            number = self.number or clock.calibrate(call, synchronize, self.sample_time)
            if self.warmup_time:  # only threads that have worked are known
                placement = pinning.choose(before, lambda: clock.block(call, synchronize, number)[0])
            samples, end = [], perf_counter() + seconds
            with pinning.pinned(pinning.plan(placement, before)):
                while len(samples) < least or (len(samples) < most and perf_counter() < end):
                    samples.append(clock.block(call, synchronize, number)[0])
        return {"samples": samples, "number": number}


benchmark_types[:0] = [kind for kind in (OpTimeBenchmark, Track, PeakMemory) if kind not in benchmark_types]
