"""The LSTM of the PyTorch backend: its weights as ``torch.lstm`` takes them, and the one with hard sigmoids.

On a GPU cuDNN reads all weights of an LSTM from one piece of memory, the matrices of all directions before the biases.
``torch.lstm`` moves them there at every call unless they are, and says so in a warning.
"""

from __future__ import annotations

import functools

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_second_biases = WeakTensorKeyDictionary()  # of the LSTMs that flatten has seen, by the first


def by_cudnn(x):
    """Return whether ``torch.lstm`` is cuDNN's."""
    return x.is_cuda and torch.cudnn_is_acceptable(x)


def weights(x, directions):
    """Return w_ih, w_hh, b_ih, b_hh of each direction (w_x, w_h, b); the second of the two biases is zero."""
    second = torch.zeros_like
    if by_cudnn(x):
        if not all(b in _second_biases for _, _, b in directions):
            return _one_piece(directions)
        second = _second_biases.get
    return [part for w_x, w_h, b in directions for part in (w_x.t(), w_h.t(), b, second(b))]


def _one_piece(directions):
    matrices = [(w_x.t(), w_h.t()) for w_x, w_h, _ in directions]
    biases = [(b, _zeros(b.numel(), b.dtype, b.device)) for _, _, b in directions]
    parts = [part for pair in matrices + biases for part in pair]
    pieces = torch.cat([part.reshape(-1) for part in parts]).split([part.numel() for part in parts])
    views = [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
    first_bias = len(views) // 2
    return [view for k in range(0, first_bias, 2) for j in (k, first_bias + k) for view in views[j : j + 2]]


@functools.cache
def _zeros(size, dtype, device):
    return torch.zeros(size, dtype=dtype, device=device)


@torch.no_grad()
def flatten(directions):
    """Move weights that are trained to where cuDNN reads them, as ``nn.LSTM.flatten_parameters`` does.

    They stay the same tensors of the same shapes; the matrices become transposed views.
    """
    parts = _one_piece(directions)
    for k, (w_x, w_h, b) in enumerate(directions):
        w_ih, w_hh, b.data, _second_biases[b] = parts[4 * k : 4 * k + 4]
        w_x.data, w_h.data = w_ih.t(), w_hh.t()


def flattening(op):
    """Return an LSTM op that flattens its weights first."""

    def call(x, *weights, recurrent_activation="sigmoid", **options):
        if recurrent_activation == "sigmoid":
            flatten([weights[k : k + 3] for k in range(0, len(weights), 3)])
        return op(x, *weights, recurrent_activation=recurrent_activation, **options)

    return call


def hard(x, w_x, w_h, b):
    """Return the outputs (N, T, H) of the contract's ``lstm`` with ``hard_sigmoid``, and the last one (1, N, H).

    Neither oneDNN nor cuDNN has it, so its steps are ATen calls. The weights are scaled, so that a gate is
    ``clamp(z, 0, 1)``. ``F.hardsigmoid`` is Keras 3's, and its slope of 1/6 has the digits of float32 only.
    """
    (batch, steps, width), size = x.shape, w_h.shape[0]
    scale, middle = (x.new_tensor(v).repeat_interleave(size) for v in ([0.2, 0.2, 1.0, 0.2], [0.5, 0.5, 0.0, 0.5]))
    z = torch.addmm(b * scale + middle, x.reshape(-1, width), w_x * scale).view(batch, steps, -1)
    w_h = w_h * scale
    h = c = x.new_zeros(batch, size)
    outputs = []
    for step in z.unbind(1):
        i_f, g, o = torch.addmm(step, h, w_h).split((2 * size, size, size), dim=1)
        i, f = i_f.clamp(0, 1).chunk(2, dim=1)
        c = f * c + i * torch.tanh(g)
        h = o.clamp(0, 1) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs, dim=1), h[None]
