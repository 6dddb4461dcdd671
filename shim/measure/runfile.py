"""The run file: everything a run has measured, one JSON object a line, appended as it happens.

``docs/run-file.md`` describes the records. Nothing in the file is ever changed: a killed run loses at most the line
that was being written. A round that was not finished is played again from its start when the run goes on, and its
second ``round`` record says so; readers leave out what the file holds of the first try.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import numpy as np

SCHEMA = 1
Record = dict[str, Any]


class RunFileError(RuntimeError):
    """A run file cannot be written; the message says what is safe."""


@dataclass
class Run:
    """The records of a run file, by kind and in their order; ``header`` is the first, ``end`` the last ``end`` record.

    Records of rounds that were started again are left out.
    """

    path: Path
    header: Record
    rounds: list[Record] = field(default_factory=list)
    workers: list[Record] = field(default_factory=list)
    builds: list[Record] = field(default_factory=list)
    blocks: list[Record] = field(default_factory=list)
    failures: list[Record] = field(default_factory=list)
    epochs: list[Record] = field(default_factory=list)
    ceilings: list[Record] = field(default_factory=list)
    devices: list[Record] = field(default_factory=list)
    warnings: list[Record] = field(default_factory=list)
    end: Record | None = None

    @property
    def complete(self) -> bool:
        """Whether the run was played to its end."""
        return self.end is not None and self.end.get("reason") == "complete"


_LISTS = {
    "round": "rounds",
    "round_end": "rounds",
    "worker": "workers",
    "build": "builds",
    "block": "blocks",
    "failure": "failures",
    "epoch": "epochs",
    "ceiling": "ceilings",
    "device": "devices",
    "warning": "warnings",
}
_NUMBER = (int, float)
_ROW = {"round": int, "target": str, "mode": str, "case": str}
_NEEDED: dict[str, dict[str, Any]] = {
    "run": {"schema": object, "config": dict},
    "round": {"round": int},
    "round_end": {"round": int},
    "worker": {"target": str},
    "build": _ROW | {"build_seconds": _NUMBER, "first_call_seconds": _NUMBER},
    "block": _ROW | {"sweep": int, "seconds": list, "cpu_seconds": _NUMBER, "wall_seconds": _NUMBER},
    "failure": {"target": str, "reason": str},
    "epoch": {"target": str, "mode": str, "model": str, "epoch": int},
    "device": _ROW | {"hot": dict, "cold": dict},
    "ceiling": {"round": int, "target": str, "mode": str, "call_seconds": dict},
}


def read(path: Path | str) -> Run:
    """Read a run file. A last line that was not written to its end is left out.

    Raises ``ValueError`` with the file and the line for anything else that is not as it should be.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n")
    run: Run | None = None
    for number, line in enumerate(lines, 1):
        record = _parse(path, number, line, last=number == len(lines))
        if record is None:
            continue
        if run is None:
            run = Run(path, _check_header(path, record))
        else:
            _add(run, record)
    if run is None:
        raise ValueError(f"{path} holds no run: it is empty")
    return run


def _parse(path: Path, number: int, line: bytes, last: bool) -> Record | None:
    if not line.strip():
        return None
    try:
        record = json.loads(line.decode(), parse_constant=_refuse)
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        _check(record)
    except ValueError as error:
        if last:
            return None
        raise ValueError(f"{path} is damaged in line {number}: {error}") from None
    return record


def _check(record: Record) -> None:
    kind = str(record.get("record"))
    for name, kinds in _NEEDED.get(kind, {}).items():
        if name not in record:
            raise ValueError(f"its {kind!r} record has no {name!r}")
        if not isinstance(record[name], kinds):
            raise ValueError(f"{name!r} of its {kind!r} record is {json.dumps(record[name])[:60]}")
    if kind == "block" and not _are_durations(record["seconds"]):
        raise ValueError("'seconds' of its 'block' record holds something else than durations")
    for state in (record["hot"], record["cold"]) if kind == "device" else ():
        for name in ("kernel_seconds", "span_seconds"):
            if not (state.get(name) and _are_durations(state[name])):
                raise ValueError(f"{name!r} of its 'device' record holds something else than durations")
        if not isinstance(state.get("kernels"), _NUMBER):
            raise ValueError("its 'device' record has no number of kernels")


def _are_durations(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, _NUMBER) and value >= 0 for value in values)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


def _check_header(path: Path, record: Record) -> Record:
    if record.get("record") != "run":
        raise ValueError(f"{path} is not a run file: its first line is no run record")
    if record["schema"] != SCHEMA:
        raise ValueError(
            f"{path} is written in schema {record['schema']!r}, this version of shim reads schema {SCHEMA}; "
            "use the version that wrote it"
        )
    return record


def _add(run: Run, record: Record) -> None:
    kind = record.get("record")
    if kind == "end":
        run.end = record
    elif kind == "resume" and "model" in run.header["config"]:  # a training: what failed is tried again
        run.end, run.failures = None, []
    elif kind in _LISTS:  # kinds that later versions add are passed over
        if kind == "round":
            run.end = None
            for name in dict.fromkeys(_LISTS.values()):
                kept = [old for old in getattr(run, name) if old.get("round") != record["round"]]
                setattr(run, name, kept)
        if kind == "epoch":  # one that was trained again after its checkpoint was lost
            run.epochs = [old for old in run.epochs if any(old[k] != record[k] for k in _NEEDED["epoch"])]
        getattr(run, _LISTS[kind]).append(record)


class Writer:
    """A run file open for appending. Every record is in the file when :meth:`write` returns.

    Opening cuts off a half-written last line. Raises :class:`RunFileError` if another process has the file open.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.records = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise RunFileError(f"cannot open {self.path} for writing: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._cut_half_line()
        except OSError as error:
            os.close(self._file)
            problem = "another process is writing to it" if isinstance(error, BlockingIOError) else error.strerror
            raise RunFileError(f"cannot write to {self.path}: {problem}") from None

    def _cut_half_line(self) -> None:
        if not os.path.isfile(self.path):
            return  # a device or a pipe
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data) and _parse(self.path, 0, data[whole:], last=True):
            os.write(self._file, b"\n")  # only the line's end was missing
        elif whole < len(data):
            os.ftruncate(self._file, whole)
        self.records = data.count(b"\n")

    def write(self, record: Record) -> None:
        """Append a record. Raises :class:`RunFileError`, the file as it was before, if there is no room."""
        line = (json.dumps(plain(record), ensure_ascii=False, allow_nan=False) + "\n").encode()
        size = os.fstat(self._file).st_size
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError as error:
            if written:
                os.ftruncate(self._file, size)
            raise RunFileError(
                f"cannot write to {self.path}: {error.strerror}; the {self.records} records before this one are safe"
            ) from None
        self.records += 1

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def plain(value: Any) -> Any:
    """Return a value as JSON knows it: NumPy scalars as numbers, NaN and infinities as None, other things as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
