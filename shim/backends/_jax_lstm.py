"""cuDNN's LSTM on the contract's weights, by ``jax.experimental.rnn``, which is for NVIDIA's GPUs and float32 alone.

There XLA makes several kernels of each step of a ``lax.scan``, and more of its gradient.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental import rnn


def lstm(x, *directions, return_sequences, reverse=False):
    """Run the contract's ``lstm``, or ``bilstm`` with two ``directions`` (w_x, w_h, b), in one call of cuDNN."""
    (batch, steps, width), size = x.shape, directions[0][1].shape[0]
    zero, lengths = jnp.zeros((len(directions), batch, size), x.dtype), jnp.full(batch, steps, jnp.int32)
    x = jnp.flip(x, axis=1) if reverse else x
    # Without a precision of its own it goes by jax_default_matmul_precision, as products do.
    outputs, last, _ = rnn.lstm(x, zero, zero, pack(directions), lengths, width, size, 1, 0.0, len(directions) == 2)
    if return_sequences:
        return jnp.flip(outputs, axis=1) if reverse else outputs
    return last.swapaxes(0, 1).reshape(batch, -1)


def pack(directions):
    """Return all weights as cuDNN reads them: one vector, the matrices of all directions before the biases, of which a
    gate has two; the second is zero."""
    matrices = [w.T.reshape(-1) for w_x, w_h, _ in directions for w in (w_x, w_h)]
    biases = [bias for _, _, b in directions for bias in (b, jnp.zeros_like(b))]
    return jnp.concatenate(matrices + biases)
