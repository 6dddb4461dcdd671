"""NumPy: products through BLAS, everything else through ufuncs that write into buffers laid out on the first call.

The mathematics is in :mod:`shim.backends._handwritten`. A program owns its workspace, so it serves one thread at a
time; a batch of another size lays it out anew. Results are fresh arrays, but the gradient of a table is not: it is one
dense (V, D) buffer of the program, of which the next call clears only the rows that this one had written. Copy it to
keep it, and do not write to it.
"""

from __future__ import annotations

import functools
import sys

import numpy as np

from shim.backends import _handwritten
from shim.backends._handwritten_programs import Programs, Trainer, define_ops
from shim.backends._updates import update
from shim.protocol import check_choice, program

DEVICES = ("cpu",)
MODES = ("eager",)
HALVES = ("float16",)
PRECISIONS = ("float32",)

_module = sys.modules[__name__]


def setup(device="cpu", precision="float32", threads=None):
    """Set the number of threads of the BLAS; NumPy itself has one."""
    check_choice("device", device, DEVICES)
    check_choice("precision", precision, PRECISIONS)
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads, user_api="blas")


def to_device(value):
    return np.array(value, order="C")


def to_numpy(array):
    return array


def synchronize(outputs):
    """Return at once: NumPy computes while it is called."""


# ------------------------------------------------------------------------------------------------------- the ops


class _SFC64:
    """NumPy's fastest generator; only whole words are drawn, so that nothing else belongs to its state."""

    def __init__(self, seed=None):
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def words(self, size):
        return self._generator.integers(0, 2**64 - 1, size, dtype=np.uint64, endpoint=True)

    @property
    def state(self):
        return self._generator.bit_generator.state["state"]["state"]

    @state.setter
    def state(self, words):
        self._generator.bit_generator.state = self._generator.bit_generator.state | {"state": {"state": words}}


_programs = Programs(np, _handwritten.OPS, update, _SFC64)
define_ops(_module)


# -------------------------------------------------------------------------------------------------- the programs


@program
def forward(op, options, mode):
    return _programs.forward(op, options)


@program
def forward_backward(op, options, mode, first=True):
    return _programs.forward_backward(op, options, first)


# -------------------------------------------------------------------------------------------------- the training


def trainer(model, params, optimizer, mode, seed=0):
    check_choice("mode", mode, MODES)
    return Trainer(_programs, _module, model, params, optimizer, seed)


# ------------------------------------------------------------------------------------------------ what was used


def implementation(case, mode=MODES[0]):
    if case.is_model:
        rows = dict(case.options).get("table_gradient") == "rows"
        return "tape of hand-written ops" + (", descent on the rows in use" if rows else "")
    product = f"{_blas()} product" if case.dtype != "float16" else "NumPy's own product"
    return {
        "dense": product,
        "conv2d": f"patches, {product}",
        "lstm": f"loop over steps, {product}",
        "bilstm": f"loop over steps, both directions stacked, {product}",
        "embedding_average": "take and vector product; gradient: counts of unique ids",
        "embedding": "take; gradient: sort and pairwise sums",
        "max_pool2d": "maximum of strided views",
    }.get(case.op, "ufuncs")


@functools.cache
def _blas():
    return np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"].removeprefix("scipy-")


def describe():
    pools = _thread_pools()
    return {
        "device": "cpu",
        "precision": "float32",
        "threads": pools[0]["num_threads"] if pools else None,
        "versions": {"numpy": np.__version__},
        "libraries": {_blas(): " ".join(str(pool.get(k)) for pool in pools[:1] for k in ("version", "architecture"))},
    }


def _thread_pools():
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return []
    return [pool for pool in threadpool_info() if pool["user_api"] == "blas"]


setup()
