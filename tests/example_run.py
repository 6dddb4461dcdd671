"""Run files made up for tests: every kind of record that ``docs/run-file.md`` describes, with known speeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = (("numpy", "eager"), ("tensorflow", "graph"), ("tensorflow", "xla"), ("jax", "jit"), ("torch", "eager"))
CASES = (
    "dense/forward/N128-I784-O512-activation=relu/float32",
    "dense/forward_backward/N128-I784-O512-activation=relu/float32",
    "bilstm/forward/N32-T100-I128-H64/float32",
    "bilstm/forward_backward/N32-T100-I128-H64/float32",
)
#: Seconds of one call, case by target.
SECONDS = (
    (0.87e-3, 0.93e-3, 1.14e-3, 0.65e-3, 0.51e-3),
    (2.55e-3, 2.04e-3, 2.96e-3, 2.01e-3, 1.44e-3),
    (14.4e-3, 12.6e-3, 13.8e-3, 15.4e-3, 4.8e-3),
    (41.0e-3, 88.2e-3, 29.0e-3, 26.0e-3, 16.4e-3),
)
PATHS = {"numpy": "OpenBLAS", "tensorflow": "oneDNN", "jax": "XLA while loop", "torch": "oneDNN LSTM"}
HOSTILE = "</title></script><script>window.pwned = 1</script><b onload='x'>$\\frac{1}{2}$ {{ 7*7 }} [bold]&amp; \x1b[2J"
ENVIRONMENT = {
    "cpu": "Example CPU @ 2.00 GHz",
    "cores": 2,
    "governor": None,
    "memory_bytes": 8 * 2**30,
    "kernel": "6.1.0",
    "python": "3.11.7",
    "affinity": [0, 1],
    "virtualised": True,
    "git": {"commit": "0123abc", "dirty": False},
    "shim": "0.1.0",
    "variables": {"OMP_NUM_THREADS": "2"},
}


def header(targets: Sequence[tuple[str, str]] = TARGETS, cases: Sequence[str] = CASES, **config: Any) -> dict[str, Any]:
    """Return the first record of a run file."""
    settings = {
        "seed": 0,
        "rounds": 5,
        "sweeps": 4,
        "block_seconds": 0.05,
        "targets": [{"target": target, "mode": mode} for target, mode in targets],
        "cases": list(cases),
        "threads": 2,
        "device": "cpu",
        "precision": "float32",
        "baseline": "tensorflow" if ("tensorflow", "graph") in targets else None,
    }
    return {
        "record": "run",
        "schema": 1,
        "id": "6f1c1c0e-0000-4000-8000-000000000001",
        "started": "2026-01-01T12:00:00+00:00",
        "command": ["shim", "bench", "--set", "article", "--model", "mnist_mlp"],
        "config": settings | config,
        "environment": ENVIRONMENT,
    }


def records(
    targets: Sequence[tuple[str, str]] = TARGETS,
    cases: Sequence[str] = CASES,
    seconds: Sequence[Sequence[float]] = SECONDS,
    rounds: int = 5,
    sweeps: int = 4,
    spread: float = 0.01,
    paths: dict[str, str] = PATHS,
    seed: int = 0,
    samples: int = 1,
) -> Iterator[dict[str, Any]]:
    """Yield the records of a complete run; each sample is ``seconds`` times a lognormal factor around 1."""
    rng = np.random.default_rng(seed)
    yield header(targets, cases, rounds=rounds, sweeps=sweeps)
    for r in range(rounds):
        for target in dict.fromkeys(target for target, _ in targets):
            yield worker(target, r)
        for c, case in enumerate(cases):
            for t, (target, mode) in enumerate(targets):
                yield build(target, mode, case, r, seconds[c][t], paths.get(target, "nothing"))
        for sweep in range(sweeps):
            for c, case in enumerate(cases):
                for t, (target, mode) in enumerate(targets):
                    drawn = seconds[c][t] * np.exp(spread * rng.standard_normal(samples))
                    yield block(target, mode, case, r, sweep, drawn.tolist())
    yield {"record": "end", "reason": "complete", "wall_seconds": 61.5}


def worker(target: str, round: int) -> dict[str, Any]:
    return {
        "record": "worker",
        "round": round,
        "target": target,
        "import_seconds": 0.1 + 0.9 * (target == "tensorflow"),
        "setup_seconds": 0.02,
        "describe": {"device": "cpu", "precision": "float32", "threads": 2, "versions": {target: "1.2.3"}},
        "variables": {"OMP_NUM_THREADS": "2"},
        "pid": 1234,
    }


def build(target: str, mode: str, case: str, round: int, seconds: float, path: str) -> dict[str, Any]:
    fused = {"fused": mode not in ("eager", "cpu")} if "/gradients/" in case else {}
    return fused | {
        "record": "build",
        "round": round,
        "target": target,
        "mode": mode,
        "case": case,
        "build_seconds": 2e-4,
        "first_call_seconds": 20 * seconds,
        "implementation": path,
        "parity": {"passed": True, "worst": 0.043, "tolerance": 1.0, "id": "00112233aabbccdd"},
    }


def block(target: str, mode: str, case: str, round: int, sweep: int, seconds: list[float]) -> dict[str, Any]:
    loops = max(1, int(0.05 / seconds[0]))
    wall = loops * sum(seconds)
    return {
        "record": "block",
        "round": round,
        "sweep": sweep,
        "target": target,
        "mode": mode,
        "case": case,
        "loops": loops,
        "seconds": seconds,
        "cpu_seconds": 1.9 * wall,
        "wall_seconds": wall,
    }


def failure(target: str, mode: str | None = None, case: str | None = None, reason: str = "it broke") -> dict[str, Any]:
    found = {"record": "failure", "round": 0, "target": target, "mode": mode, "case": case}
    return {key: value for key, value in found.items() if value is not None} | {"stage": "parity", "reason": reason}


def device(target: str, mode: str, case: str, kernel: float, span: float, name: str = "gemm") -> dict[str, Any]:
    """Return the times of a row on a GPU; with a cold cache they are twice as long."""

    def state(times: int) -> dict[str, Any]:
        longest = [{"name": name, "number": 2.0, "seconds": 0.8 * times * kernel}]
        seconds = {"kernel_seconds": [times * kernel] * 3, "span_seconds": [times * span] * 3}
        return {"calls": 100, "kernels": 3.0, "longest": longest} | seconds

    row = {"record": "device", "round": 0, "target": target, "mode": mode, "case": case}
    return row | {"hot": state(1), "cold": state(2)}


def epochs(model: str = "mnist_mlp", targets: Sequence[tuple[str, str]] = TARGETS, number: int = 4) -> Iterator[dict]:
    """Yield the records of a training run."""
    yield header(targets, ()) | {"command": ["shim", "train", model]}
    for t, (target, mode) in enumerate(targets):
        for epoch in range(1, number + 1):
            yield {
                "record": "epoch",
                "model": model,
                "target": target,
                "mode": mode,
                "epoch": epoch,
                "train_seconds": 2.0 + t + 3.0 * (epoch == 1),
                "evaluate_seconds": 0.2,
                "loss": 0.4 / epoch,
                "test_loss": 0.5 / epoch,
                "test_accuracy": 0.985 - 0.06 / epoch - 0.001 * t,
                "steps": 469,
                "source": "real",
            }
    yield {"record": "end", "reason": "complete", "wall_seconds": 61.5}


def hostile(training: bool = False) -> list[dict[str, Any]]:
    """Put hostile text wherever a run file has text."""
    targets = ((HOSTILE, HOSTILE + "mode"), ("torch", "eager"))
    cases = (HOSTILE + "/", f"lstm/forward/N2-{HOSTILE.replace('/', '')}/float32")
    if training:
        found = list(epochs(HOSTILE, targets, 2))
        found[1]["source"] = HOSTILE
    else:
        seconds = ((1e-3, 2e-3), (1e-3, 2e-3))
        found = list(records(targets, cases, seconds, paths={HOSTILE: HOSTILE}, rounds=3, sweeps=1))
        found.append(failure(HOSTILE, HOSTILE + "mode", cases[0], HOSTILE + "\n" + HOSTILE))
        found.append(failure(HOSTILE + "other", None, None, HOSTILE))
        found.append(device(HOSTILE, HOSTILE + "mode", cases[0], 1e-6, 2e-6, HOSTILE))
        found.append({"record": "warning", "round": 0, "target": HOSTILE, "stage": "device", "reason": HOSTILE})
        found.append({"record": "end", "reason": HOSTILE, "wall_seconds": 1.0})
    found[0] |= {"command": ["shim", HOSTILE], "id": HOSTILE, "started": HOSTILE}
    found[0]["config"] |= {"baseline": HOSTILE, "seed": HOSTILE}
    found[0]["environment"] = {"cpu": HOSTILE, HOSTILE: HOSTILE, "variables": {HOSTILE: HOSTILE}, "shim": HOSTILE}
    return found


def write(path: Path, lines: Iterator[dict[str, Any]] | Sequence[dict[str, Any]]) -> Path:
    """Write records as JSON Lines and return the path."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
