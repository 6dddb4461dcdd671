"""Emulated kernels for the tests; without g++ these are skipped, and fail where CI is set."""

from __future__ import annotations

import os

import pytest
from emulator import SANITIZE, Emulator, missing

from shim.backends._cuda_kernels import Kernels, KernelsUnavailable


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("libraries")
    try:
        Kernels("optimizers").emulated(folder, sanitize=bool(os.environ.get(SANITIZE)))
    except KernelsUnavailable as error:
        missing(error)
    return folder


@pytest.fixture
def emulator(libraries):
    return Emulator(libraries)
