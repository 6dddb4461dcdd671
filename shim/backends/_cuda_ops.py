"""Ops on CUDA kernels where these are faster than array functions: LSTMs, embeddings, first convolutions, optimizers.

The methods of :class:`CudaOps` are called like the functions of :mod:`shim.backends._handwritten` and
:mod:`shim.backends._updates` and return the same: a result and its pullback. They compute in float32; for another
dtype, for LSTMs of more than 128 units and for images of more channels, they leave it to those functions. Products
are left to the array module.
"""

from __future__ import annotations

import functools

from shim.backends import _handwritten, _updates
from shim.backends._cuda_kernels import Kernels
from shim.backends._handwritten import Rows
from shim.contract import same_padding
from shim.models import optimizers

#: hidden units of the LSTM kernels, rounded up to one of these -> units of a thread, weights that it keeps in registers
LSTM_SIZES = {16: (1, 4), 32: (1, 8), 48: (1, 12), 64: (1, 16), 80: (1, 20), 96: (1, 24), 112: (2, 22), 128: (2, 22)}
VECTORS = (4, 2, 1)  # floats that a thread reads at once
BLOCK = 256  # threads
WIDEST = 1024  # threads of a block that averages one sample
POSITIONS_OF_GROUP = 4  # that one group of lanes has under way
PER_THREAD = 4  # elements of a weight
OPS = ("lstm", "bilstm", "embedding_average", "embedding", "conv2d")  # that have kernels
CHANNELS = (1, 3)  # of images
TAPS = 27  # weights of an output channel, at most
CONV2D_BLOCKS = 256  # that add up the gradient of a kernel


def has_kernels(op, dtype, **dims):
    """Return whether an op runs on kernels in a dtype and with dimensions named as in the contract."""
    if op in ("lstm", "bilstm") and dims["H"] > max(LSTM_SIZES):
        return False
    if op == "conv2d" and not (dims["C"] in CHANNELS and dims["R"] * dims["S"] * dims["C"] <= TAPS):
        return False
    return op in OPS and dtype == "float32"


def conv2d_constants(kernel, stride):
    """Return the constants of the convolution kernels for a kernel (R, S, C, O)."""
    return {"KERNEL_H": kernel[0], "KERNEL_W": kernel[1], "CHANNELS": kernel[2], "STRIDE": stride}


def lstm_constants(hidden, hard=False):
    """Return the constants of the LSTM kernels for so many hidden units."""
    padded = next(size for size in LSTM_SIZES if hidden <= size)
    units, held = LSTM_SIZES[padded]
    return {"HIDDEN": hidden, "PADDED": padded, "UNITS": units, "HELD": held, "HARD": int(hard)}


def lstm_launch(padded):
    """Return the threads of a block, and the bytes of shared memory forward and backward."""
    units, held = LSTM_SIZES[padded]
    threads = 4 * padded // units
    housed = 16 * (padded // 4 - held) * units * threads
    return threads, housed + 4 * 2 * padded, housed + 16 * 2 * padded


def lanes(width):
    """Return how many threads share a row of so many floats, and the floats of each access."""
    vector = next(size for size in VECTORS if width % size == 0)
    return next((n for n in (8, 16) if width // vector <= n), 32), vector


class CudaOps:
    """Ops over an array module, with kernels that ``load(kernels)`` makes ready to launch.

    With ``deterministic`` the gradient of a table sums in one order, which takes a sort of the ids.
    """

    def __init__(self, xp, load=Kernels.on_gpu, deterministic=False):
        self._xp, self._deterministic = xp, deterministic
        self._load = functools.cache(lambda name, constants: load(Kernels(name, **dict(constants))))

    def _module(self, name, **constants):
        return self._load(name, tuple(constants.items()))

    # ------------------------------------------------------------------------------------------------------- LSTMs

    def lstm(self, work, x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid"):
        options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
        if not has_kernels("lstm", x.dtype, H=len(w_h)):
            return _handwritten.lstm(work, x, w_x, w_h, b, reverse=reverse, **options)
        return self._recurrence(work, x, [(w_x, w_h, b)], [reverse], **options)

    def bilstm(self, work, x, *weights, return_sequences=False, recurrent_activation="sigmoid"):
        options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
        if not has_kernels("bilstm", x.dtype, H=len(weights[1])):
            return _handwritten.bilstm(work, x, *weights, **options)
        return self._recurrence(work, x, [weights[:3], weights[3:]], [False, True], **options)

    def _recurrence(self, work, x, weights, reverse, return_sequences, recurrent_activation):
        """Run one LSTM for each of ``weights``, all directions in one launch, through the steps in its order."""
        xp, (n, t, i), h, d = self._xp, x.shape, len(weights[0][1]), len(weights)
        constants = lstm_constants(h, recurrent_activation == "hard_sigmoid")
        launch, (threads, *shared) = self._module("lstm", **constants), lstm_launch(constants["PADDED"])
        order = sum(1 << k for k in range(d) if reverse[k])
        w_x = xp.concatenate([w for w, _, _ in weights], axis=1)
        w_h = xp.stack([w for _, w, _ in weights])
        zx = xp.matmul(x.reshape(n * t, i), w_x)
        zx += xp.concatenate([b for _, _, b in weights])
        y = xp.empty((n, t, d * h), x.dtype) if return_sequences or work.keep else None
        last = None if return_sequences else xp.empty((n, d * h), x.dtype)
        gates, cells = (xp.empty((n, t, d, size), x.dtype) if work.keep else None for size in (4 * h, h))
        launch("lstm_forward", (n, d), (threads,), zx, w_h, y, last, gates, cells, t, order, shared=shared[0])

        def pullback(dy, first=True):
            dy, dz = xp.ascontiguousarray(dy), xp.empty((n, t, d, 4 * h), x.dtype)
            args = dy, gates, cells, w_h, dz, t, order, int(return_sequences)
            launch("lstm_backward", (n, d), (threads,), *args, shared=shared[1])
            flat = dz.reshape(n * t, d * 4 * h)
            grads = [xp.matmul(flat, w_x.T).reshape(x.shape) if first else None]
            dw_x, db = xp.matmul(x.reshape(n * t, i).T, flat), flat.sum(axis=0)
            states = y.reshape(n, t, d, h)
            for k in range(d):
                before, after = (slice(1, None), slice(None, -1)) if reverse[k] else (slice(None, -1), slice(1, None))
                dw_h = xp.matmul(states[:, before, k].reshape(-1, h).T, dz[:, after, k].reshape(-1, 4 * h))
                part = slice(k * 4 * h, (k + 1) * 4 * h)
                grads += [xp.ascontiguousarray(dw_x[:, part]), dw_h, db[part]]
            return grads

        return (y if return_sequences else last), pullback

    # -------------------------------------------------------------------------------------------------- embeddings

    def embedding_average(self, work, ids, table, *, padding_id=None, table_gradient="dense"):
        options = {"padding_id": padding_id, "table_gradient": table_gradient}
        if not has_kernels("embedding_average", table.dtype):
            return _handwritten.embedding_average(work, ids, table, **options)
        xp, (n, t), width = self._xp, ids.shape, table.shape[1]
        launch, (lane_count, vector) = self._module("embedding_average"), lanes(width)
        padding = -1 if padding_id is None else padding_id
        y, shares = xp.empty((n, width), table.dtype), xp.empty(n, table.dtype)
        threads = min(WIDEST, max(32, _rounded_up(lane_count * _parts(t, POSITIONS_OF_GROUP), 32)))
        shared = 4 * (threads * vector + threads // lane_count)
        args = ids, table, y, shares, t, width, padding, lane_count
        launch(f"average_{vector}", (n,), (threads,), *args, shared=shared)

        def pullback(dy, first=True):
            return [self._table_gradient(work, ids, table, dy, shares, padding, table_gradient)]

        return y, pullback

    def embedding(self, work, ids, table, *, table_gradient="dense"):
        if not has_kernels("embedding", table.dtype):
            return _handwritten.embedding(work, ids, table, table_gradient=table_gradient)

        def pullback(dy, first=True):
            alone = ids.reshape(-1, 1)  # each position is an average of one
            shares = work(_ones, len(alone), table.dtype)
            return [self._table_gradient(work, alone, table, dy, shares, -1, table_gradient)]

        return table.take(ids, axis=0), pullback

    def _table_gradient(self, work, ids, table, dy, shares, padding, table_gradient):
        """Return the gradient of a table: ``dy`` (N, width), times the share (N) of each position (N, T) in it."""
        xp, (n, t), width, flat = self._xp, ids.shape, table.shape[1], ids.reshape(-1)
        launch, (lane_count, vector) = self._module("embedding_average"), lanes(width)
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
        if self._deterministic:
            order = _sorted(xp, flat)
            slots = xp.where(flat[order] == padding, -1, flat[order]).astype("int32")
            return sum_runs(order, slots, a.values)
        args = ids, shares, dy, a.values, n * t, t, width, padding, lane_count
        launch(f"scatter_{vector}", grid, (BLOCK,), *args)
        return a.values

    # ------------------------------------------------------------------------------------------------- convolution

    def conv2d(self, work, x, w, b, *, stride=1, padding="valid", activation=None):
        (r, s, c, outputs), (n, height, width, _), xp = w.shape, x.shape, self._xp
        if not has_kernels("conv2d", x.dtype, R=r, S=s, C=c):
            return _handwritten.conv2d(work, x, w, b, stride=stride, padding=padding, activation=activation)
        (p, top), (q, left) = (_convolved(*axis, stride, padding) for axis in ((height, r), (width, s)))
        launch, sizes = self._module("conv2d", **conv2d_constants(w.shape, stride)), (n, height, width, p, q)
        sizes, warps, rectify = (*sizes, outputs, top, left), BLOCK // 32, activation == "relu"
        y, columns = xp.empty((n, p, q, outputs), x.dtype), _parts(outputs, 32)
        launch("conv2d_forward", (_parts(n * p, warps), columns), (BLOCK,), x, w, b, y, *sizes, int(rectify))

        def pullback(dy, first=True):
            dy, dx, rectified = xp.ascontiguousarray(dy), None, y if rectify else None
            blocks = min(CONV2D_BLOCKS, _parts(n * p, warps))
            sums, shared = xp.empty((blocks, r * s * c + 1, outputs), x.dtype), 4 * BLOCK * (r * s * c + 1)
            launch("conv2d_weights", (blocks, columns), (BLOCK,), x, rectified, dy, sums, *sizes, shared=shared)
            if first:
                dx = xp.empty(x.shape, x.dtype)
                launch("conv2d_images", (_parts(n * height, warps),), (BLOCK,), rectified, dy, w, dx, *sizes)
            total = sums.sum(axis=0)
            return [dx, total[:-1].reshape(w.shape), total[-1]]

        return y, pullback

    # --------------------------------------------------------------------------------------------------- optimizers

    def update(self, optimizer, xp, step, p, g, states):
        """Update a weight and its states in place as :func:`shim.models.optimizers.update` does.

        A gradient of :class:`Rows` is for descent, which moves those rows only, and for Adam, which moves all.
        """
        if p.dtype != "float32":
            _updates.update(optimizer, xp, step, p, g, states)
            return
        launch, name = self._module("optimizers"), optimizer.name
        rate = optimizers.adam_rate if name == "adam" else optimizers.rate
        constants = [float(rate(optimizer, step))]
        if name == "adam":
            constants += [1 - optimizer.beta_1, 1 - optimizer.beta_2, optimizer.epsilon]
        elif name != "sgd":
            constants += [1 - optimizer.rho, optimizer.epsilon]
        size = p.size
        if isinstance(g, Rows):
            name, (places, g) = f"{name}_rows", g.summed(xp)
            places = places.astype("int32", copy=False)
            if optimizer.name == "adam":
                places = _slots(xp, len(p), places)
            else:
                size = g.size
            args = p, places, g, *states, size, p.shape[1], *constants
        else:
            args = p, xp.ascontiguousarray(g), *states, size, *constants
        launch(name, (_parts(size, BLOCK * PER_THREAD),), (BLOCK,), *args)


def _convolved(length, kernel, stride, padding):
    """Return the length of a convolved axis, and the zeros before it."""
    before, after = same_padding(length, kernel, stride) if padding == "same" else (0, 0)
    return (before + length + after - kernel) // stride + 1, before


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


def _slots(xp, rows, ids):
    slots = xp.full(rows, -1, "int32")
    slots[ids] = xp.arange(len(ids), dtype="int32")
    return slots
