"""Every command of the README runs: here, shortened where it takes minutes, or as it stands in ``.ci/run``.

Those of asv are run by test_asv_site.py, and ``make test`` is what runs these tests.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from shim import environments

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if "asv" not in line.partition("#")[0] and not line.startswith("make test")
]
#: What makes a command short, by how it begins; the last of two equal options counts.
SHORTER = {
    "make bench": ["TARGETS=numpy", "ARGS=--model mnist_mlp --rounds 1 --sweeps 1"],
    ".venv/bin/shim article": ["--models", "mnist_mlp", "--backends", "numpy", "--repeats", "1"],
    ".venv/bin/shim bench": ["--backends", "numpy"],
    ".venv/bin/shim causes": ["numpy-threads", "--rounds", "1"],
    ".venv/bin/shim explain": ["--rounds", "1"],
    ".venv/bin/shim map dense": ["--backends", "numpy", "--budget", "5"],
    ".venv/bin/shim map lstm": ["--backends", "torch", "--direction", "forward", "--budget", "5"],
}
#: What needs a GPU says so without one.
REFUSED = {".venv/bin/shim check cupy": "cupy"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder for what the commands write, with the environments that are there."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "env").symlink_to(environments.home() / "env")
    return folder


def begins(command, table):
    return next((value for start, value in table.items() if command.startswith(start)), None)


def test_commands_were_found():
    assert len(COMMANDS) > 10
    assert all(any(command.startswith(start) for command in COMMANDS) for start in [*SHORTER, *REFUSED])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_runs(command, home):
    if command in (ROOT / ".ci/run").read_text("utf-8"):
        pytest.skip(".ci/run runs it")
    missing = {"numpy", "torch"} - set(environments.installed())
    if missing and not os.environ.get("CI"):
        pytest.skip(f"it needs: shim env {' '.join(sorted(missing))}")
    ended = subprocess.run(
        [*shlex.split(command), *(begins(command, SHORTER) or [])],
        cwd=ROOT,
        env=os.environ | {"SHIM_HOME": str(home), "SHIM_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    refused = begins(command, REFUSED)
    if refused and ended.returncode:
        assert refused in ended.stderr
        assert "Traceback" not in ended.stderr
    else:
        assert ended.returncode == 0, ended.stdout + ended.stderr
