"""The four ops as a user of each framework writes them by hand, to see what going through ``shim`` adds.

Weights are laid out beforehand as the framework wants them, and whatever it can compile is compiled. ``calls`` returns
a callable without arguments, like those that the clock gets from a program.
"""

from __future__ import annotations

import functools

import numpy as np


def calls(backend_name, case, args, dy):
    """Return the hand-written call for a case and a function that brings its result into the contract's form.

    ``args`` and ``dy`` are NumPy arrays. Raises ``NotImplementedError`` where nothing is written by hand here, such as
    the gradients in NumPy.
    """
    if backend_name not in FRAMEWORKS:
        raise NotImplementedError(f"nothing is written by hand for {backend_name}")
    backward = case.direction == "forward_backward"
    return FRAMEWORKS[backend_name](case.op, dict(case.options), args, dy if backward else None)


# --------------------------------------------------------------------------------------------------------------- NumPy


def _numpy_dense(x, w, b, activation=None):
    y = x @ w + b
    return np.maximum(y, 0) if activation else y


def _numpy_conv2d(x, w, b, activation=None):
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[:2], axis=(1, 2))  # N P Q C R S
    y = np.tensordot(windows, w, axes=((4, 5, 3), (0, 1, 2))) + b
    return np.maximum(y, 0) if activation else y


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _numpy_lstm(x, w_x, w_h, b):
    h = c = np.zeros((len(x), len(w_h)), x.dtype)
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ w_x + h @ w_h + b, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
    return h


def _numpy_embedding_average(ids, table):
    return table[ids].mean(axis=1)


def _numpy(op, options, args, dy):
    if dy is not None:
        raise NotImplementedError("gradients are not written by hand in NumPy")
    by_hand = {
        "dense": _numpy_dense,
        "conv2d": _numpy_conv2d,
        "lstm": _numpy_lstm,
        "embedding_average": _numpy_embedding_average,
    }
    return functools.partial(by_hand[op], *args, **options), np.asarray


# --------------------------------------------------------------------------------------------------------------- torch


def _torch(op, options, args, dy):
    import torch
    from torch.nn import functional

    relu = torch.relu if options.get("activation") else lambda y: y
    tensors = [torch.from_numpy(value) for value in args]
    if op == "dense":
        x, w, b = tensors
        leaves = [x, w.t().contiguous(), b]
        run = lambda x, w, b: relu(functional.linear(x, w, b))  # noqa: E731
    elif op == "conv2d":
        x, w, b = tensors
        kernel = w.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        leaves = [x.permute(0, 3, 1, 2), kernel, b]
        run = lambda x, w, b: relu(functional.conv2d(x, w, b))  # noqa: E731
    elif op == "lstm":
        x, w_x, w_h, b = tensors
        module = torch.nn.LSTM(x.shape[2], len(w_h), batch_first=True)
        weights = [w_x.t(), w_h.t(), b, torch.zeros_like(b)]
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), weights, strict=True):
                parameter.copy_(value)
        leaves = [x, *module.parameters()]
        run = lambda x, *weights: module(x)[0][:, -1]  # noqa: E731
    else:
        ids, table = tensors
        leaves = [ids, table]
        run = lambda ids, table: functional.embedding_bag(ids, table, mode="mean")  # noqa: E731

    def to_contract(y):
        y = y[0] if dy is not None else y
        return (y.permute(0, 2, 3, 1) if op == "conv2d" else y).detach().numpy()

    return _torch_call(torch, run, leaves, op, dy), to_contract


def _torch_call(torch, run, leaves, op, dy):
    if dy is None:
        for leaf in leaves:
            leaf.requires_grad_(False)
        return functools.partial(run, *leaves)
    floats = [leaf.requires_grad_() for leaf in leaves if leaf.is_floating_point()]
    gradient = torch.from_numpy(dy)
    gradient = gradient.permute(0, 3, 1, 2) if op == "conv2d" else gradient

    def call():
        y = run(*leaves)
        return y, torch.autograd.grad(y, floats, gradient)

    return call


# ----------------------------------------------------------------------------------------------------------------- JAX


def _jax(op, options, args, dy):
    import jax
    from jax import lax, nn
    from jax import numpy as jnp

    relu = nn.relu if options.get("activation") else lambda y: y

    def conv2d(x, w, b):
        return relu(lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b)

    def lstm(x, w_x, w_h, b):
        def step(state, projected):
            h, c = state
            i, f, g, o = jnp.split(projected + h @ w_h, 4, axis=1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            return (nn.sigmoid(o) * jnp.tanh(c), c), None

        start = jnp.zeros((len(x), len(w_h)), x.dtype)
        (h, _), _ = lax.scan(step, (start, start), jnp.swapaxes(x @ w_x + b, 0, 1))
        return h

    by_hand = {
        "dense": lambda x, w, b: relu(x @ w + b),
        "conv2d": conv2d,
        "lstm": lstm,
        "embedding_average": lambda ids, table: table[ids].mean(axis=1),
    }
    run, arrays = by_hand[op], [jnp.asarray(value) for value in args]
    if dy is None:
        return functools.partial(jax.jit(run), *arrays), np.asarray
    floats = [k for k, value in enumerate(args) if value.dtype.kind == "f"]

    @jax.jit
    def both(arrays, dy):
        def of_floats(*values):
            return run(*[values[floats.index(k)] if k in floats else a for k, a in enumerate(arrays)])

        y, pull_back = jax.vjp(of_floats, *[arrays[k] for k in floats])
        return y, pull_back(dy)

    return functools.partial(both, arrays, jnp.asarray(dy)), lambda out: np.asarray(out[0])


# ---------------------------------------------------------------------------------------------------------- TensorFlow


def _tensorflow(op, options, args, dy):
    import tensorflow as tf

    relu = tf.nn.relu if options.get("activation") else tf.identity

    def lstm(x, w_x, w_h, b):
        h = c = tf.zeros((x.shape[0], w_h.shape[0]), x.dtype)
        for projected in tf.unstack(tf.tensordot(x, w_x, 1) + b, axis=1):
            i, f, g, o = tf.split(projected + tf.matmul(h, w_h), 4, axis=1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            h = tf.sigmoid(o) * tf.tanh(c)
        return h

    by_hand = {
        "dense": lambda x, w, b: relu(tf.nn.bias_add(tf.matmul(x, w), b)),
        "conv2d": lambda x, w, b: relu(tf.nn.bias_add(tf.nn.conv2d(x, w, 1, "VALID"), b)),
        "lstm": lstm,
        "embedding_average": lambda ids, table: tf.reduce_mean(tf.gather(table, ids), axis=1),
    }
    run, tensors = by_hand[op], [tf.constant(value) for value in args]
    if dy is None:
        return functools.partial(tf.function(run), *tensors), lambda y: y.numpy()

    @tf.function
    def both(dy, *tensors):
        floats = [tensor for tensor in tensors if tensor.dtype.is_floating]
        with tf.GradientTape() as tape:
            tape.watch(floats)
            y = run(*tensors)
        gradients = tape.gradient(y, floats, dy)
        return y, [tf.convert_to_tensor(gradient) for gradient in gradients]  # the table's is a list of rows

    return functools.partial(both, tf.constant(dy), *tensors), lambda out: out[0].numpy()


# ---------------------------------------------------------------------------------------------------------------- CNTK


def _cntk(op, options, args, dy):
    from shim import cntk as loader

    C = loader.load()
    relu = C.relu if options.get("activation") else C.alias
    data, (x, *weights) = C.Value(args[0].astype(np.float32)), args
    node = C.input_variable(x.shape[1:], needs_gradient=x.dtype.kind == "f")

    def dense(x, w, b):
        return relu(C.times(x, w) + b), (w, b)

    def conv2d(x, w, b):
        w, b = C.parameter(init=w.value.transpose(3, 2, 0, 1).copy()), C.parameter(init=b.value.reshape(-1, 1, 1))
        y = C.convolution(w, C.transpose(x, (2, 0, 1)), auto_padding=[False, False, False])
        return C.transpose(relu(y + b), (1, 2, 0)), (w, b)

    def lstm(x, w_x, w_h, b):
        units = w_h.shape[0]
        z = C.to_sequence(C.times(x, w_x) + b)
        h, c = (C.placeholder((units,), dynamic_axes=z.dynamic_axes) for _ in range(2))
        gates = z + C.times(C.sequence.past_value(h), w_h)
        i, f, g, o = (C.slice(gates, 0, k * units, (k + 1) * units) for k in range(4))
        c_next = C.sigmoid(f) * C.sequence.past_value(c) + C.sigmoid(i) * C.tanh(g)
        h_next = C.sigmoid(o) * C.tanh(c_next)
        outputs = C.combine([h_next, c_next]).replace_placeholders({h: h_next, c: c_next}).outputs
        return C.sequence.last(outputs[0]), (w_x, w_h, b)

    def embedding_average(ids, table):
        steps = ids.shape[0]
        return C.times(np.full((1, steps), 1 / steps, np.float32), C.gather(table, ids)), (table,)

    by_hand = {"dense": dense, "conv2d": conv2d, "lstm": lstm, "embedding_average": embedding_average}
    y, parameters = by_hand[op](node, *[C.parameter(init=w) for w in weights])
    feed, outputs = {node: data}, [y.output]
    shape = None if dy is None else dy.shape
    if dy is None:
        run = lambda: y.forward(feed, outputs)[1][outputs[0]]  # noqa: E731
        return run, lambda result: result[:, 0] if op == "embedding_average" else result
    keep, wanted = {y.output}, {*parameters, *([node] if node.needs_gradient else [])}
    root = {y.output: C.Value(np.ascontiguousarray(dy.reshape(-1, *y.shape)))}

    def both():
        state, values = y.forward(feed, outputs, keep)
        return values[outputs[0]], y.backward(state, root, wanted)

    return both, lambda result: result[0].reshape(shape)


FRAMEWORKS = {"numpy": _numpy, "torch": _torch, "jax": _jax, "tensorflow": _tensorflow, "cntk": _cntk}
