"""A comparison: every contestant on every case, interleaved, in several rounds of fresh processes.

A *contestant* is a target in one of its modes. A round starts one worker a target, lets it prepare its cases (parity
first) and plays the blocks of :mod:`shim.measure.schedule`, one worker running at a time. Whatever fails is recorded
with its reason and left out; the rest goes on.

* What fails while it is loaded, built, checked or warmed up is left out of the rest of the run.
* A worker that dies is started again once a round. Samples of both its processes count for that round: rounds stay
  independent of each other, which is all that the intervals rest on. A case that has killed two workers is left out.
* An interrupted run goes on with :func:`resume`. Samples of one round must come from one stretch of time, so a round
  that was not finished is played again from its start.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from shim import cases as all_cases
from shim import settings, statistics
from shim.measure import machine, runfile
from shim.measure.rounds import ALONE, Choice, Progress, Rounds, Silent

#: Spare rounds are played with what is left of the minutes of a run, else of the time that it had for waiting.
DEFAULTS = {"rounds": 14, "sweeps": 4, "block_seconds": 0.02, "spare_rounds": 2}
QUICK = {"rounds": 2, "sweeps": 2, "block_seconds": 0.02, "spare_rounds": 0}


class RunInterrupted(RuntimeError):
    """The run was interrupted; the message says where its samples are and how to go on."""


def run(
    path: Path | str,
    *,
    targets: Sequence[str],
    cases: Iterable[all_cases.Case],
    modes: str = "default",
    rounds: int | None = None,
    minutes: float | None = None,
    sweeps: int | None = None,
    block_seconds: float | None = None,
    quick: bool = False,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
    baseline: str | None = None,
    progress: Progress | None = None,
    choose: Choice | None = None,
    alone: int = ALONE,
    only: Mapping[str, Sequence[str]] | None = None,
) -> runfile.Run:
    """Compare targets on cases, write every sample to a new run file and return what it holds.

    A target is ``backend`` or ``backend@version``, with ``/setting`` or without (:mod:`shim.settings`), followed by
    ``:mode`` for that mode alone; ``modes="all"`` takes every mode of each backend. ``only`` names the contestants of a
    case by their labels; in cases that it leaves out all take part. ``threads`` is the number of threads and CPUs of
    each worker, by default all that this process may use. After each round ``choose`` may say which cases the next one
    has, and with none end the run. No round begins that would, by the length of the one before, end later than
    ``minutes`` after the start; :func:`resume` plays the rest, with as much time again. In the first ``alone`` rounds
    workers start and build one after the other, which makes those times clean; with ``minutes`` in one at most.
    Raises ``ValueError`` for bad input, :class:`RunInterrupted` after Ctrl-C,
    :class:`shim.measure.runfile.RunFileError` where the file cannot be written, ``RuntimeError`` if no target works.
    """
    path = Path(path)
    cpus = sorted(os.sched_getaffinity(0))
    defaults = QUICK if quick else DEFAULTS
    config: dict[str, Any] = {
        "seed": seed,
        "rounds": rounds or defaults["rounds"],
        "sweeps": sweeps or defaults["sweeps"],
        "block_seconds": block_seconds or defaults["block_seconds"],
        "spare_rounds": 0 if rounds or choose else defaults["spare_rounds"],
        "targets": [],
        "cases": list(dict.fromkeys(case.id for case in cases)),
        "threads": threads or len(cpus),
        "cpus": cpus[: threads or len(cpus)],
        "device": device,
        "precision": precision,
        "baseline": baseline,
        "alone": alone,
    }
    if minutes:
        config |= {"minutes": minutes, "alone": min(alone, 1), "spare_rounds": defaults["spare_rounds"]}
    if only:
        config["only"] = {case: list(names) for case, names in only.items()}
    wanted = _check(path, config, targets, modes, len(cpus))
    played = Rounds(config, progress or Silent())
    with _stoppable(played, path):
        loaded = played.begin(0, wanted)  # before there is a file: only the backends know their modes
        config["targets"] = _contestants(wanted, modes, loaded)
        names = [entry["label"] for entry in config["targets"] if entry["mode"]]
        config["baseline"] = statistics.choose_baseline(names, baseline) if names else baseline
        played.open(path, _header(config))
        if not names:
            raise RuntimeError("no backend could be loaded:" + "".join(f"\n  {line}" for line in played.failed))
        played.play(range(config["rounds"] + config["spare_rounds"]), choose)
    return runfile.read(path)


def resume(path: Path | str, progress: Progress | None = None) -> runfile.Run:
    """Go on with an interrupted run; a complete one is returned as it is.

    Raises as :func:`run` does, and ``ValueError`` if the run was begun on another machine or with another shim.
    """
    path = Path(path)
    found = runfile.read(path)
    if found.complete:
        return found
    config = found.header["config"]
    if not {"rounds", "sweeps", "block_seconds", "seed"} <= config.keys():
        raise ValueError(f"{path} is no comparison; only those can be resumed")
    here, there = machine.environment(), found.header.get("environment", {})
    for name in ("cpu", "cores", "memory_bytes", "shim"):
        if here[name] != there.get(name):
            raise ValueError(f"{path} was begun with {name} {there.get(name)!r}, here it is {here[name]!r}; start anew")
    played = Rounds(config, progress or Silent(), found)
    with _stoppable(played, path):
        played.open(path, {"record": "resume", "started": _now(), "environment": here})
        whole = {record["round"] for record in found.rounds if record["record"] == "round_end"}
        numbers = range(config["rounds"] + config.get("spare_rounds", 0))
        played.play([number for number in numbers if number not in whole])
    return runfile.read(path)


def _check(path: Path, config: dict[str, Any], targets: Sequence[str], modes: str, cpus: int) -> list[str]:
    """Raise ``ValueError`` for what can be known to be wrong before anything is started; return the targets."""
    if path.exists():
        raise ValueError(f"{path} exists already; choose another file, or go on with: shim bench --resume {path}")
    if modes not in ("default", "all"):
        raise ValueError(f"unknown modes {modes!r}; choose default or all")
    if not config["cases"]:
        raise ValueError("there is nothing to measure: no case was chosen")
    if not targets:
        raise ValueError("there is nothing to compare: no backend was chosen")
    if config["threads"] > cpus:
        raise ValueError(f"{config['threads']} threads were asked for, but this process may use only {cpus} CPUs")
    wanted = list(dict.fromkeys(targets))
    for target in wanted:
        settings.split(target.partition(":")[0])
    baseline = config["baseline"]
    if baseline and baseline.partition(":")[0] not in {target.partition(":")[0] for target in wanted}:
        raise ValueError(f"baseline {baseline!r} does not take part; choose from: {', '.join(wanted)}")
    return wanted


def _contestants(wanted: Sequence[str], modes: str, loaded: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return target, mode and label of each contestant; the mode is None where a target could not be loaded."""
    found = {}
    for name in wanted:
        target, _, mode = name.partition(":")
        offered = loaded.get(target)
        if offered is None:
            found[name] = {"target": target, "mode": None, "label": name}
            continue
        if mode and mode not in offered:
            raise ValueError(f"{target} has no mode {mode!r}; it has: {', '.join(offered)}")
        for chosen in [mode] if mode else offered if modes == "all" else offered[:1]:
            label = statistics.label(target, chosen, offered[0])
            found[label] = {"target": target, "mode": chosen, "label": label}
    return list(found.values())


def _header(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "record": "run",
        "schema": runfile.SCHEMA,
        "id": str(uuid.uuid4()),
        "started": _now(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "config": config,
        "environment": machine.environment(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def _stoppable(rounds: Rounds, path: Path) -> Iterator[None]:
    """End the workers and write the end record whatever happens, and say how to go on."""
    begun = monotonic()
    again = f"go on with: shim bench --resume {shlex.quote(str(path))}"

    def end(reason: str) -> None:
        rounds.kill()
        rounds.record({"record": "end", "reason": reason, "wall_seconds": monotonic() - begun})

    try:
        yield
        end("out of time" if rounds.out_of_time else "complete")
    except KeyboardInterrupt:
        with contextlib.suppress(runfile.RunFileError):
            end("interrupted")
        if not rounds.is_open:
            raise RunInterrupted("interrupted before anything was measured") from None
        raise RunInterrupted(f"interrupted; what was measured is kept in {path}; {again}") from None
    except runfile.RunFileError as error:
        raise runfile.RunFileError(f"{error}; {again}" if rounds.is_open else str(error)) from None
    except BaseException as error:
        with contextlib.suppress(runfile.RunFileError):
            end(f"failed: {type(error).__name__}")
        raise
    finally:
        rounds.close()
