"""Fully connected layers: products that add the bias and rectify, and ``columns.cu`` for the gradient of the bias."""

from __future__ import annotations

from shim.backends import _handwritten
from shim.backends._cublaslt import KINDS
from shim.backends._cuda_kernels import blocks_of

LINES = 16  # rows that a block reads at a time
LEAST = 16  # rows for a thread, before others share the columns
PARTS = 128  # blocks that share some columns, at most


def dense(cuda, work, x, w, b, *, activation=None):
    if x.dtype.name not in KINDS:
        return _handwritten.dense(work, x, w, b, activation=activation)
    xp, rectify = cuda.xp, activation == "relu"
    y = cuda.product(x, w, xp.empty((len(x), w.shape[1]), x.dtype), bias=b, rectify=rectify)

    def pullback(dy, first=True):
        dz, db = rectified_sums(cuda, work, y if rectify else None, xp.ascontiguousarray(dy))
        dx = cuda.product(dz, w.T, xp.empty(x.shape, x.dtype)) if first else None
        return [dx, cuda.product(x.T, dz, xp.empty(w.shape, w.dtype)), db]

    return y, pullback


def rectified_sums(cuda, work, y, dy):
    """Return ``dy`` where ``y`` is positive, all of it without ``y``, and its sum over all axes but the last."""
    xp, columns = cuda.xp, dy.shape[-1]
    if dy.dtype != "float32":
        dz = dy if y is None else _handwritten.where_positive(y, dy)
        return dz, dz.reshape(-1, columns).sum(axis=0)
    rows, dz, sums = dy.size // columns, dy, xp.empty(columns, dy.dtype)
    if y is not None:
        dz = xp.empty(dy.shape, dy.dtype)
    across = blocks_of(columns, 32)
    parts = max(1, min(PARTS, rows // (LEAST * LINES)))
    partial, tickets = work(_scratch, parts, columns, across)
    args = dy, y, dz if y is not None else None, sums, partial, tickets, rows, columns
    shared = 4 * (32 * LINES + 1)
    cuda.kernels("columns")("rectified_sums", (across, parts), (32 * LINES,), *args, shared=shared)
    return dz, sums


def _scratch(xp, keep, parts, columns, across):
    return xp.empty((parts, columns), "float32"), xp.zeros(across, "int32")


class ArrayProducts:
    """What :class:`shim.backends._cublaslt.Products` does, by the functions of an array module."""

    version = "none"

    def __init__(self, xp):
        self._xp = xp

    def __call__(self, a, b, out, bias=None, rectify=False, add=False):
        wide = "float32" if a.itemsize == 2 else a.dtype
        product = self._xp.matmul(a.astype(wide, copy=False), b.astype(wide, copy=False))
        if bias is not None:
            product += bias
        if rectify:
            self._xp.clip(product, 0, self._xp.inf, out=product)
        if add:
            product += out
        out[...] = product
        return out
