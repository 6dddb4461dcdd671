"""Embeddings on the kernels of ``embedding_average.cu``."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from shim.backends import _handwritten
from shim.backends._cuda_kernels import blocks_of
from shim.contract import HALVES

VECTORS = (16, 8, 4, 2)  # bytes that a thread reads at once
BLOCK = 256  # threads
WIDEST = 1024  # threads of a block that averages one sample
POSITIONS_OF_GROUP = 4  # that one group of lanes has under way
LONGEST = {"average": 32, "single": 8}  # equal neighbours added at once: of one gradient, and of one each
PIECE = 64  # positions of a run that are added one after the other
CROWDED, FEW = 32, 2**21  # positions a row, at least, and times rows, at most, where every row looks at all positions


class Touched:
    """The gradient of a table in a buffer ``values`` (V, W) that is zero but in rows whose ``stamps`` (V) are ``step``.

    ``ids`` holds every such row, some more than once unless ``unique``. The step of the optimizer that takes the
    gradient clears the buffer with ``clears``, so each gradient must be taken once.
    """

    __array_ufunc__ = None  # an array leaves the sum to __radd__

    def __init__(self, values, stamps, ids, step, unique=False, clears=True):
        self.values, self.stamps, self.ids, self.step = values, stamps, ids, step
        self.unique, self.clears = unique, clears

    def __add__(self, other):
        """Return the sum with another gradient of the same table, which is dense."""
        return self._taken() + (other._taken() if isinstance(other, Touched) else other)

    __radd__ = __add__

    def _taken(self):
        values = self.values
        if self.clears:
            values = values.copy()
            self.values.fill(0)
        return values


def touched(xp, gradient, to_device):
    """Return a NumPy gradient as :class:`Touched` that may be taken again and again: it is not cleared."""
    ids = np.flatnonzero(gradient.any(axis=1)).astype(np.int32)
    stamps = np.zeros(len(gradient), np.int32)
    stamps[ids] = 1
    arrays = map(to_device, (gradient, stamps, ids))
    return Touched(*arrays, xp.ones(1, "int32"), unique=True, clears=False)


def step_of(cuda):
    """Return the number of the training step on the device, ``cuda.step``; 1 before anything else is set."""
    if cuda.step is None:
        cuda.step = cuda.xp.ones(1, "int32")
    return cuda.step


def lanes(width, itemsize=4):
    """Return how many threads share a row of so many floats of ``itemsize`` bytes, and the floats of each access."""
    vector = next(size // itemsize for size in VECTORS if width * itemsize % size == 0)
    return next((n for n in (8, 16) if width // vector <= n), 32), vector


def embedding_average(cuda, work, ids, table, *, padding_id=None, table_gradient="dense"):
    options = {"padding_id": padding_id, "table_gradient": table_gradient}
    if not _has_kernels(work, table):
        return _handwritten.embedding_average(work, ids, table, **options)
    xp, (n, t), width = cuda.xp, ids.shape, table.shape[1]
    launch, (lane_count, vector) = cuda.kernels("embedding_average"), lanes(width, table.itemsize)
    padding = -1 if padding_id is None else padding_id
    y, shares = xp.empty((n, width), table.dtype), xp.empty(n, "float32")
    threads = min(WIDEST, max(32, _rounded_up(lane_count * blocks_of(t, POSITIONS_OF_GROUP), 32)))
    shared = 4 * (threads * vector + threads // lane_count)
    args = ids, table, y, shares, t, width, padding, lane_count
    launch(f"average_{_named(table, vector)}", (n,), (threads,), *args, shared=shared)

    def pullback(dy, first=True):
        return [_table_gradient(cuda, work, ids, table, dy, shares, padding, table_gradient)]

    return y, pullback


def embedding(cuda, work, ids, table, *, table_gradient="dense"):
    if not _has_kernels(work, table):
        return _handwritten.embedding(work, ids, table, table_gradient=table_gradient)

    def pullback(dy, first=True):
        alone = ids.reshape(-1, 1)  # each position is an average of one
        shares = work(_ones, len(alone), table.dtype)
        return [_table_gradient(cuda, work, alone, table, dy, shares, -1, table_gradient)]

    width, (lane_count, vector) = table.shape[1], lanes(table.shape[1], table.itemsize)
    y = cuda.xp.empty((*ids.shape, width), table.dtype)
    args = ids, table, y, ids.size, width, lane_count
    grid = (blocks_of(ids.size, BLOCK // lane_count),)
    cuda.kernels("embedding_average")(f"gather_{_named(table, vector)}", grid, (BLOCK,), *args)
    return y, pullback


def _has_kernels(work, table):
    """Return whether a table is one for the kernels; of 16 bits only where no gradient follows."""
    return table.dtype == "float32" or (table.dtype.name in HALVES and not work.keep)


def _named(table, vector):
    """Return the end of the name of a kernel for a table."""
    return vector if table.dtype == "float32" else f"{table.dtype.name}_{vector}"


def _table_gradient(cuda, work, ids, table, dy, shares, padding, table_gradient):
    """Return the gradient of a table: ``dy`` (N, width), times the share (N) of each position (N, T) in it."""
    xp, (n, t), width, flat = cuda.xp, ids.shape, table.shape[1], ids.reshape(-1)
    dy, (lane_count, vector) = xp.ascontiguousarray(dy), lanes(width)
    launch = cuda.kernels("embedding_average")
    crowded = n * t >= CROWDED * len(table) and n * t * len(table) <= FEW
    if crowded and table_gradient == "dense" and not cuda.deterministic:
        result, grid = xp.empty(table.shape, table.dtype), (len(table), blocks_of(width, 32 * vector))
        args = flat, shares, dy, result, n * t, t, width, padding
        launch(f"sum_table_{vector}", grid, (BLOCK,), *args, shared=4 * BLOCK * vector)
        return result
    if table_gradient == "rows":
        a, step = work(_untouched, *table.shape, table.dtype), step_of(cuda)
        result = Touched(a.values, a.stamps, flat, step)
    else:
        a, step = work(_dense, *table.shape, table.dtype), None
        if a.touched is None or len(a.touched) != len(flat):
            a.values.fill(0)
            a.touched = xp.empty(len(flat), "int32")
        else:
            a.values[a.touched] = 0
        result = a.values
    groups = BLOCK // lane_count
    if not cuda.deterministic:
        longest = LONGEST["single" if t == 1 else "average"]
        args = ids, shares, dy, a.values, a.touched, a.stamps, step, n * t, t, width, padding, lane_count, longest
        launch(f"scatter_{vector}", (blocks_of(n * t, groups),), (BLOCK,), *args)
        return result
    if a.touched is not None:
        a.touched[...] = flat
    order = xp.argsort(flat, kind="stable").astype("int32")
    keys, sums = flat[order], xp.empty((blocks_of(n * t, PIECE), width), dy.dtype)
    args = order, keys, shares, dy, a.values, sums, a.stamps, step, n * t, t, width, padding, lane_count
    launch(f"sum_runs_{vector}", (blocks_of(n * t, groups),), (BLOCK,), *args)
    args = keys, sums, a.values, n * t, width, padding, lane_count
    launch(f"join_runs_{vector}", (blocks_of(len(sums), groups),), (BLOCK,), *args)
    return result


def descend(cuda, p, g, rate):
    """Move the rows of a table that a gradient of :class:`Touched` names, by a learning rate on the device."""
    lane_count, vector = lanes(p.shape[1])
    stamps = None if g.unique else g.stamps
    args = p, g.ids, g.values, stamps, g.step, rate, g.ids.size, p.shape[1], lane_count, int(g.clears)
    grid = (blocks_of(g.ids.size, BLOCK // lane_count),)
    cuda.kernels("embedding_average")(f"descend_{vector}", grid, (BLOCK,), *args)


def _untouched(xp, keep, rows, width, dtype):
    return SimpleNamespace(values=xp.zeros((rows, width), dtype), stamps=xp.zeros(rows, "int32"), touched=None)


def _dense(xp, keep, rows, width, dtype):
    return SimpleNamespace(values=xp.empty((rows, width), dtype), stamps=None, touched=None)


def _ones(xp, keep, size, dtype):
    return xp.ones(size, dtype)


def _rounded_up(size, part):
    return -(-size // part) * part
