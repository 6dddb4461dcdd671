"""What CNTK 2.7's extension needs from NumPy 2: it was built for NumPy 1.

It asks for the version of the C interface, and uses six entries of its table, which are the same in both. Of a dtype
it reads the size of an element, which lies elsewhere since NumPy 2. So it gets a table of its own with the version that
it wants, and the two instructions that read the size are corrected.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

_BUILT_FOR, _PRESENT = 0x01000009, 0x02000000
_ENTRIES = 220  # of the table, more than the extension reads: the last is 211
_ARRAY_TYPE = 2  # entry: the address of numpy.ndarray
_SIZE_IN_1, _SIZE_IN_2 = 0x20, 0x28  # where a dtype keeps the size of an element
_READS_SIZE = (0x9FC28, 0x12B6EA)  # movslq 0x20(%rax),%rdx

#: address in the extension -> old bytes, new bytes
CODE = {at: (bytes((0x48, 0x63, 0x50, _SIZE_IN_1)), bytes((0x48, 0x63, 0x50, _SIZE_IN_2))) for at in _READS_SIZE}

_kept: list[object] = []  # the extension keeps the table's address for ever


def is_2() -> bool:
    """Return whether NumPy 2 is here; raise ``ImportError`` if it is neither 1 nor 2, or not laid out as expected."""
    major = int(np.__version__.split(".")[0])
    if major not in (1, 2):
        raise ImportError(f"CNTK 2.7 can use NumPy 1 and 2, and here is {np.__version__}")
    place, integer = (_SIZE_IN_1, ctypes.c_int) if major == 1 else (_SIZE_IN_2, ctypes.c_ssize_t)
    for name in ("int8", "float16", "float32", "float64"):
        dtype = np.dtype(name)
        if integer.from_address(id(dtype) + place).value != dtype.itemsize:
            raise ImportError(f"NumPy {np.__version__} keeps an element's size where CNTK 2.7 does not look for it")
    return major == 2


@contextlib.contextmanager
def interface_of_1() -> Iterator[None]:
    """Let ``import numpy.core.multiarray`` give the table of the C interface that says NumPy 1, for a while."""
    name = "numpy.core.multiarray"
    stand_in = ModuleType(name)
    stand_in._ARRAY_API = _table()  # type: ignore[attr-defined]
    before = {key: sys.modules.get(key) for key in ("numpy.core", name)}
    sys.modules.update({"numpy.core": ModuleType("numpy.core"), name: stand_in})
    try:
        yield
    finally:
        for key, module in before.items():
            del sys.modules[key]
            if module is not None:
                sys.modules[key] = module


def _table() -> object:
    umath: Any = importlib.import_module("numpy._core._multiarray_umath")
    python = ctypes.pythonapi
    get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", python))
    new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
        ("PyCapsule_New", python)
    )
    entries = ctypes.c_void_p * _ENTRIES
    table = entries.from_buffer_copy(entries.from_address(get(umath._ARRAY_API, None)))
    version = ctypes.CFUNCTYPE(ctypes.c_uint)
    if version(table[0] or 0)() != _PRESENT or table[_ARRAY_TYPE] != id(np.ndarray):
        raise ImportError(f"NumPy {np.__version__} has a C interface that CNTK 2.7 cannot use")
    says_1 = version(lambda: _BUILT_FOR)
    table[0] = ctypes.cast(says_1, ctypes.c_void_p).value
    _kept.extend((table, says_1))
    return new(ctypes.addressof(table), None, None)
