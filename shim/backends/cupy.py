"""CuPy: ops by hand on its arrays, products by cuBLAS, and kernels of our own where array functions would be slow.

The mathematics is that of the NumPy backend, :mod:`shim.backends._handwritten` with another array module. LSTMs of at
most 128 units, embeddings, convolutions of one or three channels and the optimizers run on the kernels of
:mod:`shim.backends._cuda_ops` in float32. As on NumPy, a program owns its workspace, and the gradient of a table is a
buffer of the program: copy it to keep it.
"""

from __future__ import annotations

import functools
import sys

import cupy
import numpy as np

from shim.backends import _cuda_device, _cuda_ops, _handwritten
from shim.backends._cublaslt import Products
from shim.backends._cuda_kernels import Kernels
from shim.backends._handwritten_programs import Programs, Trainer, define_ops
from shim.protocol import check_choice, program

DEVICES = ("cuda",)
MODES = ("eager",)
PRECISIONS = ("float32", "tf32")

#: As much as this many caches of a CPU in one pass: up to 256 MB of patches of images.
SCALE = 2**8

_module = sys.modules[__name__]
_programs = None


def setup(device="cuda", precision="float32", threads=None):
    """Open the GPU and choose the precision of cuBLAS; one thread of the host launches everything.

    Raises :class:`shim.backends._cuda_device.GpuUnavailable` where there is no GPU to use, saying what mends it.
    """
    global _programs
    check_choice("device", device, DEVICES)
    check_choice("precision", precision, PRECISIONS)
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    _programs = _opened(precision)


def _opened(precision):
    """Return the programs of the GPU, opened with this precision of products."""
    _cuda_device.open_device()
    _choose_precision(precision)
    return programs(cupy, product=Products(cupy, precision == "tf32"))


def _choose_precision(precision):
    """Set what the environment variable CUPY_TF32 sets, which CuPy reads only once."""
    linalg = cupy._core._routines_linalg
    if precision == "tf32" and int(cupy.cuda.Device().compute_capability) < 80:
        raise ValueError("precision 'tf32' needs a GPU of compute capability 8.0 or more; use precision 'float32'")
    chosen = linalg.COMPUTE_TYPE_TF32 if precision == "tf32" else linalg.COMPUTE_TYPE_DEFAULT
    linalg.set_compute_type("float32", chosen)


def _precision():
    linalg = cupy._core._routines_linalg
    return "tf32" if linalg.get_compute_type("float32") == linalg.COMPUTE_TYPE_TF32 else "float32"


def to_device(value):
    if _programs is None:
        setup()
    return cupy.array(value, order="C")


def to_numpy(array):
    return cupy.asnumpy(array)


def synchronize(outputs):
    """Wait for the device: CuPy's functions return as soon as their kernels are queued."""
    cupy.cuda.Device().synchronize()


class SplitMix64:
    """Steele, Lea and Flood's generator (2014), all words at once, since its k-th state is known beforehand.

    CuPy's own generators do not show their state, so that no training could go on from a checkpoint.
    """

    STEP = 0x9E3779B97F4A7C15
    MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))

    def __init__(self, xp, seed=None):
        self._xp = xp
        self.state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]

    def words(self, size):
        z = self._xp.arange(1, size + 1, dtype=np.uint64)
        z *= np.uint64(self.STEP)
        z += np.uint64(self.state)
        for shift, factor in self.MIXING:
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        z ^= z >> np.uint64(31)
        self.state = np.uint64((int(self.state) + size * self.STEP) % 2**64)
        return z


def programs(xp, load=Kernels.on_gpu, product=None):
    """Return what this backend computes with: an array module, and what makes kernels ready to launch."""
    kernels = _cuda_ops.CudaOps(xp, load, product)
    ops = _handwritten.OPS | {name: getattr(kernels, name) for name in _cuda_ops.OPS}
    return Programs(xp, ops, kernels.update, functools.partial(SplitMix64, xp), SCALE)


define_ops(_module)


# -------------------------------------------------------------------------------------------------- the programs


@program
def forward(op, options, mode):
    return _programs.forward(op, options)


@program
def forward_backward(op, options, mode, first=True):
    return _programs.forward_backward(op, options, first)


def trainer(model, params, optimizer, mode, seed=0):
    check_choice("mode", mode, MODES)
    return Trainer(_programs, _module, model, params, optimizer, seed)


# ------------------------------------------------------------------------------------------------ what was used


def implementation(case, mode=MODES[0]):
    """Name the path by the conditions that the ops themselves go by."""
    if case.is_model:
        rows = dict(case.options).get("table_gradient") == "rows"
        steps = "own kernel for the optimizer" if case.dtype == "float32" else "array functions for the optimizer"
        return f"tape of hand-written ops, {steps}" + (", descent on the rows in use" if rows else "")
    if _cuda_ops.has_kernels(case.op, case.dtype, **dict(case.dims)):
        return {
            "lstm": "own kernel for the recurrence, cuBLAS product",
            "bilstm": "own kernel for both recurrences, cuBLAS product",
            "embedding_average": "own kernels; gradient: atomic additions",
            "embedding": "take; gradient: own kernel of atomic additions",
            "conv2d": "own kernels for few channels, bias and rectifier in them",
        }[case.op]
    return {
        "dense": "cuBLAS product",
        "conv2d": "patches, cuBLAS product",
        "lstm": "loop over steps, cuBLAS product",
        "bilstm": "loop over steps, both directions stacked, cuBLAS product",
        "embedding_average": "take and vector product; gradient: counts of unique ids",
        "embedding": "take; gradient: sort and pairwise sums",
        "max_pool2d": "maximum of strided views",
    }.get(case.op, "array functions")


def describe():
    device, libraries = _cuda_device.describe(cupy)
    return {
        "device": device,
        "precision": _precision(),
        "threads": 1,
        "versions": {"cupy": cupy.__version__, "numpy": np.__version__},
        "libraries": libraries,
    }
