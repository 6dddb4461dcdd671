"""Two-dimensional convolution by hand: one matrix product for each block of patches.

The patches of some images, or of some lines of one large image, are copied into a buffer that stays in the cache, and
a product with the kernel makes the results of that block. A last column of ones in the buffer brings the bias, and in
the backward pass its gradient. The input gradient is the same again: a convolution of the padded output gradient with
the kernel turned round, once for each phase of the stride.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

from shim.contract import same_padding

BLOCK = 2**18  # elements of patches and results at a time, about the second-level cache of a core


def conv2d(work, x, w, b, *, stride=1, padding="valid", activation=None):
    """Return the result and its pullback; see :func:`shim.contract.conv2d`."""
    xp, width = work.xp, w.shape[3]
    a = work(_arrays, work.scale * BLOCK, x.shape, w.shape, stride, padding, x.dtype)
    image = x
    if a.padded is not None:
        a.inner[:], image = x, a.padded
    windows = _windows(xp, image, (0, 0), (a.p, a.q), w.shape[:2], stride)
    weight = xp.concatenate([w.reshape(-1, width), b[None]])
    y = xp.empty((len(x), a.p, a.q, width), x.dtype)
    for images, lines in a.blocks:
        part = y[images, lines].reshape(-1, width)
        xp.matmul(_patches(xp, a.buffer, windows[images, lines]), weight, out=part)
        if activation == "relu":
            xp.clip(part, 0, xp.inf, out=part)  # several times as fast as maximum(part, 0)

    def pullback(dy, first=True):
        k = len(weight) - 1
        dweight, part = xp.zeros_like(weight), xp.empty_like(weight)
        dx = xp.empty(x.shape, x.dtype) if first else None
        for images, lines in a.blocks:
            dz = dy[images, lines]
            if activation == "relu":
                dz = a.dz[: len(dz), : dz.shape[1]]
                dz[:] = y[images, lines] > 0
                dz *= dy[images, lines]
            xp.matmul(_patches(xp, a.buffer, windows[images, lines]).T, dz.reshape(-1, width), out=part)
            dweight += part
            if first:
                a.dz_inner[: len(dz), lines] = dz
                if lines.stop == a.p:
                    _input_gradient(xp, a, w, stride, dx[images])
        return [dx, dweight[:k].reshape(w.shape), dweight[k]]

    return y, pullback


def _input_gradient(xp, a, w, stride, dx):
    """Fill ``dx`` (some images) from their padded output gradient, one phase of the stride after the other."""
    channels = dx.shape[3]
    for phase in a.phases:
        turned = w[phase.taps][::-1, ::-1].transpose(0, 1, 3, 2)
        weight = turned.reshape(-1, channels) if turned.size else turned.reshape(0, channels)
        windows = _windows(xp, a.dz_padded[: len(dx)], phase.first, phase.shape, turned.shape[:2], 1)
        target = dx[:, phase.start[0] :: stride, phase.start[1] :: stride]
        for images, lines in phase.blocks:
            patches = _patches(xp, phase.buffer, windows[images, lines])
            if stride == 1:
                xp.matmul(patches, weight, out=target[images, lines].reshape(-1, channels))
            else:
                part = target[images, lines]
                part[:] = (patches @ weight).reshape(part.shape)


def _windows(xp, image, first, shape, kernel, stride):
    """View ``image`` (N, H, W, C) as the windows (N, P, Q, R, S, C) that begin at ``first``."""
    image = image[:, first[0] :, first[1] :]
    n, h, w, c = image.strides
    shape = (len(image), *shape, *kernel, image.shape[3])
    return xp.lib.stride_tricks.as_strided(image, shape, (n, h * stride, w * stride, h, w, c))


def _patches(xp, buffer, windows):
    """Copy windows into the rows of ``buffer``; the column after the last stays as it is."""
    rows, k = math.prod(windows.shape[:3]), math.prod(windows.shape[3:])
    patches = buffer[:rows]
    xp.copyto(patches[:, :k].reshape(windows.shape), windows)
    return patches


def _blocks(block, n, p, q, width):
    """Return pairs of slices, images and lines of P x Q results, such that each has about ``block`` elements."""
    images = min(n, max(1, block // (p * q * width)))
    parts = min(p, -(-p * q * width // block)) if images == 1 else 1
    lines = -(-p // parts)
    starts = itertools.product(range(0, n, images), range(0, p, lines))
    return [(slice(i, min(i + images, n)), slice(j, min(j + lines, p))) for i, j in starts]


def _arrays(xp, keep, block, shape, kernel, stride, padding, dtype):
    """Lay out the buffers for images (N, H, W, C) and a kernel (R, S, C, O)."""
    n, *size, c = shape
    o, k = kernel[3], math.prod(kernel[:3])
    same = padding == "same"
    before, after = zip(*(same_padding(size[d], kernel[d], stride) if same else (0, 0) for d in (0, 1)), strict=True)
    p, q = ((before[d] + size[d] + after[d] - kernel[d]) // stride + 1 for d in (0, 1))
    a = SimpleNamespace(p=p, q=q, blocks=_blocks(block, n, p, q, k + o), padded=None)
    if any(before + after):
        a.padded = xp.zeros((n, before[0] + size[0] + after[0], before[1] + size[1] + after[1], c), dtype)
        a.inner = a.padded[:, before[0] :, before[1] :][:, : size[0], : size[1]]
    rows = _rows(a.blocks, q)
    # With one to three channels the long runs lie along the lines of the image, not along its channels.
    a.buffer = xp.ones((k + 1, rows), dtype).T if c < 4 else xp.ones((rows, k + 1), dtype)
    if keep:
        images, lines = (block.stop for block in a.blocks[0])
        a.dz = xp.empty((images, lines, q, o), dtype)
        margin = [-(-kernel[d] // stride) - 1 for d in (0, 1)]
        padded = [(size[d] - 1 + before[d]) // stride + 1 + margin[d] for d in (0, 1)]
        a.dz_padded = xp.zeros((images, *padded, o), dtype)
        a.dz_inner = a.dz_padded[:, margin[0] : margin[0] + p, margin[1] : margin[1] + q]
        axes = [_phases(size[d], kernel[d], stride, before[d]) for d in (0, 1)]
        a.phases = [_phase(block, images, *pair, c, o) for pair in itertools.product(*axes)]
        flat = xp.empty(max(phase.rows * phase.k for phase in a.phases), dtype)
        for phase in a.phases:
            phase.buffer = flat[: phase.rows * phase.k].reshape(phase.rows, phase.k)
    return a


def _rows(blocks, q):
    images, lines = (block.stop for block in blocks[0])
    return images * lines * q


def _phases(length, kernel, stride, before):
    """Split an input axis by the stride: for each phase its start, taps, first window and number of windows."""
    margin = -(-kernel // stride) - 1
    for start in range(min(stride, length)):
        window, residue = divmod(start + before, stride)
        taps = len(range(residue, kernel, stride))
        yield start, slice(residue, None, stride), taps, window + margin + 1 - taps, len(range(start, length, stride))


def _phase(block, images, rows, columns, c, o):
    start, taps, counts, first, shape = zip(rows, columns, strict=True)
    k = math.prod(counts) * o
    blocks = _blocks(block, images, *shape, k + c)
    return SimpleNamespace(
        start=start, taps=taps, first=first, shape=shape, k=k, blocks=blocks, rows=_rows(blocks, shape[1])
    )
