"""``shim explain`` and ``shim map`` from the command line, on real backends at tiny shapes, and what they refuse."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from shim import cli, environments
from shim.explain import winmap

BRIEF = ["--rounds", "1", "--sweeps", "2", "--block-seconds", "0.002"]


def shim(*arguments):
    result = CliRunner().invoke(cli.main, list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def other(monkeypatch):
    """Return a backend beside numpy: torch where its environment is there, else numpy under another name."""
    if "torch" in environments.installed():
        return "torch"
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    return "numpy@1.26.4"


def test_a_model_is_explained_and_the_run_file_is_enough_to_do_it_again(tmp_path, other):
    path = tmp_path / "run.jsonl"
    result = shim("explain", "mnist_mlp", "numpy", other, "--batch", 3, *BRIEF, "-o", path, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["first"], found["second"], found["rounds"], found["missing"]) == ("numpy", other, 1, [])
    kinds = [term["kind"] for term in found["terms"]]
    assert kinds.count("optimizer") == kinds.count("call") == kinds.count("residual") == 1
    assert kinds.count("sequence") == 1
    assert "fusion" not in kinds
    assert (found["together"], found["apart"]) == (dict.fromkeys(["numpy", other], "sequence"), {})
    assert [t["name"] for t in found["terms"] if t["kind"] == "forward" and "dense" in t["name"]] == [
        "dense N3 I784 O512 activation=relu",
        "dense N3 I512 O512 activation=relu",
        "dense N3 I512 O10",
    ]
    assert sum(t["gap"]["median"] for t in found["terms"]) == pytest.approx(found["gap"]["median"])
    assert "The parts of a training step" in path.with_suffix(".html").read_text()
    again = shim("explain", "--run", path)
    assert again.exit_code == 0
    assert "optimizer, rmsprop" in again.output
    assert json.loads(shim("explain", "--run", path, "--json").stdout) == found


@pytest.mark.skipif("jax" not in environments.installed(), reason="the environment of jax is not there")
def test_fusion_is_measured_where_a_backend_compiles_across_ops(tmp_path):
    arguments = ("explain", "mnist_mlp", "numpy", "jax", "--batch", 3, *BRIEF)
    result = shim(*arguments, "-o", tmp_path / "run.jsonl", "--json")
    found = json.loads(result.stdout)
    terms = found["terms"]
    (fusion,) = (term for term in terms if term["kind"] == "fusion")
    assert (found["together"], found["apart"]) == ({"numpy": "sequence", "jax": "fusion"}, {})
    assert fusion["first"]["median"] == 0 != fusion["second"]["median"]
    assert found["missing"] == []
    assert sum(t["gap"]["median"] for t in terms) == pytest.approx(found["gap"]["median"])
    assert sum(t["second"]["median"] for t in terms) == pytest.approx(found["step"][1]["median"])


def test_a_map_is_made_within_its_budget_and_shown_again(tmp_path, monkeypatch, other):
    grid = winmap.Grid("dense", (("N", (1, 3)), ("I", (5, 7)), ("O", (2, 400))))
    monkeypatch.setitem(winmap.GRIDS, "dense", grid)
    monkeypatch.setattr(winmap, "SETTINGS", {"alone": 0, "rounds": 12, "sweeps": 2, "block_seconds": 0.002})
    path = tmp_path / "map.jsonl"
    result = shim("map", "dense", "--backends", f"numpy,{other}", "--budget", 0.1, "-o", path, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found["cells"]) == 8
    assert {cell["rounds"] for cell in found["cells"]} == {3}  # the budget allows no more than the first look
    assert all(set(cell["seconds"]) == {"numpy", other} for cell in found["cells"])
    assert "Where the winner changes" in path.with_suffix(".html").read_text()
    assert "of dense" in shim("map", "--run", path).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain"], "name a model and two backends; the models are: cifar10_cnn"),
        (["explain", "mnist_mlp", "numpy"], "name a model and two backends"),
        (["explain", "mnist", "numpy", "torch"], "unknown model 'mnist'; the models are: cifar10_cnn"),
        (["explain", "mnist_mlp", "numpy", "numpy"], "name two different backends"),
        (["explain", "mnist_mlp", "numpy", "caffe"], "unknown backend 'caffe'; the backends are: numpy"),
        (["explain", "mnist_mlp", "--run", __file__], "--run takes model and backends from the run file"),
        (
            ["map", "dense", "--shapes", "ptb"],
            "no shapes 'ptb' of 'dense'; there are: deepbench of dense, deepbench of",
        ),
        (["map"], "name an op: dense, conv2d, lstm, embedding_average"),
        (["map", "relu"], "there is no map of 'relu'; there are maps of: dense"),
        (["map", "dense", "--backends", "caffe"], "unknown backend 'caffe'"),
        (["map", "dense", "--run", __file__], "--run takes the op and its shapes from the run file"),
        (["map", "--run", __file__], "is damaged in line 1"),
    ],
)
def test_bad_input_is_answered_with_the_choices(arguments, message, monkeypatch):
    monkeypatch.setattr(environments, "python", lambda target: environments.parse(target) and Path(sys.executable))
    result = shim(*arguments)
    assert result.exit_code != 0
    assert message in result.output
