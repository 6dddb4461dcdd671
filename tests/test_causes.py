"""Tested causes: verdicts on known effects, a table that names what exists, and a real run of two rounds."""

from __future__ import annotations

import ast
import json
import sys
from dataclasses import replace
from pathlib import Path

import example_run as example
import numpy as np
import pytest
from click.testing import CliRunner

from shim import backends, cases, cli, environments, settings
from shim.explain import causes, hypotheses
from shim.explain.causes import Cause
from shim.measure import bench, runfile
from shim.report import causes as showing

CASE, OTHER = "dense/forward/N5-I7-O3/float32", "dense/forward/N7-I7-O3/float32"
GAP = Cause(
    name="made-up",
    question="Why is numpy slower than torch?",
    hypothesis="it has one thread",
    case=CASE,
    slow="numpy",
    fast="torch",
    switch="torch with one thread",
    predicted=(1.5, 2.5),
    because="two threads are at most twice as fast",
    fast_without="torch/one-thread",
)


def samples(seconds, rounds=5, spread=0.001, seed=0):
    """Return rounds of three sweeps around a time, each round with a level of its own."""
    rng = np.random.default_rng([seed, int(1e6 * seconds)])
    level = rng.lognormal(0, spread, (rounds, 1))
    return (seconds * level * rng.lognormal(0, spread, (rounds, 3))).tolist()


def judged(slow, fast, without, cause=GAP, **options):
    times = {(CASE, "numpy"): slow, (CASE, "torch"): fast, (CASE, "torch/one-thread"): without}
    return causes.judge(cause, {row: samples(seconds, **options) for row, seconds in times.items()})


# ------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("slow", "fast", "without", "verdict", "note"),
    [
        (4.0, 1.0, 2.0, "confirmed", ""),
        (4.0, 1.0, 1.49, "confirmed", ""),  # the interval overlaps the prediction
        (4.0, 1.0, 1.2, "refuted", "the effect is smaller than predicted"),
        (4.0, 1.0, 1.0, "refuted", "the effect is smaller than predicted"),
        (4.0, 1.0, 0.5, "refuted", "the effect is smaller than predicted"),  # of the wrong sign
        (4.0, 1.0, 3.0, "refuted", "the effect is larger than predicted"),
        (1.0, 2.0, 4.0, "refuted", "numpy is not slower than torch here"),
        (1.0, 1.0, 2.0, "refuted", "numpy is not slower than torch here"),
    ],
)
def test_known_effects_get_the_verdict_that_they_deserve(slow, fast, without, verdict, note):
    found = judged(slow, fast, without, spread=0.003)
    assert (found.verdict, found.note) == (verdict, note)
    assert found.gap.value == pytest.approx(slow / fast, rel=0.02)
    assert found.rest.value == pytest.approx(slow / without, rel=0.02)
    assert found.effect.value == pytest.approx(without / fast, rel=0.02)
    assert found.effect.low <= found.effect.value <= found.effect.high


def test_noise_that_hides_the_sign_is_undecided_however_well_the_middle_fits():
    found = judged(40.0, 1.0, 2.0, spread=0.8)
    assert found.effect.low < 1 < 1.5 < found.effect.high
    assert found.verdict == "undecided"


def test_two_rounds_are_too_few_for_a_verdict():
    found = judged(4.0, 1.0, 2.0, rounds=2)
    assert (found.verdict, found.rounds) == ("undecided", 2)


def test_an_effect_across_two_cases_is_a_ratio_of_ratios_of_the_same_round_and_sweep():
    cause = replace(GAP, fast_without=None, case_without=OTHER, predicted=(1.4, 1.6))
    slowdown = np.random.default_rng(7).lognormal(0, 1.0, (6, 3))  # of the whole machine
    times = {(CASE, "numpy"): 6.0, (CASE, "torch"): 1.0, (OTHER, "numpy"): 8.0, (OTHER, "torch"): 2.0}
    found = causes.judge(cause, {row: (seconds * slowdown).tolist() for row, seconds in times.items()})
    assert cause.rows == tuple(times)
    assert found.effect.value == pytest.approx(1.5)
    assert found.effect.high - found.effect.low == pytest.approx(0, abs=1e-12)
    assert found.verdict == "confirmed"


def test_missing_rows_leave_a_cause_undecided_with_the_reason():
    found = causes.judge(GAP, {(CASE, "numpy"): samples(4.0), (CASE, "torch"): samples(1.0)}, ["torch: it is broken"])
    assert (found.verdict, found.rounds, found.note) == ("undecided", 0, "torch: it is broken")
    assert found.gap.value == pytest.approx(4.0, rel=0.02)
    assert np.isnan(found.effect.value)


# -------------------------------------------------------------------------------------------------- the table of causes


def modes_of(backend):
    tree = ast.parse(backends.file(backend).read_text(encoding="utf-8"))
    (modes,) = (node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "MODES")
    return ast.literal_eval(modes)


@pytest.mark.parametrize("cause", hypotheses.CAUSES.values(), ids=hypotheses.CAUSES)
def test_every_cause_names_what_exists_and_changes_something(cause):
    for case, contestant in cause.rows:
        assert cases.parse(case).id == case
        target, _, mode = contestant.partition(":")
        backend, version = environments.parse(settings.split(target)[0])
        assert version is None
        assert not mode or mode in modes_of(backend)[1:]  # the first mode is not part of a label
    assert cause.gap != cause.rest
    assert len({cause.slow, cause.fast}) == 2
    assert 1 < cause.predicted[0] < cause.predicted[1]
    assert cause.question.endswith("?")
    assert cause.because.endswith(".")
    assert not cause.hypothesis.endswith(".")


def test_there_are_enough_causes_and_some_for_each_finding_of_the_article():
    assert len(hypotheses.CAUSES) >= 8
    of_2017 = {cause.case.split("/")[0] for cause in hypotheses.CAUSES.values() if "2017" in cause.question}
    assert of_2017 >= {"lstm", "conv2d", "imdb_fasttext"}


@pytest.mark.parametrize(
    ("target", "plain", "setting"),
    [("torch", "torch", settings.NONE), ("numpy@1.26.4/one-thread", "numpy@1.26.4", settings.SETTINGS["one-thread"])],
)
def test_a_target_is_split_from_its_setting(target, plain, setting):
    assert settings.split(target) == (plain, setting)


@pytest.mark.parametrize("target", ["torch/no-onednn", "numpy/", "numpy/fast"])
def test_a_setting_that_a_backend_does_not_have_is_answered_with_the_choices(target):
    with pytest.raises(ValueError, match=r"has no setting '.*'; it has: one-thread"):
        settings.split(target)


# -------------------------------------------------------------------------------------------------------------- reports


@pytest.fixture
def run(tmp_path):
    """Return a made-up run of the cause, in which it is confirmed."""
    targets = (("numpy", "eager"), ("torch", "eager"), ("torch/one-thread", "eager"))
    lines = example.records(targets, [CASE], [[4e-3, 1e-3, 2e-3]], rounds=5, spread=1e-3)
    return runfile.read(example.write(tmp_path / "run.jsonl", lines))


def test_only_confirmed_causes_are_told_as_causes(run):
    unlikely = replace(GAP, name="unlikely", predicted=(1.01, 1.1))
    found = causes.judge_all(run, {"made-up": GAP, "unlikely": unlikely})
    assert [finding.verdict for finding in found] == ["confirmed", "refuted"]
    told = list(showing.sentences(found))
    assert told[0] == "2 suspected causes tested: 1 confirmed and 1 refuted."
    assert len(told) == 2
    assert "ecause it has one thread: 4.00 times the time of torch, without that 2.00." in told[1]
    assert found[0].share == pytest.approx(0.5, abs=0.01)
    for effect, start in ((1.9, "In part because"), (2.1, "Because")):
        finding = replace(found[0], effect=replace(found[0].effect, value=effect))
        assert f"torch? {start} it has one thread" in showing.answer(finding)
    assert "Not shown to be because" in showing.answer(found[1])


def test_json_and_page_list_the_evidence_and_escape_it(run):
    hostile = replace(GAP, hypothesis=example.HOSTILE)
    found = causes.judge_all(run, {"made-up": hostile})
    (finding,) = json.loads(json.dumps(showing.as_json(run, found)))["findings"]
    assert finding["verdict"] == "confirmed"
    assert [row["contestant"] for row in finding["evidence"]] == ["numpy", "torch", "torch/one-thread"]
    assert finding["cause"]["rest"][1] == {"case": CASE, "contestant": "torch/one-thread"}
    page = showing.render(run, found)
    assert "<script>window" not in page
    assert CASE in page
    assert "torch/one-thread" in page


def test_a_run_of_something_else_has_no_causes(run):
    with pytest.raises(ValueError, match="has the rows of no known cause"):
        causes.judge_all(run, hypotheses.CAUSES)


# ----------------------------------------------------------------------------------------------------------- end to end


def shim(*arguments):
    return CliRunner().invoke(cli.main, list(map(str, arguments)))


def test_a_cause_is_tested_with_real_workers(tmp_path, monkeypatch):
    cause = replace(GAP, slow="numpy/one-thread", fast="numpy", case_without=OTHER, fast_without=None)
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    monkeypatch.setattr(environments, "installed", lambda: ["numpy"])
    monkeypatch.setattr(hypotheses, "CAUSES", {"made-up": cause, "gone": replace(GAP, name="gone")})
    path = tmp_path / "run.jsonl"
    result = shim("causes", "--rounds", 2, "--sweeps", 2, "--block-seconds", 0.002, "-o", path, "--json")
    assert result.exit_code == 0, result.output
    assert "left out: gone, which needs: shim env torch" in result.stderr
    (finding,) = json.loads(result.stdout)["findings"]
    assert (finding["verdict"], finding["rounds"]) == ("undecided", 2)
    assert all(row["seconds"]["median"] > 0 for row in finding["evidence"])
    run = runfile.read(path)
    assert {w["target"]: (len(w["cpus"]), w["variables"]["OMP_NUM_THREADS"]) for w in run.workers} == {
        "numpy/one-thread": (1, "1"),
        "numpy": (run.header["config"]["threads"], str(run.header["config"]["threads"])),
    }
    assert "Evidence" in path.with_suffix(".html").read_text()
    assert "Unknown whether" in " ".join(shim("causes", "--run", path).output.split())


def test_contestants_take_part_only_in_the_cases_that_name_them(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    run = bench.run(
        tmp_path / "run.jsonl",
        targets=["numpy", "numpy/one-thread"],
        cases=[cases.parse(CASE), cases.parse(OTHER)],
        only={CASE: ["numpy"]},
        rounds=1,
        sweeps=1,
        block_seconds=0.002,
    )
    assert {(b["case"], b["target"]) for b in run.blocks} == {
        (CASE, "numpy"),
        (OTHER, "numpy"),
        (OTHER, "numpy/one-thread"),
    }
    assert run.complete
    assert not run.failures


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["causes", "aliens"], "unknown cause 'aliens'; the causes are: cntk-lstm-steps"),
        (["causes", "numpy-threads", "--run", __file__], "--run takes the causes from the run file"),
        (["causes", "--run", __file__], "is damaged in line 1"),
        (["causes", "numpy-threads", "--rounds", "0"], "0 is not in the range"),
        (["bench", "--backends", "torch/fast"], "torch has no setting 'fast'; it has: one-thread"),
    ],
)
def test_bad_input_is_answered_with_the_choices(arguments, message):
    result = shim(*arguments)
    assert result.exit_code != 0
    assert message in result.output


def test_the_list_has_every_cause_with_its_prediction():
    text = " ".join(shim("causes", "--list").output.split())
    assert all(name in text for name in hypotheses.CAUSES)
    (only,) = json.loads(shim("causes", "tensorflow-call", "--list", "--json").stdout)["causes"]
    assert only["predicted"] == [15.0, 80.0]
