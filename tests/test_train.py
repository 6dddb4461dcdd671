"""Training: the same batches everywhere, records of every epoch, and runs that fail, die or are interrupted."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import shim
from shim import data, environments, models, train_worker
from shim.measure import runfile
from shim.train import TrainingInterrupted, train

LIMIT = 300  # three batches of mnist_mlp, the last of 44


@pytest.fixture(autouse=True)
def embedded_data(monkeypatch, tmp_path):
    monkeypatch.delenv("SHIM_DATA", raising=False)
    monkeypatch.setenv("SHIM_OFFLINE", "1")
    monkeypatch.setenv("SHIM_HOME", str(tmp_path / "home"))


@pytest.fixture
def here(monkeypatch):
    """Let every target's environment be the one that runs the tests."""
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))


class _Counting:
    """Progress that is counted."""

    def __init__(self):
        self.total, self.done, self.texts, self.stopped = 0, 0, [], 0

    def start(self, total, description=""):
        self.total = total

    def advance(self, text=None, steps=1):
        self.done += steps
        self.texts.append(text)

    def stop(self):
        self.stopped += 1


# ------------------------------------------------------------------------------------------------------ the worker


class _Trainer:
    def __init__(self, params):
        self.initial, self.batches, self.evaluated = params, [], []

    def step(self, x, labels):
        self.batches.append((x, labels))
        return np.float32(len(labels))

    def evaluate(self, x, labels):
        self.evaluated.append(len(labels))
        return np.float32(len(labels)), np.int32(labels.sum())

    def params(self):
        return self.initial


class _Backend:
    """A backend that learns nothing and keeps what it is given. A batch's loss is its size."""

    MODES = ("plain",)

    def setup(self, **settings):
        self.settings = settings

    def describe(self):
        return {"versions": {}}

    def to_device(self, value):
        return value.copy()

    def to_numpy(self, array):
        return np.asarray(array)

    def synchronize(self, outputs):
        pass

    def trainer(self, model, params, optimizer, mode, seed=0):
        self.model, self.mode, self.seed = model, mode, seed
        self.made = _Trainer(params)
        return self.made


def _work(monkeypatch, **changes):
    job = {"backend": "numpy", "mode": "plain", "model": "mnist_mlp", "epochs": 2, "seed": 3, "limit": LIMIT}
    job |= {"device": "cpu", "precision": "float32", "threads": 1} | changes
    backend, records = _Backend(), []
    monkeypatch.setattr(shim, "load", lambda name: backend)
    train_worker.work(job, records.append)
    return backend, records


def test_every_sample_is_seen_once_an_epoch_in_an_order_drawn_from_seed_and_epoch(monkeypatch):
    backend, _ = _work(monkeypatch)
    dataset = data.load("mnist")
    seen = backend.made.batches
    assert [len(labels) for _, labels in seen] == [128, 128, 44] * 2
    for epoch in (1, 2):
        order = np.random.default_rng([3, epoch]).permutation(LIMIT)
        x, labels = (np.concatenate(part) for part in zip(*seen[3 * epoch - 3 : 3 * epoch], strict=True))
        np.testing.assert_array_equal(x, dataset.x_train[:LIMIT][order])
        np.testing.assert_array_equal(labels, dataset.y_train[:LIMIT][order])
    assert not np.array_equal(seen[0][1], seen[3][1])


def test_weights_mode_and_seed_reach_the_trainer(monkeypatch):
    backend, _ = _work(monkeypatch)
    wanted = models.load("mnist_mlp").initial(3)
    assert all(np.array_equal(backend.made.initial[name], value) for name, value in wanted.items())
    assert (backend.mode, backend.seed, backend.model.dropout) == ("plain", 3, True)
    assert backend.settings == {"device": "cpu", "precision": "float32", "threads": 1}


def test_records_follow_each_other(monkeypatch):
    _, records = _work(monkeypatch)
    epoch = ["tick"] * 10 + ["epoch"]
    assert [r["record"] for r in records] == ["worker", "build", *epoch, *epoch]
    assert records[1]["case"] == "mnist_mlp"
    first, second = (r for r in records if r["record"] == "epoch")
    assert (first["epoch"], first["steps"], first["samples"], first["test_samples"]) == (1, 3, 300, 300)
    assert (first["model"], first["source"]) == ("mnist_mlp", "embedded")
    assert 0 < first["first_call_seconds"] <= first["train_seconds"]
    assert second["first_call_seconds"] == 0
    json.dumps(records)


def test_means_weigh_each_sample_alike(monkeypatch):
    _, records = _work(monkeypatch)
    epoch, labels = records[-1], data.load("mnist").y_test[:LIMIT]
    assert epoch["loss"] == pytest.approx((2 * 128**2 + 44**2) / 300)
    assert epoch["test_loss"] == pytest.approx((2 * 128**2 + 44**2) / 300)
    assert epoch["test_accuracy"] == pytest.approx(labels.sum() / 300)


def test_evaluation_meets_each_batch_size_before_the_clock(monkeypatch):
    backend, _ = _work(monkeypatch)
    assert sorted(backend.made.evaluated[:2]) == [44, 128]
    assert backend.made.evaluated[2:] == [128, 128, 44] * 2


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (127, [127]), (128, [128]), (129, [128, 1])])
def test_the_last_batch_is_what_is_left(count, sizes):
    parts = list(train_worker.batches(count, 128))
    assert [len(range(count)[part]) for part in parts] == sizes
    assert [part.stop - part.start for part in parts] == sizes


def test_what_a_library_prints_does_not_reach_the_records():
    code = (
        "import os, sys; from shim import train_worker; channel = train_worker._own_stdout();"
        "print('noise'); os.system('echo more noise'); print('record', file=channel, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "record\n"
    assert "more noise" in done.stderr


# ------------------------------------------------------------------------------------------------------- the parent


def test_numpy_learns_and_says_so_in_the_run_file(here, tmp_path):
    progress = _Counting()
    path = tmp_path / "run.jsonl"
    run = train("mnist_mlp", ["numpy"], epochs=2, limit=LIMIT, path=path, progress=progress)
    assert run.complete
    assert [(e["target"], e["mode"], e["epoch"]) for e in run.epochs] == [("numpy", "eager", 1), ("numpy", "eager", 2)]
    assert run.epochs[1]["loss"] < run.epochs[0]["loss"] < 2.5
    assert run.epochs[1]["test_accuracy"] > 0.5
    assert run.header["config"]["data"]["source"] == "embedded"
    assert run.header["config"]["targets"] == [{"target": "numpy", "mode": "eager", "label": "numpy"}]
    assert run.workers[0]["variables"]["OMP_NUM_THREADS"] == str(run.header["config"]["threads"])
    assert run.builds[0]["target"] == "numpy"
    assert progress.done == progress.total == 20
    assert progress.texts[-1] == "numpy: epoch 2 of 2"
    assert progress.stopped == 1


def test_the_seed_decides(here, tmp_path):
    def losses(name, seed):
        run = train("mnist_mlp", ["numpy"], epochs=1, limit=LIMIT, path=tmp_path / name, seed=seed, threads=1)
        return [(e["loss"], e["test_loss"]) for e in run.epochs]

    assert losses("a", 0) == losses("b", 0)
    assert losses("c", 1) != losses("d", 0)


def test_one_failure_does_not_stop_the_others(here, tmp_path):
    progress = _Counting()
    run = train("mnist_mlp", ["null", "numpy"], epochs=1, limit=50, path=tmp_path / "run", progress=progress)
    assert [f["reason"] for f in run.failures] == ["ArithmeticError: the training loss is nan"]
    assert (run.failures[0]["target"], run.failures[0]["mode"]) == ("null", "null")
    assert [e["target"] for e in run.epochs] == ["numpy"]
    assert run.complete
    assert progress.done == progress.total


def test_a_missing_environment_is_recorded_with_the_command_that_makes_it(tmp_path):
    run = train("mnist_mlp", ["numpy@1.2.3"], path=tmp_path / "run")
    assert run.complete
    assert run.epochs == []
    assert "shim env numpy@1.2.3" in run.failures[0]["reason"]


def _program(tmp_path, monkeypatch, body):
    """Let workers be a program of these lines."""
    script = tmp_path / "worker"
    script.write_text(
        f"#!{sys.executable}\nimport json, os, signal, sys, time\njob = json.loads(sys.stdin.readline())\n{body}\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(environments, "python", lambda target: script)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL (out of memory?)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("print('warning\\nno such symbol', file=sys.stderr); sys.exit(3)", "exited with status 3: no such symbol"),
        ("sys.exit(4)", "exited with status 4: no message"),
    ],
)
def test_a_worker_that_dies_is_recorded(tmp_path, monkeypatch, body, reason):
    epoch = {"record": "epoch", "model": "mnist_mlp", "epoch": 1, "train_seconds": 1.0}
    _program(tmp_path, monkeypatch, f"print(json.dumps({epoch!r}), flush=True)\n{body}")
    run = train("mnist_mlp", ["numpy"], path=tmp_path / "run")
    assert [f["reason"] for f in run.failures] == [reason]
    assert run.failures[0]["stage"] == "worker"
    assert len(run.epochs) == 1
    assert run.complete


def test_ctrl_c_keeps_the_epochs_and_leaves_no_worker(tmp_path, monkeypatch):
    epoch = {"record": "epoch", "model": "mnist_mlp", "epoch": 1, "train_seconds": 1.0}
    tick = {"record": "tick", "epoch": 2}
    pid = tmp_path / "pid"
    _program(
        tmp_path,
        monkeypatch,
        f"print(json.dumps({epoch!r}), flush=True)\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        f"print(json.dumps({tick!r}), flush=True)\ntime.sleep(60)",
    )

    class Impatient(_Counting):
        def advance(self, text=None, steps=1):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    path, progress = tmp_path / "run", Impatient()
    with pytest.raises(TrainingInterrupted, match=f"interrupted; the epochs so far are kept in {path}"):
        train("mnist_mlp", ["numpy", "null"], path=path, progress=progress)
    run = runfile.read(path)
    assert len(run.epochs) == 1
    assert run.end["reason"] == "interrupted"
    assert progress.stopped == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_full_disk_ends_the_run_and_the_worker(tmp_path, monkeypatch):
    epoch = {"record": "epoch", "model": "mnist_mlp", "epoch": 1, "train_seconds": 1.0}
    _program(tmp_path, monkeypatch, f"print(json.dumps({epoch!r}), flush=True)\ntime.sleep(60)")
    start = time.monotonic()
    write = runfile.Writer.write

    def fails(self, record):
        if record["record"] != "run":
            raise runfile.RunFileError("No space left on device; the 1 records before this one are safe")
        write(self, record)

    monkeypatch.setattr(runfile.Writer, "write", fails)
    with pytest.raises(runfile.RunFileError, match="No space left on device"):
        train("mnist_mlp", ["numpy"], path=tmp_path / "run")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_name": "mnist"}, "unknown model 'mnist'; the models are: "),
        ({"targets": ["nunpy"]}, "unknown backend 'nunpy'; the backends are: "),
        ({"targets": []}, "there is nothing to train on"),
        ({"targets": ["numpy:warp"]}, "numpy has no mode 'warp'; it has: eager"),
        ({"mode": "xla"}, "numpy has no mode 'xla'; it has: eager"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"limit": -5}, "limit must be at least 1, got -5"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, arguments, message):
    given = {"model_name": "mnist_mlp", "targets": ["numpy"], "path": tmp_path / "run"} | arguments
    with pytest.raises(ValueError, match=message):
        train(**given)
    assert not (tmp_path / "run").exists()


def test_a_run_file_is_never_overwritten(tmp_path):
    path = tmp_path / "run"
    path.write_text("something")
    with pytest.raises(ValueError, match="run exists already; choose another file"):
        train("mnist_mlp", ["numpy"], path=path)
    assert path.read_text() == "something"


def test_damaged_data_are_an_error_of_the_run_and_not_of_each_worker(tmp_path, monkeypatch):
    (tmp_path / "mnist.npz").write_bytes(b"PK")
    monkeypatch.setenv("SHIM_DATA", str(tmp_path))
    with pytest.raises(data.DataError, match=r"mnist\.npz"):
        train("mnist_mlp", ["numpy"], path=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_modes_of_one_target_are_contestants_of_their_own(tmp_path, monkeypatch):
    _program(tmp_path, monkeypatch, "print(json.dumps({'record': 'worker', 'mode_asked': job['mode']}))")
    run = train("mnist_mlp", ["tensorflow", "tensorflow:xla"], path=tmp_path / "run")
    assert [t["label"] for t in run.header["config"]["targets"]] == ["tensorflow", "tensorflow:xla"]
    assert [w["mode_asked"] for w in run.workers] == ["graph", "xla"]
