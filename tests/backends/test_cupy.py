"""What only the backend cupy has, on a GPU: two precisions of its products, and a queue that it waits for."""

from __future__ import annotations

import time

import numpy as np
import pytest

from shim.backends import cupy as backend


@pytest.fixture(autouse=True)
def _float32_again():
    yield
    backend.setup(precision="float32")


def test_the_precision_shows_in_the_error_of_a_product():
    rng, errors = np.random.default_rng(0), {}
    x, w = (rng.standard_normal((257, 257)).astype(np.float32) for _ in range(2))
    wanted = x.astype(np.float64) @ w.astype(np.float64)
    for precision in ("float32", "tf32"):
        backend.setup(precision=precision)
        assert backend.describe()["precision"] == precision
        y = backend.dense(*map(backend.to_device, (x, w, np.zeros(257, np.float32))))
        errors[precision] = np.abs(backend.to_numpy(y) - wanted).max()
    assert errors["float32"] < 1e-4 < 1e-3 < errors["tf32"] < 1


def test_waiting_takes_as_long_as_the_device_does():
    x = backend.to_device(np.ones((4096, 4096), np.float32))
    args = x, x, backend.to_device(np.zeros(4096, np.float32))
    run = backend.forward("dense").bare
    backend.synchronize(run(*args))
    start = time.perf_counter()
    outputs = [run(*args) for _ in range(20)]
    queued = time.perf_counter() - start
    backend.synchronize(outputs)
    assert time.perf_counter() - start > 2 * queued
