"""One virtual environment for each target, so that no framework's requirements disturb another's.

A *target* is a backend with an optional version: ``torch``, ``tensorflow@2.16.2``. Its environment is the folder
``env/<target>`` in :func:`home`, made for the Python that runs this tool from the pins in ``requirements/``. It counts
as present only when its record, the file written last, matches those pins; whatever an interrupted installation leaves
behind is made again. ``shim`` itself is not installed there: it comes in by path, see :func:`source`.

This module needs only the standard library.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from shim import files, installer
from shim.backends import BACKENDS, check_name

Log = Callable[[str], None]
RECORD = "shim.json"
_PACKAGE = Path(__file__).resolve().parent


class EnvironmentMissing(RuntimeError):
    """A target has no usable environment; the message names the command that makes it."""


class EnvironmentFailed(RuntimeError):
    """An environment could not be made; the message is the reason."""


class Progress(Protocol):
    """What :func:`ensure` reports to: a bar with one step a target."""

    def start(self, total: int, description: str) -> None: ...
    def advance(self, text: str) -> None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True)
class Environment:
    """What is known of one target.

    ``state`` is "ready", "outdated", "missing" or "failed" (then see ``reason``); ``version`` that of the backend's own
    package, ``versions`` those of all packages; ``bytes`` the size on disk.
    """

    target: str
    state: str
    path: Path
    version: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    python: str | None = None
    bytes: int | None = None
    reason: str | None = None


def home() -> Path:
    """Return the folder for all that this tool keeps: $SHIM_HOME, else ``.shim`` in the checkout or working folder."""
    chosen = os.environ.get("SHIM_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    checkout = _PACKAGE.parent
    is_checkout = (checkout / "pyproject.toml").is_file() and (checkout / "requirements").is_dir()
    return (checkout if is_checkout else Path.cwd()) / ".shim"


def parse(target: str) -> tuple[str, str | None]:
    """Split a target into backend and version; raise ``ValueError`` with the choices if there is no such backend."""
    backend, at, version = target.partition("@")
    check_name(backend)
    if at and not re.fullmatch(r"\d+(\.\d+)*((a|b|rc|\.post|\.dev)\d+)*(\+\w+)?", version):
        raise ValueError(f"target {target!r}: {version!r} is not a version; write for example {backend}@1.2.3")
    return backend, version or None


def python(target: str) -> Path:
    """Return the interpreter of a target's environment; raise :class:`EnvironmentMissing` where there is none."""
    environment = describe(target)
    if environment.state == "ready":
        return _interpreter(environment.path)
    problem = {
        "missing": f"there is no environment for {target!r}; make it with: shim env {target}",
        "outdated": f"the environment of {target!r} was made for other requirements; renew it with: shim env {target}",
        "failed": f"the environment of {target!r} could not be made ({environment.reason}); "
        f"try again with: shim env {target}",
    }
    raise EnvironmentMissing(problem[environment.state])


def describe(target: str) -> Environment:
    """Return what is known of a target's environment, without starting it."""
    backend, _ = parse(target)
    path = _folder() / target
    record = _read_record(path)
    if record is None:
        failure = _beside(target, "failed")
        if failure.is_file():
            return Environment(target, "failed", path, reason=failure.read_text(encoding="utf-8").strip())
        return Environment(
            target, "missing", path, reason="its installation was interrupted" if path.exists() else None
        )
    main = installer.main_package(backend, record["versions"])
    current = record["stamp"] == _stamp(target) and _interpreter(path).exists()
    return Environment(
        target,
        "ready" if current else "outdated",
        path,
        version=main[1] if main else None,
        versions=record["versions"],
        python=record["python"],
        bytes=record["bytes"],
        reason=None if current else "its requirements or its Python have changed since",
    )


def rows(targets: Iterable[str] = ()) -> list[Environment]:
    """Describe these targets; by default every backend and every version that has been tried, in a fixed order."""
    chosen = list(dict.fromkeys(targets))
    if not chosen:
        order = list(BACKENDS)
        entries = [entry.name.removesuffix(".failed") for entry in _folder().glob("*@*")]
        versions = [name for name in entries if _is_target(name) and describe(name) != _unknown(name)]
        chosen = sorted({*order, *versions}, key=lambda target: (order.index(parse(target)[0]), target))
    return [describe(target) for target in chosen]


def installed() -> list[str]:
    """Return the targets whose environments are ready for use."""
    return [environment.target for environment in rows() if environment.state == "ready"]


def ensure(
    targets: Iterable[str],
    progress: Progress | None = None,
    *,
    recreate: bool = False,
    python: Path | None = None,
    log: Log = lambda line: None,
) -> dict[str, str | None]:
    """Make the environments that are missing or outdated; return for each target None, or why it has to be left out.

    With ``python`` they are made anew and run that one, with what is installed there. One failure does not stop the
    others. Raises ``ValueError`` for an unknown target before anything is made.
    """
    before = [describe(target) for target in dict.fromkeys(targets)]
    outcome: dict[str, str | None] = {environment.target: None for environment in before}
    recreate = recreate or python is not None
    needed = [environment.target for environment in before if recreate or environment.state != "ready"]
    if not needed:
        return outcome
    if progress is not None:
        progress.start(len(needed), "environments")
    try:
        for target in needed:
            try:
                create(target, recreate=recreate, python=python, log=log)
            except EnvironmentFailed as error:
                outcome[target] = str(error)
            if progress is not None:
                progress.advance(f"{target} {'failed' if outcome[target] else 'ready'}")
    finally:
        if progress is not None:
            progress.stop()
    return outcome


def create(target: str, *, recreate: bool = False, python: Path | None = None, log: Log = lambda line: None) -> None:
    """Make a target's environment unless it is ready; ``log`` gets each line that the installer prints.

    Raises :class:`EnvironmentFailed` with the reason, which is also kept for :func:`describe`.
    """
    parse(target)
    try:
        with installer.locked(_beside(target, "lock"), log) as lock:
            if recreate or describe(target).state != "ready":
                _remake(target, lock, python, log)
    except (installer.InstallError, OSError) as error:
        raise EnvironmentFailed(str(error)) from None


def remove(target: str) -> bool:
    """Delete a target's environment and what is remembered of it; return whether there was anything."""
    there = describe(target) != _unknown(target)
    if there:
        with installer.locked(_beside(target, "lock")):
            _discard(target)
            _beside(target, "log").unlink(missing_ok=True)
    return there


def source() -> Path:
    """Return a folder to put on PYTHONPATH: it makes ``import shim`` find this very package, and nothing else."""
    folder = home() / "path" / hashlib.sha256(os.fsencode(_PACKAGE)).hexdigest()[:8]
    link = folder / "shim"
    if not (link.is_symlink() and link.resolve() == _PACKAGE):
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"shim.{os.getpid()}"
        fresh.symlink_to(_PACKAGE, target_is_directory=True)
        fresh.replace(link)
    return folder


def variables() -> dict[str, str]:
    """Return the variables for a process in a target's environment: this process's, and where shim and its home are."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONHOME", "VIRTUAL_ENV")}
    given = {"PYTHONPATH": str(source()), "PYTHONNOUSERSITE": "1", "SHIM_HOME": str(home())}
    return kept | given | {"KERAS_HOME": str(home() / "keras")}  # not the user's settings, and no file left there


def _remake(target: str, lock: int, python: Path | None, log: Log) -> None:
    _discard(target)
    try:
        _make(target, lock, python, log)
    except (installer.InstallError, OSError) as error:
        with contextlib.suppress(OSError):  # a full disk, say: then the reason is told but not kept
            _discard(target)
            _beside(target, "failed").write_text(f"{error}\n", encoding="utf-8")
        raise


def _make(target: str, lock: int, python: Path | None, log: Log) -> None:
    backend, version = parse(target)
    path = _folder() / target
    with _beside(target, "log").open("w", encoding="utf-8") as transcript:

        def both(line: str) -> None:
            print(line, file=transcript, flush=True)
            log(line)

        if python:
            _borrow(path, python)
        else:
            installer.install(path, installer.requirements(backend, version), source(), keep_open=(lock,), log=both)
        versions = installer.verify(_interpreter(path), backend, source())
    size = sum(entry.lstat().st_size for entry in path.rglob("*"))
    record = {"stamp": _stamp(target), "python": platform.python_version(), "versions": versions, "bytes": size}
    with files.replacing(path / RECORD) as opened:  # from then on the environment counts as present
        opened.write((json.dumps(record, indent=1) + "\n").encode())


def _borrow(path: Path, python: Path) -> None:
    """Let an environment run another Python, which may itself be in an environment."""
    interpreter = _interpreter(path)
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text(f'#!/bin/sh\nexec {shlex.quote(str(python.absolute()))} "$@"\n', encoding="utf-8")
    interpreter.chmod(0o755)


def _discard(target: str) -> None:
    path = _folder() / target
    (path / RECORD).unlink(missing_ok=True)  # first, so that half a deletion does not look like an environment
    if path.exists():
        shutil.rmtree(path)
    _beside(target, "failed").unlink(missing_ok=True)


def _folder() -> Path:
    return home() / "env"


def _beside(target: str, kind: str) -> Path:
    return _folder() / f"{target}.{kind}"


def _unknown(target: str) -> Environment:
    return Environment(target, "missing", _folder() / target)


def _is_target(name: str) -> bool:
    try:
        return bool(parse(name))
    except ValueError:
        return False


def _interpreter(path: Path) -> Path:
    return path / "bin" / "python"


def _stamp(target: str) -> str:
    runner = [platform.python_implementation(), platform.python_version(), sys.abiflags]
    return hashlib.sha256(json.dumps([installer.requirements(*parse(target)), runner]).encode()).hexdigest()[:16]


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        return record if {"stamp", "versions", "python", "bytes"} <= set(record) else None
    except (OSError, ValueError):
        return None
