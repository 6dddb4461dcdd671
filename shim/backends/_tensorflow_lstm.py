"""The LSTM of the TensorFlow backend, in the form that is fastest for its size.

While a cache holds what they make, one matmul multiplies the inputs of all steps, and the steps stand one after another
in the graph, as with ``keras.layers.LSTM(unroll=True)``: a ``tf.while_loop`` takes up to half as long again backwards,
since its gradient stores and fetches every intermediate result one step at a time. Beyond that a loop multiplies the
inputs step by step, as in Keras by default, which is up to a fifth faster there. XLA always has a loop: it makes better
code of it than of an unrolled graph, in a fraction of the time.

TensorFlow's fused kernel for the CPU, ``BlockLSTMV2``, is not used. It multiplies each step's inputs separately, which
makes it no faster forwards and 1.4 to 2 times slower backwards, and the gradient registered for it is wrong: that is
the gradient of ``BlockLSTM``, whose gates come in another order.
"""

from __future__ import annotations

import functools

import tensorflow as tf

UNROLL = 128  # steps: a longer LSTM is a loop, since a graph is optimised in about 20 ms a step
CACHED = 2**20  # elements of the gates of all steps


def at_once(batch, steps, units):
    """Return whether one matmul multiplies the inputs of all steps."""
    return batch * steps * 4 * units <= CACHED


def unrolled(batch, steps, units):
    """Return whether the steps stand one after another in the graph."""
    return steps <= UNROLL and at_once(batch, steps, units)


def lstm(x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid", loop=False):
    """Run the contract's ``lstm``, with ``loop`` always as a loop."""
    w_x, w_h, b = map(tf.convert_to_tensor, (w_x, w_h, b))
    (batch, steps, width), units = x.shape, w_h.shape[0]
    inputs, first = tf.transpose(x, (1, 0, 2)), at_once(batch, steps, units)
    if first:
        z = tf.matmul(tf.reshape(inputs, (steps * batch, width)), w_x)
        inputs = tf.reshape(tf.nn.bias_add(z, b), (steps, batch, 4 * units))
    sigmoid = tf.sigmoid if recurrent_activation == "sigmoid" else lambda z: tf.clip_by_value(0.2 * z + 0.5, 0, 1)

    def cell(x, h, c):
        z = x + tf.matmul(h, w_h) if first else tf.nn.bias_add(tf.matmul(x, w_x) + tf.matmul(h, w_h), b)
        i, f, g, o = tf.split(z, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * tf.tanh(g)
        return sigmoid(o) * tf.tanh(c), c

    zero = tf.zeros((batch, units), x.dtype)
    in_turn = _while_loop if loop or not unrolled(batch, steps, units) else _unrolled
    return in_turn(cell, inputs, zero, return_sequences, reverse)


def bilstm(x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse, **options):
    """Run the contract's ``bilstm``; neither direction waits for the other."""
    layer = functools.partial(lstm, x, **options)
    return tf.concat([layer(w_x, w_h, b), layer(w_x_reverse, w_h_reverse, b_reverse, reverse=True)], axis=-1)


def _unrolled(cell, inputs, zero, return_sequences, reverse):
    order = -1 if reverse else 1
    # Traced once and called in each step, where TensorFlow inlines it: the same graph in a fifth of the time.
    cell = tf.function(cell, autograph=False)
    cell = cell.get_concrete_function(*(tf.TensorSpec(value.shape, value.dtype) for value in (inputs[0], zero, zero)))
    h, c, outputs = zero, zero, []
    for step in tf.unstack(inputs)[::order]:
        h, c = cell(step, h, c)
        outputs.append(h)
    return tf.stack(outputs[::order], axis=1) if return_sequences else h


def _while_loop(cell, inputs, zero, return_sequences, reverse):
    steps = inputs.shape[0]
    inputs = tf.TensorArray(zero.dtype, steps, element_shape=inputs.shape[1:]).unstack(inputs)
    outputs = tf.TensorArray(zero.dtype, steps, element_shape=zero.shape)

    def body(k, h, c, outputs):
        t = steps - 1 - k if reverse else k
        h, c = cell(inputs.read(t), h, c)
        return k + 1, h, c, outputs.write(t, h) if return_sequences else outputs

    start = 0, zero, zero, outputs
    # XLA sizes what the gradient keeps of each step by maximum_iterations.
    _, h, _, outputs = tf.while_loop(lambda k, *_: k < steps, body, start, maximum_iterations=steps)
    return tf.transpose(outputs.stack(), (1, 0, 2)) if return_sequences else h
