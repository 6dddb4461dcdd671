"""The libraries that stand in for Open MPI and Python 3.6, and changing what a loaded library calls: without CNTK."""

import _ctypes
import ctypes
import math
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shim.cntk import _slots, _stubs
from shim.cntk._names import DATA, FUNCTIONS

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the stubs are machine code for Linux on x86-64"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stubs")
    _stubs.write_all(folder)
    return folder


@pytest.fixture(scope="module")
def mpi(folder):
    return ctypes.CDLL(str(folder / "libmpi.so.12"))


def test_every_name_is_there(folder, mpi):
    assert len({*FUNCTIONS, *DATA}) == 175
    addresses = {_slots.address(getattr(mpi, name)) for name in (*FUNCTIONS, *DATA)}
    assert len(addresses) == 175


def test_the_same_names_give_the_same_bytes(folder, tmp_path):
    _stubs.write_all(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in _stubs.SONAMES] == [
        (folder / name).read_bytes() for name in _stubs.SONAMES
    ]


def test_a_library_is_found_by_its_name_once_it_is_loaded(folder):
    code = f"import ctypes; ctypes.CDLL({str(folder / 'libmpi_cxx.so.1')!r}); ctypes.CDLL('libmpi_cxx.so.1')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mpi_is_not_initialized_and_cannot_be(mpi):
    flag, length, text = ctypes.c_int(7), ctypes.c_int(), ctypes.create_string_buffer(256)
    assert (mpi.MPI_Initialized(ctypes.byref(flag)), flag.value) == (0, 0)
    assert mpi.MPI_Init_thread(None, None, 3, None) == 16
    assert mpi.MPI_Error_string(16, text, ctypes.byref(length)) == 0
    assert text.value == b"MPI is not available here; CNTK runs in one process"
    assert length.value == len(text.value)


@pytest.mark.parametrize("name", ["MPI_Abort", "MPI_Win_wait", "ompi_op_set_cxx_callback"])
def test_any_other_function_aborts_with_its_name(folder, name):
    code = f"import ctypes; ctypes.CDLL({str(folder / 'libmpi.so.12')!r}).{name}()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == -6
    assert result.stderr == f"CNTK called {name}: MPI is not available here; CNTK runs in one process\n"


def test_data_is_zero_and_can_be_written(mpi):
    objects = [(ctypes.c_char * 2048).in_dll(mpi, name) for name in DATA]
    assert all(bytes(item) == bytes(2048) for item in objects)
    objects[-1][2047] = b"x"
    assert bytes(objects[0]) == bytes(2048)


@pytest.fixture
def as_long(folder):
    import numpy as np

    stub = ctypes.PyDLL(str(folder / "libpython3.6m.so.1.0"))
    table = (ctypes.c_void_p * 3).in_dll(stub, _stubs.AS_LONG_TABLE)
    table[:] = [id(float), _slots.address(ctypes.pythonapi.PyLong_AsLong), id(np.float64)]
    return ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.py_object)((_stubs.AS_LONG, stub))


def test_a_float_is_truncated_to_a_long(as_long):
    import numpy as np

    values = [2.0, 2.9, -2.9, 0.0, 2.0**62, np.float64(3.5), 7, -1, True]
    assert [as_long(value) for value in values] == [int(value) for value in values]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, -1e30, "2", None, 2**64])
def test_what_no_long_can_hold_is_an_error(as_long, value):
    with pytest.raises((TypeError, OverflowError)):
        as_long(value)


@pytest.fixture
def library(tmp_path):
    """A copy of the extension module of ctypes, so that the code of no other test changes."""
    path = Path(shutil.copy(_ctypes.__file__, tmp_path / "copy.so"))
    handle = ctypes.PyDLL(str(path))
    return _slots.Library(path, handle, "PyInit__ctypes"), handle.PyInit__ctypes


def test_code_is_replaced_where_it_is_the_one_expected(library):
    library, function = library
    at, old = library._symbols["PyInit__ctypes"], ctypes.string_at(_slots.address(function), 3)
    library.replace({at: (old, bytes.fromhex("31c0c3"))})  # xor eax, eax; ret
    assert function() == 0


def test_other_code_is_left_as_it_is(library):
    library, function = library
    at, before = library._symbols["PyInit__ctypes"], ctypes.string_at(_slots.address(function), 16)
    with pytest.raises(_slots.UnexpectedContent, match=f"copy.so does not have the code of CNTK 2.7 at {at + 8:#x}"):
        library.replace({at: (before[:1], b"!"), at + 8: (bytes([before[8] ^ 1]), b"!")})
    assert ctypes.string_at(_slots.address(function), 16) == before


def test_a_function_is_redirected_only_if_it_is_the_one_expected(library):
    library, _ = library
    address = _slots.address(ctypes.pythonapi.PyLong_FromLong)
    assert "PyLong_FromLong" in library._imports
    for name, old in (("PyLong_FromLong", address + 1), ("PyUnicode_GetSize", address)):
        with pytest.raises(_slots.UnexpectedContent, match=f"does not import {name} as CNTK 2.7 does"):
            library.redirect(name, old, 2)
    slot = ctypes.c_uint64.from_address(library._start + library._imports["PyLong_FromLong"][0])
    assert slot.value == address
    other = _slots.address(ctypes.pythonapi.PyLong_FromLongLong)
    library.redirect("PyLong_FromLong", address, other)
    assert slot.value == other
