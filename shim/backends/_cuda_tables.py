"""Embeddings on the kernels of ``embedding_average.cu``."""

from __future__ import annotations

from shim.backends import _handwritten
from shim.backends._handwritten import Rows

VECTORS = (4, 2, 1)  # floats that a thread reads at once
BLOCK = 256  # threads
WIDEST = 1024  # threads of a block that averages one sample
POSITIONS_OF_GROUP = 4  # that one group of lanes has under way


def lanes(width):
    """Return how many threads share a row of so many floats, and the floats of each access."""
    vector = next(size for size in VECTORS if width % size == 0)
    return next((n for n in (8, 16) if width // vector <= n), 32), vector


def embedding_average(cuda, work, ids, table, *, padding_id=None, table_gradient="dense"):
    options = {"padding_id": padding_id, "table_gradient": table_gradient}
    if table.dtype != "float32":
        return _handwritten.embedding_average(work, ids, table, **options)
    xp, (n, t), width = cuda.xp, ids.shape, table.shape[1]
    launch, (lane_count, vector) = cuda.kernels("embedding_average"), lanes(width)
    padding = -1 if padding_id is None else padding_id
    y, shares = xp.empty((n, width), table.dtype), xp.empty(n, table.dtype)
    threads = min(WIDEST, max(32, _rounded_up(lane_count * _parts(t, POSITIONS_OF_GROUP), 32)))
    shared = 4 * (threads * vector + threads // lane_count)
    args = ids, table, y, shares, t, width, padding, lane_count
    launch(f"average_{vector}", (n,), (threads,), *args, shared=shared)

    def pullback(dy, first=True):
        return [_table_gradient(cuda, work, ids, table, dy, shares, padding, table_gradient)]

    return y, pullback


def embedding(cuda, work, ids, table, *, table_gradient="dense"):
    if table.dtype != "float32":
        return _handwritten.embedding(work, ids, table, table_gradient=table_gradient)

    def pullback(dy, first=True):
        alone = ids.reshape(-1, 1)  # each position is an average of one
        shares = work(_ones, len(alone), table.dtype)
        return [_table_gradient(cuda, work, alone, table, dy, shares, -1, table_gradient)]

    return table.take(ids, axis=0), pullback


def _table_gradient(cuda, work, ids, table, dy, shares, padding, table_gradient):
    """Return the gradient of a table: ``dy`` (N, width), times the share (N) of each position (N, T) in it."""
    xp, (n, t), width, flat = cuda.xp, ids.shape, table.shape[1], ids.reshape(-1)
    launch, (lane_count, vector) = cuda.kernels("embedding_average"), lanes(width)
    dy, grid = xp.ascontiguousarray(dy), (_parts(n * t, BLOCK // lane_count),)

    def sum_runs(order, slots, rows):
        args = order, slots, shares, dy, rows, n * t, t, width, lane_count
        launch(f"sum_runs_{vector}", grid, (BLOCK,), *args)
        return rows

    if table_gradient == "rows":
        order, slots, unique = _runs(xp, flat, padding)
        return Rows([(unique, sum_runs(order, slots, xp.empty((len(unique), width), dy.dtype)))])
    a = work(_handwritten.dense_gradient, *table.shape, table.dtype)
    a.values[a.touched] = 0
    a.touched = flat
    if cuda.deterministic:
        order = _sorted(xp, flat)
        slots = xp.where(flat[order] == padding, -1, flat[order]).astype("int32")
        return sum_runs(order, slots, a.values)
    args = ids, shares, dy, a.values, n * t, t, width, padding, lane_count
    launch(f"scatter_{vector}", grid, (BLOCK,), *args)
    return a.values


def _ones(xp, keep, size, dtype):
    return xp.ones(size, dtype)


def _parts(size, part):
    return max(1, -(-size // part))


def _rounded_up(size, part):
    return -(-size // part) * part


def _sorted(xp, ids):
    return xp.argsort(ids, kind="stable").astype("int32")


def _runs(xp, ids, padding):
    """Return the positions sorted by id, for each of them the number of its run or -1, and the id of each run."""
    order = _sorted(xp, ids)
    keys = ids[order]
    kept = keys != padding
    heads = kept.copy()
    heads[1:] &= keys[1:] != keys[:-1]
    return order, xp.where(kept, xp.cumsum(heads) - 1, -1).astype("int32"), keys[heads]
