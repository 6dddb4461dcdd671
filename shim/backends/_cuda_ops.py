"""Ops on CUDA kernels where these are faster than array functions.

The functions of :data:`OPS` are called like those of :mod:`shim.backends._handwritten`, after a :class:`CudaOps`, and
return the same: a result and its pullback. They compute in float32, those of :data:`HALF_OPS` forward in 16 bits, too;
for another dtype, and for shapes that have no kernels, they leave it to those functions. ``conv2d_max_pool2d`` is two
ops in one, for convolutions by cuDNN alone.
"""

from __future__ import annotations

import copy
import functools

from shim.backends import _cuda_conv2d, _cuda_dense, _cuda_glue, _cuda_lstm, _cuda_tables, _cuda_updates, _cudnn_ops
from shim.backends._cuda_kernels import Kernels
from shim.contract import HALVES

OPS = {
    function.__name__: function
    for function in (
        _cuda_dense.dense, _cuda_conv2d.conv2d, _cuda_lstm.lstm, _cuda_lstm.bilstm, _cuda_tables.embedding_average,
        _cuda_tables.embedding, _cuda_glue.max_pool2d, _cuda_glue.relu, _cuda_glue.dropout, _cuda_glue.batch_norm,
        _cuda_glue.softmax_cross_entropy, _cuda_glue.sigmoid_cross_entropy, _cudnn_ops.conv2d_max_pool2d,
    )
}  # fmt: skip


HALF_OPS = ("dense", "embedding_average", "embedding")


def has_kernels(op, dtype, **dims):
    """Return whether an op runs on kernels in a dtype and with dimensions named as in the contract.

    In dtypes of 16 bits this is about the forward pass.
    """
    if dtype in HALVES:
        return op in HALF_OPS
    if op in ("lstm", "bilstm"):
        return _cuda_lstm.has_kernels(dtype, dims["H"])
    if op == "conv2d":
        return _cuda_conv2d.has_kernels(dtype, dims["R"], dims["S"], dims["C"])
    return op in OPS and dtype == "float32"


class CudaOps:
    """Ops over an array module ``xp``, with kernels that ``load(kernels)`` makes ready to launch.

    ``product`` is called like :class:`shim.backends._cublaslt.Products`; without it array functions multiply. ``cudnn``
    is a :class:`shim.backends._cudnn.Cudnn` or None. With ``deterministic`` the gradient of a table sums in one order,
    which takes a sort of the ids. ``step`` is what a trainer counts its steps in, on the device.
    """

    def __init__(self, xp, load=Kernels.on_gpu, product=None, cudnn=None, deterministic=False):
        self.xp, self.cudnn, self.deterministic = xp, cudnn, deterministic
        self.product = product or _cuda_dense.ArrayProducts(xp)
        self.step = None
        self._load = functools.cache(lambda name, constants: load(Kernels(name, **dict(constants))))
        self._bind()

    def _bind(self):
        for name, function in OPS.items():
            setattr(self, name, functools.partial(function, self))
        self.update = functools.partial(_cuda_updates.update, self)

    def of_a_trainer(self):
        """Return the same with a ``step`` of its own."""
        other = copy.copy(self)
        other._bind()
        return other

    def kernels(self, name, **constants):
        """Return the kernels of a file, ready to launch: a :class:`shim.backends._cuda_kernels.Module`."""
        return self._load(name, tuple(constants.items()))
