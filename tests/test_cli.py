"""The command line: what a user types, what is answered, and with which exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import example_run
import fake_backends
import pytest
from click.testing import CliRunner

from shim import cli, data, environments
from shim.cli import common
from shim.measure import runfile

CASE = "dense/forward/N5-I7-O3-activation=relu/float32"
BRIEF = ["--rounds", "2", "--sweeps", "2", "--block-seconds", "0.005"]
COMMANDS = list(cli.main.commands)


def shim(*arguments):
    """Run one command in this process; a traceback is a failure of its own."""
    result = CliRunner().invoke(cli.main, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SHIM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SHIM_OFFLINE", "1")


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    fake_backends.install(tmp_path, monkeypatch)
    return tmp_path


# ---------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command):
    result = shim(command, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"  shim {command}" in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_are_commands_that_exist(command):
    """Parse every example up to the point where it would start to work."""
    for line in cli.main.commands[command].epilog.splitlines():
        _, found, text = line.partition("  shim ")
        if not found:
            continue
        words = text.split("   ")[0].split(" > ")[0].split()
        parser = cli.main.commands[words[0]].make_parser(_context(words[0]))
        parser.parse_args(words[1:])


def _context(command):
    import click

    return click.Context(cli.main.commands[command])


def test_the_list_of_commands_says_how_to_begin():
    result = shim("--help")
    assert "Start with 'shim env" in result.output
    assert all(command in result.output for command in COMMANDS)


def test_version():
    import shim as package

    assert shim("--version").output == f"shim, version {package.__version__}\n"


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--backends", "theano"], "unknown backend 'theano'; the backends are: numpy, tensorflow"),
        (["bench", "--backends", "torch@new"], "target 'torch@new': 'new' is not a version"),
        (["bench", "--backends", "torch"], "there is no environment for 'torch'; make it with: shim env torch"),
        (["bench"], "no backend is installed yet; run 'shim env numpy tensorflow jax torch'"),
        (["bench", "--set", "all"], "unknown case set 'all'; the sets are: article, models, scaled, smoke"),
        (["bench", "--model", "resnet"], "unknown model 'resnet'; the models are: imdb_bidirectional_lstm"),
        (["bench", "--dtype", "int8"], "unknown dtype 'int8'; the dtypes are: float32"),
        (["bench", "--case", "dense"], "case 'dense' is not of the form op/direction/shape/dtype"),
        (["bench", "--case", "gru/forward/N1/float32"], "unknown op 'gru'; the ops are: dense"),
        (["bench", "--case", "dense/sideways/N1-I1-O1/float32"], "unknown direction 'sideways'"),
        (["bench", "--case", "dense/forward/N1-I1/float32"], "dense has the axes N, I, O; got N, I"),
        (["bench", "--case", "dense/forward/N1-I1-O0/float32"], "cannot read 'O0'; axes look like N32"),
        (["bench", "--case", f"{CASE[:-8]}-stride=2/float32"], "dense has no option 'stride'; it has: activation"),
        (["bench", "--threads", "9999"], "9999 threads were asked for, but this process may use only"),
        (["bench", "--rounds", "0"], "Invalid value for '--rounds': 0 is not in the range x>=1"),
        (["bench", "--modes", "some"], "Invalid value for '--modes': 'some' is not one of 'default', 'all'"),
        (["bench", "--resume", "nowhere.jsonl"], "Path 'nowhere.jsonl' does not exist"),
        (["check", "theano"], "unknown backend 'theano'"),
        (["check", "--op", "gru"], "unknown op 'gru'; the ops are: dense"),
        (["train", "resnet"], "unknown model 'resnet'; the models are: cifar10_cnn, imdb_bid"),
        (["train", "mnist_mlp", "--backends", "torch"], "there is no environment for 'torch'"),
        (["train"], "name a model: cifar10_cnn, imdb_bidirectional_lstm"),
        (["train", "imdb_fasttext-ngrams=3"], "imdb_fasttext: ngrams=3 is not one of 2, 1"),
        (["train", "--resume", "nowhere.jsonl"], "Path 'nowhere.jsonl' does not exist"),
        (["train", "mnist_mlp", "--resume", __file__], "--resume takes everything else from the run file"),
        (["bench", "--case", "mnist_mlp/train_step/N5-I7/float32"], "a model has the axis N; got N, I"),
        (["bench", "--case", "resnet/train_step/N5/float32"], "unknown model 'resnet'; the models are: cifar10_cnn"),
        (["data", "cifar"], "unknown data set 'cifar'; the data sets are: mnist, imdb, cifar10, nietzsche"),
        (["report", "nowhere.jsonl"], "File 'nowhere.jsonl' does not exist"),
        (["env", "theano"], "unknown backend 'theano'"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_clear_line_and_a_status(arguments, message, monkeypatch):
    if "--threads" in arguments:
        monkeypatch.setattr(environments, "installed", lambda: ["numpy"])
        monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    result = shim(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in result.output


def test_debug_shows_where_an_error_comes_from():
    with pytest.raises(ValueError, match="unknown model 'resnet'"):
        shim("--debug", "train", "resnet")


def test_ctrl_c_ends_a_command_with_one_line(monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(environments, "rows", interrupted)
    result = shim("backends")
    assert (result.exit_code, result.output) == (1, "Error: interrupted\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: ["not JSON", *lines], "is damaged in line 1"),
        (lambda lines: [lines[0], lines[1][:40], *lines[2:]], "is damaged in line 2"),
        (lambda lines: [json.dumps(json.loads(lines[0]) | {"schema": 99}), *lines[1:]], "is written in schema 99"),
        (lambda lines: [], "holds no run: it is empty"),
        (lambda lines: lines[1:], "is not a run file: its first line is no run record"),
    ],
    ids=["garbage first", "half a line", "another schema", "empty", "no header"],
)
def test_a_damaged_run_file_is_named_with_its_line(tmp_path, damage, message):
    path = tmp_path / "run.jsonl"
    example_run.write(path, example_run.records())
    path.write_text("".join(f"{line}\n" for line in damage(path.read_text().splitlines())))
    result = shim("report", str(path))
    assert result.exit_code == 1
    assert str(path) in result.output.replace("\n", "")
    assert message in result.output
    assert not path.with_suffix(".html").exists()


# ----------------------------------------------------------------------------------------------------- list and env


def test_backends_are_listed_for_people_and_for_machines():
    assert "tensorflow" in shim("backends").output
    rows = {row["target"]: row for row in json.loads(shim("backends", "--json").output)}
    assert rows["torch"] == {
        "target": "torch",
        "state": "missing",
        "versions": {},
        "devices": ["cpu", "cuda"],
        "modes": ["eager", "compile"],
        "device": None,
        "reason": None,
    }


def test_without_names_those_take_part_that_run_on_the_device(monkeypatch):
    monkeypatch.setattr(environments, "installed", lambda: ["numpy", "torch", "cupy", "torch@2.6.0", "null"])
    assert common.chosen_targets([]) == ["numpy", "torch"]
    assert common.chosen_targets([], "cuda") == ["torch", "cupy"]
    monkeypatch.setattr(environments, "installed", lambda: ["numpy"])
    with pytest.raises(RuntimeError, match="no backend is installed yet; run 'shim env cupy jax torch'"):
        common.chosen_targets([], "cuda")


def test_what_cannot_be_installed_is_said_with_its_reason(monkeypatch):
    def fail(target, **options):
        if target == "torch":
            raise environments.EnvironmentFailed("no wheel for this Python")

    monkeypatch.setattr(environments, "create", fail)
    result = shim("env", "numpy", "torch")
    assert result.exit_code == 1
    assert result.output == "Error: could not be installed:\n  torch: no wheel for this Python\n"


# ------------------------------------------------------------------------------------------------------------ bench


def test_bench_ends_with_a_table_and_the_path_of_the_report(fakes):
    result = shim("bench", "--case", CASE, "--backends", "good,slow", *BRIEF)
    assert result.exit_code == 0
    run_file, page = (Path(line.split()[-1]) for line in result.output.splitlines()[-2:])
    assert runfile.read(run_file).complete
    assert run_file.parent == fakes / "home" / "runs"
    assert page.read_text().startswith("<!doctype html>")
    assert "slow" in result.output


def test_bench_prints_json_for_machines_and_nothing_else(fakes):
    result = shim("bench", "--case", CASE, "-b", "good", "-b", "slow", "--json", "-o", str(fakes / "run.jsonl"), *BRIEF)
    found = json.loads(result.stdout)
    assert [case["case"] for case in found["cases"]] == [CASE]
    assert {row["contestant"] for row in found["cases"][0]["rows"]} == {"good", "slow"}


def test_a_failure_leaves_the_others_and_a_status(fakes):
    result = shim("bench", "--case", CASE, "--backends", "good,missing", *BRIEF)
    assert result.exit_code == 1
    assert "libfast.so.3" in result.output
    assert "good" in result.output


def test_what_a_backend_is_not_made_for_is_told_and_no_failure(fakes):
    gradients = CASE.replace("/forward/", "/forward_backward/")
    result = shim("bench", "--case", CASE, "--case", gradients, "-b", "good,forward_only", *BRIEF)
    assert result.exit_code == 0
    assert "forward_only: not offered: no gradients here; it computes forward only" in result.output
    assert "failure" not in result.output


def test_an_interrupted_bench_goes_on_where_it_was(fakes):
    """Ctrl-C in a terminal reaches the whole group of processes, so it is sent to all of it."""
    tests = Path(__file__).parent
    script = (
        "import sys; from pathlib import Path; import pytest, fake_backends; from shim import cli\n"
        "fake_backends.install(Path(sys.argv.pop(1)), pytest.MonkeyPatch()); cli.main()"
    )
    path = fakes / "run.jsonl"
    options = ["--rounds", "3", "--sweeps", "6", "--block-seconds", "0.03"]
    command = [sys.executable, "-c", script, str(fakes / "other"), "bench", "--case", CASE, "-b", "good,slow"]
    environ = os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    started = subprocess.Popen(
        [*command, "-o", str(path), *options], env=environ, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 30
    while not (path.exists() and '"record": "block", "round": 1' in path.read_text()):
        assert time.monotonic() < end
        assert started.poll() is None
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGINT)
    _, message = started.communicate(timeout=30)
    assert started.returncode == 1
    assert (
        message == f"Error: interrupted; what was measured is kept in {path}; go on with: shim bench --resume {path}\n"
    )
    result = shim("bench", "--resume", str(path))
    assert result.exit_code == 0
    assert runfile.read(path).complete


def test_report_of_a_run_that_is_there(tmp_path):
    path, page = tmp_path / "run.jsonl", tmp_path / "page.html"
    example_run.write(path, example_run.records())
    result = shim("report", str(path), "--baseline", "torch", "-o", str(page))
    assert result.exit_code == 0
    assert page.exists()
    assert json.loads(shim("report", str(path), "--json").stdout)["cases"]
    wrong = shim("report", str(path), "--baseline", "theano")
    assert wrong.exit_code == 1
    assert "baseline 'theano' is not in this run; its contestants are: " in wrong.output


def test_a_page_that_cannot_be_written_is_said(tmp_path):
    path = tmp_path / "run.jsonl"
    example_run.write(path, example_run.records())
    result = shim("report", str(path), "-o", "/dev/full")
    assert result.exit_code == 1
    assert "No space left on device" in result.output


# ------------------------------------------------------------------------------------------------- check and train


def test_check_prints_what_passed(monkeypatch):
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    result = shim("check", "numpy", "--op", "dense")
    assert result.exit_code == 0
    assert result.output.startswith("numpy: 12 passed, 0 failed, worst error ")
    found = json.loads(shim("check", "numpy", "--op", "dense", "--json").stdout)
    assert found["numpy"]["passed"] == 12


def test_check_names_what_failed_and_ends_with_a_status(fakes):
    result = shim("check", "wrong", "--op", "dense", "--mode", "eager")
    assert result.exit_code == 1
    assert result.output.startswith("wrong: 0 passed, 10 failed")
    assert "eager dense/forward/N3-I7-O5/float32: ParityError: the result differs from the contract by 1; " in (
        result.output
    )


def test_check_counts_what_a_backend_is_not_made_for(fakes):
    result = shim("check", "forward_only", "--op", "dense", "--mode", "eager")
    assert result.exit_code == 0
    assert result.output.startswith("forward_only: 4 passed, 0 failed, 6 cannot be done, worst error ")
    assert "  6 of them: no gradients here; it computes forward only" in result.output


def test_training_on_a_backend_that_computes_forward_only_says_so_and_ends_with_a_status(fakes):
    result = shim("train", "mnist_mlp", "-b", "forward_only", "--limit", "50", "--epochs", "1")
    assert result.exit_code == 1
    assert "no training here; it computes forward only" in " ".join(result.output.split())


def test_train_prints_its_epochs(monkeypatch, tmp_path):
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    path = tmp_path / "run.jsonl"
    arguments = ["train", "mnist_mlp", "-b", "numpy", "--limit", "300", "--epochs", "2", "-o", str(path)]
    result = shim(*arguments)
    assert result.exit_code == 0
    assert [epoch["epoch"] for epoch in runfile.read(path).epochs] == [1, 2]
    again = shim(*arguments)
    assert again.exit_code == 1
    assert "exists already; choose another file" in again.output


# ---------------------------------------------------------------------------------------------------------- data


def test_data_sets_are_listed():
    rows = json.loads(shim("data", "--json").output)
    assert [row["name"] for row in rows] == list(data.names())
    assert {row["source"] for row in rows} == {"embedded"}
    assert all(len(row["sha256"]) == 64 and Path(row["path"]).stat().st_size == row["bytes"] for row in rows)
    text = shim("data", "imdb").output
    assert "embedded" in text
    assert "mnist" not in text


def test_data_that_cannot_be_fetched_are_a_status_and_the_list_is_printed_all_the_same():
    result = shim("data", "--fetch", "mnist", "--json")
    assert result.exit_code == 1
    assert "embedded data take the place of mnist.npz (SHIM_OFFLINE is set)" in result.stderr
    assert [row["name"] for row in json.loads(result.stdout)] == ["mnist"]


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    path = tmp_path / "run.jsonl"
    arguments = ["train", "mnist_mlp", "--backends", "numpy", "--limit", "50", "--epochs", "2", "--output", str(path)]
    assert shim(*arguments).exit_code == 0
    kept = [line for line in path.read_text().splitlines(keepends=True) if '"record": "end"' not in line]
    path.write_text("".join(line for line in kept if '"epoch": 2' not in line))
    result = shim("train", "--resume", str(path), "--json")
    assert result.exit_code == 0
    assert [epoch["epoch"] for epoch in json.loads(result.stdout)["training"][0]["epochs"]] == [1, 2]
