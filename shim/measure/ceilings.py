"""What this machine can do at most, measured in the workers that are timed: products, copies, and calls of nothing.

Every backend makes the same large product, so that the rate of the best library is the ceiling for all. Copies of
several sizes tell the levels of the memory apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np

from shim import cases, contract, protocol
from shim.measure import clock

SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices that are multiplied
LONGEST = 0.25  # seconds of a product; a slower one is measured on a quarter of the side
#: Bytes that a copy reads and writes together: in a core's own cache, in the shared one, in memory.
COPIES = (2**19, 2**23, 2**26)
REPEATS = 8
#: The least that can be called: a rectifier on one number.
EMPTY = {direction: cases.case("relu", direction, {"N": 1, "...": 1}) for direction in contract.DIRECTIONS}


def measure(backend: ModuleType, mode: str, dtypes: Iterable[str], device: str, threads: int) -> dict[str, Any]:
    """Return the best rates and the shortest calls of a backend in a mode, as the ``ceiling`` record holds them.

    Rates are measured in the backend's default mode only; ``dtypes`` are those of the products.
    """
    empty = {direction: case for direction, case in EMPTY.items() if protocol.offers(backend, case)}
    found: dict[str, Any] = {"call_seconds": {d: _call_seconds(backend, case, mode) for d, case in empty.items()}}
    if mode != backend.MODES[0] or backend.MODES == ("null",):
        return found
    found["flops_per_second"] = {
        dtype: _product_rate(backend, mode, dtype, SIDE[device])
        for dtype in dtypes
        if protocol.offers(backend, cases.case("dense", "forward", {"N": 1, "I": 1, "O": 1}, dtype))
    }
    found["copies"] = [
        {"bytes": size, "bytes_per_second": size / _copy_seconds(backend, mode, size, device, threads)}
        for size in COPIES
    ]
    return found


def _product_rate(backend: ModuleType, mode: str, dtype: str, side: int) -> float:
    """Return the best rate of products, in operations a second."""

    def rate(side: int) -> float:
        return 2 * side**3 / _best(_program(backend, "dense", [(side, side), (side, side), (side,)], dtype, mode))

    found = rate(side // 4)
    return found if 2 * side**3 / found > LONGEST else max(found, rate(side))


def _program(
    backend: ModuleType, op: str, shapes: Iterable[tuple[int, ...]], dtype: str, mode: str
) -> Callable[[], None]:
    args = [backend.to_device(np.ones(shape, dtype)) for shape in shapes]
    call = clock.bind(backend.forward(op, {}, mode), args)
    call()
    return lambda: backend.synchronize(call())


def _best(call: Callable[[], Any], loops: int = 1) -> float:
    """Return the seconds of a call in the fastest of some loops."""
    call()
    return min(clock.block(call, lambda _: None, loops)[0] for _ in range(REPEATS))


def _call_seconds(backend: ModuleType, case: cases.Case, mode: str) -> float:
    prepared = clock.prepare(backend, case, mode)
    clock.warm_up(prepared.call, prepared.synchronize, 0.002, 0.1)
    return _best(prepared.call, clock.calibrate(prepared.call, prepared.synchronize, 0.004))


def _copy_seconds(backend: ModuleType, mode: str, size: int, device: str, threads: int) -> float:
    """Return the seconds of the backend's own copy or, on a CPU, of NumPy's in every thread, whichever is less."""
    loops = max(1, COPIES[-1] // 4 // size)
    half = (64, size // 1024)  # two of them are read and joined
    seconds = _best(_program(backend, "concat", [half, half], "float32", mode), loops)
    if device != "cpu":
        return seconds
    source = [np.ones(size // 8 // threads, np.float32) for _ in range(threads)]
    target = [np.ones_like(part) for part in source]

    def copy(k: int) -> None:
        for _ in range(loops):
            np.copyto(target[k], source[k])

    with ThreadPoolExecutor(threads) as pool:
        return min(seconds, _best(lambda: list(pool.map(copy, range(threads)))) / loops)
