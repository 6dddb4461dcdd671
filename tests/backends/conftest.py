"""Which backends these tests run on: ``--backend torch``, or ``SHIM_TEST_BACKENDS=torch,jax``, or NumPy alone.

A backend that is asked for and missing is an error, never a skip. Each test that takes ``backend`` runs once for each
of them, and one that takes ``mode`` too runs once for each of their modes.
"""

from __future__ import annotations

import os

import pytest

import shim


def pytest_addoption(parser):
    parser.addoption("--backend", action="append", default=[], help="a backend to test; may be repeated")


def _backends(config):
    chosen = config.getoption("--backend") or os.environ.get("SHIM_TEST_BACKENDS", "numpy").split(",")
    try:
        return [(name, shim.load(name)) for name in chosen]
    except (ValueError, shim.BackendUnavailable) as error:
        raise pytest.UsageError(str(error)) from None


def pytest_configure(config):
    """Load them before any test file imports a framework: Keras takes its engine from the backend's name."""
    _backends(config)


def pytest_generate_tests(metafunc):
    if "backend" not in metafunc.fixturenames:
        return
    backends = _backends(metafunc.config)
    if "mode" in metafunc.fixturenames:
        pairs = [(name, module, mode) for name, module in backends for mode in module.MODES]
        metafunc.parametrize(
            ("backend", "mode"),
            [(module, mode) for _, module, mode in pairs],
            ids=[f"{name}-{mode}" for name, _, mode in pairs],
        )
    else:
        metafunc.parametrize("backend", [module for _, module in backends], ids=[name for name, _ in backends])
