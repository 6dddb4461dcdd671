"""cuDNN 9: convolutions in float32 and float16, and LSTMs in float32, for shapes that have no kernels of our own.

CuPy comes without cuDNN since release 14. Each shape gets a plan at its first call: descriptors, scratch memory and,
for a convolution, the fastest of all algorithms in both layouts, timed on the arrays of that call. Later calls launch
and do nothing else, so that they can be captured in a CUDA graph.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from shim.backends import _cuda_stopwatch
from shim.backends._cudnn_library import (
    ADD,
    DEFAULT_MATH,
    DIRECTIONS,
    FLOAT,
    FMA_MATH,
    INFERENCE,
    KINDS,
    NCHW,
    NHWC,
    PRECOMPUTED,
    TENSOR_OP_MATH,
    TRAINING,
    CudnnError,
    Library,
)

WORKSPACE = 2**28  # bytes that an algorithm may take
ROUNDS, REPEATS = 2, 4  # of a measurement
#: Of an algorithm against the first, as a share of the largest result.
TOLERANCE = {"float32": 2e-5, "tf32": 5e-3, "float16": 5e-3}


def _pointer(array):
    return None if array is None else array.data.ptr


_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)
ONE, ZERO = ctypes.byref(_ONE), ctypes.byref(_ZERO)

FINISH = """
extern "C" __global__ void finish(const float* b, float* y, long long size, int width, int rectify) {
  const long long i = blockIdx.x * 256ll + threadIdx.x;
  if (i >= size) return;
  const float sum = y[i] + b[(unsigned)i % (unsigned)width];
  y[i] = rectify && sum < 0.f ? 0.f : sum;
}"""


@dataclass
class Trial:
    """An algorithm of a convolution in a layout, with bias and rectifier in it or after it, and what it needs."""

    algorithm: int
    layout: int
    fused: bool
    size: int  # bytes of scratch memory
    seconds: float = 0.0
    error: float = 0.0
    scratch: Any = None
    copies: Any = ()

    @property
    def name(self):
        return f"algorithm {self.algorithm} {('NCHW', 'NHWC')[self.layout]}{' fused' if self.fused else ''}"

    def __str__(self):
        return f"{self.name}: {self.seconds * 1e6:.1f} us, error {self.error:.1e}"


class Cudnn:
    """cuDNN on the current device and CuPy's current stream; arrays are contiguous, all of one dtype.

    ``precision``, that of float32, is "float32" or "tf32" and may be set again. With ``deterministic`` no algorithm is
    chosen whose sums come in an order that varies. ``trials`` keeps what was measured for each convolution.
    """

    def __init__(self, xp, precision="float32", deterministic=False):
        self._xp, self.precision, self.deterministic = xp, precision, deterministic
        self.library, self._handle = Library.load(), ctypes.c_void_p()
        self.library("cudnnCreate", ctypes.byref(self._handle))
        self._plans, self.trials = {}, {}

    @property
    def math(self):
        return DEFAULT_MATH if self.precision == "tf32" else FMA_MATH

    def convolve(self, x, w, b, y, *, stride=1, padding=(0, 0), rectify=False):
        """Fill ``y`` (N, P, Q, O) from images ``x`` (N, H, W, C) and filters ``w`` (O, R, S, C); no bias if None."""
        self._convolution("forward", {"x": x, "w": w, "y": y}, stride, padding, b, rectify)

    def convolve_images(self, w, dy, dx, *, stride=1, padding=(0, 0)):
        """Fill ``dx`` with the gradient of the images."""
        self._convolution("images", {"x": dx, "w": w, "y": dy}, stride, padding)

    def convolve_weights(self, x, dy, dw, *, stride=1, padding=(0, 0)):
        """Fill ``dw`` (O, R, S, C) with the gradient of the filters."""
        self._convolution("weights", {"x": x, "w": dw, "y": dy}, stride, padding)

    def path(self, x, w, dtype="float32"):
        """Name what was chosen so far for images of shape ``x`` (N, H, W, C) and filters ``w`` (O, R, S, C)."""
        plans = [(k, plan) for k, plan in self._plans.items() if k[1:3] == (x, w) and k[4] == dtype]
        found = [(k[0], plan.chosen) for k, plan in plans if plan.chosen]
        return ", ".join(dict.fromkeys(f"{direction}: {trial.name}" for direction, trial in found))

    def recurrence(self, n, t, inputs, hidden, directions, training):
        """Return the plan of LSTMs over sequences (N, T, inputs), one or both directions."""
        key = (n, t, inputs, hidden, directions, training, self.precision)
        return self._plan(key, lambda: Recurrence(self, *key[:-1]))

    def _convolution(self, direction, operands, stride, padding, bias=None, rectify=False):
        shapes, dtype = tuple(array.shape for array in operands.values()), operands["x"].dtype.name
        name = "forward without bias" if direction == "forward" and bias is None else direction
        key = (name, *shapes, dtype, stride, tuple(padding), rectify, self.precision, self.deterministic)
        plan = self._plan(key, lambda: Convolution(self, direction, *shapes, dtype, stride, padding, rectify))
        self.set_stream()
        if plan.chosen is None:
            plan.choose(operands, bias)
            self.trials[key] = plan.trials
        plan.run(plan.chosen, operands, bias)

    def _plan(self, key, make):
        if key not in self._plans:
            if self._xp.cuda.get_current_stream().is_capturing():
                raise RuntimeError("cuDNN meets a shape for the first time while a graph is captured; call it before")
            self._plans[key] = make()
        return self._plans[key]

    def set_stream(self):
        self.library("cudnnSetStream", self._handle, self._xp.cuda.get_current_stream().ptr)

    def call(self, name, *args):
        self.library(name, self._handle, *args)

    def empty(self, size):
        return self._xp.empty(max(size, 1), np.uint8)

    def finish(self, y, bias, rectify):
        """Add the bias to results and rectify them, in one pass."""
        sizes = np.int64(y.size), np.int32(y.shape[-1]), np.int32(rectify)
        self._finish((-(-y.size // 256),), (256,), (bias, y, *sizes))

    @functools.cached_property
    def _finish(self):
        return self._xp.RawKernel(FINISH, "finish")

    def seconds(self, run):
        return _cuda_stopwatch.seconds(self._xp, run, ROUNDS, REPEATS)


class Convolution:
    """One direction of a convolution. All operands are arrays in NHWC; in the other layout copies go between."""

    def __init__(self, cudnn, direction, x, w, y, dtype, stride, padding, rectify):
        self._cudnn, self._dtype, library, kind = cudnn, dtype, cudnn.library, KINDS[dtype]
        self._function, self._inputs, self._output, algorithms, varying = DIRECTIONS[direction]
        shapes, layouts = {"x": x, "w": w, "y": y}, (NCHW, NHWC)
        self._tensors = {(k, layout): library.tensor(s, layout, kind) for k, s in shapes.items() for layout in layouts}
        self._described = self._tensors | {("w", layout): library.filters(w, layout, kind) for layout in layouts}
        self._sizes = {k: int(np.prod(shape)) * np.dtype(dtype).itemsize for k, shape in shapes.items()}
        self._convolution = library.convolution(stride, padding, cudnn.math if kind == FLOAT else TENSOR_OP_MATH)
        self._rectify, self._activation = rectify, library.activation(rectify)
        self._bias = library.tensor((1, 1, 1, w[0]), NCHW, kind)
        self._algorithms = [a for a in algorithms if not (cudnn.deterministic and a in varying)]
        self.chosen, self.trials, self.refused = None, [], []

    def choose(self, operands, bias):
        """Time all algorithms, in both layouts, and keep the fastest of those that agree."""
        in_float32, reference = self._dtype == "float32", None
        tolerance = TOLERANCE[self._cudnn.precision if in_float32 else self._dtype]
        ways = (False,) if bias is None else (False, True) if in_float32 else (True,)  # a bias after it is a float32
        for layout in (NHWC, NCHW):
            for algorithm in self._algorithms:
                for fused in ways:
                    try:
                        trial = self._try(layout, algorithm, fused, operands, bias)
                    except CudnnError as error:
                        self.refused.append(f"algorithm {algorithm} layout {layout} fused {fused}: {error}")
                        continue
                    if trial is None:
                        continue
                    result = operands[self._output]
                    if reference is None:
                        reference, largest = result.copy(), float(abs(result).max())
                    trial.error = float(abs(result - reference).max()) / (largest or 1.0)
                    if trial.error <= tolerance:  # written so that NaN fails
                        self.trials.append(trial)
                    else:
                        self.refused.append(str(trial))
                    if trial.error <= tolerance and (self.chosen is None or trial.seconds < self.chosen.seconds):
                        self.chosen = trial
                    for other in self.trials:
                        if other is not self.chosen:  # only the chosen one keeps its memory
                            other.scratch, other.copies = None, ()
        if self.chosen is None:
            raise CudnnError(f"no algorithm for this convolution; {'; '.join(self.refused)}")

    def _try(self, layout, algorithm, fused, operands, bias):
        if fused and not self._rectify and algorithm != PRECOMPUTED:
            return None
        size = ctypes.c_size_t()
        descriptors = [self._described[k, layout] for k in (*self._inputs, self._output)]
        self._cudnn.call(
            f"cudnnGetConvolution{self._function}WorkspaceSize",
            *descriptors[:2], self._convolution, descriptors[2], algorithm, ctypes.byref(size),
        )  # fmt: skip
        if size.value > WORKSPACE:
            return None
        trial = Trial(algorithm, layout, fused, size.value, scratch=self._cudnn.empty(size.value))
        if layout == NCHW:
            trial.copies = {k: self._cudnn.empty(self._sizes[k]) for k in (*self._inputs, self._output)}
        trial.seconds = self._cudnn.seconds(lambda: self.run(trial, operands, bias))
        return trial

    def run(self, trial, operands, bias):
        """Launch a trial; the stream is set."""
        layout, pointers = trial.layout, {k: array.data.ptr for k, array in operands.items()}
        result = pointers[self._output]
        if layout == NCHW:
            pointers = {k: copy.data.ptr for k, copy in trial.copies.items()}
            for k in self._inputs:
                self._copy(k, operands[k].data.ptr, NHWC, pointers[k], NCHW)
        first, second, output = (
            (self._described[k, layout], pointers[k]) for k in (*self._inputs, self._output)
        )  # fmt: skip
        how = self._convolution, trial.algorithm, trial.scratch.data.ptr, trial.size
        if trial.fused:
            after = self._bias, bias.data.ptr, self._activation
            name = "cudnnConvolutionBiasActivationForward"
            self._cudnn.call(name, ONE, *first, *second, *how, ZERO, *output, *after, *output)
        else:
            self._cudnn.call(f"cudnnConvolution{self._function}", ONE, *first, *second, *how, ZERO, *output)
        if layout == NCHW:
            self._copy(self._output, pointers[self._output], NCHW, result, NHWC)
        if bias is not None and not trial.fused:
            self._cudnn.finish(operands[self._output], bias, self._rectify)

    def _copy(self, k, source, of_source, target, of_target):
        before, after = self._tensors[k, of_source], self._tensors[k, of_target]
        self._cudnn.call("cudnnTransformTensor", ONE, before, source, ZERO, after, target)


class Recurrence:
    """LSTMs of one or both directions over sequences (N, T, inputs), all weights in one array.

    ``weights`` and ``reserve`` are the sizes of what a call site keeps: floats of the weights, bytes from the forward
    to the backward pass.
    """

    def __init__(self, cudnn, n, t, inputs, hidden, directions, training):
        self._cudnn, library = cudnn, cudnn.library
        self._mode = TRAINING if training else INFERENCE
        dropout = library.create("Dropout")
        library("cudnnSetDropoutDescriptor", dropout, cudnn._handle, 0.0, None, 0, 0)
        self._layer = library.recurrence(inputs, hidden, directions, cudnn.math, dropout)
        self._x, self._y = library.sequences(n, t, inputs), library.sequences(n, t, directions * hidden)
        self._states = library.states(directions, n, hidden)
        self._lengths = cudnn._xp.full(n, t, np.int32)
        weights, scratch, reserve = (ctypes.c_size_t() for _ in range(3))
        cudnn.call("cudnnGetRNNWeightSpaceSize", self._layer, ctypes.byref(weights))
        sizes = ctypes.byref(scratch), ctypes.byref(reserve)
        cudnn.call("cudnnGetRNNTempSpaceSizes", self._layer, self._mode, self._x, *sizes)
        self.weights, self._bytes = weights.value // 4, weights.value
        self.reserve = reserve.value if training else 0
        self._scratch, self._scratch_size = cudnn.empty(scratch.value), scratch.value
        self._places = [self._find(k, inputs, hidden) for k in range(directions)]

    def _find(self, direction, inputs, hidden):
        """Return (offset, rows, columns) of the weights of input and state and of the first of two biases."""
        matrix, bias = (self._cudnn.library.create("Tensor") for _ in range(2))
        space, found = self._cudnn.empty(self._bytes), []
        for gate in range(8):  # i, f, g, o of the input, then of the state
            at, bias_at = ctypes.c_void_p(), ctypes.c_void_p()
            places = matrix, ctypes.byref(at), bias, ctypes.byref(bias_at)
            self._cudnn.call(
                "cudnnGetRNNWeightParams", self._layer, direction, self._bytes, space.data.ptr, gate, *places
            )
            found.append([((pointer.value or 0) - space.data.ptr) // 4 for pointer in (at, bias_at)])
        (of_input, of_bias), (of_state, _) = found[0], found[4]
        wanted = [[of_input + k * hidden * inputs, of_bias + k * hidden] for k in range(4)]
        if found[:4] != wanted or [at for at, _ in found[4:]] != [of_state + k * hidden**2 for k in range(4)]:
            raise CudnnError(f"the gates' weights do not lie side by side: {found}")
        return [(of_input, 4 * hidden, inputs), (of_state, 4 * hidden, hidden), (of_bias, 4 * hidden, 1)]

    def views(self, weights):
        """Return, for each direction, views of the weights (4H, I) and (4H, H) and of the bias (4H, 1)."""
        return [[weights[at : at + r * c].reshape(r, c) for at, r, c in places] for places in self._places]

    def forward(self, x, weights, y, last, reserve):
        """Fill ``y`` (N, T, directions H) and the last states ``last`` (directions, N, H), which may be None."""
        self._cudnn.set_stream()
        sequences = self._x, _pointer(x), self._y, _pointer(y)
        states = self._states, None, _pointer(last), self._states, None, None
        self._cudnn.call(
            "cudnnRNNForward", self._layer, self._mode, _pointer(self._lengths), *sequences, *states,
            *self._memory(weights, reserve),
        )  # fmt: skip

    def backward(self, y, dy, dlast, dx, weights, reserve):
        """Fill ``dx`` from the gradients of all states and of the last ones, which may be None."""
        self._cudnn.set_stream()
        sequences = self._y, _pointer(y), _pointer(dy), self._x, _pointer(dx)
        states = self._states, None, _pointer(dlast), None, self._states, None, None, None
        self._cudnn.call(
            "cudnnRNNBackwardData_v8", self._layer, _pointer(self._lengths), *sequences, *states,
            *self._memory(weights, reserve),
        )  # fmt: skip

    def backward_weights(self, x, y, dweights, reserve):
        """Add the gradient of the weights to ``dweights``, after :meth:`backward`."""
        self._cudnn.set_stream()
        sequences = self._x, _pointer(x), self._states, None, self._y, _pointer(y)
        self._cudnn.call(
            "cudnnRNNBackwardWeights_v8", self._layer, ADD, _pointer(self._lengths), *sequences,
            *self._memory(dweights, reserve),
        )  # fmt: skip

    def _memory(self, weights, reserve):
        scratch = self._scratch_size, _pointer(self._scratch)
        return self._bytes, _pointer(weights), *scratch, self.reserve, _pointer(reserve) if self.reserve else None
