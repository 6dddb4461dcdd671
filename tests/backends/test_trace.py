"""Profiles in the environment of each backend: one op, and a training step."""

from __future__ import annotations

import json

import pytest

from shim import cases, contract, trace
from shim.measure import clock
from shim.trace import session

OP = "lstm/forward_backward/N3-T5-I7-H4/float32"
STEP = "mnist_mlp/train_step/N3/float32"
STEPS = 3


def _profile(backend, mode, case_id, path):
    name = backend.__name__.rpartition(".")[2]
    if name not in trace.PROFILED:
        pytest.skip(f"{name} is not profiled, and `shim profile` says so")
    case = cases.parse(case_id)
    prepared = clock.prepare(backend, case, mode)
    return session.profile(name, backend, prepared, case, mode, name, STEPS, path)


def _mode(backend):
    """Return the first mode in which the op of every event is known."""
    return "eager" if backend.__name__.endswith(".cupy") else backend.MODES[0]


def _check(profile, path):
    rows, threads = profile["rows"], profile["threads"]
    assert rows
    assert all(row["calls"] > 0 and row["self_seconds"] >= 0 for row in rows)
    assert sum(row["self_seconds"] for row in rows) == pytest.approx(profile["self"])
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert 0 < profile["self"] <= len(threads) * profile["wall"] * (1 + 1e-6)
    assert all(0 < own <= profile["wall"] * (1 + 1e-6) for own in threads.values())
    added = profile["wall"] - profile["uncovered"] + profile["overlap"]
    assert profile["self"] == pytest.approx(added, rel=1e-6, abs=1e-9)
    assert 0 < profile["measured"][1] <= profile["measured"][0] <= profile["measured"][2]

    events = json.loads(path.read_text())["traceEvents"]
    complete = [e for e in events if e["ph"] == "X"]
    assert {e["ph"] for e in events} == {"M", "X"}
    assert all(e["name"] and e["ts"] >= 0 and e["dur"] >= 0 for e in complete)
    assert sum(e["name"] == "shim step" for e in complete) == STEPS
    assert len(complete) == round(sum(row["calls"] for row in rows) * STEPS) + STEPS


def test_of_one_op_every_row_is_its_own(backend, mode, tmp_path):
    profile = _profile(backend, mode, OP, tmp_path / "trace.json")
    _check(profile, tmp_path / "trace.json")
    assert {row["op"] for row in profile["rows"]} == {"lstm"}


def test_of_a_training_step_every_op_is_found(backend, mode, tmp_path):
    profile = _profile(backend, mode, STEP, tmp_path / "trace.json")
    _check(profile, tmp_path / "trace.json")
    found = {op for row in profile["rows"] for op in row["op"].split(" + ")}
    assert {op.partition(" ")[0] for op in found} <= {*contract.OPS, "optimizer", "rest", "compiled"}
    assert "optimizer" in found
    if mode == "compile":
        assert found == {"compiled", "optimizer", "rest"}
    elif (backend.__name__.rpartition(".")[2], mode) != ("cupy", "graph"):  # which names kernels of our own alone
        assert {"dense 1", "dense 2", "dense 3", "dropout 1", "dropout 2"} <= found
        assert not found & {"dense 4", "dropout 3", "compiled"}


def test_a_prediction_has_ops_and_no_optimizer(backend, tmp_path):
    profile = _profile(backend, _mode(backend), "mnist_mlp/predict/N3/float32", tmp_path / "trace.json")
    _check(profile, tmp_path / "trace.json")
    found = {op for row in profile["rows"] for op in row["op"].split(" + ")}
    assert {"dense 1", "dense 2", "dense 3"} <= found
    assert not found & {"dense 4", "softmax_cross_entropy 1", "optimizer"}


def test_of_the_optimizer_alone_every_row_is_its_own(backend, tmp_path):
    profile = _profile(backend, _mode(backend), "mnist_mlp/optimizer_step/N3/float32", tmp_path / "trace.json")
    _check(profile, tmp_path / "trace.json")
    assert {row["op"] for row in profile["rows"]} == {"optimizer"}


def test_the_ops_of_a_model_with_two_heads_and_a_table_are_found(backend, tmp_path):
    profile = _profile(backend, _mode(backend), "text_generator/train_step/N3/float32", tmp_path / "trace.json")
    _check(profile, tmp_path / "trace.json")
    found = {op for row in profile["rows"] for op in row["op"].split(" + ")}
    assert {"embedding 1", "lstm 1", "dense 4", "batch_norm 2", "softmax_cross_entropy 2", "optimizer"} <= found
    assert not found & {"embedding 2", "lstm 2", "dense 5", "batch_norm 3", "softmax_cross_entropy 3"}


def test_the_profile_leaves_the_timed_path_as_it_was(backend, tmp_path):
    from shim import models

    mode, before = backend.MODES[0], models.losses
    _profile(backend, mode, STEP, tmp_path / "trace.json")
    assert models.losses is before
    assert "shim.trace" not in type(backend.dense.bare).__module__
    case = cases.parse(STEP)
    first = clock.prepare(backend, case, mode)
    assert float(backend.to_numpy(first.call())) > 0
