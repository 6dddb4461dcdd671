"""Intervals cover what they promise, verdicts are earned, and drift or a missing block does no harm."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim import statistics
from shim.measure import schedule

TRUTH = 1.3


def draw(kind, rounds, sweeps, replications, seed=0):
    """Return samples of two contestants, (replications, rounds, sweeps), whose median ratio is TRUTH."""
    rng = np.random.default_rng(seed)
    drift = np.cumsum(rng.normal(0, 0.01, (replications, rounds * sweeps)), axis=1).reshape(-1, rounds, sweeps)

    def one():
        process, block = (replications, rounds, 1), (replications, rounds, sweeps)
        return {
            "no process effect": lambda: rng.normal(0, 0.05, block),
            "log-normal": lambda: rng.normal(0, 0.05, process) + rng.normal(0, 0.03, block),
            "bimodal processes": lambda: 0.1 * (rng.random(process) < 0.3) + rng.normal(0, 0.02, block),
            "bimodal blocks": lambda: 0.1 * (rng.random(block) < 0.3) + rng.normal(0, 0.02, block),
            "heavy tails": lambda: rng.normal(0, 0.02, process) + 0.03 * rng.standard_t(2, block),
            "skewed": lambda: rng.exponential(0.04, process) + rng.exponential(0.03, block),
        }[kind]()

    return TRUTH * np.exp(one() + drift), np.exp(one() + drift)


def coverage(intervals, truth=TRUTH):
    return np.mean([found.low <= truth <= found.high for found in intervals])


def flat(samples):
    """Forget which process a sample came from, as a bootstrap over all of them does."""
    return np.reshape(samples, (-1, 1))


KINDS = ("no process effect", "log-normal", "bimodal processes", "bimodal blocks", "heavy tails", "skewed")


@pytest.mark.parametrize("rounds", [3, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover_the_truth_as_often_as_they_promise(kind, rounds):
    found = [statistics.ratio(a, b) for a, b in zip(*draw(kind, rounds, 3, 1000), strict=True)]
    covered = coverage(found)
    print(f"{kind}, {rounds} rounds: coverage {covered:.3f}, half-width {np.median([f.half_width for f in found]):.1%}")
    assert 0.93 <= covered <= (0.97 if rounds > 5 else 0.985)


def test_processes_that_differ_need_rounds_not_only_samples():
    a, b = draw("log-normal", 7, 10, 300)
    ours = [statistics.ratio(x, y) for x, y in zip(a, b, strict=True)]
    theirs = [statistics.ratio(flat(x), flat(y)) for x, y in zip(a, b, strict=True)]
    assert coverage(ours) >= 0.93
    assert coverage(theirs) < 0.80


def test_twice_the_processes_narrow_the_interval():
    width = {
        rounds: np.median(
            [statistics.ratio(a, b).half_width for a, b in zip(*draw("log-normal", rounds, 3, 300), strict=True)]
        )
        for rounds in (10, 20)
    }
    assert 1.3 <= width[10] / width[20] <= 1.6


def test_the_same_backend_twice_is_rarely_told_apart():
    for kind in KINDS:
        a, b = draw(kind, 7, 3, 200, seed=1)
        verdicts = [statistics.ratio(x / TRUTH, y).verdict for x, y in zip(a, b, strict=True)]
        assert np.mean([verdict in ("faster", "slower") for verdict in verdicts]) <= 0.081, kind


def test_drift_of_the_machine_does_not_move_the_ratio():
    rounds, sweeps, cases, names = 7, 3, ["x", "y", "z"], ["a", "b", "c", "d"]
    order = [(r, *block) for r in range(rounds) for block in schedule.blocks(0, r, sweeps, cases, names)]
    one_after_the_other = sorted(order, key=lambda block: block[3])
    ratios = {}
    for way, blocks in (("interleaved", order), ("one after the other", one_after_the_other)):
        samples = {name: np.zeros((rounds, sweeps)) for name in names}
        for position, (round, sweep, case, name) in enumerate(blocks):
            if case == "x":
                samples[name][round, sweep] = 1 + 0.2 * position / len(blocks)
        ratios[way] = [statistics.ratio(samples[name], samples["a"]).value for name in names[1:]]
    assert np.allclose(ratios["interleaved"], 1, atol=0.01)
    assert max(ratios["one after the other"]) > 1.05


@pytest.mark.parametrize(
    ("factor", "spread", "rounds", "verdict"),
    [
        (1.0, 0.002, 7, "tie"),
        (1.02, 0.002, 7, "tie"),
        (0.98, 0.002, 7, "tie"),
        (1.2, 0.01, 7, "slower"),
        (0.8, 0.01, 7, "faster"),
        (1.03, 0.2, 7, "unknown"),
        (1.0, 0.2, 7, "unknown"),
        (2.0, 0.0, 3, "slower"),
        (2.0, 0.0, 2, "unknown"),
        (1.0, 0.0, 1, "unknown"),
    ],
)
def test_a_verdict_needs_an_interval_and_rounds(factor, spread, rounds, verdict):
    rng = np.random.default_rng(5)
    a, b = np.exp(spread * rng.standard_normal((2, rounds, 3)))
    found = statistics.ratio(factor * a, b)
    assert found.verdict == verdict
    if rounds < 3:
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    else:
        assert found.low <= found.value <= found.high


def test_missing_samples_leave_their_neighbour_out():
    a = [[2.0, None, 2.0], [2.0, 2.0, 50.0], [2.0], []]
    b = [[1.0, 9.0, 1.0], [1.0, 1.0, None], [1.0, 1.0, 1.0], [1.0]]
    found = statistics.ratio(a, b)
    assert (found.value, found.low, found.high, found.verdict) == (2, 2, 2, "slower")


@pytest.mark.parametrize(("a", "b"), [([], []), ([[None]], [[1.0]]), ([[1.0]], [[]])])
def test_nothing_in_common_is_no_ratio(a, b):
    found = statistics.ratio(a, b)
    assert math.isnan(found.value)
    assert found.verdict == "unknown"
    assert math.isnan(statistics.median_time([]).value)


def test_one_wild_process_does_no_harm_and_several_widen_the_interval():
    times = np.full((9, 3), 1.0)
    times[2] = 40.0
    found = statistics.median_time(times)
    assert (found.value, found.low, found.high) == (1, 1, 1)
    times[:4] = 40.0
    found = statistics.median_time(times)
    assert (found.value, found.low, found.high) == (1, 1, 40)


@given(st.floats(1e-3, 1e3), st.integers(3, 8), st.integers(1, 4), st.integers(0, 99))
def test_estimates_scale_with_their_samples(factor, rounds, sweeps, seed):
    a, b = np.exp(0.1 * np.random.default_rng(seed).standard_normal((2, rounds, sweeps)))
    one, other = statistics.ratio(a, b), statistics.ratio(factor * a, b)
    assert np.allclose([other.value, other.low, other.high], factor * np.array([one.value, one.low, one.high]))
    assert one == statistics.ratio(a, b)


def test_a_thousand_rows_take_seconds():
    rng = np.random.default_rng(0)
    samples = np.exp(rng.standard_normal((100, 7, 10)))
    start = time.process_time()
    for own in samples:
        statistics.ratio(own, samples[0])
        statistics.median_time(own)
    assert time.process_time() - start < 0.1 * 8  # seconds for 100 rows


def run_of(blocks, targets, cases=("x", "y"), baseline=None):
    """Make the part of a run that statistics reads."""
    return SimpleNamespace(
        header={"config": {"targets": targets, "cases": list(cases), "baseline": baseline}},
        blocks=[
            {"round": r, "sweep": s, "target": t, "mode": m, "case": c, "seconds": seconds}
            | {"cpu_seconds": 2 * sum(seconds), "wall_seconds": sum(seconds)}
            for r, s, t, m, c, seconds in blocks
        ],
        builds=[
            {"round": r, "target": t, "mode": m, "case": c, "build_seconds": 0.5, "first_call_seconds": 1.0 + r}
            | {"implementation": "library"}
            for r, s, t, m, c, _ in blocks
            if s == 0
        ],
        epochs=[],
        rounds=[],
    )


TARGETS = [
    {"target": "numpy", "mode": "eager", "label": "numpy"},
    {"target": "tensorflow", "mode": "graph", "label": "tensorflow"},
    {"target": "tensorflow", "mode": "xla", "label": "tensorflow:xla"},
    {"target": "torch", "mode": None, "label": "torch"},
]


def example():
    blocks = [
        (r, s, target, mode, "x", [seconds, 9 * seconds, seconds])
        for r in range(3)
        for s in range(2)
        for target, mode, seconds in (("numpy", "eager", 4.0), ("tensorflow", "graph", 2.0), ("tensorflow", "xla", 1.0))
    ]
    return run_of([*blocks, (0, 1, "numpy", "eager", "y", [1.0])], TARGETS)


def test_rows_compare_with_the_baseline():
    rows = {(row.case, row.contestant): row for row in statistics.rows(example(), "tensorflow")}
    assert list(rows) == [("x", "numpy"), ("x", "tensorflow"), ("x", "tensorflow:xla"), ("y", "numpy")]
    row = rows["x", "numpy"]
    assert (row.target, row.mode, row.implementation, row.rounds) == ("numpy", "eager", "library", 3)
    assert (row.time.value, row.ratio.value, row.ratio.verdict) == (4, 2, "slower")  # the middle part of each block
    assert (row.cpu_per_wall, row.build_seconds, row.first_call_seconds) == (2, 0.5, 2)
    assert row.samples == [[4.0, 4.0]] * 3
    assert (rows["x", "tensorflow"].ratio.value, rows["x", "tensorflow"].ratio.verdict) == (1, "tie")
    assert rows["x", "tensorflow:xla"].ratio.verdict == "faster"
    assert rows["y", "numpy"].ratio is None  # the baseline has no sample there
    assert rows["y", "numpy"].samples == [[None, 1.0]]


def paced(slow_rounds, rounds=9, product=1e-3):
    """Make a run in which numpy takes 2 times as long as torch, and 3 times while the machine is slow."""
    blocks = []
    for r in range(rounds):
        factor = 1 + 0.01 * (r % 3)
        for target, seconds in (
            ("numpy", (3.6 if r in slow_rounds else 2.0) * factor),
            ("torch", 1.2 if r in slow_rounds else 1.0),
        ):
            blocks += [(r, s, target, None, "x", [seconds]) for s in range(2)]
    run = run_of(blocks, [{"target": name, "mode": None} for name in ("numpy", "torch")])
    for block in run.blocks:
        block["product_seconds"] = product * (1.4 if block["round"] in slow_rounds else 1.1)
    return run


def test_a_row_is_of_the_pace_that_has_more_rounds():
    for slow, ratio, seconds in ((range(4), 2, 2), (range(5), 3, 3.6), (range(9), 3, 3.6), (range(4, 9), 3, 3.6)):
        run = paced(slow)
        run.rounds.append({"record": "round_end", "round": 8, "product_seconds": 1e-3})
        numpy, torch = statistics.rows(run)
        assert numpy.slow == torch.slow == (ratio == 3)
        assert numpy.ratio.value == pytest.approx(1.01 * ratio, rel=0.011)
        assert numpy.ratio.half_width < 0.02
        assert numpy.time.value == pytest.approx(1.01 * seconds, rel=0.011)
        assert numpy.rounds == 9  # all are shown
        assert None not in {value for sweeps in numpy.samples for value in sweeps}


def test_as_many_rounds_of_each_pace_are_told_by_the_faster():
    (numpy, _) = statistics.rows(paced(range(4), 8))
    assert (numpy.slow, round(numpy.ratio.value, 1)) == (False, 2.0)


def test_without_a_known_pace_everything_counts():
    run = paced(range(4))
    for block in run.blocks:
        block["product_seconds"] = {0: "fast", 1: None, 2: -1.0}.get(block["round"])
    (numpy, _) = statistics.rows(run)
    assert not numpy.slow
    assert numpy.ratio.half_width > 0.1
    assert {pace for sweeps in numpy.paces for pace in sweeps} == {1.0}


def test_another_baseline_can_be_chosen():
    rows = statistics.rows(example(), baseline="numpy")
    assert {row.contestant: row.ratio.value for row in rows if row.case == "x"} == {
        "numpy": 1,
        "tensorflow": 0.5,
        "tensorflow:xla": 0.25,
    }
    with pytest.raises(ValueError, match=r"'jax' is not in this run; its contestants are: numpy, tensorflow, "):
        statistics.rows(example(), baseline="jax")


def test_labels_need_no_label_in_the_file():
    targets = [{key: entry[key] for key in ("target", "mode")} for entry in TARGETS]
    assert list(statistics.labels(run_of([], targets)).values()) == ["numpy", "tensorflow", "tensorflow:xla", "torch"]
    assert statistics.choose_baseline(["jax", "tensorflow", "torch"]) == "torch"
    assert statistics.choose_baseline(["jax", "tensorflow"]) == "tensorflow"
    assert statistics.choose_baseline(["jax", "numpy"]) == "jax"
    assert statistics.choose_baseline([]) is None
