"""The LSTM of the TensorFlow backend: one matmul for the inputs of all steps, then the steps in turn.

In a graph they stand one after another, as with ``keras.layers.LSTM(unroll=True)``: a ``tf.while_loop`` takes up to
half as long again backwards, since its gradient stores and fetches every intermediate result one step at a time.
XLA turns a loop into better code than an unrolled graph, and compiles it in a fraction of the time.

TensorFlow's fused kernel for the CPU, ``BlockLSTMV2``, is not used. It multiplies each step's inputs separately, which
makes it no faster forwards and 1.4 to 2 times slower backwards, and the gradient registered for it is wrong: that is
the gradient of ``BlockLSTM``, whose gates come in another order.
"""

from __future__ import annotations

import functools

import tensorflow as tf


def lstm(x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid", unroll):
    """Run the contract's ``lstm`` as a graph of all steps if there are at most ``unroll``, as a loop otherwise."""
    (batch, steps, width), w_h = x.shape, tf.convert_to_tensor(w_h)
    z = tf.matmul(tf.reshape(tf.transpose(x, (1, 0, 2)), (steps * batch, width)), w_x)
    z = tf.reshape(tf.nn.bias_add(z, b), (steps, batch, w_h.shape[1]))
    sigmoid = tf.sigmoid if recurrent_activation == "sigmoid" else lambda z: tf.clip_by_value(0.2 * z + 0.5, 0, 1)

    def cell(z, h, c):
        i, f, g, o = tf.split(z + tf.matmul(h, w_h), 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * tf.tanh(g)
        return sigmoid(o) * tf.tanh(c), c

    zero = tf.zeros((batch, w_h.shape[0]), x.dtype)
    return (_unrolled if steps <= unroll else _while_loop)(cell, z, zero, return_sequences, reverse)


def bilstm(x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse, **options):
    """Run the contract's ``bilstm``; neither direction waits for the other."""
    layer = functools.partial(lstm, x, **options)
    return tf.concat([layer(w_x, w_h, b), layer(w_x_reverse, w_h_reverse, b_reverse, reverse=True)], axis=-1)


def _unrolled(cell, z, zero, return_sequences, reverse):
    order = -1 if reverse else 1
    # Traced once and called in each step, where TensorFlow inlines it: the same graph in a fifth of the time.
    cell = tf.function(cell, autograph=False)
    cell = cell.get_concrete_function(*(tf.TensorSpec(value.shape, value.dtype) for value in (z[0], zero, zero)))
    h, c, outputs = zero, zero, []
    for step in tf.unstack(z)[::order]:
        h, c = cell(step, h, c)
        outputs.append(h)
    return tf.stack(outputs[::order], axis=1) if return_sequences else h


def _while_loop(cell, z, zero, return_sequences, reverse):
    steps = z.shape[0]
    inputs = tf.TensorArray(z.dtype, steps, element_shape=z.shape[1:]).unstack(z)
    outputs = tf.TensorArray(z.dtype, steps, element_shape=zero.shape)

    def body(k, h, c, outputs):
        t = steps - 1 - k if reverse else k
        h, c = cell(inputs.read(t), h, c)
        return k + 1, h, c, outputs.write(t, h) if return_sequences else outputs

    start = 0, zero, zero, outputs
    # XLA sizes what the gradient keeps of each step by maximum_iterations.
    _, h, _, outputs = tf.while_loop(lambda k, *_: k < steps, body, start, maximum_iterations=steps)
    return tf.transpose(outputs.stack(), (1, 0, 2)) if return_sequences else h
