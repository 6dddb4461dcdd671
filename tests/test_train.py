"""Training: the same batches everywhere, records of every epoch, and runs that fail, die or are interrupted."""

import json
import os
import re
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
from shim import checkpoint, data, environments, models, sampling, train_worker
from shim.measure import runfile
from shim.train import TrainingInterrupted, resume, train

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
        self.total, self.done, self.texts, self.notes, self.stopped = 0, 0, [], [], 0

    def start(self, total, description=""):
        self.total = total

    def advance(self, text=None, steps=1):
        self.done += steps
        self.texts.append(text)

    def note(self, text):
        self.notes.append(text)

    def stop(self):
        self.stopped += 1


# ------------------------------------------------------------------------------------------------------ the worker


class _Trainer:
    def __init__(self, params):
        self.initial, self.batches, self.evaluated, self.predicted = params, [], [], []

    def step(self, x, labels):
        self.batches.append((x, labels))
        return np.float32(len(labels))

    def evaluate(self, x, labels):
        self.evaluated.append(len(labels))
        return np.float32(len(labels)), np.int32(labels.sum())

    def predict(self, x):
        self.predicted.append(x)
        return np.zeros((len(x), 57), np.float32)

    def params(self):
        return self.initial

    def state(self):
        return {"steps": np.array(len(self.batches))}

    def restore(self, state):
        self.restored = int(state["steps"])


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


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Let checkpoints of workers that run here be written into a folder of the test."""
    monkeypatch.chdir(tmp_path)


def _work(monkeypatch, **changes):
    job = {"backend": "numpy", "mode": "plain", "model": "mnist_mlp", "epochs": 2, "seed": 3, "limit": LIMIT}
    job |= {"device": "cpu", "precision": "float32", "threads": 1, "checkpoint": "a.npz", "done": None} | changes
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


def test_a_scale_takes_the_same_share_of_what_is_trained_and_tested_on(monkeypatch):
    _, records = _work(monkeypatch, limit=None, scale=0.005, epochs=1)
    assert (records[-1]["samples"], records[-1]["test_samples"]) == (300, 50)


def test_a_model_of_text_writes_some_after_each_epoch(monkeypatch):
    monkeypatch.setattr(sampling, "LENGTH", 5)
    backend, records = _work(monkeypatch, model="lstm_text_generation", limit=3, texts=True)
    first, second = (r["text"] for r in records if r["record"] == "epoch")
    assert [found["temperature"] for found in first["continued"]] == [0.2, 0.5, 1.0, 1.2]
    assert len(first["start"]) == 40
    assert all(re.fullmatch("[^A-Z]{5}", found["text"], re.DOTALL) for found in first["continued"])
    assert first["continued"] != second["continued"]
    assert [x.shape for x in backend.made.predicted] == [(4, 40, 57)] * 10
    again = _work(monkeypatch, model="lstm_text_generation", limit=3, texts=True)[1]
    assert next(r["text"]["continued"] for r in again if r["record"] == "epoch") == first["continued"]
    assert not any("text" in r for r in _work(monkeypatch, model="lstm_text_generation", limit=3)[1])


def test_a_high_temperature_draws_unlikely_characters_more_often():
    logits = np.tile(np.log(np.array([[0.7, 0.2, 0.1]], np.float32)), (4000, 1))
    for temperature in (0.5, 1.0, 2.0):
        drawn = sampling.draw(np.random.default_rng(0), logits, [temperature] * 4000)
        wanted = np.array([0.7, 0.2, 0.1]) ** (1 / temperature)
        np.testing.assert_allclose(np.bincount(drawn) / 4000, wanted / wanted.sum(), atol=0.03)
    assert sampling.draw(np.random.default_rng(0), np.array([[0.0, 900.0]]), [0.2]).tolist() == [1]


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


def test_without_test_samples_nothing_is_evaluated(monkeypatch):
    backend, records = _work(monkeypatch, model="lstm_text_generation")
    assert backend.made.evaluated == []
    assert [r[k] for r in records[-1:] for k in ("test_loss", "test_accuracy", "test_samples")] == [None, None, 0]
    x, labels = backend.made.batches[0]
    assert (x.shape, x.dtype, labels.shape) == ((128, 40, 57), np.float32, (128,))


def test_training_images_are_augmented_from_seed_and_epoch_and_test_images_are_not(monkeypatch):
    class Images(_Backend):
        def to_device(self, value):
            sent.append(value)
            return value.copy()

    sent, dataset = [], data.load("cifar10")
    monkeypatch.setattr(data, "load", lambda *args, **options: dataset)
    first, again = [], []
    for kept in (first, again):
        backend = Images()
        monkeypatch.setattr(shim, "load", lambda name, backend=backend: backend)
        job = {"backend": "numpy", "mode": "plain", "model": "cifar10_cnn", "epochs": 2, "seed": 3, "limit": 50}
        settings = {"device": "cpu", "precision": "float32", "threads": 1, "checkpoint": "a.npz", "done": None}
        train_worker.work(job | settings, lambda record: None)
        kept += sent
        sent.clear()
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    batches = [x for x in first if x.ndim == 4]
    assert any(np.array_equal(x, dataset.x_test[:32]) for x in batches)
    chosen = np.random.default_rng([3, 1]).permutation(50)[:32]
    assert not any(np.array_equal(x, dataset.x_train[chosen]) for x in batches)


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
    figures = r"loss \d\.\d{4}, test loss \d\.\d{4}, accuracy \d\.\d{4}, [\d.e-]+ s"
    assert re.fullmatch(f"numpy: epoch 2 of 2, {figures}", progress.texts[-1])
    assert re.fullmatch(f"numpy: epoch 1 of 2, {figures}", progress.notes[0])
    assert len(progress.notes) == 2
    assert progress.stopped == 1


def test_the_seed_decides(here, tmp_path):
    def losses(name, seed):
        run = train("mnist_mlp", ["numpy"], epochs=1, limit=LIMIT, path=tmp_path / name, seed=seed, threads=1)
        return [(e["loss"], e["test_loss"]) for e in run.epochs]

    assert losses("a", 0) == losses("b", 0)
    assert losses("c", 1) != losses("d", 0)


def test_one_failure_does_not_stop_the_others(here, tmp_path):
    """This environment has no JAX."""
    progress = _Counting()
    run = train("mnist_mlp", ["jax", "numpy"], epochs=1, limit=50, path=tmp_path / "run", progress=progress)
    assert ["shim env jax" in f["reason"] for f in run.failures] == [True]
    assert (run.failures[0]["target"], run.failures[0]["mode"]) == ("jax", "jit")
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
    with pytest.raises(
        TrainingInterrupted, match=f"the epochs so far are kept in {path}; to go on, run: shim train --resume"
    ):
        train("mnist_mlp", ["numpy", "torch"], path=path, progress=progress)
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
        ({"model_name": "imdb_fasttext-ngrams=3"}, "imdb_fasttext: ngrams=3 is not one of 2, 1"),
        ({"targets": ["nunpy"]}, "unknown backend 'nunpy'; the backends are: "),
        ({"targets": []}, "there is nothing to train on"),
        ({"targets": ["numpy:warp"]}, "numpy has no mode 'warp'; it has: eager"),
        ({"mode": "xla"}, "numpy has no mode 'xla'; it has: eager"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"limit": -5}, "limit must be at least 1, got -5"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"scale": 0}, "scale must be above 0 and at most 1, got 0"),
        ({"scale": 1.5}, "scale must be above 0 and at most 1, got 1.5"),
        ({"targets": ["numpy", "null"]}, "null computes nothing, so it cannot train a model; choose another backend"),
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
    with pytest.raises(ValueError, match="run exists already; choose another file, or go on with: shim train --resume"):
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


# ------------------------------------------------------------------------------------------------- checkpoints


def _losses(run):
    return [(e["target"], e["epoch"], e["loss"], e["test_loss"]) for e in run.epochs]


def _train(path, **changes):
    settings = {"epochs": 3, "limit": LIMIT, "threads": 1, "path": path} | changes
    return train("mnist_mlp", ["numpy"], **settings)


@pytest.fixture
def dying(monkeypatch, tmp_path):
    """Return a function that lets workers be killed at the k-th tick of all they emit."""

    def arm(ticks):
        script = tmp_path / "dying"
        script.write_text(
            f"#!{sys.executable}\nimport os, signal, sys\nfrom shim import train_worker\nleft = {ticks}\n"
            "emit_line = train_worker.json.dumps\n"
            "def dumps(record, **options):\n"
            "    global left\n"
            "    left -= record.get('record') == 'tick'\n"
            "    if left == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return emit_line(record, **options)\n"
            "train_worker.json.dumps = dumps\n"
            "sys.exit(train_worker.main())\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(environments, "python", lambda target: script)

    return arm


@pytest.mark.parametrize("ticks", [5, 15, 25])
def test_after_a_kill_in_an_epoch_training_goes_on_with_the_same_losses(monkeypatch, tmp_path, dying, ticks):
    dying(ticks)
    run = _train(tmp_path / "killed.jsonl")
    assert [f["reason"] for f in run.failures] == ["was killed by SIGKILL (out of memory?)"]
    assert len(run.epochs) == ticks // 10
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    progress = _Counting()
    run = resume(tmp_path / "killed.jsonl", progress)
    assert run.complete
    assert run.failures == []
    assert progress.done == progress.total
    assert _losses(run) == _losses(_train(tmp_path / "whole.jsonl"))
    assert {path.name for path in tmp_path.glob("*.npz")} == set()  # checkpoints are gone when all is done


def test_an_epoch_that_only_the_checkpoint_knows_reaches_the_run_file(monkeypatch, tmp_path, dying):
    dying(25)
    path = tmp_path / "run.jsonl"
    whole = _losses(_train(path))
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not (b'"record": "epoch"' in line and b'"epoch": 2' in line)]
    assert len(kept) == len(lines) - 1
    path.write_bytes(b"".join(kept))
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    run = resume(path)
    assert _losses(run)[:2] == whole
    assert [e["epoch"] for e in run.epochs] == [1, 2, 3]


class _Hostile:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f.unlink(),
        lambda f: f.write_bytes(f.read_bytes()[:-99]),
        lambda f: np.savez(f, record=np.array([_Hostile()])),
    ],
    ids=["missing", "truncated", "hostile"],
)
def test_without_its_checkpoint_a_training_starts_again_and_says_so(monkeypatch, tmp_path, dying, damage):
    dying(25)
    run = _train(tmp_path / "run.jsonl")
    before = _losses(run)
    damage(tmp_path / "run.numpy.checkpoint.npz")
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    progress = _Counting()
    run = resume(tmp_path / "run.jsonl", progress)
    assert _losses(run)[:2] == before
    assert [e["epoch"] for e in run.epochs] == [1, 2, 3]
    assert "training starts from its first epoch again" in progress.notes[0]
    assert not Path("ran").exists()


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before_and_training_goes_on(monkeypatch, tmp_path):
    written, savez = [], np.savez

    def fills_up(file, **arrays):
        if written:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        written.append(savez(file, **arrays))

    monkeypatch.setattr(np, "savez", fills_up)
    seen = []
    backend, records = _Backend(), []

    def emit(record):
        records.append(record)
        seen.append(sorted(path.name for path in tmp_path.glob("*a.npz*")))

    monkeypatch.setattr(shim, "load", lambda name: backend)
    job = {"backend": "numpy", "mode": "plain", "model": "mnist_mlp", "epochs": 3, "seed": 3, "limit": LIMIT}
    settings = {"device": "cpu", "precision": "float32", "threads": 1, "checkpoint": "a.npz", "done": None}
    train_worker.work(job | settings, emit)
    (warning,) = [r["reason"] for r in records if r["record"] == "warning"]
    assert warning == "cannot write the checkpoint a.npz: No space left on device; the one before is kept"
    assert [r["epoch"] for r in records if r["record"] == "epoch"] == [1, 2, 3]
    assert seen[-1] == ["a.npz"]
    assert list(tmp_path.glob("*.part")) == []


def test_checkpoints_hold_no_pickles_and_come_back(tmp_path):
    state = {"weight/w": np.ones((2, 3), np.float32), "step": np.int64(7)}
    file = tmp_path / "a.npz"
    checkpoint.save(file, state, {"record": "epoch", "epoch": 4})
    arrays, record = checkpoint.load(file)
    assert record == {"record": "epoch", "epoch": 4}
    np.testing.assert_array_equal(arrays["weight/w"], state["weight/w"])
    assert arrays["step"] == 7
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        checkpoint.save(file, {"w": np.array([None])}, {"epoch": 5})
    assert checkpoint.load(file)[1]["epoch"] == 4
    np.savez(file, record=np.array('{"epoch": "four"}'))
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot read .*a\.npz: it holds no record of an epoch"):
        checkpoint.load(file)


def test_checkpoints_of_modes_have_names_of_their_own(tmp_path):
    names = [checkpoint.path(tmp_path / "r.jsonl", label).name for label in ("torch", "torch:compile", "torch@2.6")]
    assert names == ["r.torch.checkpoint.npz", "r.torch-compile.checkpoint.npz", "r.torch-2.6.checkpoint.npz"]


def test_a_whole_training_is_not_trained_again(here, tmp_path):
    run = _train(tmp_path / "run.jsonl", epochs=1, limit=50)
    size = (tmp_path / "run.jsonl").stat().st_size
    assert _losses(resume(tmp_path / "run.jsonl")) == _losses(run)
    assert (tmp_path / "run.jsonl").stat().st_size == size


def test_what_cannot_be_resumed_says_why(here, tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    _train(path, epochs=1, limit=50)
    header = path.read_text().splitlines(keepends=True)[0]

    def resumed(change):
        path.write_text(header.replace(*change))
        resume(path)

    with pytest.raises(ValueError, match=r"was begun on real data, here they are embedded"):
        resumed(('"source": "embedded"', '"source": "real"'))
    with pytest.raises(ValueError, match=r"is no training; to go on with a comparison, run: shim bench --resume"):
        resumed(('"model": "mnist_mlp"', '"modell": "mnist_mlp"'))
    with pytest.raises(ValueError, match=r"was begun with cpu"):
        resumed(('"cpu": "', '"cpu": "another '))
