"""Ceilings: the least time that each resource needs, which one limits, and rows that cannot be."""

from __future__ import annotations

import io
import math
import time

import example_run as example
import pytest
from rich.console import Console

import shim
from shim import cases, statistics
from shim.explain import ceilings
from shim.measure import ceilings as measuring
from shim.measure import runfile
from shim.report import page, table
from shim.report.summary import summarise

RECORD = {
    "record": "ceiling",
    "round": 0,
    "target": "torch",
    "mode": "eager",
    "call_seconds": {"forward": 1e-6, "forward_backward": 3e-5},
    "flops_per_second": {"float32": 1e11},
    "copies": [{"bytes": 10**6, "bytes_per_second": 5e10}, {"bytes": 10**8, "bytes_per_second": 1e10}],
}
OTHER = RECORD | {"target": "numpy", "flops_per_second": {"float32": 2e11}, "copies": []}


def estimate(seconds):
    return statistics.Estimate(seconds, 0.99 * seconds, 1.01 * seconds)


def limit(id, seconds, records=(RECORD, OTHER), target="torch"):
    return ceilings.Ceilings(records).limit(cases.parse(id), target, "eager", estimate(seconds))


def test_the_demand_of_each_op_is_that_of_the_contract():
    case = cases.parse("dense/forward_backward/N3-I5-O7/float32")
    sizes = {"x": 15, "w": 35, "b": 7, "y": 21}
    once = 4 * sum(sizes.values())
    found = ceilings.demand(case)
    assert (found.flops, found.resident, found.traffic) == (3 * 2 * 3 * 5 * 7, once, "bandwidth")
    assert found.bytes == once + 4 * (15 + 35 + 7 + 21 + 15 + 35 + 7)


def test_a_training_step_moves_its_weights_and_the_optimizers_state():
    found = ceilings.demand(cases.parse("mnist_mlp/train_step/N128/float32"))
    assert found.traffic == "optimizer"
    assert found.bytes == 669_706 * 4 * 5  # RMSprop reads weight, gradient and one state, and writes two of them
    assert found.resident == 669_706 * 4 * 3
    assert found.flops > 128 * 3_209_216


def test_a_prediction_has_no_gradients_and_an_optimizer_alone_no_layers():
    step, predict, alone, gradients = (
        ceilings.demand(cases.parse(f"mnist_mlp/{direction}/N128/float32")) for direction in cases.MODEL_DIRECTIONS
    )
    assert 128 * 1_337_344 < predict.flops < 1.01 * 128 * 1_337_344 < step.flops / 2
    assert (gradients.flops, gradients.bytes) == (step.flops, 0)
    assert (alone.flops, alone.bytes, alone.traffic) == (0, step.bytes, "optimizer")


@pytest.mark.parametrize(
    ("id", "seconds", "resource", "share"),
    [
        ("dense/forward/N1000-I1000-O1000/float32", 0.02, "compute", 0.5),  # 2e9 operations at 2e11
        ("dense/forward/N1-I1-O1/float32", 2e-6, "latency", 0.5),
        ("dense/forward_backward/N1-I1-O1/float32", 6e-5, "latency", 0.5),
        ("concat/forward/N1000-A10000-B10000/float32", 0.032, "bandwidth", 0.5),  # 160 MB at 1e10
        ("concat/forward/N10-A10000-B10000/float32", 64e-6, "bandwidth", 0.5),  # 1.6 MB at 5e10
        ("mnist_mlp/train_step/N1/float32", 5 * 4 * 669_706 / 5e10, "optimizer", 1.0),
    ],
)
def test_the_limiting_resource_needs_the_largest_share(id, seconds, resource, share):
    found = limit(id, seconds)
    assert (found.resource, found.implausible) == (resource, False)
    assert found.share == pytest.approx(share, rel=0.01)
    assert str(found) == f"{resource} {100 * found.share:.0f} %"


def test_the_best_of_all_contestants_is_the_ceiling_and_only_the_own_call_counts():
    found = ceilings.Ceilings([RECORD, OTHER, RECORD | {"call_seconds": {"forward": 5e-7}}])
    assert found.flops_per_second["float32"] == 2e11
    assert found.call_seconds("torch", "eager", "forward") == 5e-7
    assert found.call_seconds("torch", "eager", "train_step") == 3e-5
    assert math.isnan(found.call_seconds("jax", "jit", "forward"))
    slow_cache = RECORD | {"copies": [{"bytes": 10**3, "bytes_per_second": 1.0}, *RECORD["copies"]]}
    assert ceilings.Ceilings([slow_cache]).bytes_per_second(10) == 5e10  # a cache is no slower than what lies behind
    assert math.isnan(ceilings.Ceilings([]).bytes_per_second(10))


def test_a_row_above_a_ceiling_is_implausible_and_one_at_it_is_not():
    id = "dense/forward/N1000-I1000-O1000/float32"
    assert not limit(id, 0.0099).implausible
    assert limit(id, 0.009).implausible
    assert limit(id, 0.009).share == pytest.approx(1.11, rel=0.01)
    assert not limit("dense/forward/N1-I1-O1/float32", 1e-8).implausible  # latency is no law of nature
    assert limit("dense/forward/N1-I1-O1/float32", 1e-8).share == 1.0


def test_without_ceilings_nothing_is_said():
    id = "dense/forward/N3-I5-O7/float64"
    assert limit(id, 1.0, records=(), target="torch") is None
    assert limit(id, 1.0, target="null") is None
    assert limit(id, 1e-3).resource == "latency"  # no rate of float64 is known


def test_the_report_shows_limits_and_warns_of_implausible_rows(tmp_path):
    lines = list(example.records(seconds=((1e-3,) * 5,) * 3 + ((1e-4,) * 5,)))
    run = runfile.read(example.write(tmp_path / "run.jsonl", [*lines[:-1], RECORD, OTHER, lines[-1]]))
    summary = summarise(run)
    found = {(case.name.id, e.contestant): e.limit for case in summary.cases for e in case.entries}
    assert found[example.CASES[0], "torch"].resource == "compute"
    assert found[example.CASES[0], "torch"].share == pytest.approx(2 * 128 * 784 * 512 / 2e11 / 1e-3, rel=0.02)
    assert any("faster than the ceilings" in w and "bilstm forward + backward" in w for w in summary.warnings)
    for width in (80, 140):
        console = Console(file=io.StringIO(), width=width)
        table.print_run(run, console)
        assert "compute 51 %" in console.file.getvalue()
    assert "compute 51 %" in page.render(run)
    row = table.as_json(run)["cases"][0]["rows"][0]
    assert row["limit"]["resource"] == "compute"


def test_a_worker_measures_its_ceilings(monkeypatch):
    monkeypatch.setattr(measuring, "SIDE", {"cpu": 64})
    monkeypatch.setattr(measuring, "COPIES", (2**14, 2**16))
    found = measuring.measure(shim.load("numpy"), "eager", ["float32", "float64"], "cpu", 2)
    rates = [*found["flops_per_second"].values(), *(copy["bytes_per_second"] for copy in found["copies"])]
    assert found["flops_per_second"].keys() == {"float32", "float64"}
    assert [copy["bytes"] for copy in found["copies"]] == [2**14, 2**16]
    assert all(1e5 < rate < 1e15 for rate in rates)
    assert all(1e-9 < seconds < 1 for seconds in found["call_seconds"].values())
    assert "copies" not in measuring.measure(shim.load("null"), "null", ["float32"], "cpu", 2)


@pytest.mark.parametrize(("longest", "sides"), [(0, [16]), (60, [16, 64])])
def test_a_slow_product_is_measured_on_smaller_matrices(monkeypatch, longest, sides):
    multiplied = []

    def program(backend, op, shapes, dtype, mode):
        multiplied.append(shapes[0][0])
        return lambda: time.sleep(1e-4)

    monkeypatch.setattr(measuring, "_program", program)
    monkeypatch.setattr(measuring, "LONGEST", longest)
    assert measuring._product_rate(None, "eager", "float16", 64) > 0
    assert multiplied == sides


def test_only_dtypes_that_a_backend_has_are_multiplied(monkeypatch):
    monkeypatch.setattr(measuring, "SIDE", {"cpu": 64})
    monkeypatch.setattr(measuring, "COPIES", (2**14,))
    found = measuring.measure(shim.load("numpy"), "eager", ["float16", "bfloat16"], "cpu", 2)
    assert found["flops_per_second"].keys() == {"float16"}
