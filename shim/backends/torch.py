"""PyTorch: eager with autograd, or compiled by ``torch.compile``.

Arrays keep the contract's layout; where a kernel wants another one it gets a view: NHWC images are NCHW tensors in
the channels_last format, and a transposed matrix costs the library nothing.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys

import numpy as np
import torch
import torch.nn.functional as F

from shim import contract, models
from shim.backends import _torch_kernels, _torch_lstm, _torch_trainer
from shim.protocol import check_choice, op, program

DEVICES = ("cpu", "cuda")
MODES = ("eager", "compile")
HALVES = ("float16", "bfloat16")
FUSES = ("compile",)  # what shim.protocol.fuses reads

# torch.compile would unroll a recurrence with gradients step by step and be busy with 100 steps for minutes; it
# leaves torch.nn.LSTM to the library too.
_UNCOMPILED = ("lstm", "bilstm")

_module = sys.modules[__name__]
_device = torch.device("cpu")


class CompilerMissing(RuntimeError):
    """``torch.compile`` finds no C++ compiler; the message names the command that mends it."""


def setup(device="cpu", precision="float32", threads=None):
    """Choose device, matmul precision and thread count; ``tf32`` is for CUDA devices."""
    global _device
    check_choice("device", device, DEVICES)
    check_choice("precision", precision, ("float32", "tf32") if device == "cuda" else ("float32",))
    if device == "cuda" and not torch.cuda.is_available():
        reason = "it sees no GPU" if torch.version.cuda else "it was built without CUDA"
        raise ValueError(f"device 'cuda' is not available to torch {torch.__version__}: {reason}; use device 'cpu'")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    _device = torch.device(device)
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    products = torch.backends.cuda.matmul  # of 16 bits are added up in float32
    products.allow_fp16_reduced_precision_reduction = products.allow_bf16_reduced_precision_reduction = False


def to_device(value):
    if value.dtype.name == "bfloat16":  # which torch does not take from NumPy, nor give to it
        return torch.tensor(value.view(np.uint16), device=_device).view(torch.bfloat16)
    return torch.tensor(value, device=_device)


def to_numpy(array):
    if array.dtype == torch.bfloat16:
        return np.array(array.detach().view(torch.uint16).numpy(force=True)).view("bfloat16")
    return np.array(array.numpy(force=True))


def synchronize(outputs):
    if _device.type == "cuda":
        torch.cuda.synchronize()


def approximates():
    """cuDNN takes sigmoid and tanh from approximate instructions."""
    return _device.type == "cuda"


@op
def dense(x, w, b, *, activation=None):
    y = torch.addmm(b, x, w)
    return F.relu(y, inplace=True) if activation == "relu" else y


@op
def conv2d(x, w, b, *, stride=1, padding="valid", activation=None):
    """``F.conv2d`` on a channels_last view."""
    x, pads = x.permute(0, 3, 1, 2), (0, 0)
    if padding == "same":
        (top, bottom), (left, right) = (
            contract.same_padding(length, kernel, stride)
            for length, kernel in zip(x.shape[2:], w.shape[:2], strict=True)
        )
        if (top, left) == (bottom, right):
            pads = top, left
        else:
            x = F.pad(x, (left, right, top, bottom))
    w = w.permute(3, 2, 0, 1)
    if w.dtype == torch.float64:  # ATen's own convolution refuses some strides of the weights' gradient
        w = w.contiguous()
    y = F.conv2d(x, w, b, stride, pads)
    return (F.relu(y, inplace=True) if activation == "relu" else y).permute(0, 2, 3, 1)


def _recurrent(x, directions):
    """``torch.lstm``, the function behind ``torch.nn.LSTM``."""
    weights = _torch_lstm.weights(x, directions)
    w_h = directions[0][1]
    zero = x.new_zeros(len(directions), x.shape[0], w_h.shape[0])
    train = torch.is_grad_enabled() and w_h.requires_grad
    outputs, last, _ = torch.lstm(x, (zero, zero), weights, True, 1, 0.0, train, len(directions) == 2, True)
    return outputs, last


@op
def lstm(x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid"):
    """``torch.lstm``, or a loop over steps for hard sigmoids; neither has a reverse direction: the input is flipped."""
    x = x.flip(1) if reverse else x
    if recurrent_activation == "hard_sigmoid":
        outputs, last = _torch_lstm.hard(x, w_x, w_h, b)
    else:
        outputs, last = _recurrent(x, [(w_x, w_h, b)])
    if not return_sequences:
        return last[0]
    return outputs.flip(1) if reverse else outputs


@op
def bilstm(
    x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse, *, return_sequences=False, recurrent_activation="sigmoid"
):
    """``torch.lstm`` with ``bidirectional=True``, or two loops."""
    if recurrent_activation == "hard_sigmoid":
        options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
        forwards = lstm.bare(x, w_x, w_h, b, **options)
        backwards = lstm.bare(x, w_x_reverse, w_h_reverse, b_reverse, reverse=True, **options)
        return torch.cat((forwards, backwards), dim=-1)
    outputs, last = _recurrent(x, [(w_x, w_h, b), (w_x_reverse, w_h_reverse, b_reverse)])
    return outputs if return_sequences else torch.cat((last[0], last[1]), dim=-1)


@op
def embedding_average(ids, table, *, padding_id=None):
    return F.embedding_bag(ids, table, mode="mean", padding_idx=padding_id)


@op
def embedding(ids, table):
    return F.embedding(ids, table)


@op
def max_pool2d(x, *, pool=2):
    """``F.max_pool2d`` on a channels_last view."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), pool).permute(0, 2, 3, 1)


@op
def relu(x):
    return F.relu(x)


@op
def dropout(x, *, rate=0.0):
    """``F.dropout`` with torch's global generator."""
    return F.dropout(x, rate)


@op
def batch_norm(x, gamma, beta, mean, variance, *, training=False):
    """``F.batch_norm``; it takes given moments for constants, so their gradients need the formula itself."""
    if training:
        return F.batch_norm(x, None, None, gamma, beta, training=True, eps=1e-3)
    if torch.is_grad_enabled() and (mean.requires_grad or variance.requires_grad):
        return (x - mean) * torch.rsqrt(variance + 1e-3) * gamma + beta
    return F.batch_norm(x, mean, variance, gamma, beta, eps=1e-3)


@op
def concat(x, y):
    return torch.cat((x, y), dim=-1)


@op
def flatten(x):
    return torch.flatten(x, 1)


@op
def softmax_cross_entropy(logits, labels):
    """``F.cross_entropy``, which takes int64 labels only."""
    return F.cross_entropy(logits, labels.long())


@op
def sigmoid_cross_entropy(logits, labels):
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def _compile(function, fullgraph=True):
    """``torch.compile`` for fixed shapes."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise CompilerMissing(
            f"torch.compile needs the C++ compiler {compiler!r}, which is not on the PATH; "
            "install it (Debian: apt install g++), name another one in CXX, or use mode 'eager'"
        )
    import torch._dynamo

    # Every program of an op counts as a recompilation of the same Python function; above 8 torch gives up.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 100_000
    return torch.compile(function, fullgraph=fullgraph, dynamic=False)


def _function(op, options, mode):
    function = functools.partial(getattr(_module, op).bare, **options)
    return _compile(function) if mode == "compile" and op not in _UNCOMPILED else function


@program
def forward(op, options, mode):
    """The op itself: arrays from :func:`to_device` require no gradient, so nothing is recorded."""
    return _function(op, options, mode)


@program
def forward_backward(op, options, mode, first=True):
    """``torch.autograd.grad``, which returns gradients and accumulates none; unused arguments get zeros."""
    function = _function(op, options, mode)
    wanted = [argument.is_float and (first or k > 0) for k, argument in enumerate(contract.op(op).arguments)]

    def run(args, dy):
        args = [a.detach().requires_grad_() if f else a for a, f in zip(args, wanted, strict=True)]
        leaves = [a for a, f in zip(args, wanted, strict=True) if f]
        y = function(*args)
        return y.detach(), torch.autograd.grad(y, leaves, dy, materialize_grads=True)

    return run


def trainer(model, params, optimizer, mode, seed=0):
    """Autograd and torch's own optimizer kernels; compiled mode compiles the loss and its gradient."""
    check_choice("mode", mode, MODES)
    outside, compiled = {}, None
    if mode == "compile":
        outside = {name: torch.compiler.disable(getattr(_module, name).bare) for name in _UNCOMPILED}
        compiled = functools.partial(_compile, fullgraph=False)
    return _torch_trainer.Trainer(_module, model, params, optimizer, seed, outside, compiled)


def implementation(case, mode=MODES[0]):
    """Name the kernel by the conditions that torch itself goes by."""
    if case.is_model:
        kernel = {"sgd": "fused", "adam": "fused"}.get(
            models.load(case.op, **dict(case.options)).optimizer.name, "foreach"
        )
        rows = ", sparse gradients of tables" if dict(case.options).get("table_gradient") == "rows" else ""
        return f"{'eager ops' if mode == 'eager' else 'inductor'}, autograd, {kernel} optimizer{rows}"
    kernel = _torch_kernels.name(case, _device)
    if mode == "eager" or case.op in _UNCOMPILED:
        return kernel if mode == "eager" else f"{kernel}, not compiled"
    generated = f"inductor's {'Triton' if _device.type == 'cuda' else 'C++'}"
    return f"{kernel} and {generated}" if case.op in ("dense", "conv2d", "embedding_average") else generated


def describe():
    cuda = _device.type == "cuda"
    libraries = {"oneDNN": _torch_kernels.built_with("MKL-DNN v"), "BLAS": _torch_kernels.built_with("BLAS_INFO=")}
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({torch.backends.cpu.get_cpu_capability()})",
        "precision": "tf32" if torch.get_float32_matmul_precision() == "high" else "float32",
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "libraries": libraries | ({"cuDNN": str(torch.backends.cudnn.version())} if cuda else {}),
    }


setup()
