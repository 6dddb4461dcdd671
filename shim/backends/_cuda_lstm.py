"""LSTMs of at most 128 units on the kernels of ``lstm.cu``: all steps and both directions in one launch."""

from __future__ import annotations

from shim.backends import _cudnn_ops
from shim.backends._cuda_dense import rectified_sums

#: hidden units of the LSTM kernels, rounded up to one of these -> units of a thread, weights that it keeps in registers
LSTM_SIZES = {16: (1, 4), 32: (1, 8), 48: (1, 12), 64: (1, 16), 80: (1, 20), 96: (1, 24), 112: (2, 22), 128: (2, 22)}


def has_kernels(dtype, hidden):
    """Return whether an LSTM runs on kernels."""
    return dtype == "float32" and hidden <= max(LSTM_SIZES)


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


def lstm(cuda, work, x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid"):
    options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
    if not has_kernels(x.dtype, len(w_h)):
        return _cudnn_ops.lstm(cuda, work, x, w_x, w_h, b, reverse=reverse, **options)
    return _recurrence(cuda, work, x, [(w_x, w_h, b)], [reverse], **options)


def bilstm(cuda, work, x, *weights, return_sequences=False, recurrent_activation="sigmoid"):
    options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
    if not has_kernels(x.dtype, len(weights[1])):
        return _cudnn_ops.bilstm(cuda, work, x, *weights, **options)
    return _recurrence(cuda, work, x, [weights[:3], weights[3:]], [False, True], **options)


def _recurrence(cuda, work, x, weights, reverse, return_sequences, recurrent_activation):
    """Run one LSTM for each of ``weights``, all directions in one launch, through the steps in its order."""
    xp, (n, t, i), h, d = cuda.xp, x.shape, len(weights[0][1]), len(weights)
    constants = lstm_constants(h, recurrent_activation == "hard_sigmoid")
    launch, (threads, *shared) = cuda.kernels("lstm", **constants), lstm_launch(constants["PADDED"])
    order, flat = sum(1 << k for k in range(d) if reverse[k]), x.reshape(n * t, i)
    w_h = [w for _, w, _ in weights] + [None] * (2 - d)
    zx = xp.empty((n * t, d, 4 * h), x.dtype)
    for k, (w_x, _, b) in enumerate(weights):
        cuda.product(flat, w_x, zx[:, k], bias=b)
    y = xp.empty((n, t, d * h) if return_sequences else (n, d * h), x.dtype)
    results = (y, None) if return_sequences else (None, y)
    gates, cells, before = (xp.empty((n * t, d, size), x.dtype) if work.keep else None for size in (4 * h, h, h))
    args = zx, *w_h, *results, gates, cells, before, t, order
    launch("lstm_forward", (n, d), (threads,), *args, shared=shared[0])

    def pullback(dy, first=True):
        dy, dz, dx = xp.ascontiguousarray(dy), xp.empty((n * t, d, 4 * h), x.dtype), None
        args = dy, gates, cells, *w_h, dz, t, order, int(return_sequences)
        launch("lstm_backward", (n, d), (threads,), *args, shared=shared[1])
        db, grads = rectified_sums(cuda, work, None, dz.reshape(n * t, d * 4 * h))[1], []
        if first:
            dx = xp.empty((n * t, i), x.dtype)
            for k, (w_x, _, _) in enumerate(weights):
                cuda.product(dz[:, k], w_x.T, dx, add=k > 0)
            dx = dx.reshape(x.shape)
        for k, (w_x, w_h_k, _) in enumerate(weights):
            dw_x = cuda.product(flat.T, dz[:, k], xp.empty(w_x.shape, x.dtype))
            dw_h = cuda.product(before[:, k].T, dz[:, k], xp.empty(w_h_k.shape, x.dtype))
            grads += [dw_x, dw_h, db[k * 4 * h : (k + 1) * 4 * h]]
        return [dx, *grads]

    return y, pullback
