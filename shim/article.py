"""The article's benchmark again: every model trained on every backend, several times over.

A repeat trains each model once on each backend, every one in a process of its own and from the repeat's seed; models
and backends come in random order, so that no backend has the machine's better hours. Each repeat of a model is a run
file of its own in the folder of the run, written and resumed by :mod:`shim.train`; ``article.json`` there is the plan.
"""

from __future__ import annotations

import json
import os
import random
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shim import data, files, models, train
from shim.measure import runfile
from shim.train_worker import TICKS

PLAN = "article.json"
SCHEMA = 1
_NEEDED: dict[str, Any] = {
    "models": dict,
    "targets": list,
    "scale": (int, float),
    "repeats": int,
    "seed": int,
    "threads": int,
    "jobs": list,
}


class ArticleInterrupted(RuntimeError):
    """The run was interrupted; the message says how to go on."""


@dataclass(frozen=True)
class Article:
    """A plan and the run files that there are already; ``runs`` has a model's runs in the order of the repeats."""

    folder: Path
    plan: dict[str, Any]
    runs: dict[str, list[runfile.Run]]

    @property
    def missing(self) -> int:
        """How many of the planned trainings of a model are not complete."""
        return len(self.plan["jobs"]) - sum(run.complete for runs in self.runs.values() for run in runs)


def run(
    folder: Path | str,
    *,
    targets: Sequence[str],
    chosen: Iterable[str] = (),
    scale: float = 1.0,
    repeats: int = 3,
    epochs: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Any = None,
) -> Article:
    """Train the ``chosen`` models, by default all, on each target and return what came out.

    ``scale`` is the share of the samples to train and to test on; ``epochs`` are the article's unless given.
    Raises ``ValueError`` for bad input and a folder that holds a run already, :class:`ArticleInterrupted` after Ctrl-C,
    :class:`shim.data.DataError` for damaged data, :class:`shim.measure.runfile.RunFileError` for a full disk.
    """
    folder = Path(folder)
    if (folder / PLAN).exists():
        raise ValueError(f"{folder} holds a run already; choose another folder, or {_again(folder)}")
    for name, value in (("repeats", repeats), ("epochs", epochs), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    train.check_scale(scale)
    labels = [entry["label"] for entry in train.contestants(targets)]
    loaded = [models.load(name) for name in dict.fromkeys(chosen or models.names())]
    counts = {model.label: epochs or model.epochs for model in loaded}
    order = random.Random(f"article {seed}")
    plan = {
        "schema": SCHEMA,
        "models": counts,
        "targets": labels,
        "scale": scale,
        "repeats": repeats,
        "seed": seed,
        "threads": threads or len(os.sched_getaffinity(0)),
        "jobs": [
            {"model": name, "repeat": repeat, "targets": order.sample(labels, len(labels))}
            for repeat in range(repeats)
            for name in order.sample(list(counts), len(counts))
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    with files.replacing(folder / PLAN) as opened:
        opened.write((json.dumps(plan, indent=1) + "\n").encode())
    return resume(folder, progress)


def resume(folder: Path | str, progress: Any = None) -> Article:
    """Do what is left of a plan, trying again what had failed, and return what came out. Raises as :func:`run` does."""
    from shim.measure.rounds import Silent

    folder, progress = Path(folder), progress or Silent()
    plan = _read_plan(folder)
    for name in dict.fromkeys(models.load(name).data for name in plan["models"]):
        data.fetch(name, progress)
    progress.start(sum(len(job["targets"]) * plan["models"][job["model"]] for job in plan["jobs"]) * TICKS)
    try:
        for number, job in enumerate(plan["jobs"], start=1):
            _train(folder, plan, job, _Part(progress, f"{number} of {len(plan['jobs'])}: {job['model']}"))
    except (train.TrainingInterrupted, KeyboardInterrupt):
        raise ArticleInterrupted(f"interrupted; what was trained is kept in {folder}; {_again(folder)}") from None
    except runfile.RunFileError as error:
        raise runfile.RunFileError(f"{str(error).partition('; to go on')[0]}; {_again(folder)}") from None
    finally:
        progress.stop()
    return read(folder)


def _again(folder: Path) -> str:
    return f"to go on, run: shim article --resume {shlex.quote(str(folder))}"


def read(folder: Path | str) -> Article:
    """Return a plan and what has been trained so far. Raises ``ValueError`` for a folder that holds no plan."""
    folder = Path(folder)
    plan = _read_plan(folder)
    runs: dict[str, list[runfile.Run]] = {name: [] for name in plan["models"]}
    for job in plan["jobs"]:
        if _is_begun(path := _path(folder, job)):
            runs[job["model"]].append(runfile.read(path))
    return Article(folder, plan, runs)


def _read_plan(folder: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if plan["schema"] != SCHEMA:
            raise ValueError(f"it is written in schema {plan['schema']!r}, this version of shim reads {SCHEMA}")
        for name, kinds in _NEEDED.items():
            if not isinstance(plan[name], kinds):
                raise ValueError(f"{name!r} is {json.dumps(plan[name])[:60]}")
        if not {job["model"] for job in plan["jobs"]} <= plan["models"].keys():
            raise ValueError("its jobs name models that it does not have")
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no run of shim article: there is no {PLAN}") from None
    except (ValueError, KeyError, TypeError) as error:
        missing = "there is no " if isinstance(error, KeyError) else ""
        raise ValueError(f"{folder / PLAN} is damaged: {missing}{error}") from None
    return plan


def _path(folder: Path, job: dict[str, Any]) -> Path:
    return folder / f"{models.load(job['model']).label}.{int(job['repeat']) + 1}.jsonl"


def _is_begun(path: Path) -> bool:
    """Return whether a run file has its first record; one that was killed before that has nothing to lose."""
    return path.exists() and b"\n" in path.read_bytes()


def _train(folder: Path, plan: dict[str, Any], job: dict[str, Any], progress: Any) -> None:
    path, epochs = _path(folder, job), plan["models"][job["model"]]
    if not _is_begun(path):
        path.unlink(missing_ok=True)
        train.train(
            job["model"],
            job["targets"],
            epochs=epochs,
            seed=plan["seed"] + job["repeat"],
            scale=plan["scale"],
            threads=plan["threads"],
            texts=False,
            fetch=False,
            path=path,
            progress=progress,
        )
        return
    found = runfile.read(path)
    if found.complete and not found.failures:
        progress.advance(f"{job['model']}: done before", len(job["targets"]) * epochs * TICKS)
        return
    train.resume(path, progress, fetch=False)


class _Part:
    """The progress of one training as a part of the whole bar."""

    def __init__(self, whole: Any, name: str) -> None:
        self._whole, self._name = whole, name

    def start(self, total: int, description: str = "") -> None:
        pass

    def advance(self, text: str | None = None, steps: int = 1) -> None:
        self._whole.advance(text and f"{self._name}, {text}", steps)

    def note(self, text: str) -> None:
        self._whole.note(f"{self._name}, {text}")

    def stop(self) -> None:
        pass
