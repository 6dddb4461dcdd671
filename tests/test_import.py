"""``import shim`` is quick, loads no framework, and a missing backend says how to get it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import shim

FRAMEWORKS = {"tensorflow", "jax", "torch", "keras", "cupy", "cntk"}


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def loaded_by(statement):
    return set(python(f"import sys; {statement}; print(*sorted(sys.modules))").split())


@pytest.mark.parametrize("module", ["shim", "shim.cli"])
def test_loads_no_framework_and_not_even_numpy(module):
    assert not loaded_by(f"import {module}") & (FRAMEWORKS | {"numpy", "scipy", "matplotlib"})


@pytest.mark.parametrize(
    "module", ["shim.contract", "shim.cases", "shim.parity", "shim.models", "shim.statistics", "shim.report.page"]
)
def test_loads_no_framework(module):
    assert not loaded_by(f"import {module}") & FRAMEWORKS


def test_the_check_above_can_fail():
    assert "numpy" in loaded_by("import numpy")


def test_importing_takes_less_than_50_milliseconds():
    code = "import time; t = time.perf_counter(); import shim; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(5)) < 0.05


def test_exports_what_it_lists():
    assert set(shim.__all__) == {"BackendUnavailable", "__version__", "load", "names"}
    assert all(hasattr(shim, name) for name in shim.__all__)


def test_a_missing_framework_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(shim.BackendUnavailable) as caught:
        shim.load("torch")
    assert "shim env torch" in str(caught.value)
    assert "pip install 'shim[torch]'" in str(caught.value)


def test_a_missing_framework_with_an_installer_of_its_own_names_that_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "cntk", None)
    with pytest.raises(shim.BackendUnavailable) as caught:
        shim.load("cntk")
    assert "run 'shim env cntk', or: python -m shim.cntk install" in str(caught.value)


def test_an_unknown_backend_lists_the_choices():
    with pytest.raises(ValueError, match="unknown backend 'theano'; the backends are: numpy, tensorflow"):
        shim.load("theano")
