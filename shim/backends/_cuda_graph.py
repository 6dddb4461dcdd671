"""Functions of arrays as CUDA graphs: recorded once, then all their kernels are started by one call."""

from __future__ import annotations

import warnings


class Replayed:
    """A function of CuPy arrays that returns an array or a tuple of arrays, as a graph for each shape of arguments.

    The first call with new shapes runs the function, which so compiles kernels, chooses algorithms and lays out its
    workspace. The second one records it, on fixed copies of its arguments, and all later ones replay that. What the
    function changes besides must stay where it is in memory, and nothing it does may depend on values of the host that
    change. What CuPy cannot record is run launch by launch for ever, with a warning. ``record(function, arrays)``
    returns the replay, such as a :class:`Graph`.
    """

    def __init__(self, function, record):
        self._function, self._record, self._graphs = function, record, {}

    def __call__(self, *arrays):
        key = tuple((a.shape, a.dtype.char) for a in arrays)
        if key not in self._graphs:
            self._graphs[key] = None
            return self._function(*arrays)
        if self._graphs[key] is None:
            try:
                self._graphs[key] = self._record(self._function, arrays)
            except NotImplementedError as error:
                warnings.warn(
                    f"steps are launched kernel by kernel, since CuPy cannot record them: {error}", stacklevel=2
                )
                self._graphs[key] = self._function
        return self._graphs[key](*arrays)


class Graph:
    """What a function launches, recorded; the memory it works in stays as long as this."""

    def __init__(self, cupy, function, arrays):
        self._inputs = [a.copy() for a in arrays]
        self._pool = cupy.cuda.MemoryPool()
        with cupy.cuda.Stream(non_blocking=True) as stream, cupy.cuda.using_allocator(self._pool.malloc):
            stream.begin_capture()
            try:
                self._outputs = function(*self._inputs)
            finally:
                self._graph = stream.end_capture()
        self._graph.upload()

    def __call__(self, *arrays):
        for kept, array in zip(self._inputs, arrays, strict=True):
            kept[...] = array
        self._graph.launch()
        if isinstance(self._outputs, tuple):
            return tuple(array.copy() for array in self._outputs)
        return self._outputs.copy()
