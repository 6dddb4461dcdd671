"""Forward and pullback of every op by hand, over an array module ``xp``, and the tape that trains models with them.

``OPS[name](work, *args, **options)`` returns the result and its pullback. The pullback takes the gradient of the
result and returns one gradient for each float argument, in order; with ``first=False`` it leaves out that of the first
argument and returns None there, which spares the layer next to the data its largest product. ``work`` is a
:class:`Workspace`: it holds the buffers of one call site, so a pullback holds until the next call with the same one.
Results and gradients are new arrays, with three exceptions: the gradient of a table is a buffer of its workspace, dense
but cleared only where the call before had written; ``flatten`` returns a view, as does its gradient.

``embedding`` and ``embedding_average`` with ``table_gradient="rows"`` return :class:`Rows` instead of that buffer.
"""

from __future__ import annotations

from types import SimpleNamespace

from shim.backends._handwritten_conv2d import conv2d
from shim.backends._handwritten_lstm import bilstm, lstm

EPSILON = 1e-3  # of batch_norm, Keras' default
BLOCK = 2**17  # elements that a pass over large arrays handles at a time, so that they stay in the cache
SAMPLES = 64  # samples whose ids are counted in one matrix


class Rows:
    """The gradient of a table as pieces (ids, rows), ids unique in a piece; what no piece names is zero."""

    def __init__(self, pieces):
        self.pieces = pieces

    def __add__(self, other):
        return Rows(self.pieces + other.pieces)

    def summed(self, xp):
        """Return the ids, each once, and their rows."""
        if len(self.pieces) == 1:
            return self.pieces[0]
        return _sum_rows(xp, *(xp.concatenate(parts) for parts in zip(*self.pieces, strict=True)))


class Workspace:
    """Buffers kept from call to call and laid out anew when the shapes change; without ``keep`` no gradient follows.

    ``scale`` is how many times as much as fits the caches of a CPU one pass may handle.
    """

    def __init__(self, xp, keep=True, scale=1):
        self.xp, self.keep, self.scale, self._held = xp, keep, scale, {}

    def __call__(self, layout, *key):
        """Return what ``layout(xp, keep, *key)`` made, for the last ``key`` of this layout."""
        held = self._held.get(layout)
        if held is None or held[0] != key:
            held = self._held[layout] = key, layout(self.xp, self.keep, *key)
        return held[1]


def dense(work, x, w, b, *, activation=None):
    xp, rectify = work.xp, activation == "relu"
    y = xp.matmul(x, w)
    y += b
    if rectify:
        xp.clip(y, 0, xp.inf, out=y)  # several times as fast as maximum(y, 0)

    def pullback(dy, first=True):
        dz = where_positive(y, dy) if rectify else dy
        return [xp.matmul(dz, w.T) if first else None, xp.matmul(x.T, dz), dz.sum(axis=0)]

    return y, pullback


def where_positive(y, dy):
    dz = (y > 0).astype(dy.dtype)  # a product of floats with bools would be half as fast
    dz *= dy
    return dz


def embedding(work, ids, table, *, table_gradient="dense"):
    xp, width = work.xp, table.shape[1]

    def pullback(dy, first=True):
        pieces = [_sum_rows(xp, ids.reshape(-1), dy.reshape(-1, width))]
        return [Rows(pieces) if table_gradient == "rows" else _scattered(work, table, pieces)]

    return table.take(ids, axis=0), pullback


def _scattered(work, table, pieces):
    """Return the dense gradient of a table whose rows come in pieces."""
    a = work(dense_gradient, *table.shape, table.dtype)
    a.values[a.touched] = 0
    (ids, rows), *others = pieces
    a.values[ids] = rows
    for ids, rows in others:
        a.values[ids] += rows
    a.touched = work.xp.concatenate([ids for ids, _ in pieces])
    return a.values


def embedding_average(work, ids, table, *, padding_id=None, table_gradient="dense"):
    xp, (n, t), width = work.xp, ids.shape, table.shape[1]
    weights = _weights(xp, ids, padding_id, table.dtype)
    gathered = work(_gathered, work.scale * BLOCK, n, t, width, table.dtype)
    y = xp.empty((n, width), table.dtype)
    for start in range(0, n, len(gathered)):
        part = slice(start, start + len(gathered))
        rows = gathered[: min(len(gathered), n - start)]
        _take(table, ids[part], rows)
        xp.matmul(weights[part, None], rows, out=y[part, None])

    def pullback(dy, first=True):
        places, pieces = work(_places, len(table)), []
        for start in range(0, n, SAMPLES):
            part = slice(start, start + SAMPLES)
            unique, counts = _count(xp, places, ids[part], weights[part])
            pieces.append((unique, counts @ dy[part]))
        return [Rows(pieces) if table_gradient == "rows" else _scattered(work, table, pieces)]

    return y, pullback


def _take(table, ids, rows):
    try:
        table.take(ids, axis=0, out=rows, mode="clip")  # with any other mode NumPy fills a second buffer first
    except TypeError:  # CuPy has no modes
        table.take(ids, axis=0, out=rows)


def _weights(xp, ids, padding_id, dtype):
    """Return the share of each position (N, T) in the average of its sample."""
    if padding_id is None:
        return xp.full(ids.shape, 1 / ids.shape[1], dtype)
    kept = ids != padding_id
    return (kept / xp.maximum(kept.sum(axis=1, keepdims=True), 1)).astype(dtype)


def _gathered(xp, keep, block, n, t, width, dtype):
    return xp.empty((min(n, max(1, block // (t * width))), t, width), dtype)


def dense_gradient(xp, keep, rows, width, dtype):
    return SimpleNamespace(values=xp.zeros((rows, width), dtype), touched=xp.empty(0, xp.intp))


def _places(xp, keep, rows):
    return xp.zeros(rows, xp.intp)


def _count(xp, places, ids, weights):
    """Return the unique ids (U) of some samples, in no order, and the summed weight of each in each sample (U, N).

    ``places`` (V) is scratch: where an id was last written marks one of its positions, and no sort is needed.
    """
    (n, t), flat = ids.shape, ids.reshape(-1)
    positions = xp.arange(n * t)
    places[flat] = positions
    unique = flat[places[flat] == positions]
    places[unique] = n * xp.arange(len(unique))
    cells = places[flat].reshape(n, t) + xp.arange(n)[:, None]
    counts = xp.zeros(len(unique) * n, weights.dtype)
    xp.add.at(counts, cells.reshape(-1), weights.reshape(-1))
    return unique, counts.reshape(-1, n)


def _sum_rows(xp, ids, rows):
    """Return the unique ids and the sum of the rows (K, D) of each, added up pairwise."""
    order = xp.argsort(ids, kind="stable")
    ids, rows = ids[order], rows[order]
    starts = xp.flatnonzero(xp.diff(ids, prepend=-1))
    lengths = xp.diff(starts, append=len(ids))
    place = xp.arange(len(ids)) - xp.repeat(starts, lengths)
    step, longest = 1, int(lengths.max())
    while step < longest:
        right = xp.flatnonzero(place % (2 * step) == step)
        rows[right - step] += rows[right]
        step *= 2
    return ids[starts], rows[starts]


def max_pool2d(work, x, *, pool=2):
    xp, (n, height, width, c) = work.xp, x.shape
    p, q = height // pool, width // pool
    places = [
        (slice(None), slice(i, p * pool, pool), slice(j, q * pool, pool)) for i in range(pool) for j in range(pool)
    ]
    y = xp.empty((n, p, q, c), x.dtype)
    length = max(1, work.scale * BLOCK // (height * width * c))
    parts = [slice(start, start + length) for start in range(0, n, length)]
    for part in parts:
        image, out = x[part], y[part]
        xp.maximum(image[places[0]], image[places[1]], out=out)
        for place in places[2:]:
            xp.maximum(out, image[place], out=out)

    def pullback(dy, first=True):
        dx = xp.empty(x.shape, x.dtype)
        dx[:, p * pool :], dx[:, :, q * pool :] = 0, 0
        for part in parts:
            image, dimage, out = x[part], dx[part], y[part]
            left = dy[part].copy()  # the first of equal maxima takes the gradient and leaves nothing
            for place in places[:-1]:
                taken = (image[place] == out).astype(x.dtype)
                taken *= left
                left -= taken
                dimage[place] = taken
            dimage[places[-1]] = left
        return [dx]

    return y, pullback


def relu(work, x):
    y = work.xp.clip(x, 0, work.xp.inf)
    return y, lambda dy, first=True: [where_positive(y, dy)]


def dropout(work, x, *, rate=0.0, generator=None):
    """``generator.words(n)`` draws n integers of 64 bits."""
    xp = work.xp
    if not rate:
        return x.copy(), lambda dy, first=True: [dy.copy()]
    words = generator.words(-(-x.size // 4))
    kept = words.view(xp.uint16)[: x.size].reshape(x.shape) >= round(rate * 2**16)
    factors = kept.astype(x.dtype)
    factors *= 1 / (1 - rate)
    return x * factors, lambda dy, first=True: [dy * factors]


def batch_norm(work, x, gamma, beta, mean, variance, *, training=False, moments=None):
    """``moments`` is a list that takes the moments of the batch."""
    xp = work.xp
    if training:
        mean, variance = x.mean(axis=0), x.var(axis=0)
    if moments is not None:
        moments.append((mean, variance))
    inverse = 1 / xp.sqrt(variance + EPSILON)
    normal = (x - mean) * inverse
    scale = gamma * inverse

    def pullback(dy, first=True):
        dgamma, dbeta = (dy * normal).sum(axis=0), dy.sum(axis=0)
        if not training:
            return [dy * scale, dgamma, dbeta, -scale * dbeta, -0.5 * scale * inverse * dgamma]
        dx = scale * (dy - (dbeta + normal * dgamma) / len(x))
        return [dx, dgamma, dbeta, xp.zeros_like(mean), xp.zeros_like(variance)]

    return normal * gamma + beta, pullback


def concat(work, x, y):
    width = x.shape[1]
    return work.xp.concatenate([x, y], axis=-1), lambda dy, first=True: [dy[:, :width].copy(), dy[:, width:].copy()]


def flatten(work, x):
    return x.reshape(len(x), -1), lambda dy, first=True: [dy.reshape(x.shape)]


def softmax_cross_entropy(work, logits, labels):
    xp, samples = work.xp, work.xp.arange(len(labels))
    shifted = logits - logits.max(axis=-1, keepdims=True)
    powers = xp.exp(shifted)
    sums = powers.sum(axis=-1)

    def pullback(dy, first=True):
        gradient = powers / sums[:, None]
        gradient[samples, labels] -= 1
        gradient *= dy / len(labels)
        return [gradient]

    return xp.asarray((xp.log(sums) - shifted[samples, labels]).mean()), pullback


def sigmoid_cross_entropy(work, logits, labels):
    xp, labels = work.xp, labels.astype(logits.dtype)
    losses = xp.maximum(logits, 0) - logits * labels + xp.log1p(xp.exp(-abs(logits)))

    def pullback(dy, first=True):
        return [(0.5 * xp.tanh(0.5 * logits) + 0.5 - labels) * (dy / len(labels))]

    return xp.asarray(losses.mean()), pullback


OPS = {
    function.__name__: function
    for function in (
        dense, conv2d, lstm, bilstm, embedding_average, embedding, max_pool2d, relu, dropout, batch_norm, concat,
        flatten, softmax_cross_entropy, sigmoid_cross_entropy,
    )
}  # fmt: skip
