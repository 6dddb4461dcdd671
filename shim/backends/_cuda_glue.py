"""What stands between the layers with weights, on the kernels of ``glue.cu``: one launch forward, one back."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from shim.backends import _handwritten
from shim.backends._cuda_kernels import blocks_of

BLOCK = 256  # threads
WIDEST = 1024  # threads of a block that normalises
COLUMNS = 8  # that such a block takes
PLACES = 2**8  # of a window that a byte can name


class SplitMix64:
    """Steele, Lea and Flood's generator (2014), all words at once, since its k-th state is known beforehand.

    CuPy's own generators do not show their state, so that no training could go on from a checkpoint. Here it is
    ``array``, one uint64 on the device, and an offset: how many words after it were taken. A captured step reads the
    array and takes its words at offsets from 0 on, the same at every replay;
    :meth:`shim.backends._cuda_updates.Steps.advance` at its end moves the array past them. Without that the offset
    just grows. Words are drawn again for the way back, so the array must not move before.
    """

    STEP = 0x9E3779B97F4A7C15
    MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))

    def __init__(self, xp, seed=None):
        self._xp, self._taken = xp, 0
        self.array = xp.full(1, np.random.SeedSequence(seed).generate_state(1, np.uint64)[0], "uint64")

    @property
    def state(self):
        """The state after all words taken, a NumPy uint64; setting it keeps the array on the device."""
        return np.uint64((int(self.array.item()) + self._taken * self.STEP) % 2**64)

    @state.setter
    def state(self, value):
        self.array.fill(np.uint64(value))
        self._taken = 0

    def take(self, words):
        """Return the offset of the next words."""
        self._taken += words
        return self._taken - words

    def begin(self):
        """Begin a step, whose offsets count from 0, and return how many words the one before took."""
        taken, self._taken = self._taken, 0
        return taken

    def words(self, size):
        """Return the next words as an array."""
        z = self._xp.arange(1, size + 1, dtype=np.uint64)
        z += np.uint64(self.take(size) % 2**64)
        z *= np.uint64(self.STEP)
        z += self.array
        for shift, factor in self.MIXING:
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        z ^= z >> np.uint64(31)
        return z


def max_pool2d(cuda, work, x, *, pool=2):
    if x.dtype != "float32" or pool * pool > PLACES:
        return _handwritten.max_pool2d(work, x, pool=pool)
    return max_pool(cuda, work, x, pool)


def max_pool(cuda, work, x, pool, b=None, rectify=False):
    """Pool, then add a bias to the maxima and rectify them; the pullback takes the gradient before both."""
    xp, launch, (n, height, width, c) = cuda.xp, cuda.kernels("glue"), x.shape
    x, (p, q), vector = xp.ascontiguousarray(x), (height // pool, width // pool), 1 if c % 4 else 4
    y = xp.empty((n, p, q, c), x.dtype)
    places = xp.empty(y.shape, "uint8") if work.keep else None
    sizes = height, width, p, q, c // vector, pool
    total = y.size // vector
    launch(f"max_pool_{vector}", (blocks_of(total, BLOCK),), (BLOCK,), x, y, places, total, *sizes, b, int(rectify))

    def pullback(dy, first=True):
        dy, dx = xp.ascontiguousarray(dy), xp.empty(x.shape, x.dtype)
        total = n * -(-height // pool) * -(-width // pool) * (c // vector)
        launch(f"max_pool_back_{vector}", (blocks_of(total, BLOCK),), (BLOCK,), places, dy, dx, total, *sizes)
        return [dx]

    return y, pullback


def relu(cuda, work, x):
    if x.dtype != "float32":
        return _handwritten.relu(work, x)
    xp, launch = cuda.xp, cuda.kernels("glue")
    x, grid = xp.ascontiguousarray(x), (blocks_of(x.size, 4 * BLOCK),)
    y = xp.empty(x.shape, x.dtype)
    launch("relu", grid, (BLOCK,), x, y, x.size)

    def pullback(dy, first=True):
        dy, dx = xp.ascontiguousarray(dy), xp.empty(x.shape, x.dtype)
        launch("relu_back", grid, (BLOCK,), y, dy, dx, x.size)
        return [dx]

    return y, pullback


def dropout(cuda, work, x, *, rate=0.0, generator=None):
    """``generator`` is a :class:`SplitMix64`."""
    if x.dtype != "float32" or not rate:
        return _handwritten.dropout(work, x, rate=rate, generator=generator)
    xp, launch, offset = cuda.xp, cuda.kernels("glue"), generator.take(blocks_of(x.size, 4))
    options = np.uint64(offset % 2**64), x.size, round(rate * 2**16), 1 / (1 - rate)

    def masked(values):
        values, kept = xp.ascontiguousarray(values), xp.empty(x.shape, x.dtype)
        launch("dropout", (blocks_of(x.size, 4 * BLOCK),), (BLOCK,), values, kept, generator.array, *options)
        return kept

    return masked(x), lambda dy, first=True: [masked(dy)]


def batch_norm(cuda, work, x, gamma, beta, mean, variance, *, training=False, moments=None):
    """``moments`` is a list that takes the moments of the batch."""
    if x.dtype != "float32":
        return _handwritten.batch_norm(work, x, gamma, beta, mean, variance, training=training, moments=moments)
    xp, launch, (n, c) = cuda.xp, cuda.kernels("glue"), x.shape
    if training:
        mean, variance = xp.empty(c, x.dtype), xp.empty(c, x.dtype)
    if moments is not None:
        moments.append((mean, variance))
    threads = min(WIDEST, blocks_of(n * COLUMNS, 32) * 32)
    sizes, shared = (n, c, int(training)), 4 * 2 * threads // 32 * COLUMNS
    x, y, grid = xp.ascontiguousarray(x), xp.empty((n, c), x.dtype), (blocks_of(c, COLUMNS),)
    launch("batch_norm", grid, (threads,), x, gamma, beta, mean, variance, y, *sizes, shared=shared)

    def pullback(dy, first=True):
        gradients = [xp.empty((n, c), x.dtype) if first else None, *(xp.empty(c, x.dtype) for _ in range(4))]
        args = x, xp.ascontiguousarray(dy), gamma, mean, variance, *gradients
        launch("batch_norm_back", grid, (threads,), *args, *sizes, shared=shared)
        return gradients

    return y, pullback


def softmax_cross_entropy(cuda, work, logits, labels):
    if logits.dtype != "float32":
        return _handwritten.softmax_cross_entropy(work, logits, labels)
    xp, launch, (n, classes) = cuda.xp, cuda.kernels("glue"), logits.shape
    logits, labels = xp.ascontiguousarray(logits), xp.ascontiguousarray(labels)
    threads = min(BLOCK, 32 * n)
    grid = (blocks_of(n, threads // 32),)
    normals, loss, a = xp.empty((n, 2), logits.dtype), xp.empty((), logits.dtype), work(_partial, *grid)
    args = logits, labels, normals, a.sums, a.ticket, loss, n, classes
    launch("softmax_loss", grid, (threads,), *args, shared=threads // 8)

    def pullback(dy, first=True):
        dx = xp.empty(logits.shape, logits.dtype)
        args = logits, labels, normals, xp.ascontiguousarray(dy), dx, n, classes
        launch("softmax_loss_back", grid, (threads,), *args)
        return [dx]

    return loss, pullback


def sigmoid_cross_entropy(cuda, work, logits, labels):
    if logits.dtype != "float32":
        return _handwritten.sigmoid_cross_entropy(work, logits, labels)
    xp, launch, (n,) = cuda.xp, cuda.kernels("glue"), logits.shape
    logits, labels = xp.ascontiguousarray(logits), xp.ascontiguousarray(labels)
    threads = min(BLOCK, 32 * blocks_of(n, 32))
    grid = (blocks_of(n, threads),)
    loss, a = xp.empty((), logits.dtype), work(_partial, *grid)
    launch("sigmoid_loss", grid, (threads,), logits, labels, a.sums, a.ticket, loss, n, shared=threads // 8)

    def pullback(dy, first=True):
        dx = xp.empty(n, logits.dtype)
        launch("sigmoid_loss_back", grid, (threads,), logits, labels, xp.ascontiguousarray(dy), dx, n)
        return [dx]

    return loss, pullback


def _partial(xp, keep, blocks):
    return SimpleNamespace(sums=xp.empty(blocks, "float32"), ticket=xp.zeros(1, "int32"))
