"""Make a virtual environment and install requirements into it: with uv where there is one, else with venv and pip.

uv takes seconds where pip takes minutes, but does not read pip's configuration; so the machine's pip settings (indexes,
folders of wheels, certificates) are handed on to it here. Nothing outside the environment changes but their caches.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from shim.backends import BACKENDS, INSTALLED_BY, variables

Log = Callable[[str], None]

#: pip's setting -> uv's option; each takes one value, pip's settings hold one or more
_OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "trusted-host": "--allow-insecure-host",
    "constraint": "--constraint",
}
#: pip's setting -> variable that uv reads
_VARIABLES = {
    "cert": "SSL_CERT_FILE",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
    "proxy": "ALL_PROXY",
}

_VERIFY = """
import importlib, importlib.metadata, json, re, sys
sys.path.append(sys.argv[2])
importlib.import_module(sys.argv[1])
installed = importlib.metadata.distributions()
print(json.dumps({re.sub("[-_.]+", "-", d.metadata["Name"]).lower(): d.version for d in installed}))
"""


_PACKAGE = Path(__file__).resolve().parent


class InstallError(RuntimeError):
    """Installing failed; the message is the reason in one paragraph."""


def requirements(backend: str, version: str | None = None) -> list[str]:
    """Return every requirement of a backend, those of included files in place.

    The file is named after the backend, or else after the package it needs. With a version, its first paragraph takes
    that version and the other pins give way to the resolver.
    """
    folder = _PACKAGE / "requirements"
    folder = folder if folder.is_dir() else _PACKAGE.parent / "requirements"
    file = folder / f"{backend}.txt"
    text = (file if file.is_file() else folder / f"{BACKENDS[backend]}.txt").read_text(encoding="utf-8")
    lines: list[str] = []
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text)):
        for line in _plain_lines(paragraph):
            if line.startswith("-r "):
                lines += _plain_lines((folder / line.removeprefix("-r ").strip()).read_text(encoding="utf-8"))
            elif version is None:
                lines.append(line)
            else:
                lines.append(re.sub(r"==[^;\s]+", "" if number else f"=={version}", line))
    return lines


def main_package(backend: str, versions: Mapping[str, str]) -> tuple[str, str] | None:
    """Return name and version of the backend's own package: of its requirements the first that is installed."""
    names = (re.split(r"[^\w.-]", line)[0] for line in requirements(backend))
    return next(((name, versions[name]) for name in names if name in versions), None)


def install(path: Path, requirements: Sequence[str], source: Path, *, keep_open: Sequence[int] = (), log: Log) -> None:
    """Make the virtual environment ``path`` for the running Python and install ``requirements`` into it.

    Packages of :data:`shim.backends.INSTALLED_BY` come last, by modules of the ``shim`` in the folder ``source``. The
    installers' processes inherit the file descriptors ``keep_open``. Raises :class:`InstallError`.
    """
    special = {line: name for line in requirements if (name := line.partition("==")[0]) in INSTALLED_BY}
    listed = path / "requirements.txt"
    python = path / "bin" / "python"
    environ = _environ()
    if uv := find_uv():
        settings = pip_settings()
        environ = {name: settings[s][0] for s, name in _VARIABLES.items() if settings.get(s)} | environ
        make = [uv, "venv", "--no-project", "--python", sys.executable, str(path)]
        fill = [
            uv,
            "pip",
            "install",
            "--compile-bytecode",
            "--no-progress",
            "--python",
            str(python),
            *uv_options(settings),
        ]
    else:
        make = [sys.executable, "-m", "venv", str(path)]
        fill = [str(python), "-m", "pip", "install", "--progress-bar", "off"]
    _call(make, environ, keep_open, log)
    listed.write_text("".join(f"{line}\n" for line in requirements if line not in special), encoding="utf-8")
    _call([*fill, "-r", str(listed)], environ, keep_open, log)
    for line, name in special.items():
        command = [str(python), "-m", INSTALLED_BY[name], "install", "--version", line.partition("==")[2]]
        _call(command, environ | {"PYTHONPATH": str(source)}, keep_open, log)


@contextlib.contextmanager
def locked(file: Path, log: Log = lambda line: None) -> Iterator[int]:
    """Hold a lock that processes share through ``file``; give its descriptor.

    The installer is to inherit it: should only this process be killed, the lock stays taken until the installer, which
    would still be writing, has ended too. The file stays: deleting it would let two processes hold two locks.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for another process that is installing {file.stem}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def verify(python: Path, backend: str, source: Path) -> dict[str, str]:
    """Import a backend's package in an environment and return all versions there; raise :class:`InstallError` if not.

    It may import ``shim`` from the folder ``source``.
    """
    package = BACKENDS[backend]
    command = [str(python), "-I", "-c", _VERIFY, package, str(source)]
    environ = _environ() | variables(backend) | {"KERAS_HOME": str(python.parent.parent / "keras")}
    result = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        raise InstallError(f"import {package} fails: {reason(result.returncode, result.stderr.splitlines())}")
    versions: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return dict(sorted(versions.items()))


def find_uv() -> str | None:
    """Return the uv beside the running Python, else that on PATH; None where there is none or SHIM_INSTALLER=pip."""
    if os.environ.get("SHIM_INSTALLER") == "pip":
        return None
    return shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")


def pip_settings() -> dict[str, list[str]]:
    """Return the machine's pip settings, from its files and variables, each as its list of values."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:  # no pip beside this Python: its variables still hold
        names = (name for name in os.environ if name.startswith("PIP_"))
        return {name.removeprefix("PIP_").lower().replace("_", "-"): os.environ[name].split() for name in names}
    found: dict[str, dict[str, list[str]]] = {"global": {}, "install": {}, ":env:": {}}
    for section, name, value in re.findall(r"^(global|install|:env:)\.([\w-]+)=(.+)$", result.stdout, re.MULTILINE):
        found[section][name] = str(ast.literal_eval(value)).split()
    return found["global"] | found["install"] | found[":env:"]


def uv_options(settings: dict[str, list[str]]) -> list[str]:
    """Return uv's options for pip's settings, indexes searched as pip does: the best version of all of them."""
    options = ["--index-strategy", "unsafe-best-match"]
    for setting, option in _OPTIONS.items():
        for value in settings.get(setting, ()):
            options += [option, value]
    if settings.get("no-index", []) in (["1"], ["true"], ["yes"], ["on"]):
        options.append("--no-index")
    return options


def _environ() -> dict[str, str]:
    """Return this process's variables without those that would lead an installer or a Python elsewhere."""
    elsewhere = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"}
    kept = {name: value for name, value in os.environ.items() if name not in elsewhere}
    return kept | {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONNOUSERSITE": "1"}


def _plain_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _call(command: Sequence[str], environ: dict[str, str], keep_open: Sequence[int], log: Log) -> None:
    lines: list[str] = []
    with subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=keep_open,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                log(lines[-1])
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise InstallError(reason(process.returncode, lines))


def reason(status: int, lines: Sequence[str]) -> str:
    """Return the last meaningful lines of a failed program as one paragraph."""
    noise = ("[notice]", "WARNING:", "ERROR: Ignored the following")
    plain = [re.sub(r"^\W+", "", line) for line in lines if not line.startswith(noise)]
    plain = [re.sub(r" \(from versions: .*\)", "", line) for line in plain if line]
    first = next((k for k, line in enumerate(plain) if re.match(r"error|no solution", line, re.IGNORECASE)), None)
    meaning = " ".join(plain[-5:] if first is None else plain[first : first + 12])
    meaning = re.sub(r"\b(error|cause): ", "", meaning, flags=re.IGNORECASE)
    if status < 0:
        meaning = f"{meaning} (killed by {signal.Signals(-status).name})".strip()
    meaning = meaning or f"it ended with status {status} and no message"
    return meaning if len(meaning) <= 700 else f"{meaning[:700]} ..."
