"""First convolutions, of images with one or three channels, on the kernels of ``conv2d.cu``."""

from __future__ import annotations

from shim.backends import _cudnn_ops
from shim.backends._cuda_dense import rectified_sums
from shim.backends._cuda_kernels import blocks_of
from shim.contract import same_padding

CHANNELS = (1, 3)  # of images
TAPS = 27  # weights of an output channel, at most
BLOCK = 256  # threads
CONV2D_BLOCKS = {1: 384, 3: 256}  # that add up the gradient of a kernel, for each number of channels
PIXELS = 4  # of a line that a thread of these has under way


def has_kernels(dtype, r, s, c):
    """Return whether a convolution with a kernel of R lines, S columns and C channels runs on kernels."""
    return dtype == "float32" and c in CHANNELS and r * s * c <= TAPS


def takes_pool(cuda, x, w):
    """Return whether the convolution of ``x`` with ``w`` is one that :func:`conv2d_max_pool2d` computes."""
    return _cudnn_ops.runs(cuda, x.dtype) and not has_kernels(x.dtype, *w.shape[:3])


def conv2d_constants(kernel, stride):
    """Return the constants of the convolution kernels for a kernel (R, S, C, O)."""
    return {"KERNEL_H": kernel[0], "KERNEL_W": kernel[1], "CHANNELS": kernel[2], "STRIDE": stride}


def conv2d(cuda, work, x, w, b, *, stride=1, padding="valid", activation=None):
    (r, s, c, outputs), (n, height, width, _), xp = w.shape, x.shape, cuda.xp
    if not has_kernels(x.dtype, r, s, c):
        return _cudnn_ops.conv2d(cuda, work, x, w, b, stride=stride, padding=padding, activation=activation)
    (p, top), (q, left) = (_convolved(*axis, stride, padding) for axis in ((height, r), (width, s)))
    launch, sizes = cuda.kernels("conv2d", **conv2d_constants(w.shape, stride)), (n, height, width, p, q)
    sizes, warps, rectify = (*sizes, outputs, top, left), BLOCK // 32, activation == "relu"
    y, columns = xp.empty((n, p, q, outputs), x.dtype), blocks_of(outputs, 32)
    launch("conv2d_forward", (blocks_of(n * p, warps), columns), (BLOCK,), x, w, b, y, *sizes, int(rectify))

    def pullback(dy, first=True):
        dy, dx, rectified = xp.ascontiguousarray(dy), None, y if rectify else None
        blocks = min(CONV2D_BLOCKS[c], blocks_of(n * p * blocks_of(q, PIXELS), warps))
        sums, shared = xp.empty((blocks, r * s * c + 1, outputs), x.dtype), 4 * BLOCK * (r * s * c + 1)
        launch("conv2d_weights", (blocks, columns), (BLOCK,), x, rectified, dy, sums, *sizes, shared=shared)
        if first:
            dx, tile = xp.empty(x.shape, x.dtype), image_tile((r, s), stride, (height, width), q)
            grid, memory = (n, *map(blocks_of, (height, width), tile)), 4 * (BLOCK + 32) * r * s * c
            launch("conv2d_images", grid, (BLOCK,), rectified, dy, w, dx, *sizes, *tile, shared=memory)
        total = rectified_sums(cuda, work, None, sums.reshape(blocks, -1))[1].reshape(-1, outputs)
        return [dx, total[:-1].reshape(w.shape), total[-1]]

    return y, pullback


def image_tile(kernel, stride, size, q):
    """Return how many lines and columns of an image depend on no more results than a block has threads."""
    rows, columns = (kernel[0] - 1) // stride + 1, 32
    while rows * _seen(columns, kernel[1], stride) > BLOCK:
        columns //= 2
    columns = blocks_of(size[1], blocks_of(size[1], columns))
    rows = BLOCK // min(q, _seen(columns, kernel[1], stride))
    return min(size[0], stride * rows - kernel[0] + 1), columns


def _seen(length, kernel, stride):
    """Return how many results, at most, see some of so many pixels side by side."""
    return (length + kernel - 2) // stride + 1


def _convolved(length, kernel, stride, padding):
    """Return the length of a convolved axis, and the zeros before it."""
    before, after = same_padding(length, kernel, stride) if padding == "same" else (0, 0)
    return (before + length + after - kernel) // stride + 1, before
