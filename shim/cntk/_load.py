"""Load CNTK 2.7, whose only build is for CPython 3.6, into this Python.

Nothing outside CNTK changes: no variable of the environment, no path, no file, no other library's modules. Each place
that is changed in its memory or its text must be that of CNTK 2.7, or loading is refused.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import importlib.util
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from shim.cntk import _guards, _place, _stubs
from shim.cntk._edits import Finder
from shim.cntk._slots import Library, address

EXTENSION = "_cntk_py.cpython-36m-x86_64-linux-gnu.so"

_lock = threading.RLock()
_loaded: ModuleType | None = None
_failure: str | None = None
_kept: list[ctypes.CDLL] = []


def load(folder: Path | None = None) -> ModuleType:
    """Return the module ``cntk``; from then on ``import cntk`` gives the same one.

    ``folder`` is where CNTK is installed, by default in this environment. Raises ``ImportError`` with the reason, and
    with the command to run where CNTK is not installed.
    """
    global _loaded, _failure
    with _lock:
        if _loaded is not None:
            return _loaded
        site = _place.checked(folder)
        if _failure is not None:  # half of CNTK is in memory
            raise ImportError(f"CNTK cannot be loaded any more in this process: {_failure}")
        if "cntk" in sys.modules:
            raise ImportError("another module called 'cntk' is loaded in this process")
        try:
            _loaded = _load(site)
        except BaseException as error:
            _failure = str(error) or repr(error)
            raise
        return _loaded


def _load(site: Path) -> ModuleType:
    from shim.cntk import _numpy

    is_2 = _numpy.is_2()
    for name in _stubs.SONAMES:  # what is loaded next finds these by their names
        _kept.append(ctypes.CDLL(str(site / _place.STUBS / name)))
    path = site / EXTENSION
    handle = ctypes.CDLL(str(path))
    _kept.append(handle)
    library = Library(path, handle, "PyInit__cntk_py")
    _redirect(library, _kept[-2])
    if is_2:
        library.replace(_numpy.CODE)
        with _numpy.interface_of_1():
            sys.modules["_cntk_py"] = _extension(path)
    else:
        sys.modules["_cntk_py"] = _extension(path)
    pointer = sys.modules["_cntk_py"].DeviceDescriptor_cpu_device()  # the first one makes the type of all pointers
    _guards.static_types(library)
    pointer.disown()
    finder = Finder(site)
    sys.meta_path.insert(0, finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cntk = importlib.import_module("cntk")
        _guards.check(cntk)
        _guards.install(cntk)
    except BaseException:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name in ("cntk", "_cntk_py") or name.startswith("cntk.")]:
            del sys.modules[name]
        raise
    return cntk


def _redirect(library: Library, stub: ctypes.CDLL) -> None:
    import numpy as np

    python = ctypes.pythonapi
    if sys.version_info >= (3, 12):  # there it only raises; PyUnicode_GetLength counts the same on Linux
        library.redirect("PyUnicode_GetSize", address(python.PyUnicode_GetSize), address(python.PyUnicode_GetLength))
    # Up to Python 3.9 a float was taken for an integer, as in strides=(4 / 2, 2). Later that is an error, which CNTK
    # does not see everywhere: it went on with a wrong shape.
    as_long = address(python.PyLong_AsLong)
    table = (ctypes.c_void_p * 3).in_dll(stub, _stubs.AS_LONG_TABLE)
    table[0], table[1], table[2] = id(float), as_long, id(np.float64)
    library.redirect("PyLong_AsLong", as_long, address(getattr(stub, _stubs.AS_LONG)))


def _extension(path: Path) -> Any:
    loader = importlib.machinery.ExtensionFileLoader("_cntk_py", str(path))
    spec = importlib.util.spec_from_file_location("_cntk_py", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
