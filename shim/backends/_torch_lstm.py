"""The LSTM with hard sigmoids of the PyTorch backend: neither oneDNN nor cuDNN has it, so its steps are ATen calls."""

from __future__ import annotations

import torch


def hard(x, w_x, w_h, b):
    """Return the outputs (N, T, H) of the contract's ``lstm`` with ``hard_sigmoid``, and the last one (1, N, H).

    The weights are scaled, so that a gate is ``clamp(z, 0, 1)``. ``F.hardsigmoid`` is Keras 3's, and its slope of 1/6
    has the digits of float32 only.
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
