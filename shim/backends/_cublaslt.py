"""Matrix products by cuBLASLt: with bias and rectifier in the same kernel, and while a CUDA graph is being captured.

CuPy offers neither. The library is the one that CuPy's cuBLAS brings along; it is called through ctypes, after the
header ``cublasLt.h`` of CUDA 13. For each product that is met (shapes, layouts, epilogue) the algorithms that the
library proposes are timed once and the fastest is kept, so a product has to be met once before it is captured.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, byref, c_float, c_int, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass

from shim.backends import _cuda_stopwatch

KINDS = {"float32": 0, "float16": 2, "bfloat16": 14}  # cudaDataType
COMPUTE_32F, COMPUTE_TF32 = 68, 77  # cublasComputeType_t
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8  # cublasLtMatmulDescAttributes_t
DEFAULT, BIAS, RELU_BIAS = 1, 4, 6  # cublasLtEpilogue_t
WORKSPACE_BYTES, ALIGNMENTS = 1, (5, 6, 7, 8)  # cublasLtMatmulPreferenceAttributes_t; of A, B, C, D
WORKSPACE = 32 << 20  # bytes, what NVIDIA recommends for Hopper
CANDIDATES = 16  # algorithms to time
ALIGNED = 256  # bytes, no alignment above counts


class Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", c_uint64 * 8), ("workspace", c_size_t), ("state", c_int), ("waves", c_float),
        ("reserved", c_int * 4),
    )  # fmt: skip


SIGNATURES = {
    "cublasLtCreate": (POINTER(c_void_p),),
    "cublasLtMatmulDescCreate": (POINTER(c_void_p), c_int, c_int),
    "cublasLtMatmulDescSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulDescGetAttribute": (c_void_p, c_int, c_void_p, c_size_t, POINTER(c_size_t)),
    "cublasLtMatrixLayoutCreate": (POINTER(c_void_p), c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatmulPreferenceCreate": (POINTER(c_void_p),),
    "cublasLtMatmulPreferenceSetAttribute": (c_void_p, c_int, c_void_p, c_size_t),
    "cublasLtMatmulAlgoGetHeuristic": (
        c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int, POINTER(Algorithm), POINTER(c_int)
    ),
    "cublasLtMatmul": (
        c_void_p, c_void_p, POINTER(c_float), c_void_p, c_void_p, c_void_p, c_void_p, POINTER(c_float), c_void_p,
        c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p,
    ),
}  # fmt: skip


class CublasError(RuntimeError):
    """A call of cuBLASLt failed; the message names the call and what the library says."""


class Library:
    """The functions of :data:`SIGNATURES` as methods, each of which raises :class:`CublasError` where it fails."""

    def __init__(self, path):
        self._library = ctypes.CDLL(path)
        self._library.cublasLtGetStatusString.restype = ctypes.c_char_p
        self._library.cublasLtGetVersion.restype = c_size_t
        for name, types in SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes = types
            setattr(self, name, functools.partial(self._call, function))

    @property
    def version(self):
        return int(self._library.cublasLtGetVersion())

    def _call(self, function, *args):
        status = function(*args)
        if status:
            said = self._library.cublasLtGetStatusString(status).decode()
            raise CublasError(f"{function.__name__}: {said} ({status})")

    def created(self, name, *args):
        """Return the handle that a function creates."""
        handle = c_void_p()
        getattr(self, name)(byref(handle), *args)
        return handle

    def description(self, compute, transposed_a, transposed_b, epilogue):
        handle = self.created("cublasLtMatmulDescCreate", compute, KINDS["float32"])
        for attribute, value in ((TRANSPOSE_A, transposed_a), (TRANSPOSE_B, transposed_b), (EPILOGUE, epilogue)):
            self.set(handle, attribute, c_int(value))
        return handle

    def set(self, description, attribute, value):
        self.cublasLtMatmulDescSetAttribute(description, attribute, byref(value), ctypes.sizeof(value))


@dataclass(frozen=True)
class Matrix:
    """A matrix in rows, or in columns where it is ``transposed``, ``ld`` elements apart."""

    rows: int
    columns: int
    ld: int
    transposed: bool
    alignment: int
    dtype: str

    @classmethod
    def of(cls, array, address):
        (rows, columns), (down, right), size = array.shape, array.strides, array.dtype.itemsize
        alignment = min(ALIGNED, address & -address)
        if (right == size or columns == 1) and (down >= columns * size or rows == 1):
            ld = max(columns, down // size if rows > 1 else 0)
            return cls(rows, columns, ld, False, alignment, array.dtype.name)
        if (down == size or rows == 1) and (right >= rows * size or columns == 1):
            ld = max(rows, right // size if columns > 1 else 0)
            return cls(rows, columns, ld, True, alignment, array.dtype.name)
        raise ValueError(f"neither rows nor columns of this matrix are contiguous: {array.shape}, {array.strides}")

    @property
    def in_columns(self):
        """Rows, columns and distance of columns of what the library sees: it takes rows for columns."""
        return (self.rows, self.columns, self.ld) if self.transposed else (self.columns, self.rows, self.ld)


class Products:
    """``products(a, b, out)`` on matrices of CuPy, all of one of :data:`KINDS`; sums are float32.

    ``tf32`` lets the library round what it multiplies in float32.
    """

    def __init__(self, cupy, tf32=False):
        self._cupy, self._compute = cupy, {"float32": COMPUTE_TF32} if tf32 else {}
        cupy.cuda.get_cublas_handle()  # loads the library
        self._library = Library(f"libcublasLt.so.{cupy.cuda.runtime.runtimeGetVersion() // 1000}")
        self._handle = self._library.created("cublasLtCreate")
        self._workspace = cupy.empty(WORKSPACE, "uint8")
        self._plans = {}

    @property
    def version(self):
        return self._library.version

    def __call__(self, a, b, out, bias=None, rectify=False, add=False):
        """Write a (M, K) times b (K, N) to ``out`` (M, N), plus ``bias`` (N) and rectified; or add it to ``out``.

        Of each matrix rows or columns must be contiguous, of ``out`` the rows.
        """
        epilogue = DEFAULT if bias is None else RELU_BIAS if rectify else BIAS
        key = *(Matrix.of(array, array.data.ptr) for array in (a, b, out)), epilogue, add
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._planned(key, a, b, out, bias)
        self._run(plan, plan.algorithm, a, b, out, bias)
        return out

    def _planned(self, key, a, b, out, bias):
        plan = Plan(self._library, self._compute.get(out.dtype.name, COMPUTE_32F), *key)
        found = plan.algorithms(self._handle)
        if len(found) > 1:
            scratch = self._cupy.empty((out.shape[0], out.strides[0] // out.itemsize), out.dtype)
            seconds = [self._seconds(plan, algorithm, a, b, scratch, bias) for algorithm in found]
            found = [found[seconds.index(min(seconds))]]
        plan.algorithm = found[0]
        return plan

    def _seconds(self, plan, algorithm, *arrays):
        """Return the seconds of an algorithm; one that refuses takes for ever."""
        try:
            return _cuda_stopwatch.seconds(self._cupy, lambda: self._run(plan, algorithm, *arrays))
        except CublasError:
            return float("inf")

    def _run(self, plan, algorithm, a, b, out, bias):
        if bias is not None:
            self._library.set(plan.description, BIAS_POINTER, c_void_p(bias.data.ptr))
        left, right, result = b.data.ptr, a.data.ptr, out.data.ptr  # in columns, b times a
        self._library.cublasLtMatmul(
            self._handle, plan.description, ONE, left, plan.left, right, plan.right, plan.beta, result, plan.result,
            result, plan.result, byref(algorithm), self._workspace.data.ptr, WORKSPACE,
            self._cupy.cuda.get_current_stream().ptr,
        )  # fmt: skip


ONE, ZERO = c_float(1), c_float(0)


class Plan:
    """The descriptions of one product for the library."""

    def __init__(self, library, compute, a, b, out, epilogue, add):
        if out.transposed:
            raise ValueError("the rows of a product must be contiguous")
        self._library, self._matrices = library, (b, a, out, out)
        self.description = library.description(compute, b.transposed, a.transposed, epilogue)
        self.left, self.right, self.result = (
            library.created("cublasLtMatrixLayoutCreate", KINDS[matrix.dtype], *matrix.in_columns)
            for matrix in (b, a, out)
        )
        self.beta, self.algorithm = ONE if add else ZERO, None

    def algorithms(self, handle):
        """Return what the library proposes, the best first by its own guess."""
        preference = self._library.created("cublasLtMatmulPreferenceCreate")
        values = [(WORKSPACE_BYTES, c_size_t(WORKSPACE))]
        values += [(kind, c_uint32(m.alignment)) for kind, m in zip(ALIGNMENTS, self._matrices, strict=True)]
        for attribute, value in values:
            self._library.cublasLtMatmulPreferenceSetAttribute(
                preference, attribute, byref(value), ctypes.sizeof(value)
            )
        found, count = (Algorithm * CANDIDATES)(), c_int()
        self._library.cublasLtMatmulAlgoGetHeuristic(
            handle, self.description, self.left, self.right, self.result, self.result, preference, CANDIDATES, found,
            byref(count),
        )  # fmt: skip
        usable = [Algorithm.from_buffer_copy(algorithm) for algorithm in found[: count.value] if algorithm.state == 0]
        if not usable:
            raise CublasError(f"cuBLASLt knows no algorithm for {self._matrices}")
        return usable
