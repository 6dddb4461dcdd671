"""Kernels as plain C++ in the place of a GPU, under the code that launches them."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest

from shim import cases, parity
from shim.backends._cuda_kernels import Kernels
from shim.backends._cuda_ops import CudaOps
from shim.backends._handwritten import Workspace

SANITIZE = "SHIM_TEST_SANITIZE"  # set where AddressSanitizer is loaded


def missing(reason):
    """Skip a test for this reason, or fail where CI is set."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(str(reason))


class Poisoned:
    """NumPy, but what is not written is NaN, and far out of range in integers."""

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype):
        return np.full(shape, np.iinfo(dtype).min if np.dtype(dtype).kind in "iu" else np.nan, dtype)


class Emulator:
    """Makes ops on emulated kernels, and knows which kernels they launched."""

    def __init__(self, folder):
        self._folder, self._modules = folder, []
        self.sanitize = bool(os.environ.get(SANITIZE))

    @property
    def launched(self):
        return set().union(*(module.launched for module in self._modules))

    def load(self, kernels, seed=1):
        self._modules.append(kernels.emulated(self._folder, seed, self.sanitize))
        return self._modules[-1]

    def ops(self, seed=1, deterministic=False, change=lambda text: text):
        """Return ops whose kernels come from changed sources and whose threads take turns by ``seed``."""

        def load(kernels):
            return self.load(Kernels(kernels.name, change(kernels.text), **kernels.constants), seed)

        return CudaOps(Poisoned(), load, deterministic=deterministic)

    def verify(self, case, **how):
        """Compare a case with the contract as the conformance suite does."""
        parity.verify(backend(self.ops(**how)), case, "eager")


def backend(ops):
    """Return as much of a backend as the comparison with the contract takes."""

    def forward(op, options, mode):
        return lambda *args: getattr(ops, op)(Workspace(Poisoned(), keep=False), *args, **options)[0]

    def forward_backward(op, options, mode, first=True):
        work = Workspace(Poisoned())

        def run(args, dy):
            y, pullback = getattr(ops, op)(work, *args, **options)
            return y, pullback(dy, first)[0 if first else 1 :]

        return run

    return SimpleNamespace(
        to_device=lambda value: np.array(value, order="C"),
        to_numpy=lambda array: array,
        synchronize=lambda outputs: None,
        forward=forward,
        forward_backward=forward_backward,
    )


def lstm(n, t, hidden, op="lstm", inputs=5, direction="forward_backward", **options):
    return cases.case(op, direction, {"N": n, "T": t, "I": inputs, "H": hidden}, **options)


def dense(n, outputs, **options):
    return cases.case("dense", "forward_backward", {"N": n, "I": 7, "O": outputs}, **options)


def average(n, t, rows, width, **options):
    return cases.case("embedding_average", "forward_backward", {"N": n, "T": t, "V": rows, "D": width}, **options)


def embedded(n, t, rows, width):
    return cases.case("embedding", "forward_backward", {"N": n, "T": t, "V": rows, "D": width})


def images(kernel=(3, 3, 3), n=5, outputs=65, direction="forward_backward", **options):
    dims = {"N": n, "H": 7, "W": 6, **dict(zip("RSC", kernel, strict=True)), "O": outputs}
    return cases.case("conv2d", direction, dims, **options)
