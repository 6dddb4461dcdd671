"""CNTK on every CPython from 3.8 to 3.13 that is found here: install it, check it, train two networks, remove it.

    make test-cntk-pythons

Run by the tool's Python. Needs the package index; each Python takes about half a minute.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
#: the NumPy and the SciPy for each
PINS = {
    8: ("1.24.4", "1.10.1"),
    9: ("1.26.4", "1.13.1"),
    10: ("1.26.4", "1.15.3"),
    11: ("1.26.4", "1.15.3"),
    12: ("1.26.4", "1.15.3"),
    13: ("2.4.6", "1.15.3"),
}


def interpreter(minor):
    """Return a working python3.``minor`` from PATH, else the newest of pyenv's, or None."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = shutil.which(f"python3.{minor}")
    candidates = [*([found] if found else []), *sorted(root.glob(f"versions/3.{minor}.*/bin/python"), reverse=True)]
    works = (
        path for path in candidates if subprocess.run([path, "-c", "import venv"], capture_output=True).returncode == 0
    )
    return next(works, None)


FOUND = {minor: path for minor in PINS if (path := interpreter(minor))}


def call(*command):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environ["PYTHONPATH"] = str(HERE.parents[1])
    result = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def losses():
    for node in ast.parse((HERE / "smoke.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LOSSES":
            return [*ast.literal_eval(node.value).values()]
    raise AssertionError("smoke.py has no LOSSES")


@pytest.mark.parametrize("minor", PINS, ids="3.{}".format)
def test_cntk_installs_and_trains_as_under_python_3_6(tmp_path, minor):
    if minor not in FOUND:
        pytest.skip(f"there is no Python 3.{minor}")
    numpy, scipy = PINS[minor]
    call(FOUND[minor], "-m", "venv", str(tmp_path / "env"))
    python = str(tmp_path / "env" / "bin" / "python")
    call(python, "-m", "pip", "install", "--quiet", f"numpy=={numpy}", f"scipy=={scipy}")
    call(python, "-m", "shim.cntk", "install")
    assert "is unaltered, loads and evaluates" in call(python, "-m", "shim.cntk", "status")
    assert [line.split() for line in call(python, str(HERE / "smoke.py")).splitlines()] == losses()
    assert call(python, "-m", "shim.cntk", "remove") == "CNTK 2.7.post2 is removed\n"


def test_the_running_python_is_among_them():
    assert sys.version_info[1] in FOUND
