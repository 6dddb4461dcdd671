"""Checks of a CNTK that has just been loaded, and errors in place of what would end the process."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from shim.cntk._errors import quiet
from shim.cntk._slots import Library, UnexpectedContent

#: name -> address in the extension
_STATIC_TYPES = {b"SwigPyObject": 0x61D640, b"SwigPyPacked": 0x61D440}

#: the methods of cntk.cntk_py that evaluate
_EVALUATE = {
    "Function": ("_forward", "evaluate", "gradients"),
    "Trainer": ("train_minibatch", "train_minibatch_overload_for_minibatchdata"),
    "Evaluator": ("test_minibatch", "test_minibatch_overload_for_minibatchdata"),
    "TrainingSession": ("train",),
}


def check(cntk: Any) -> None:
    """Evaluate ``x + 1`` and read a parameter, in both precisions; raise ``ImportError`` unless NumPy agrees."""
    import numpy as np

    with quiet():  # it says which device it takes
        for dtype in (np.float32, np.float64):
            batch: Any = np.arange(24, dtype=dtype).reshape(4, 3, 2)
            x = cntk.input_variable((3, 2), dtype=dtype)
            results = [(x + cntk.constant(1, dtype=dtype)).eval({x: batch}), cntk.parameter(init=batch).value + 1]
            for result in results:
                if not (result.dtype == dtype and np.array_equal(result, batch + 1)):
                    raise ImportError(
                        f"CNTK 2.7 does not work with Python {sys.version.split()[0]} and NumPy {np.__version__}: "
                        f"x + 1 is wrong in {np.dtype(dtype).name}"
                    )


def install(cntk: ModuleType) -> None:
    """Guard against the calls that are known to end the process."""
    _thread_count(cntk)
    if sys.version_info >= (3, 12):
        _user_deserializer(cntk)


def static_types(library: Library) -> None:
    """Mend what later Pythons read behind two static types, which are as large as a type of Python 3.6.

    There the extension keeps a flag and a pointer to the type. Python takes the flag for the address of a function
    (tp_vectorcall), so that calling the type jumped to address 1: it is cleared. Python 3.13 takes a part of the
    pointer for a count (tp_versions_used) of at most 1000, and so one process in 65 had its pointer changed at some
    later look-up of an attribute: the type gets its version tag here, after which Python counts no more.
    """
    for name, at in _STATIC_TYPES.items():
        start = library.address(at)
        found = ctypes.c_char_p.from_address(start + 24).value  # tp_name
        if found is None and name != b"SwigPyObject":  # nothing has used it
            continue
        if found != name:
            raise UnexpectedContent("the extension of CNTK 2.7 has other static types than expected")
        flag, pointer = (ctypes.c_uint64.from_address(start + behind) for behind in (400, 408))
        if flag.value == 1:
            flag.value = 0
        if sys.version_info >= (3, 13):
            pointer.value = 0
            ctypes.pythonapi.PyUnstable_Type_AssignVersionTag(ctypes.cast(start, ctypes.py_object))
            pointer.value = start


def _thread_count(cntk: Any) -> None:
    """Let the number of threads be set once, and before anything is evaluated: a convolution would crash later."""
    module = cntk.cntk_py
    set_threads: Callable[[int], None] = module.set_max_num_cputhreads
    set_threads(module.get_max_num_cputhreads())  # or the first trainer would: to all cores, past OMP_NUM_THREADS
    chosen: int | None = None
    evaluated = False

    def set_max_num_cputhreads(numCPUThreads: int) -> None:
        nonlocal chosen
        if numCPUThreads in (chosen, module.get_max_num_cputhreads()):
            return
        if chosen is not None or evaluated:
            when = "it has been set" if chosen is not None else "something has been evaluated"
            raise RuntimeError(
                f"CNTK's number of threads can be set once, before anything is evaluated, and {when} in this process: "
                f"{module.get_max_num_cputhreads()} instead of {numCPUThreads}"
            )
        set_threads(numCPUThreads)
        chosen = numCPUThreads

    def noted(method: Any) -> Callable[..., Any]:
        def call(self: Any, *arguments: Any) -> Any:
            nonlocal evaluated
            evaluated = True
            return method.__get__(self, type(self))(*arguments)

        return call

    for kind_name, names in _EVALUATE.items():
        kind = getattr(module, kind_name)
        for name in names:
            setattr(kind, name, noted(vars(kind)[name]))
        _forget_methods(kind)
    module.set_max_num_cputhreads = set_max_num_cputhreads


def _forget_methods(kind: type) -> None:
    """Make Python look the methods of a class and its subclasses up again.

    It should do so by itself, but a base type that was compiled for Python 3.6 has no version that it could compare,
    and it went on calling a method that had been replaced and freed.
    """
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))
    subclass: type
    for subclass in kind.__subclasses__():
        _forget_methods(subclass)


def _user_deserializer(cntk: Any) -> None:
    def refuse(self: object, *_: object, **__: object) -> None:
        raise NotImplementedError(
            "cntk.io.UserDeserializer needs Python 3.11 or older: CNTK 2.7 reads a part of str that Python 3.12 removed"
        )

    cntk.io.UserDeserializer.__init__ = refuse
