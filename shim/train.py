"""Training a model for real: on each backend from the same initial weights, over the same batches in the same order.

One worker after the other (:mod:`shim.train_worker`) runs in the targets' own environments, and every epoch is in the
run file as soon as it is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shim import checkpoint, data, models
from shim.report import words
from shim.train_worker import TICKS, Emit, Record


class TrainingInterrupted(RuntimeError):
    """Training was interrupted; the message says where its epochs are."""


def train(
    model_name: str,
    targets: Sequence[str],
    *,
    epochs: int | None = None,
    seed: int = 0,
    mode: str | None = None,
    path: Path | str | None = None,
    limit: int | None = None,
    scale: float = 1.0,
    texts: bool = True,
    fetch: bool = True,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
    progress: Any = None,
) -> Any:
    """Train a model on each target in turn, write every epoch to a new run file and return what it holds.

    A target is ``backend`` or ``backend@version``, perhaps followed by ``:mode``; ``mode`` is for all the others.
    ``limit`` keeps the first samples only, ``scale`` a share of them. With ``texts``, a model of text writes some after
    each epoch. A checkpoint beside the run file lets :func:`resume` go on after any end.
    What fails on one target is recorded and the others go on. Data are downloaded before, unless ``fetch`` is false, or
    embedded ones take their place with a notice on standard error.

    Raises ``ValueError`` for bad input, :class:`shim.data.DataError` for damaged data, :class:`TrainingInterrupted`
    after Ctrl-C and :class:`shim.measure.runfile.RunFileError` where the file cannot be written.
    """
    from shim import environments
    from shim.measure import runfile
    from shim.measure.rounds import Silent

    for name, value, least in (("epochs", epochs, 1), ("seed", seed, 0), ("limit", limit, 1), ("threads", threads, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    check_scale(scale)
    model = models.load(model_name)
    config = {
        "model": model.label,
        "epochs": epochs or model.epochs,
        "batch_size": model.batch_size,
        "seed": seed,
        "limit": limit,
        "scale": scale,
        "texts": texts,
        "targets": contestants(targets, mode),
        "cases": [],
        "threads": threads or len(os.sched_getaffinity(0)),
        "device": device,
        "precision": precision,
    }
    path = Path(path or environments.home() / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}-{model.label}.jsonl")
    if path.exists():
        raise ValueError(f"{path} exists already; choose another file, or go on with: shim train --resume {path}")
    progress = progress or Silent()
    config["data"] = _data(model, progress, fetch)
    with runfile.Writer(path) as writer:
        writer.write(_header(config))
        _train_all(config, writer.write, progress, path)
    return runfile.read(path)


def resume(path: Path | str, progress: Any = None, fetch: bool = True) -> Any:
    """Go on with an interrupted training and return what its run file holds; a complete one is returned as it is.

    Contestants that failed are tried again, each from the epoch after its last checkpoint. Raises as :func:`train`
    does, and ``ValueError`` if the run is no training, or was begun on other data or with another shim.
    """
    from shim.measure import machine, runfile
    from shim.measure.rounds import Silent

    path, progress = Path(path), progress or Silent()
    found = runfile.read(path)
    config = found.header["config"]
    if "model" not in config:
        raise ValueError(f"{path} is no training; to go on with a comparison, run: shim bench --resume {path}")
    if found.complete and not found.failures:
        return found
    here, there = machine.environment(), found.header.get("environment", {})
    for name in ("cpu", "shim"):
        if here[name] != there.get(name):
            raise ValueError(f"{path} was begun with {name} {there.get(name)!r}, here it is {here[name]!r}; start anew")
    begun, now = config["data"], _data(models.load(config["model"]), progress, fetch)
    if now["source"] != begun["source"]:
        raise ValueError(f"{path} was begun on {begun['source']} data, here they are {now['source']}: {now['origin']}")
    done = {(contestant["target"], contestant["mode"]): 0 for contestant in config["targets"]}
    for epoch in found.epochs:
        done[epoch["target"], epoch["mode"]] = max(done[epoch["target"], epoch["mode"]], epoch["epoch"])
    with runfile.Writer(path) as writer:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        writer.write({"record": "resume", "started": started, "environment": here})
        _train_all(config, writer.write, progress, path, done)
    return runfile.read(path)


def _data(model: models.Model, progress: Any, fetch: bool) -> Record:
    """Fetch a model's data and say what they are; a damaged file is an error here, once, not one of every worker."""
    if fetch:
        data.fetch(model.data, progress)
    dataset = data.load(model.data, **model.data_options)
    options = dict(model.data_options)
    return {"name": model.data, "options": options, "source": dataset.source, "origin": dataset.origin}


def _header(config: Record) -> Record:
    from shim.measure import machine, runfile

    return {
        "record": "run",
        "schema": runfile.SCHEMA,
        "id": str(uuid.uuid4()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "config": config,
        "environment": machine.environment(),
    }


def check_scale(scale: float) -> None:
    """Raise ``ValueError`` unless a scale is a share of samples."""
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be above 0 and at most 1, got {scale:g}")


def contestants(targets: Sequence[str], mode: str | None = None) -> list[dict[str, str]]:
    """Return target, mode and label of each; raise ``ValueError`` with the choices for what does not exist."""
    from shim import environments, listing, statistics

    if not targets:
        raise ValueError("there is nothing to train on: no backend was chosen")
    modes = {row["target"]: row["modes"] for row in listing.backends()}
    found = {}
    for name in targets:
        target, _, chosen = name.partition(":")
        backend = environments.parse(target)[0]
        if backend == "null":
            raise ValueError("null computes nothing, so it cannot train a model; choose another backend")
        offered = modes[backend]
        chosen = chosen or mode or offered[0]
        if chosen not in offered:
            raise ValueError(f"{target} has no mode {chosen!r}; it has: {', '.join(offered)}")
        label = statistics.label(target, chosen, offered[0])
        found[label] = {"target": target, "mode": chosen, "label": label}
    return list(found.values())


def _train_all(
    config: Record, write: Emit, progress: Any, path: Path, done: dict[tuple[str, str], int] | None = None
) -> None:
    """Train on one target after the other and write the end record; ``done`` are epochs that the file has already."""
    from shim.measure import runfile

    begun = time.monotonic()

    def end(reason: str) -> None:
        write({"record": "end", "reason": reason, "wall_seconds": time.monotonic() - begun})

    progress.start(len(config["targets"]) * config["epochs"] * TICKS, config["model"])
    try:
        for contestant in config["targets"]:
            epochs = done[contestant["target"], contestant["mode"]] if done else None
            if epochs:
                progress.advance(f"{contestant['label']}: {epochs} epochs done before", epochs * TICKS)
            if epochs != config["epochs"]:
                _train_one(config, contestant, write, progress, path, epochs)
        end("complete")
    except KeyboardInterrupt:
        end("interrupted")
        raise TrainingInterrupted(
            f"interrupted; the epochs so far are kept in {path}; to go on, run: shim train --resume {path}"
        ) from None
    except runfile.RunFileError as error:
        raise runfile.RunFileError(f"{error}; to go on, run: shim train --resume {path}") from None
    finally:
        progress.stop()


def _train_one(
    config: Record, contestant: dict[str, str], write: Emit, progress: Any, path: Path, done: int | None
) -> None:
    """Run one worker to its end and write its records; a failure becomes a record as well."""
    from shim import environments
    from shim.measure import process

    target, label, left = contestant["target"], contestant["label"], (config["epochs"] - (done or 0)) * TICKS
    common = {"round": 0, "target": target, "mode": contestant["mode"]}
    variables = process.variables(config["threads"], config["device"])
    failure = None
    try:
        python = environments.python(target)
    except environments.EnvironmentMissing as error:
        failure = {"stage": "start", "reason": str(error)}
    else:
        job = config | {"backend": environments.parse(target)[0], "mode": contestant["mode"], "done": done}
        job |= {"checkpoint": str(checkpoint.path(path.absolute(), label)), "parent": os.getpid()}
        last = ""
        for record in _worker(python, environments.variables() | variables, job):
            if record["record"] == "tick":
                left -= 1
                progress.advance(f"{label}: epoch {record['epoch']} of {config['epochs']}{last}", 1)
            elif record["record"] == "failure":
                failure = record
            else:
                write(record | common | ({"variables": variables} if record["record"] == "worker" else {}))
                if record["record"] == "epoch":
                    last = f", {_figures(record)}"
                    progress.note(f"{label}: epoch {record['epoch']} of {config['epochs']}{last}")
                    for line in _texts(record):
                        progress.note(line)
                elif record["record"] == "warning":
                    progress.note(f"{label}: {record['reason']}")
    if failure:
        write({"record": "failure"} | failure | common)
        progress.advance(f"{label}: failed", left)


def _figures(epoch: Record) -> str:
    """Say in a few words what an epoch came to."""
    figures = [f"loss {epoch['loss']:.4f}"] if epoch.get("loss") is not None else []
    if epoch.get("test_loss") is not None:
        figures += [f"test loss {epoch['test_loss']:.4f}", f"accuracy {epoch['test_accuracy']:.4f}"]
    return ", ".join([*figures, f"{epoch['train_seconds']:.3g} s"])


def _texts(epoch: Record) -> Iterator[str]:
    """Say what a model of text wrote after an epoch."""
    if text := epoch.get("text"):
        yield f"  after {words.line(text['start'])!r}:"
        for found in text["continued"]:
            yield f"  temperature {found['temperature']}: {words.line(found['text'])}"


def _worker(python: Path, variables: dict[str, str], job: Record) -> Iterator[Record]:
    """Yield the records of a worker; the last one is a failure if it ended otherwise than it should."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [str(python), "-P", "-m", "shim.train_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=variables,
            start_new_session=True,  # Ctrl-C is for the parent alone
        )
        assert process.stdin
        assert process.stdout
        failed = False
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.close()
            for line in process.stdout:
                record = json.loads(line)
                failed = failed or record["record"] == "failure"
                yield record
            status = process.wait()
            if status and not failed:
                yield {"record": "failure", "stage": "worker", "reason": _ending(status, said)}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()


def _ending(status: int, said: Any) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        return f"was killed by {name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f"exited with status {status}: {lines[-1].strip()[:300] if lines else 'no message'}"
