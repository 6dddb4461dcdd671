"""What a training step of imdb_fasttext costs beside what it must: ``.venv/bin/python -m tools.step_cost [BACKEND]...``

Two questions, asked of each backend in a process of its own, with everything interleaved:

- *Adam, dense*: the time of a step over the time NumPy takes to stream the bytes that such a step moves at least: each
  weight and both moments read and written. No gradient is among them: all but the rows of the batch are zero.
- *Descent on the rows in use*: the time of a step with 1.2 million rows over that with 20,000. ``same`` draws the same
  words for both, those of the large table spread evenly over it; ``own`` draws from each vocabulary as the model does,
  which brings about 1.6 times as many distinct rows into a batch of the large one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROUNDS, BATCHES = 12, 8
ROWS = "-optimizer=sgd-table_gradient=rows"


def stream(arrays: list[np.ndarray]) -> None:
    """Read and write arrays once, by the fastest ufunc in place."""
    for array in arrays:
        np.negative(array, out=array)


def _steps(target: str, name: str, spread: int = 1) -> Callable[[], None]:
    """Return one step of a model on the next of some made-up batches; ``spread`` multiplies their ids."""
    import shim
    from shim import models

    backend_name, _, mode = target.partition(":")
    backend, model = shim.load(backend_name), models.load(name)
    if spread > 1:
        few = models.load("imdb_fasttext-ngrams=1")
        model = dataclasses.replace(model, sample=few.sample)
    trainer = backend.trainer(model, model.initial(), model.optimizer, mode or backend.MODES[0])
    batches = [
        [backend.to_device(x * np.int32(spread)), backend.to_device(labels)]
        for x, labels in (model.batch(k) for k in range(BATCHES))
    ]
    turn = iter(range(10**9))

    def step() -> None:
        backend.synchronize(trainer.step(*batches[next(turn) % BATCHES]))

    return step


def _medians(calls: dict[str, Callable[[], None]], repeat: int) -> dict[str, float]:
    """Return the median time of each call in ms, in turns of ``repeat`` calls, the first turn left out."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 1):
        for name, call in calls.items():
            call()
            for _ in range(repeat):
                start = time.perf_counter()
                call()
                if turn:
                    times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in times.items()}


def measure(target: str) -> dict[str, Any]:
    """Measure one backend, in this process, and return medians in ms."""
    import shim
    from shim.data import imdb

    shim.load(target.partition(":")[0]).setup(threads=len(os.sched_getaffinity(0)))
    times = _medians(
        {
            "rows_20k": _steps(target, "imdb_fasttext-ngrams=1" + ROWS),
            "rows_same": _steps(target, "imdb_fasttext" + ROWS, imdb.WITH_PAIRS // imdb.VOCABULARY),
            "rows_own": _steps(target, "imdb_fasttext" + ROWS),
        },
        2 * BATCHES,
    )
    arrays = [np.ones((imdb.WITH_PAIRS, 50), np.float32) for _ in range(3)]
    return times | _medians({"adam": _steps(target, "imdb_fasttext"), "stream": lambda: stream(arrays)}, 2)


def main(targets: list[str]) -> None:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Column, Table

    from shim import environments, settings

    columns = "Adam", "stream", "ratio", "20,000", "same", "ratio", "own", "ratio"
    table = Table(Column("backend", no_wrap=True), *columns, title="Milliseconds; behind Adam, those of rows")
    for target in track(targets, console=Console(stderr=True), transient=True):
        name, colon, mode = target.partition(":")
        plain, setting = settings.split(name)
        if setting is not settings.NONE and not setting.variables:
            raise SystemExit(f"{target}: only settings that are variables of the environment can be taken here")
        command = [str(environments.python(plain)), __file__, "--worker", plain + colon + mode]
        environ = environments.variables() | dict(setting.variables)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
        t = json.loads(done.stdout.splitlines()[-1])
        row = [t["adam"], t["stream"], t["adam"] / t["stream"], t["rows_20k"]]
        row += [t["rows_same"], t["rows_same"] / t["rows_20k"], t["rows_own"], t["rows_own"] / t["rows_20k"]]
        table.add_row(target, *(f"{value:.2f}" for value in row))
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tools.step_cost", description=__doc__.partition(":")[0] + ".")
    default = ("numpy", "torch", "torch:compile", "jax", "tensorflow", "tensorflow:xla", "cntk")
    parser.add_argument(
        "backend", nargs="*", default=default, help=f"as jax or jax/huge-pages; default: {' '.join(default)}"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        print(json.dumps(measure(given.worker)))
    else:
        main(list(given.backend))
