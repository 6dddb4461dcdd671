"""CuPy: ops by hand on its arrays, products by cuBLAS, and kernels of our own where array functions would be slow.

The mathematics is that of the NumPy backend, :mod:`shim.backends._handwritten` with another array module. LSTMs of at
most 128 units, embeddings, convolutions of one or three channels and the optimizers run on the kernels of
:mod:`shim.backends._cuda_ops` in float32. As on NumPy, a program owns its workspace, and the gradient of a table is a
buffer of the program: copy it to keep it.
"""

from __future__ import annotations

import functools
import sys
import warnings

import cupy
import numpy as np

from shim import contract
from shim.backends import _cuda_device, _cuda_ops, _cudnn_ops, _handwritten
from shim.backends._cublaslt import Products
from shim.backends._cuda_glue import SplitMix64
from shim.backends._cuda_graph import Graph, Replayed
from shim.backends._cuda_ops import CudaOps
from shim.backends._cuda_trainer import Trainer
from shim.backends._cudnn import Cudnn
from shim.backends._cudnn_library import CudnnUnavailable
from shim.backends._handwritten_programs import Programs, define_ops
from shim.protocol import check_choice, program

DEVICES = ("cuda",)
MODES = ("graph", "eager")  # in both, ops alone are launched one by one
HALVES = ("float16",)
FORWARD_HALVES = {"bfloat16": _cuda_ops.HALF_OPS}  # CuPy's array functions are not known to keep that dtype
FUSES = ("graph",)  # what shim.protocol.fuses reads
PRECISIONS = ("float32", "tf32")

#: As much as this many caches of a CPU in one pass: up to 256 MB of patches of images.
SCALE = 2**8

_module = sys.modules[__name__]
_cuda = _programs = None


def setup(device="cuda", precision="float32", threads=None):
    """Open the GPU and choose the precision of cuBLAS; one thread of the host launches everything.

    Raises :class:`shim.backends._cuda_device.GpuUnavailable` where there is no GPU to use, saying what mends it.
    """
    global _cuda, _programs
    check_choice("device", device, DEVICES)
    check_choice("precision", precision, PRECISIONS)
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    _cuda = _opened(precision)
    _programs = programs(_cuda)


def _opened(precision):
    """Return the ops of the GPU, opened with this precision of products."""
    _cuda_device.open_device()
    _choose_precision(precision)
    try:
        cudnn = Cudnn(cupy, precision)
    except CudnnUnavailable as error:
        warnings.warn(str(error), stacklevel=2)
        cudnn = None
    return CudaOps(cupy, product=Products(cupy, precision == "tf32"), cudnn=cudnn)


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


def _open():
    """Set up with the defaults, unless that has been done."""
    if _programs is None:
        setup()


def to_device(value):
    _open()
    return cupy.array(value, order="C")


def to_numpy(array):
    return cupy.asnumpy(array)


def synchronize(outputs):
    """Wait for the device: CuPy's functions return as soon as their kernels are queued."""
    cupy.cuda.Device().synchronize()


def approximates():
    """The kernels take sigmoid and tanh from approximate instructions, as cuDNN does."""
    return True


def programs(cuda):
    """Return what this backend computes with, on the ops of a :class:`shim.backends._cuda_ops.CudaOps`."""
    ops = _handwritten.OPS | {name: getattr(cuda, name) for name in _cuda_ops.OPS}
    return Programs(cuda.xp, ops, cuda.update, functools.partial(SplitMix64, cuda.xp), SCALE)


define_ops(_module)


# -------------------------------------------------------------------------------------------------- the programs


@program
def forward(op, options, mode):
    _open()
    return _programs.forward(op, options)


@program
def forward_backward(op, options, mode, first=True):
    _open()
    return _programs.forward_backward(op, options, first)


def trainer(model, params, optimizer, mode, seed=0):
    check_choice("mode", mode, MODES)
    _open()
    cuda, record = _cuda.of_a_trainer(), _recorded if mode == "graph" else _launched
    return Trainer(programs(cuda), cuda, _module, model, params, optimizer, seed, record)


def _recorded(function):
    return Replayed(function, functools.partial(Graph, cupy))


def _launched(function):
    return function


# ------------------------------------------------------------------------------------------------ what was used


def implementation(case, mode=MODES[0]):
    """Name the path by the conditions that the ops themselves go by."""
    if case.is_model:
        if case.dtype != "float32":
            return "tape of hand-written ops, array functions for the optimizer"
        rows = ", descent on the rows in use" if dict(case.options).get("table_gradient") == "rows" else ""
        launched = "one CUDA graph" if mode == "graph" else "launched kernel by kernel"
        return f"tape of hand-written ops, own kernels for the optimizer{rows}, {launched}"
    kernels = _cuda_ops.has_kernels(case.op, case.dtype, **dict(case.dims))
    if not kernels:
        n, gates = dict(case.dims), dict(case.options).get("recurrent_activation", "sigmoid")
        if case.op == "conv2d" and _cudnn_ops.convolves(_cuda, case.dtype):
            path = _cuda.cudnn.path(*(tuple(n[k] for k in axes) for axes in ("NHWC", "ORSC")), case.dtype)
            return f"cuDNN convolution{f', {path}' if path else ''}"
        if case.op in ("lstm", "bilstm") and gates == "sigmoid" and _cudnn_ops.runs(_cuda, case.dtype):
            return "cuDNN LSTM"
    if kernels and case.dtype in contract.HALVES:
        if case.op == "dense":
            return "cuBLASLt product with bias and rectifier, array functions for the gradient of the bias"
        kernels = case.direction == "forward"
    return (KERNELS if kernels else ARRAY_FUNCTIONS).get(case.op, "own kernels" if kernels else "array functions")


KERNELS = {
    "dense": "cuBLASLt product with bias and rectifier, own kernel for the gradient of the bias",
    "lstm": "own kernel for the recurrence, cuBLASLt product",
    "bilstm": "own kernel for both recurrences, cuBLASLt product",
    "embedding_average": "own kernels; gradient: atomic additions, or a sum for each row where rows are few",
    "embedding": "own kernels; gradient: atomic additions, or a sum for each row where rows are few",
    "conv2d": "own kernels for few channels, bias and rectifier in them",
}
ARRAY_FUNCTIONS = {
    "dense": "cuBLAS product",
    "conv2d": "patches, cuBLAS product",
    "lstm": "loop over steps, cuBLAS product",
    "bilstm": "loop over steps, both directions stacked, cuBLAS product",
    "embedding_average": "take and vector product; gradient: counts of unique ids",
    "embedding": "take; gradient: sort and pairwise sums",
    "max_pool2d": "maximum of strided views",
}


def describe():
    _open()
    device, libraries = _cuda_device.describe(cupy)
    libraries |= {
        "cuDNN": str(_cuda.cudnn.library.version) if _cuda.cudnn else "none",
        "cuBLASLt": str(_cuda.product.version),
    }
    return {
        "device": device,
        "precision": _precision(),
        "threads": 1,
        "versions": {"cupy": cupy.__version__, "numpy": np.__version__},
        "libraries": libraries,
    }
