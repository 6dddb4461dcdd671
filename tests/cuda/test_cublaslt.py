"""The binding of cuBLASLt as far as it goes without a GPU: its constants, signatures and layouts of matrices."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from emulator import missing

from shim import contract
from shim.backends import _cublaslt
from shim.backends._cublaslt import Algorithm, CublasError, Library, Matrix, Plan


@pytest.fixture(scope="module")
def library():
    found = importlib.util.find_spec("nvidia.cu13")
    paths = (
        [path for folder in found.submodule_search_locations for path in Path(folder).glob("lib/libcublasLt.so.*")]
        if found
        else []
    )
    if not paths:
        missing("cuBLASLt is not installed; see requirements/_cuda.txt")
    return Library(str(paths[0]))


def test_the_library_is_the_one_that_the_binding_is_written_for(library):
    assert 130000 <= library.version < 140000


def test_what_a_description_is_given_is_what_it_has(library):
    description = library.description(_cublaslt.COMPUTE_32F, True, False, _cublaslt.RELU_BIAS)
    for attribute, wanted in (
        (0, _cublaslt.COMPUTE_32F), (_cublaslt.TRANSPOSE_A, 1), (_cublaslt.TRANSPOSE_B, 0),
        (_cublaslt.EPILOGUE, _cublaslt.RELU_BIAS),
    ):  # fmt: skip
        value, written = ctypes.c_int(-1), ctypes.c_size_t()
        library.cublasLtMatmulDescGetAttribute(description, attribute, ctypes.byref(value), 4, ctypes.byref(written))
        assert (value.value, written.value) == (wanted, 4)
    library.set(description, _cublaslt.BIAS_POINTER, ctypes.c_void_p(1 << 20))
    pointer, written = ctypes.c_void_p(), ctypes.c_size_t()
    library.cublasLtMatmulDescGetAttribute(
        description, _cublaslt.BIAS_POINTER, ctypes.byref(pointer), 8, ctypes.byref(written)
    )
    assert pointer.value == 1 << 20


def test_an_error_names_the_call_and_the_reason(library):
    with pytest.raises(CublasError, match=r"cublasLtMatmulDescSetAttribute: an unsupported value"):
        library.cublasLtMatmulDescSetAttribute(library.description(68, 0, 0, 1), 9999, None, 0)


def test_without_a_gpu_there_is_no_handle(library):
    with pytest.raises(CublasError, match="cublasLtCreate"):
        library.created("cublasLtCreate")


def test_a_product_without_a_handle_is_refused(library):
    """With arguments of other widths than the library's this would not end in an error."""
    nothing = ctypes.c_void_p()
    far = 1 << 40
    with pytest.raises(CublasError, match="cublasLtMatmul"):
        library.cublasLtMatmul(
            nothing, nothing, _cublaslt.ONE, far, nothing, far, nothing, _cublaslt.ZERO, far, nothing, far, nothing,
            ctypes.byref(Algorithm()), far, _cublaslt.WORKSPACE, 0,
        )  # fmt: skip
    with pytest.raises(ctypes.ArgumentError):
        library.cublasLtMatmul("no handle", *[nothing] * 15)


def test_an_algorithm_is_as_large_as_in_the_header():
    assert ctypes.sizeof(Algorithm) == 96  # 64 opaque bytes, a size, a status, a float, four reserved numbers


def test_a_plan_describes_all_matrices(library):
    a, b, out = (np.zeros(shape, np.float32) for shape in ((3, 5), (7, 5), (3, 2, 7)))
    matrices = [Matrix.of(array, array.ctypes.data) for array in (a, b.T, out[:, 1])]
    plan = Plan(library, _cublaslt.COMPUTE_32F, *matrices, _cublaslt.BIAS, add=True)
    assert plan.beta.value == 1
    with pytest.raises(ValueError, match="must be contiguous"):
        Plan(library, _cublaslt.COMPUTE_32F, *matrices[:2], matrices[1], _cublaslt.DEFAULT, add=False)


@pytest.mark.parametrize(("dtype", "kind"), _cublaslt.KINDS.items())
def test_a_layout_has_the_dtype_of_its_matrix(library, dtype, kind):
    contract.check_dtype(dtype)
    matrices = [Matrix.of(np.zeros((5, 5), dtype), 1 << 12)] * 3
    plan = Plan(library, _cublaslt.COMPUTE_32F, *matrices, _cublaslt.BIAS, add=False)
    for layout, wanted in ((plan.left, kind), (plan.right, kind), (plan.result, kind)):
        value, written = ctypes.c_int(-1), ctypes.c_size_t()
        status = library._library.cublasLtMatrixLayoutGetAttribute(
            layout, 0, ctypes.byref(value), ctypes.c_size_t(4), ctypes.byref(written)
        )
        assert (status, value.value, written.value) == (0, wanted, 4)


SQUARE = np.zeros((6, 6), np.float32)


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.zeros((3, 5), np.float32), (5, 3, 5, False)),
        (np.zeros((5, 3), np.float32).T, (5, 3, 3, True)),
        (np.zeros((3, 2, 5), np.float32)[:, 1], (5, 3, 10, False)),
        (np.zeros((5, 2, 3), np.float32)[:, 1].T, (5, 3, 6, True)),
        (np.zeros((3, 1), np.float32), (1, 3, 1, False)),
        (np.zeros((1, 3), np.float32), (3, 1, 3, False)),
        (np.zeros((3, 1), np.float32).T, (3, 1, 3, False)),
        (np.zeros((3, 2, 1), np.float32)[:, 1], (1, 3, 2, False)),
        (np.zeros((1, 1), np.float32), (1, 1, 1, False)),
    ],
)
def test_rows_of_arrays_are_columns_of_the_library(array, wanted):
    """Rows, columns and leading dimension as the library sees them, and whether it has to transpose."""
    matrix = Matrix.of(array, 1 << 12)
    seen = matrix.in_columns
    *size, ld, transposed = wanted
    assert matrix.transposed is transposed
    assert seen[2] == ld >= seen[0]
    assert sorted(seen[:2]) == sorted(size)
    assert (seen[1], seen[0]) == (array.shape[::-1] if transposed else array.shape)


def test_a_matrix_with_gaps_both_ways_is_refused():
    with pytest.raises(ValueError, match="neither rows nor columns"):
        Matrix.of(SQUARE[::2, ::2], 1 << 12)


def test_the_alignment_is_that_of_the_address():
    assert [Matrix.of(SQUARE, address).alignment for address in (1 << 20, 4096 + 16, 4)] == [256, 16, 4]
