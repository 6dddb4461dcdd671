"""How a Keras op becomes a program: a functional model, called as Keras calls its models on the engine at hand."""

from __future__ import annotations

import functools
import itertools
import operator

import keras
from keras import ops

from shim import contract
from shim.protocol import Unsupported

engine = keras.config.backend()
DTYPES = ("float32", "float64") if engine == "tensorflow" else ("float32",)  # elsewhere Keras makes 32 bits of 64

if engine == "tensorflow":
    import tensorflow as tf
elif engine == "jax":
    import jax
elif engine == "torch":
    import torch

#: How many arguments of an op are inputs, if not one; weights come after them.
_INPUTS = {"concat": 2, "softmax_cross_entropy": 2, "sigmoid_cross_entropy": 2}


class Weight:
    """A weight of a functional model: its value to begin with, then the layer and the variable that hold it."""

    def __init__(self, value):
        self.value, self.shape, self.dtype = value, value.shape, value.dtype
        self.layer = self.variable = None


def call(layer, x, *weights, **how):
    """Call a layer with these weights: on symbols it becomes part of a model, on arrays it leaves nothing behind."""
    if not weights:
        return layer(x, **how)
    if not keras.backend.is_keras_tensor(x):
        layer.build(tuple(x.shape))
        with keras.StatelessScope(zip(layer.weights, weights, strict=True)):
            return layer(x, **how)
    if weights[0].layer:  # shared by two calls
        return weights[0].layer(x, **how)
    y = layer(x, **how)
    for weight, variable in zip(weights, layer.weights, strict=True):
        weight.layer, weight.variable = layer, variable
    return y


def dtype(x):
    return keras.backend.standardize_dtype(x.dtype)


def check_dtype(name):
    """Raise :class:`Unsupported` unless Keras computes in this dtype here."""
    if name not in DTYPES:
        raise Unsupported(f"Keras on {engine} computes in {', '.join(DTYPES)} only, not in {name}")


def compiled(function):
    """Return a function as Keras has it run by default."""
    if engine == "tensorflow":
        return tf.function(function, autograph=False)
    if engine == "jax":
        return jax.jit(function)
    return torch.no_grad()(function) if engine == "torch" else function


class _Program:
    """A functional model that is built for the shapes of the first call."""

    def __init__(self, op, function, first=True):
        self._op, self._function, self._count = op, function, _INPUTS.get(op, 1)
        # the arguments with gradients: all floats, the first of them only if it is wanted
        self._is_float = [
            argument.is_float and (first or k > 0) for k, argument in enumerate(contract.op(op).arguments)
        ]
        self._args, self._signature = (), None

    def _prepare(self, args):
        """Build the model if it is not there, and put the weights in its variables if they are not."""
        if len(args) == len(self._args) and all(map(operator.is_, args, self._args)):
            return
        signature = [(a.shape, a.dtype) for a in args]
        if signature != self._signature:
            self._build(args)
        self._args, self._signature = tuple(args), signature  # a copy: the caller may put others in a list
        self._hold(args[self._count :])

    def _build(self, args):
        name = next(name for name in map(dtype, reversed(args)) if name.startswith("float"))
        check_dtype(name)
        keras.config.set_floatx(name)
        symbols = [keras.Input(batch_shape=tuple(a.shape), dtype=dtype(a)) for a in args[: self._count]]
        held = [Weight(a) for a in args[self._count :]]
        self._model = keras.Model(symbols, self._function(*symbols, *held))
        self._variables = [weight.variable for weight in held]


class Graph(_Program):
    """On TensorFlow and JAX: one compiled function for each shape, to which the weights are arguments."""

    def __init__(self, op, function, first=True):
        super().__init__(op, function, first)
        self._found = {}

    def _build(self, args):
        key = tuple((tuple(a.shape), dtype(a)) for a in args)
        if key not in self._found:
            super()._build(args)
            stateless = functools.partial(self._stateless, self._model, self._variables)
            self._found[key] = compiled(stateless), compiled(functools.partial(self._gradients, stateless))
        self._forward, self._backward = self._found[key]

    def _hold(self, weights):
        pass

    def forward(self, *args):
        self._prepare(args)
        return self._forward(*args)

    def forward_backward(self, args, dy):
        self._prepare(args)
        return self._backward(args, dy)

    def _stateless(self, model, variables, *args):
        with keras.StatelessScope(zip(variables, args[self._count :], strict=True)):
            return model(list(args[: self._count]))

    def _gradients(self, stateless, args, dy):
        if engine == "jax":
            y, pullback = jax.vjp(stateless, *args)
            return y, list(itertools.compress(pullback(dy), self._is_float))
        floats = list(itertools.compress(args, self._is_float))
        with tf.GradientTape() as tape:
            tape.watch(floats)
            y = stateless(*args)
        grads = tape.gradient(y, floats, dy, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return y, [tf.convert_to_tensor(g) for g in grads]  # those of an embedding are IndexedSlices


class Layers(_Program):
    """On PyTorch and NumPy: the layers as they are, with the weights in their variables."""

    def _build(self, args):
        super()._build(args)
        told = self._op in ("dropout", "batch_norm")  # to train, by the model
        alone = len(self._model.operations) == 2 and not told  # one layer after the input
        self._call = self._model.layers[-1] if alone else lambda *inputs: self._model(list(inputs))

    def _hold(self, weights):
        for variable, weight in zip(self._variables, weights, strict=True):
            if engine != "torch":
                variable.assign(weight)
            elif weight.ndim == 4 and weight.shape[0] == 1:  # ATen refuses a kernel of height 1 as Keras turns it
                variable.value.data = weight.detach().permute(3, 2, 0, 1).contiguous().permute(2, 3, 1, 0)
            else:
                variable.value.data = weight.detach()  # the same memory

    def forward(self, *args):
        self._prepare(args)
        return self._call(*args[: self._count])

    def forward_backward(self, args, dy):
        self._prepare(args)
        inputs = [a.detach().requires_grad_() if f else a for a, f in zip(args, self._is_float, strict=True)]
        inputs = inputs[: self._count]
        weights = [variable.value.requires_grad_() for variable in self._variables]
        y = self._call(*inputs)
        leaves = list(itertools.compress((*inputs, *weights), self._is_float))
        return y.detach(), torch.autograd.grad(y, leaves, dy, materialize_grads=True)


class Prediction(_Program):
    """On OpenVINO: ``predict_on_batch``, which compiles the weights into the model."""

    def _hold(self, weights):
        self._build(self._args)  # anew, as what is compiled already would keep the old ones
        for variable, weight in zip(self._variables, weights, strict=True):
            variable.assign(weight)

    def forward(self, *args):
        self._prepare(args)
        return self._model.predict_on_batch(list(args[: self._count]))


def at_once(function, *args):
    """Run what is not for prediction: losses need to know the size of the batch, and NumPy makes scalars of them."""
    return ops.convert_to_numpy(function(*args))
