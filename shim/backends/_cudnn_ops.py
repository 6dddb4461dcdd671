"""Convolutions and LSTMs by cuDNN where there is one, else by array functions.

``cuda.cudnn`` is a :class:`shim.backends._cudnn.Cudnn` or None. The functions are called like those of
:mod:`shim.backends._cuda_ops` and return the same.
"""

from __future__ import annotations

from types import SimpleNamespace

from shim.backends import _handwritten
from shim.backends._cuda_dense import rectified_sums
from shim.backends._cuda_glue import max_pool
from shim.backends._cudnn_library import KINDS
from shim.contract import same_padding


def runs(cuda, dtype):
    """Return whether cuDNN is there and takes the dtype for all that it is used for."""
    return dtype == "float32" and cuda.cudnn is not None


def convolves(cuda, dtype):
    """Return whether convolutions in this dtype are left to cuDNN."""
    return dtype in tuple(KINDS) and cuda.cudnn is not None  # a dtype equals its name, with another hash


def conv2d(cuda, work, x, w, b, *, stride=1, padding="valid", activation=None):
    if not convolves(cuda, x.dtype):
        return _handwritten.conv2d(work, x, w, b, stride=stride, padding=padding, activation=activation)
    rectify = activation == "relu"
    y, gradients = _convolution(cuda, work, x, w, b, stride, padding, rectify)
    return y, _pullback(cuda, work, y if rectify else None, gradients)


def conv2d_max_pool2d(cuda, work, x, w, b, *, stride=1, padding="valid", activation=None, pool=2):
    """Convolve and pool. The pool adds the bias and rectifies, so no pass over all results is made for that."""
    rectify = activation == "relu"
    z, gradients = _convolution(cuda, work, x, w, None, stride, padding)
    y, pullback = max_pool(cuda, work, z, pool, b, rectify)
    return y, _pullback(cuda, work, y if rectify else None, lambda dy, first: gradients(*pullback(dy), first))


def _pullback(cuda, work, rectified, gradients):
    """Return the pullback of a convolution from ``gradients(dy, first)`` of images and filters, which know no bias."""

    def pullback(dy, first=True):
        dy, db = rectified_sums(cuda, work, rectified, cuda.xp.ascontiguousarray(dy))
        return [*gradients(dy, first), db]

    return pullback


def _convolution(cuda, work, x, w, b, stride, padding, rectify=False):
    """Return a convolution and what makes the gradients of images and filters of that of its products."""
    xp, cudnn = cuda.xp, cuda.cudnn
    (n, *size, channels), (*kernel, _, outputs) = x.shape, w.shape
    pads = [same_padding(*axis, stride) if padding == "same" else (0, 0) for axis in zip(size, kernel, strict=True)]
    image, inner = xp.ascontiguousarray(x), None
    if any(before != after for before, after in pads):  # cuDNN pads both ends alike
        a = work(_padded, n, *size, channels, *pads, x.dtype)
        a.inner[:], image, inner, pads = x, a.image, a.place, [(0, 0), (0, 0)]
    options = {"stride": stride, "padding": tuple(before for before, _ in pads)}
    p, q = (
        (length + 2 * before - k) // stride + 1
        for length, (before, _), k in zip(image.shape[1:3], pads, kernel, strict=True)
    )
    filters = xp.ascontiguousarray(w.transpose(3, 0, 1, 2))
    y = xp.empty((n, p, q, outputs), x.dtype)
    cudnn.convolve(image, filters, b, y, rectify=rectify, **options)

    def gradients(dy, first):
        dw, dx = xp.empty(filters.shape, x.dtype), None
        cudnn.convolve_weights(image, dy, dw, **options)
        if first:
            dx = xp.empty(image.shape, x.dtype)
            cudnn.convolve_images(filters, dy, dx, **options)
            dx = dx if inner is None else xp.ascontiguousarray(dx[inner])
        return dx, xp.ascontiguousarray(dw.transpose(1, 2, 3, 0))

    return y, gradients


def _padded(xp, keep, n, height, width, channels, lines, columns, dtype):
    """Lay out images with zeros around them; ``place`` is where the images lie."""
    image = xp.zeros((n, sum(lines) + height, sum(columns) + width, channels), dtype)
    place = slice(None), slice(lines[0], lines[0] + height), slice(columns[0], columns[0] + width)
    return SimpleNamespace(image=image, place=place, inner=image[place])


def lstm(cuda, work, x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid"):
    if not runs(cuda, x.dtype) or recurrent_activation != "sigmoid":
        options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
        return _handwritten.lstm(work, x, w_x, w_h, b, reverse=reverse, **options)
    order = slice(None, None, -1 if reverse else 1)
    y, backward = _recurrence(cuda, work, x[:, order], [(w_x, w_h, b)], return_sequences)

    def pullback(dy, first=True):
        dx, *others = backward(dy[:, order] if return_sequences else dy, first)
        return [cuda.xp.ascontiguousarray(dx[:, order]) if first else None, *others]

    return (cuda.xp.ascontiguousarray(y[:, order]) if return_sequences else y), pullback


def bilstm(cuda, work, x, *weights, return_sequences=False, recurrent_activation="sigmoid"):
    if not runs(cuda, x.dtype) or recurrent_activation != "sigmoid":
        options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
        return _handwritten.bilstm(work, x, *weights, **options)
    return _recurrence(cuda, work, x, [weights[:3], weights[3:]], return_sequences)


def _recurrence(cuda, work, x, weights, return_sequences):
    """Run one LSTM for each of ``weights``, the second from the last step to the first."""
    xp, (n, t, i), h, d = cuda.xp, x.shape, len(weights[0][1]), len(weights)
    plan = cuda.cudnn.recurrence(n, t, i, h, d, work.keep)
    a, x = work(_memory, plan.weights, plan.reserve, x.dtype), xp.ascontiguousarray(x)
    for view, (w_x, w_h, b) in zip(plan.views(a.weights), weights, strict=True):
        view[0][:], view[1][:], view[2][:] = w_x.T, w_h.T, b[:, None]
    y = xp.empty((n, t, d * h), x.dtype)
    last = None if return_sequences else xp.empty((d, n, h), x.dtype)
    plan.forward(x, a.weights, y, last, a.reserve)

    def pullback(dy, first=True):
        if return_sequences:
            of_all, of_last = xp.ascontiguousarray(dy), None
        else:
            of_all, of_last = work(_nothing, n, t, d * h, x.dtype), dy.reshape(n, d, h).transpose(1, 0, 2)
            of_last = xp.ascontiguousarray(of_last)
        dx = xp.empty(x.shape, x.dtype)
        plan.backward(y, of_all, of_last, dx, a.weights, a.reserve)
        a.gradients.fill(0)
        plan.backward_weights(x, y, a.gradients, a.reserve)
        grads = [dx if first else None]
        for dw_x, dw_h, db in plan.views(a.gradients):
            grads += [dw_x.T.copy(), dw_h.T.copy(), db.reshape(-1).copy()]
        return grads

    return (y if return_sequences else last.transpose(1, 0, 2).reshape(n, d * h)), pullback


def _memory(xp, keep, weights, reserve, dtype):
    """Lay out the weights, with a second bias that stays zero, and what the passes hand on."""
    a = SimpleNamespace(weights=xp.zeros(weights, dtype), reserve=xp.empty(max(reserve, 1), xp.uint8))
    if keep:
        a.gradients = xp.empty(weights, dtype)
    return a


def _nothing(xp, keep, n, t, width, dtype):
    """The gradient of all outputs where only the last is used."""
    return xp.zeros((n, t, width), dtype)
