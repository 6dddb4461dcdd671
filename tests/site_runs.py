"""A site of made-up runs of every kind, for tests: its files, the site itself, and a web server for the browser."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import example_run as example
import test_explain

from shim import article
from shim.explain import hypotheses, winmap

TWO = (("numpy", "eager"), ("torch", "eager"))
GRID = winmap.Grid("dense", (("N", (1, 3)), ("I", (5,)), ("O", (2, 4, 8))))
LARGE_CASES = tuple(f"dense/forward/N{n}-I7-O3/float32" for n in range(1, 26))


def map_of_two() -> Iterator[dict[str, Any]]:
    """numpy wins up to O 4, torch beyond."""
    cells = GRID.cells()
    seconds = [(1e-4, 2e-4) if point[2] <= 4 else (2e-4, 1e-4) for point in cells]
    return example.records(TWO, [case.id for case in cells.values()], seconds, 5, 2)


def one_cause() -> Iterator[dict[str, Any]]:
    """One thread of torch takes twice as long as two, and numpy twice as long again."""
    cause = hypotheses.CAUSES["numpy-threads"]
    contestants = [name for _, name in cause.rows]
    targets = [(name, "eager") for name in contestants]
    first, *rest = example.records(targets, [cause.case], [[4e-3, 1e-3, 2e-3]], 5, 2)
    first["config"]["only"] = {cause.case: contestants}
    return iter([first, *rest])


def large() -> Iterator[dict[str, Any]]:
    """A run of 100,000 samples: 25 cases, 5 contestants, 8 rounds, 4 sweeps, 25 samples a block."""
    seconds = [[1e-4 * (t + 1) for t in range(5)]] * len(LARGE_CASES)
    return example.records(cases=LARGE_CASES, seconds=seconds, rounds=8, sweeps=4, samples=25)


def write_article(folder: Path, model: str = "mnist_mlp", targets: Sequence[tuple[str, str]] = TWO) -> Path:
    """Write three repeats of one model, as ``shim article`` does."""
    jobs = [{"model": "mnist_mlp", "repeat": k, "targets": ["numpy", "torch"]} for k in range(3)]
    plan = {"schema": 1, "scale": 0.1, "repeats": 3, "seed": 0, "threads": 2}
    folder.mkdir(parents=True)
    (folder / article.PLAN).write_text(
        json.dumps(plan | {"models": {"mnist_mlp": 2}, "targets": [target for target, _ in targets], "jobs": jobs})
    )
    for job in jobs:
        records = [
            record | {"samples": 500, "test_samples": 50} if record["record"] == "epoch" else record
            for record in example.epochs(model, targets, 2)
        ]
        example.write(folder / f"mnist_mlp.{job['repeat'] + 1}.jsonl", records)
    return folder


def write_all(folder: Path) -> None:
    """Write a run of every kind, and two of ``shim bench``, as ``.shim/runs`` holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in (
        ("20260101-120000-article", example.records()),
        ("20260101-110000-case", example.records(TWO, example.CASES[:1], [(1e-3, 2e-3)], 3, 2)),
        ("20260101-120000-map-dense", map_of_two()),
        ("20260101-120000-causes", one_cause()),
        ("20260101-120000-mnist_mlp", test_explain.records(rounds=3)),
        ("20260101-130000-mnist_mlp", example.epochs()),
    ):
        example.write(folder / f"{name}.jsonl", list(records))
    write_article(folder / "20260101-140000-article")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class Address(str):
    """An address where a path is expected."""

    def as_uri(self):
        return str(self)


@contextmanager
def served(folder: Path) -> Iterator[Address]:
    """Serve a folder to this machine alone, and yield its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Address(f"http://127.0.0.1:{server.server_port}/")
        server.shutdown()
