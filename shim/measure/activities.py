"""What a GPU does, as CUPTI records it, and a buffer that pushes everything else out of its L2 cache.

Only one client of CUPTI may be at work in a process: no profiler of a framework beside it. This module needs only the
standard library and, once it is used, ``cupti-python`` and NVIDIA's driver.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from shim.measure.clock import Call, Synchronize

INSTALL = "pip install cupti-python==13.0.1 (its first number has to be that of CUDA here)"
L2_BYTES = 38  # CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
LAUNCHES = ("RUNTIME", "DRIVER")  # the calls of the host, which have the correlation of what they launch
_DEVICE = {"CONCURRENT_KERNEL": "kernel", "MEMCPY": "memcpy", "MEMSET": "memset"}


class DeviceClockUnavailable(RuntimeError):
    """This process cannot have the device's times; the message says why and what mends it."""


class RecordsLost(RuntimeError):
    """The records of some calls are not whole; the message says what is missing."""


class Activity(NamedTuple):
    """Something that the device did, or a ``launch`` by the host; start and end in nanoseconds of CUPTI's clock."""

    kind: str
    name: str
    start: int
    end: int
    bytes: int = 0
    correlation: int = 0
    stream: int = 0


@contextmanager
def recording(*more: str) -> Iterator[Callable[[], list[Activity]]]:
    """Let CUPTI record what the device does, and ``more`` kinds; what is yielded returns the records since it was last
    called, for which the device has to be waited for. Raises :class:`DeviceClockUnavailable`, :class:`RecordsLost`.
    """
    try:
        cupti, seen = _cupti()
        kinds = [cupti.ActivityKind[kind] for kind in (*_DEVICE, *more)]

        def take() -> list[Activity]:
            cupti.activity_flush_all(1)
            found = seen[:]
            seen.clear()
            if any(not 0 < a.start <= a.end for a in found if a.kind != "launch"):
                raise RecordsLost("CUPTI could not time all that ran on the device")
            return found

        try:
            for kind in kinds:
                cupti.activity_enable(kind)
            seen.clear()
            yield take
        finally:
            for kind in kinds:
                cupti.activity_disable(kind)
    except Exception as error:
        if not type(error).__module__.startswith("cupti"):
            raise
        shared = "; no other profiler may be at work in this process" if "SUBSCRIBER" in str(error) else ""
        raise DeviceClockUnavailable(f"CUPTI refuses: {error}{shared}") from None


def records(call: Call, synchronize: Synchronize, calls: int = 1) -> list[Activity]:
    """Return what the device does in ``calls`` calls, after one more; raises as :func:`recording` does."""
    with recording() as take:
        synchronize(call())
        take()
        for _ in range(calls):
            outputs = call()
        synchronize(outputs)
        return take()


def now() -> int:
    """Return the time in nanoseconds on the clock of the records."""
    return int(_cupti()[0].get_timestamp())


@functools.cache
def _cupti() -> tuple[Any, list[Activity]]:
    """Return CUPTI and the list that its records go to: its callbacks are registered once a process."""
    try:
        from cupti import cupti
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupti"
        problem = "is not installed" if missing else f"cannot be imported here ({error})"
        raise DeviceClockUnavailable(f"cupti-python {problem}; install it with: {INSTALL}") from None
    kinds = {int(cupti.ActivityKind[name]): kind for name, kind in (_DEVICE | {"KERNEL": "kernel"}).items()}
    seen: list[Activity] = []

    def completed(activities: Any) -> None:
        for a in activities:
            kind = kinds.get(int(a.kind), "launch")
            more = (int(getattr(a, name, 0)) for name in ("bytes", "correlation_id", "stream_id"))
            seen.append(Activity(kind, str(getattr(a, "name", None) or kind), int(a.start), int(a.end), *more))

    cupti.activity_register_callbacks(lambda: (8 << 20, 0), completed)
    return cupti, seen


class Flush:
    """Overwrites, when it is called, a buffer of twice the L2 cache in the context that all frameworks share."""

    def __enter__(self) -> Flush:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise DeviceClockUnavailable("there is no NVIDIA driver here: libcuda.so.1 cannot be loaded") from None
        self._device, self._context, self._buffer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
        self._do("cuInit", 0)
        self._do("cuDeviceGet", ctypes.byref(self._device), 0)
        l2 = ctypes.c_int()
        self._do("cuDeviceGetAttribute", ctypes.byref(l2), L2_BYTES, self._device)
        self.bytes = 2 * l2.value + (1 << 16)  # a size that no framework's own memset is likely to have
        self._do("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        try:
            self._in_context(("cuMemAlloc_v2", ctypes.byref(self._buffer), ctypes.c_size_t(self.bytes)))
        except BaseException:
            self._do("cuDevicePrimaryCtxRelease_v2", self._device)
            raise
        return self

    def __call__(self) -> None:
        fill = "cuMemsetD8Async", self._buffer, ctypes.c_ubyte(0), ctypes.c_size_t(self.bytes), ctypes.c_void_p()
        self._in_context(fill, ("cuCtxSynchronize",))

    def __exit__(self, *error: object) -> None:
        self._in_context(("cuMemFree_v2", self._buffer))
        self._do("cuDevicePrimaryCtxRelease_v2", self._device)

    def _in_context(self, *steps: tuple[Any, ...]) -> None:
        self._do("cuCtxPushCurrent_v2", self._context)
        try:
            for name, *arguments in steps:
                self._do(name, *arguments)
        finally:
            self._do("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _do(self, name: str, *arguments: Any) -> None:
        status = self._library[name](*arguments)
        if status:
            raise DeviceClockUnavailable(f"{name} of the NVIDIA driver failed with status {status}")
