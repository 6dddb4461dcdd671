"""What the shim costs: a program beside the hand-written call of its framework, and the null backend under the clock.

As a command, in the environment of a backend::

    .shim/env/torch/bin/python -m benchmarks.bench_overhead torch
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from time import perf_counter

from . import direct
from .common import Benchmark, Timed, grid, load, parse

LIMIT = 1.02
PAIRS = 80
BLOCK_SECONDS = 0.01
SECONDS = 20.0  # after which 20 pairs suffice
CASES = [
    f"{op}/{direction}/{shape}/float32"
    for op, shape in (
        ("dense", "N128-I512-O512-activation=relu"),
        ("conv2d", "N32-H15-W15-C64-R3-S3-O64-activation=relu"),
        ("lstm", "N128-T40-I57-H128"),
        ("embedding_average", "N32-T400-V20000-D50"),
    )
    for direction in ("forward", "forward_backward")
]


class Overhead(Benchmark):
    """The time of a program divided by that of the call written by hand."""

    params = grid(CASES)
    param_names = ["backend", "case"]  # noqa: RUF012
    unit = "ratio"

    def setup(self, target, case_id):
        self.case, (self.backend, self.mode) = parse(case_id), load(target)
        self.by_hand = by_hand(self.backend, self.case)

    def track_ratio(self, target, case_id):
        times = compare(self.backend, self.case, self.mode, self.by_hand)
        return {"samples": [round(program / direct, 4) for program, direct in times], "number": 1}

    track_ratio.pretty_name = "program / hand-written call"


class Harness(Timed):
    """The null backend does nothing: what remains is the clock's own loop."""

    params = [["null"], ["dense/forward/N5-I7-O3/float32", "dense/forward_backward/N5-I7-O3/float32"]]  # noqa: RUF012

    def setup(self, target, case_id):
        from shim.measure import clock

        backend, mode = load(target)
        self.prepared = clock.prepare(backend, parse(case_id), mode)

    def timeop_null(self, target, case_id):
        self.call()

    timeop_null.pretty_name = "null backend"


def by_hand(backend, case):
    """Return the hand-written call for a case; raise ``ValueError`` if it computes something else than the program."""
    import numpy as np

    name = backend.__name__.rpartition(".")[2]
    args, dy = case.arrays()
    call, to_contract = direct.calls(name, case, args, dy)
    program = backend.forward(case.op, dict(case.options))
    wanted = backend.to_numpy(program(*[backend.to_device(value) for value in args]))
    if not np.allclose(to_contract(call()), wanted, rtol=1e-3, atol=1e-4):
        raise ValueError(f"{name}: the hand-written call for {case} has another result than the program")
    return call


def compare(backend, case, mode, by_hand, pairs=PAIRS, block_seconds=BLOCK_SECONDS):
    """Time program and hand-written call in turns; return pairs of their seconds a call.

    The two blocks of a pair follow one another in random order, so that whatever slows the machine slows both.
    """
    from shim.measure import clock

    prepared = clock.prepare(backend, case, mode)
    program, synchronize = prepared.call, prepared.synchronize
    synchronize(by_hand())
    for call in (program, by_hand):
        clock.warm_up(call, synchronize)
    loops = clock.calibrate(program, synchronize, block_seconds)
    order, times, end = random.Random(0), [], perf_counter() + SECONDS
    while len(times) < min(pairs, 20) or (len(times) < pairs and perf_counter() < end):
        pair = [0.0, 0.0]
        for which in order.sample((0, 1), 2):
            call = (program, by_hand)[which]
            clock.rewarm(call, synchronize, loops, block_seconds)  # else each pays for the other's traces in the caches
            pair[which] = clock.block(call, synchronize, loops)[0]
        times.append(tuple(pair))
    return times


def median_interval(values):
    """Return the median and the order statistics between which that of the population lies with 95 % confidence."""
    values = sorted(values)
    reach = 0.98 * math.sqrt(len(values))
    low, high = math.floor(len(values) / 2 - reach), math.ceil(len(values) / 2 + reach)
    return statistics.median(values), values[max(0, low)], values[min(len(values) - 1, high)]


def main(arguments=None):
    """Print the ratio for each case and the median of all; exit with 1 where a whole interval is above the limit."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_overhead",
        description="Compare the programs of a backend with the hand-written calls of its framework.",
    )
    parser.add_argument("backend", choices=list(direct.FRAMEWORKS))
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"pairs of blocks for each case (default {PAIRS})")
    parser.add_argument("--case", action="append", choices=CASES, metavar="CASE", help="only this case; repeatable")
    chosen = parser.parse_args(arguments)
    try:
        backend, mode = load(chosen.backend)
    except NotImplementedError as error:
        parser.exit(2, f"{error}\n")
    print(f"{'program':>11} {'by hand':>11}   ratio  95 % interval   case")
    medians, above = [], []
    for case_id in chosen.case or CASES:
        case = parse(case_id)
        try:
            times = compare(backend, case, mode, by_hand(backend, case), chosen.pairs)
        except NotImplementedError:
            continue
        program, direct_call = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
        value, low, high = median_interval([a / b for a, b in times])
        print(f"{program:8.1f} µs {direct_call:8.1f} µs   {value:5.3f}  [{low:.3f}, {high:.3f}]  {case_id}", flush=True)
        medians.append(value)
        above += [case_id] if low > LIMIT else []
    print(f"{chosen.backend}: median ratio {statistics.median(medians):.3f}, limit {LIMIT}")
    if above:
        raise SystemExit(f"above the limit: {', '.join(above)}")


if __name__ == "__main__":
    main()
