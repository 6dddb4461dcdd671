"""A plugin of pytest: the backend ``cupy`` with NumPy as its array module and emulated kernels in the place of a GPU.

    python -m pytest -p emulated_cupy tests/backends --backend cupy

What is left out is what only a device has: opening it, the way of arrays there and back, waiting for it. All else is
the backend's own code, under the tests that every backend has to pass.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from emulator import Emulator, Poisoned

from shim.backends import cupy as backend
from shim.backends._cuda_ops import CudaOps

_folder = tempfile.TemporaryDirectory()
_emulator = Emulator(Path(_folder.name))


def pytest_configure(config):
    backend._opened = lambda precision: CudaOps(Poisoned(), _emulator.load)
    backend._recorded = backend._launched
    backend._precision = lambda: "float32"
    backend._cuda_device.describe = lambda cupy: ("none: NumPy and emulated kernels", {})
    backend.setup()
    backend.to_device = lambda value: np.array(value, order="C")
    backend.to_numpy = lambda array: array
    backend.synchronize = lambda outputs: None


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Not a test that passes because it launched nothing."""
    assert _emulator.launched or session.exitstatus
