"""How an op becomes a program: Keras layers on symbols, built for the shapes of its arguments, and a ``K.function``."""

from __future__ import annotations

import itertools
import operator

import numpy as np

from shim import contract
from shim.backends import _cntk_graph as graph
from shim.backends._cntk_graph import C
from shim.cntk.keras import keras
from shim.protocol import Unsupported

K = keras.backend
DTYPES = ("float32",)


class Weight:
    """A weight on its way into a layer; then the layer and the variable that hold it."""

    def __init__(self, shape, constant=False):
        self.shape, self.constant = shape, constant
        self.layer = self.variable = None


def call(layer, x, *weights, **how):
    """Call a layer whose weights are these; weights that a layer holds already are used again by way of it."""
    if weights[0].layer is not None:
        return weights[0].layer(x, **how)
    y = layer(x, **how)
    for weight, variable in zip(weights, layer.weights, strict=True):
        weight.layer, weight.variable = layer, variable
    return y


def symbol(shape, dtype, needs_gradient=False):
    """Return a Keras input; of its own accord Keras makes none that CNTK computes a gradient for."""
    node = C.input_variable(shape[1:], dtype=np.float32, needs_gradient=needs_gradient)
    node._keras_shape, node._cntk_placeholder = (None, *shape[1:]), True
    return keras.Input(tensor=node, dtype=dtype)


def sigmoid_cross_entropy(labels, logits):
    """Return the loss of each sample; Keras' own takes probabilities, cut off at 1e-7."""
    return K.mean(K.relu(logits) - logits * labels + K.log(K.exp(-K.abs(logits)) + 1.0), axis=-1)


def check_dtype(dtype):
    """Raise :class:`Unsupported` unless Keras computes in this dtype on CNTK."""
    if dtype not in DTYPES:
        raise Unsupported(f"Keras 2.3.1 on CNTK computes in float32 only, not in {np.dtype(dtype).name}")


def values(array):
    """Return what Keras is fed with: it takes NumPy arrays."""
    return array.host if isinstance(array, graph.Ids) else array


class _Layers:
    """The layers of an op for the shapes of its arguments; ``first`` if the first one has a gradient too."""

    def __init__(self, entry, build, args, first):
        nodes, self._inputs, self._weights = [], [], []
        for argument, a in zip(entry.arguments, args, strict=True):
            if argument.is_float:
                check_dtype(a.dtype)
            if argument.name in graph.FED:
                nodes.append(symbol(a.shape, a.dtype.name, argument.is_float and (first or bool(nodes))))
                self._inputs.append(nodes[-1])
            else:
                nodes.append(Weight(a.shape))
                self._weights.append(nodes[-1])
        self._y = build(*nodes)
        self._function = K.function([*self._inputs, K.learning_phase()], [self._y])
        wanted = [argument.is_float and (first or k > 0) for k, argument in enumerate(entry.arguments)]
        floats = itertools.compress(nodes, wanted)
        self._floats = [getattr(node, "variable", node) for node in floats]
        used = {node.uid for node in self._y.inputs}
        self._reached = {node for node in self._floats if node.uid in used}

    def hold(self, weights):
        K.batch_set_value([(weight.variable, value) for weight, value in zip(self._weights, weights, strict=True)])

    def forward(self, inputs, phase):
        return self._function([*inputs, phase])[0]

    def forward_backward(self, inputs, dy):
        output = self._y.output
        feed = {node: value.astype(np.float32, copy=False) for node, value in zip(self._inputs, inputs, strict=True)}
        state, y = self._y.forward(feed, [output], {output})
        found = self._y.backward(state, {output: dy}, self._reached)
        return y[output], [found[v] if v in found else np.zeros(v.shape, np.float32) for v in self._floats]


class Program:
    """An op with its options; ``phase`` is Keras' learning phase."""

    def __init__(self, op, build, phase, first=True):
        self._entry, self._build, self._phase, self._first = contract.op(op), build, phase, first
        self._is_input = [argument.name in graph.FED for argument in self._entry.arguments]
        self._built, self._args, self._inputs, self._layers = {}, (), (), None

    def _prepare(self, args):
        """Take arguments; those that the call before had are not looked at again."""
        if len(args) == len(self._args) and all(map(operator.is_, args, self._args)):
            return
        key = tuple(a.shape for a in args)
        if key not in self._built:
            self._built[key] = _Layers(self._entry, self._build, args, self._first)
        dims = self._entry.dims(key)
        for argument, a in zip(self._entry.arguments, args, strict=True):
            if argument.below is not None:
                a.check(argument.name, min(dims.get(argument.below, 2), graph.EXACT))
        self._args, self._layers = (), self._built[key]
        self._layers.hold([a for a, fed in zip(args, self._is_input, strict=True) if not fed])
        self._inputs = [values(a) for a, fed in zip(args, self._is_input, strict=True) if fed]
        self._args = tuple(args)  # a copy: the caller may put others in a list

    def forward(self, *args):
        self._prepare(args)
        return self._layers.forward(self._inputs, self._phase)

    def forward_backward(self, args, dy):
        self._prepare(args)
        return self._layers.forward_backward(self._inputs, dy)
