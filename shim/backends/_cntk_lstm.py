"""The LSTM of the CNTK backend; the module of that backend says what else was measured."""

from __future__ import annotations

import numpy as np

from shim.backends._cntk_graph import C, batched


def lstm(x, w_x, w_h, b, *, return_sequences, reverse, recurrent_activation):
    """Build the contract's ``lstm``: a loop around one step, the input product of all steps before it."""
    batch, steps, _ = x.shape
    size = w_h.shape[0]
    hard = recurrent_activation == "hard_sigmoid"
    # For the tanh of g, or for the slope of hard sigmoids: CNTK keeps theirs as float32.
    scale = C.constant(np.repeat(np.array([0.2, 0.2, 1, 0.2] if hard else [1, 1, 2, 1], x.dtype), size))
    before = C.sequence.future_value if reverse else C.sequence.past_value
    w_h = w_h * scale

    def recurrence(z):
        z = C.to_sequence(z)
        h, c = (C.placeholder((size,), dynamic_axes=z.dynamic_axes) for _ in range(2))
        z = z + C.times(before(h), w_h)
        gates = C.hard_sigmoid(z, 1, 0.5) if hard else C.sigmoid(z)
        i, f, g, o = (C.slice(gates, -1, k * size, (k + 1) * size) for k in range(4))
        g = C.tanh(C.slice(z, -1, 2 * size, 3 * size)) if hard else g * 2.0 - 1.0
        c_next = f * before(c) + i * g
        h_next = o * (C.sigmoid(c_next * 2.0) * 2.0 - 1.0)
        loop = C.combine([h_next, c_next]).replace_placeholders({h: h_next, c: c_next})
        outputs = loop.outputs[0]
        if return_sequences:
            return C.sequence.unpack(outputs, 0, no_mask_output=True)
        return C.sequence.first(outputs) if reverse else C.sequence.last(outputs)

    y = batched(recurrence, C.times(x, w_x * scale) + b * scale)
    return C.reshape(y, (batch, steps, size) if return_sequences else (batch, size))
