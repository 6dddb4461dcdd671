"""CNTK's arrays and graphs as the programs of the CNTK backend use them.

An array is a ``cntk.Value``, which a graph takes as it is. Everything that ``Function.forward`` returns is temporary,
valid until the next call, and is cloned. A graph has one type of numbers, so ids are kept as integers and as floats.
"""

from __future__ import annotations

import operator

import numpy as np

from shim import cntk as loader
from shim.protocol import Unsupported

C = loader.load()

CPU = C.cpu()
NOTHING: set = set()  # what a call keeps for backward: CNTK takes no frozenset
EXACT = 2**24  # up to here float32 holds every integer
FED = ("x", "y", "ids", "logits", "labels")  # arguments that are data; the others are weights

_NDArrayView, _Value, _Parameter = C.cntk_py.NDArrayView, C.cntk_py.Value, C.cntk_py.Parameter
_forward, _backward = C.cntk_py._cntk_py.Function__forward, C.cntk_py._cntk_py.Function__backward
used = False  # whether anything has been computed


class Array(C.Value):
    """A ``cntk.Value`` whose dtype is NumPy's."""

    @property
    def dtype(self):
        return np.dtype(super().dtype)


class Ids:
    """Integers. CNTK has none in its graphs: they are fed as floats, made once for each type of graph.

    Their range is looked up here, since ``cntk.gather`` reads whatever memory an id leads to.
    """

    def __init__(self, value):
        self.host = np.array(value, order="C")
        self.shape, self.dtype = self.host.shape, self.host.dtype
        self.lowest, self.highest = (int(self.host.min()), int(self.host.max())) if self.host.size else (0, -1)
        self._floats = {}

    def floats(self, dtype):
        if dtype not in self._floats:
            if dtype == np.float32 and self.highest > EXACT:
                raise ValueError(f"CNTK takes ids as float32, exact up to {EXACT}; got {self.highest}; use float64")
            self._floats[dtype] = _Value(_NDArrayView(self.host.astype(dtype), CPU, True, False))
        return self._floats[dtype]

    def check(self, name, limit):
        if self.lowest < 0 or self.highest >= limit:
            wrong = self.lowest if self.lowest < 0 else self.highest
            raise ValueError(f"{name}: {wrong} is outside 0..{limit - 1}")


def array(value):
    """Copy a NumPy array."""
    if value.dtype.kind in "iub":
        return Ids(value)
    if value.dtype not in (np.float32, np.float64):
        raise Unsupported(f"CNTK computes in float32 and float64 only on a CPU, not in {value.dtype}")
    return Array(_NDArrayView(np.ascontiguousarray(value).reshape(value.shape), CPU, True, False))


def clone(value):
    """Copy a temporary value that a graph returned."""
    if value is None:  # see _plain
        raise KeyboardInterrupt
    value = value.deep_clone(False)
    value.__class__ = Array
    return value


def shared(value):
    """Return a CNTK parameter in the memory of a NumPy array: whatever NumPy writes there, CNTK reads."""
    return _parameter(_NDArrayView(value, CPU, False, True))


def _parameter(view):
    """Return a CNTK parameter in the memory of an ``NDArrayView``; ``C.Parameter`` itself can only copy."""
    parameter = _Parameter(view)
    parameter.__class__ = C.Parameter
    return parameter


def lent(value):
    """Return a CNTK value in the memory of a NumPy array, for CNTK to write into."""
    return _Value(_NDArrayView(value, CPU, False, True))


def variable(shape, dtype, needs_gradient=False):
    """Return an input without dynamic axes: its shape is that of the array, batch included.

    CNTK computes the gradient of each input that needs one, also of those that nobody asks for.
    """
    return C.input_variable(shape, dtype=dtype.type, dynamic_axes=[], needs_gradient=needs_gradient)


def batched(function, x):
    """Apply a function of samples to an array of them, through CNTK's batch axis."""
    y = C.unpack_batch(function(C.to_batch(x)))
    return C.reshape(y, (x.shape[0], *y.shape[1:]))


def run(function, feed, outputs, keep=NOTHING):
    """``Function.forward`` without the conversions around it; return what ``backward`` needs and the values."""
    global used
    used = True
    outputs = dict.fromkeys(outputs)
    try:
        return _forward(function, feed, outputs, CPU, keep), outputs
    except (RuntimeError, ValueError, SystemError) as error:
        raise _plain(error) from None


def pull_back(function, state, roots, gradients):
    """``Function.backward`` without the conversions around it: fill the dictionary of gradients."""
    before = tuple(gradients.values())
    try:
        _backward(function, state, roots, gradients)
    except (RuntimeError, ValueError, SystemError) as error:
        raise _plain(error) from None
    if any(map(operator.is_, before, gradients.values())):
        raise KeyboardInterrupt  # see _plain


def _plain(error):
    """Return an error of CNTK without the stack of C++ calls in its message.

    An interrupt (Ctrl-C) is mostly seen while CNTK hashes variables for a dictionary, and ends as the cause of a
    SystemError, or is lost and leaves the dictionary as it was.
    """
    if isinstance(error, SystemError):
        while error.__cause__ is not None:
            error = error.__cause__
        return error
    return type(error)(loader.plain_message(error))


class Graph:
    """A function built for the shapes of its arguments: data are inputs, weights are CNTK parameters."""

    def __init__(self, entry, build, args, training, first=True):
        self.bound = None
        self._arguments = entry.arguments
        self._limits = entry.dims([a.shape for a in args])
        self._dtype = next(a.dtype for a in args if not isinstance(a, Ids))
        wanted = [argument.is_float and (first or k > 0) for k, argument in enumerate(entry.arguments)]
        self._nodes = [self._node(*each) for each in zip(entry.arguments, args, wanted, strict=True)]
        self._function = build(*self._nodes)
        self._output = self._function.output
        self._outputs = (self._output,)
        self._keep = {self._output} if training else set()
        self._feed = {}
        reached = {node.uid for node in self._function.inputs}
        floats = [node for node, is_wanted in zip(self._nodes, wanted, strict=True) if is_wanted]
        self._reached = [node for node in floats if node.uid in reached]
        self._unreached = [(k, node.shape) for k, node in enumerate(floats) if node.uid not in reached]

    def _node(self, argument, value, wanted):
        if argument.name in FED:
            return variable(value.shape, self._dtype, wanted)
        return _parameter(value.data.deep_clone(False))

    def bind(self, args):
        """Take arguments; one that the call before had is not looked at again, and a weight is not copied again."""
        before, self.bound = self.bound or (None,) * len(args), None
        for node, argument, old, value in zip(self._nodes, self._arguments, before, args, strict=True):
            if value is old:
                continue
            if argument.below is not None:
                value.check(argument.name, self._limits.get(argument.below, 2))
                self._feed[node] = value.floats(self._dtype)
            elif argument.name in FED:
                self._feed[node] = value
            else:
                node.set_value(value.data)
        self.bound = args

    def forward(self):
        """Return the result."""
        return clone(run(self._function, self._feed, self._outputs, self._keep)[1][self._output])

    def forward_backward(self, dy):
        """Return the result and a gradient for each float argument, or for each but the first."""
        state, outputs = run(self._function, self._feed, self._outputs, self._keep)
        y = clone(outputs[self._output])
        gradients = dict.fromkeys(self._reached)
        pull_back(self._function, state, {self._output: dy}, gradients)
        found = [clone(gradients[node]) for node in self._reached]
        for k, shape in self._unreached:
            found.insert(k, array(np.zeros(shape, self._dtype)))
        return y, found


def program(entry, build, training, first=True):
    """Return a search for the graph of given arguments, the last one at hand."""
    graphs, last = {}, None

    def find(args):
        nonlocal last
        if last is None or last.bound != args:  # tuples compare by identity first
            key = tuple((a.shape, a.dtype) for a in args)
            if key not in graphs:
                graphs[key] = Graph(entry, build, args, training, first)
            last = graphs[key]
            last.bind(args)
        return last

    return find
