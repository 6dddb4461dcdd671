"""LSTMs of at most 128 units on the kernels of ``lstm.cu``: all steps and both directions in one launch."""

from __future__ import annotations

from shim.backends import _handwritten

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
        return _handwritten.lstm(work, x, w_x, w_h, b, reverse=reverse, **options)
    return _recurrence(cuda, work, x, [(w_x, w_h, b)], [reverse], **options)


def bilstm(cuda, work, x, *weights, return_sequences=False, recurrent_activation="sigmoid"):
    options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
    if not has_kernels(x.dtype, len(weights[1])):
        return _handwritten.bilstm(work, x, *weights, **options)
    return _recurrence(cuda, work, x, [weights[:3], weights[3:]], [False, True], **options)


def _recurrence(cuda, work, x, weights, reverse, return_sequences, recurrent_activation):
    """Run one LSTM for each of ``weights``, all directions in one launch, through the steps in its order."""
    xp, (n, t, i), h, d = cuda.xp, x.shape, len(weights[0][1]), len(weights)
    constants = lstm_constants(h, recurrent_activation == "hard_sigmoid")
    launch, (threads, *shared) = cuda.kernels("lstm", **constants), lstm_launch(constants["PADDED"])
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
