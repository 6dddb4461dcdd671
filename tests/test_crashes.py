"""Trainings that are killed or run out of room, in processes of their own: what is kept, and how they go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from shim import article, cli, environments
from shim.measure import runfile
from shim.train import resume, train

SCRIPT = """
import os, resource, sys
from pathlib import Path
from shim import cli, environments
environments.python = lambda target: Path(sys.executable)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
if "LARGEST_FILE" in os.environ:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LARGEST_FILE"]),) * 2)
cli.main()
"""
TRAINING = ["train", "mnist_mlp", "--backends", "numpy", "--limit", "1500", "--epochs", "3"]
ARTICLE = ["article", "-m", "mnist_mlp", "-b", "numpy", "--scale", "0.02", "--repeats", "2", "--epochs", "2"]


@pytest.fixture(autouse=True)
def embedded_data(monkeypatch, tmp_path):
    monkeypatch.delenv("SHIM_DATA", raising=False)
    monkeypatch.setenv("SHIM_OFFLINE", "1")
    monkeypatch.setenv("SHIM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))


def _start(*arguments, **variables):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def _holds(path, record):
    return path.exists() and f'"record": "{record}"' in path.read_text()


def _is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _losses(run):
    return [(e["epoch"], e["loss"], e["test_loss"]) for e in run.epochs]


def _uninterrupted(path):
    return _losses(train("mnist_mlp", ["numpy"], limit=1500, epochs=3, threads=1, path=path))


def test_killing_the_command_in_an_epoch_takes_the_worker_along_and_loses_nothing(tmp_path):
    path = tmp_path / "run.jsonl"
    started = _start(*TRAINING, "--output", str(path))
    _wait_for(lambda: _holds(path, "epoch"))
    started.kill()
    started.communicate()
    (worker,) = runfile.read(path).workers
    _wait_for(lambda: not _is_running(worker["pid"]))
    before = _losses(runfile.read(path))
    assert 1 <= len(before) < 3
    run = resume(path)
    assert run.complete
    assert _losses(run)[: len(before)] == before
    assert _losses(run) == _uninterrupted(tmp_path / "whole.jsonl")


def test_a_full_disk_is_said_and_the_training_goes_on_when_there_is_room(tmp_path):
    """Neither a checkpoint nor the last records fit."""
    whole = _uninterrupted(tmp_path / "whole.jsonl")
    path, room = tmp_path / "run.jsonl", (tmp_path / "whole.jsonl").stat().st_size - 200
    started = _start(*TRAINING, "--output", str(path), LARGEST_FILE=str(room))
    _, said = started.communicate(timeout=60)
    assert started.returncode == 1
    assert "cannot write the checkpoint" in said
    assert "File too large; there is none" in said
    count = len(path.read_text().splitlines())
    assert said.splitlines()[-1] == (
        f"Error: cannot write to {path}: File too large; the {count} records before this one are safe; "
        f"to go on, run: shim train --resume {path}"
    )
    assert list(tmp_path.glob("*.part")) == []
    run = resume(path)
    assert run.complete
    assert _losses(run) == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_article_goes_on_where_it_was(tmp_path, number):
    folder = tmp_path / "folder"
    started = _start(*ARTICLE, "--output", str(folder))
    second = folder / "mnist_mlp.2.jsonl"
    _wait_for(lambda: _holds(second, "epoch"))
    os.killpg(started.pid, number)
    _, said = started.communicate(timeout=60)
    if number == signal.SIGINT:
        assert started.returncode == 1
        again = f"to go on, run: shim article --resume {folder}"
        assert said.splitlines()[-1] == f"Error: interrupted; what was trained is kept in {folder}; {again}"
    kept = [(folder / f"mnist_mlp.{n}.jsonl").read_text() for n in (1, 2)]
    result = CliRunner().invoke(cli.main, ["article", "--resume", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["complete"]
    first, second = article.read(folder).runs["mnist_mlp"]
    assert first.path.read_text() == kept[0]
    assert second.path.read_text().startswith(kept[1].rpartition("\n")[0])
    assert [run.header["config"]["seed"] for run in (first, second)] == [0, 1]
    assert [epoch["epoch"] for epoch in second.epochs] == [1, 2]


def test_a_full_disk_ends_an_article_with_the_command_that_goes_on(tmp_path):
    started = _start(*ARTICLE, "--output", str(tmp_path / "folder"), LARGEST_FILE="1500")
    _, said = started.communicate(timeout=60)
    assert started.returncode == 1
    assert said.splitlines()[-1].endswith(f"to go on, run: shim article --resume {tmp_path / 'folder'}")
    assert CliRunner().invoke(cli.main, ["article", "--resume", str(tmp_path / "folder")]).exit_code == 0
