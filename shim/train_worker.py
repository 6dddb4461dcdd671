"""The process that trains one model on one backend. It needs NumPy and the backend's framework, nothing else.

It reads its job as one line of JSON from standard input and answers with records, one a line, on standard output.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

import shim
from shim import checkpoint, data, models, sampling
from shim.measure.worker import describe_error, end_with
from shim.protocol import Unsupported

TICKS = 10  # progress reports an epoch

Record = dict[str, Any]
Emit = Callable[[Record], None]


def work(job: Record, emit: Emit) -> None:
    """Train as ``job`` says and ``emit`` a worker record, a build record, ticks, and a record for each epoch.

    The job is the run's configuration with ``backend``, ``mode``, ``checkpoint``, the file to write after each epoch,
    and ``done``, how many epochs the run file has already; training then goes on from the checkpoint. ``done`` is None
    where training starts.
    """
    start = time.perf_counter()
    backend = shim.load(job["backend"])
    imported = time.perf_counter()
    backend.setup(device=job["device"], precision=job["precision"], threads=job["threads"])
    times = {"import_seconds": imported - start, "setup_seconds": time.perf_counter() - imported}
    emit({"record": "worker"} | times | {"describe": backend.describe(), "pid": os.getpid()})
    model = models.load(job["model"])
    dataset = _part(data.load(model.data, **model.data_options), job["limit"], job.get("scale") or 1.0)
    start = time.perf_counter()
    trainer = backend.trainer(model, model.initial(job["seed"]), model.optimizer, job["mode"], seed=job["seed"])
    built = time.perf_counter()
    for size in {part.stop - part.start for part in batches(len(dataset.y_test), model.batch_size)}:
        _evaluate(backend, trainer, model, dataset.x_test[:size], dataset.y_test[:size], size)
    times = {"build_seconds": built - start, "first_call_seconds": time.perf_counter() - built}
    emit({"record": "build", "case": model.label} | times)
    file = Path(job["checkpoint"])
    begun = 0
    if job["done"] is None:
        file.unlink(missing_ok=True)  # of a run file that was deleted
    elif job["done"] or file.exists():
        begun = _resume(trainer, file, job["done"], emit)
    seen: set[int] = set()
    for epoch in range(begun + 1, job["epochs"] + 1):
        tick = functools.partial(emit, {"record": "tick", "epoch": epoch})
        trained = _train_epoch(backend, trainer, model, dataset, job["seed"], epoch, seen, tick)
        common = {"record": "epoch", "model": model.label, "epoch": epoch, "source": dataset.source}
        record = common | trained | _test(backend, trainer, model, dataset)
        if dataset.alphabet and job.get("texts"):
            record["text"] = sampling.write(backend, trainer, model, dataset, job["seed"], epoch)
        if epoch < job["epochs"]:
            _save(trainer, file, record, emit)
        emit(record)
    file.unlink(missing_ok=True)


def _resume(trainer: Any, file: Path, done: int, emit: Emit) -> int:
    """Put the trainer where the checkpoint is and return its epoch, 0 without one. Emit what the run file lacks."""
    try:
        state, record = checkpoint.load(file)
    except checkpoint.CheckpointError as error:
        emit({"record": "warning", "reason": f"{error}; training starts from its first epoch again"})
        return 0
    trainer.restore(state)
    if record["epoch"] > done:  # the end came between the checkpoint and the run file
        emit(record)
    return int(record["epoch"])


def _save(trainer: Any, file: Path, record: Record, emit: Emit) -> None:
    """Write a checkpoint and its time into ``record``; training goes on without one where there is no room."""
    start = time.perf_counter()
    try:
        checkpoint.save(file, trainer.state(), record)
    except OSError as error:
        left = "the one before is kept" if file.exists() else "there is none"
        emit({"record": "warning", "reason": f"cannot write the checkpoint {file}: {error.strerror}; {left}"})
    record["checkpoint_seconds"] = time.perf_counter() - start


def _test(backend: Any, trainer: Any, model: models.Model, dataset: data.Dataset) -> Record:
    """Return loss and accuracy on the samples to test on, None where the data set has none."""
    count, start = len(dataset.y_test), time.perf_counter()
    if not count:
        return {"evaluate_seconds": 0.0, "test_loss": None, "test_accuracy": None, "test_samples": 0}
    loss, right = _evaluate(backend, trainer, model, dataset.x_test, dataset.y_test, model.batch_size)
    seconds = time.perf_counter() - start
    return {"evaluate_seconds": seconds, "test_loss": loss, "test_accuracy": right / count, "test_samples": count}


def _part(dataset: data.Dataset, limit: int | None, scale: float) -> data.Dataset:
    """Return the first samples: the share ``scale`` of those to train and to test on, ``limit`` of each at most."""

    def first(array: np.ndarray) -> np.ndarray:
        return array[: math.ceil(scale * len(array))][:limit]

    train, test = (first(dataset.x_train), first(dataset.y_train)), (first(dataset.x_test), first(dataset.y_test))
    return dataclasses.replace(dataset, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])


def batches(count: int, size: int) -> Iterator[slice]:
    """Yield the slices of an epoch; the last batch is smaller where ``size`` does not divide ``count``."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of the samples in an epoch: the same on every backend."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def _train_epoch(
    backend: Any,
    trainer: Any,
    model: models.Model,
    dataset: data.Dataset,
    seed: int,
    epoch: int,
    seen: set[int],
    tick: Callable[[], None],
) -> Record:
    """Train one epoch; ``seen`` are the batch sizes that the trainer has met before.

    ``train_seconds`` is all of the training, with what is done to batches on the host; ``first_call_seconds`` the part
    of it that steps with a new batch size took, where a backend compiles.
    """
    x, labels = dataset.x_train, dataset.y_train
    parts = list(batches(len(labels), model.batch_size))
    shuffled, drawn = order(len(labels), seed, epoch), np.random.default_rng([seed, epoch, 1])
    losses: list[Any] = []
    first_call_seconds, ticks = 0.0, 0
    start = time.perf_counter()
    for number, part in enumerate(parts, start=1):
        chosen = shuffled[part]
        is_new = len(chosen) not in seen
        if is_new:
            seen.add(len(chosen))
            backend.synchronize(losses)
            began = time.perf_counter()
        batch = x[chosen] if model.augment is None else model.augment(x[chosen], drawn)
        losses.append(trainer.step(backend.to_device(model.prepare(batch)), backend.to_device(labels[chosen])))
        if is_new:
            backend.synchronize(losses[-1])
            first_call_seconds += time.perf_counter() - began
        while ticks < TICKS * number // len(parts):
            ticks += 1
            tick()
    backend.synchronize(losses)
    train_seconds = time.perf_counter() - start
    loss = _mean([float(backend.to_numpy(value)) for value in losses], parts)
    if not math.isfinite(loss):
        raise ArithmeticError(f"the training loss is {loss}")
    return {
        "train_seconds": train_seconds,
        "first_call_seconds": first_call_seconds,
        "loss": loss,
        "steps": len(parts),
        "samples": len(labels),
    }


def _mean(losses: list[float], parts: list[slice]) -> float:
    """Return the mean over the samples of mean losses of batches."""
    sizes = [part.stop - part.start for part in parts]
    return float(np.average(losses, weights=sizes))


def _evaluate(
    backend: Any, trainer: Any, model: models.Model, x: np.ndarray, labels: np.ndarray, size: int
) -> tuple[float, int]:
    """Return the mean loss over all samples and how many predictions are right."""
    parts = list(batches(len(labels), size))
    results = [
        trainer.evaluate(backend.to_device(model.prepare(x[part])), backend.to_device(labels[part])) for part in parts
    ]
    backend.synchronize(results)
    losses = [float(backend.to_numpy(loss)) for loss, _ in results]
    right = sum(int(backend.to_numpy(number)) for _, number in results)
    return _mean(losses, parts), right


def _own_stdout() -> TextIO:
    """Return standard output for records alone: whatever a library prints goes to standard error from here on."""
    sys.stdout.flush()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def main() -> int:
    """Do the one job that standard input holds; return the exit status."""
    channel = _own_stdout()

    def emit(record: Record) -> None:
        print(json.dumps(record, default=str), file=channel, flush=True)

    try:
        job = json.loads(sys.stdin.readline())
        if end_with(job["parent"]):
            work(job, emit)
    except Exception as error:
        traceback.print_exc()
        stage = "unsupported" if isinstance(error, Unsupported) else "train"
        emit({"record": "failure", "stage": stage, "reason": describe_error(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
