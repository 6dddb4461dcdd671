"""First convolutions, of images with one or three channels, on the kernels of ``conv2d.cu``."""

from __future__ import annotations

from shim.backends import _handwritten
from shim.contract import same_padding

CHANNELS = (1, 3)  # of images
TAPS = 27  # weights of an output channel, at most
BLOCK = 256  # threads
CONV2D_BLOCKS = 256  # that add up the gradient of a kernel


def has_kernels(dtype, r, s, c):
    """Return whether a convolution with a kernel of R lines, S columns and C channels runs on kernels."""
    return dtype == "float32" and c in CHANNELS and r * s * c <= TAPS


def conv2d_constants(kernel, stride):
    """Return the constants of the convolution kernels for a kernel (R, S, C, O)."""
    return {"KERNEL_H": kernel[0], "KERNEL_W": kernel[1], "CHANNELS": kernel[2], "STRIDE": stride}


def conv2d(cuda, work, x, w, b, *, stride=1, padding="valid", activation=None):
    (r, s, c, outputs), (n, height, width, _), xp = w.shape, x.shape, cuda.xp
    if not has_kernels(x.dtype, r, s, c):
        return _handwritten.conv2d(work, x, w, b, stride=stride, padding=padding, activation=activation)
    (p, top), (q, left) = (_convolved(*axis, stride, padding) for axis in ((height, r), (width, s)))
    launch, sizes = cuda.kernels("conv2d", **conv2d_constants(w.shape, stride)), (n, height, width, p, q)
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


def _convolved(length, kernel, stride, padding):
    """Return the length of a convolved axis, and the zeros before it."""
    before, after = same_padding(length, kernel, stride) if padding == "same" else (0, 0)
    return (before + length + after - kernel) // stride + 1, before


def _parts(size, part):
    return max(1, -(-size // part))
