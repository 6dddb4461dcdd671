"""cuDNN where there is no GPU: descriptors by the library itself, the ops on NumPy in its place."""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from emulator import Poisoned, images, lstm, missing

from shim import cases, contract, models, parity
from shim.backends import _cuda_trainer, _handwritten
from shim.backends import _cudnn_library as headers
from shim.backends._cuda_kernels import Kernels
from shim.backends._cudnn import Cudnn
from shim.backends._cudnn_library import FMA_MATH, NCHW, NHWC, CudnnError, CudnnUnavailable, Library
from shim.backends._handwritten import Workspace


@pytest.fixture(scope="module")
def library():
    try:
        return Library.load()
    except CudnnUnavailable as error:
        missing(error)


def integers(count):
    return [ctypes.c_int() for _ in range(count)]


def ask(library, name, *args):
    """Call a function that the backend itself has no use for."""
    function = library._loaded[name]
    function.argtypes, function.restype = None, ctypes.c_int
    assert function(*args) == 0


def test_the_version_is_the_one_of_the_header(library):
    assert library.version.startswith("9.")
    assert library.version.count(".") == 2


KINDS = pytest.mark.parametrize("of", headers.KINDS.values(), ids=headers.KINDS)


@KINDS
@pytest.mark.parametrize("layout", [NCHW, NHWC])
def test_an_array_is_described(library, layout, of):
    numbers = integers(9)
    ask(library, "cudnnGetTensor4dDescriptor", library.tensor((2, 3, 4, 5), layout, of), *map(ctypes.byref, numbers))
    kind, n, c, h, w, *strides = (number.value for number in numbers)
    assert (kind, n, c, h, w) == (of, 2, 5, 3, 4)
    assert strides == ([60, 12, 4, 1] if layout == NCHW else [60, 1, 20, 5])


@KINDS
@pytest.mark.parametrize("layout", [NCHW, NHWC])
def test_filters_are_described(library, layout, of):
    numbers = integers(6)
    ask(library, "cudnnGetFilter4dDescriptor", library.filters((7, 3, 2, 5), layout, of), *map(ctypes.byref, numbers))
    assert [number.value for number in numbers] == [of, layout, 7, 5, 3, 2]


SHAPES = [
    (stride, kernel, padding)
    for stride in (1, 2, 3)
    for kernel in ((3, 3), (5, 1), (1, 7))
    for padding in ("valid", "same")
    if padding == "valid"
    or all(len({*contract.same_padding(n, k, stride)}) == 1 for n, k in zip((11, 13), kernel, strict=True))
]  # what is to be padded unevenly the ops pad themselves


@pytest.mark.parametrize("layout", [NCHW, NHWC])
@pytest.mark.parametrize(("stride", "kernel", "padding"), SHAPES)
def test_results_have_the_shape_of_the_contract(library, layout, stride, kernel, padding):
    size, numbers, dims = (11, 13), integers(4), {"H": 11, "W": 13, "R": kernel[0], "S": kernel[1]}
    pads = [contract.same_padding(*axis, stride)[0] for axis in zip(size, kernel, strict=True)]
    library(
        "cudnnGetConvolution2dForwardOutputDim",
        library.convolution(stride, pads if padding == "same" else (0, 0), FMA_MATH),
        library.tensor((2, *size, 5), layout), library.filters((7, *kernel, 5), layout), *map(ctypes.byref, numbers),
    )  # fmt: skip
    wanted = contract.op("conv2d").derive(dims, {"stride": stride, "padding": padding})
    assert [number.value for number in numbers] == [2, 7, wanted["P"], wanted["Q"]]


@pytest.mark.parametrize("math", [headers.DEFAULT_MATH, headers.TENSOR_OP_MATH, FMA_MATH])
def test_products_are_rounded_to_tf32_only_where_asked(library, math):
    found = integers(1)
    ask(library, "cudnnGetConvolutionMathType", library.convolution(1, (0, 0), math), ctypes.byref(found[0]))
    assert found[0].value == math


def test_correlation_is_not_convolution(library):
    numbers = integers(8)
    ask(library, "cudnnGetConvolution2dDescriptor", library.convolution(2, (3, 4), 3), *map(ctypes.byref, numbers))
    assert [number.value for number in numbers] == [3, 4, 2, 2, 1, 1, headers.CROSS_CORRELATION, headers.FLOAT]


@pytest.mark.parametrize("rectify", [False, True])
def test_a_rectifier_is_described(library, rectify):
    numbers, ceiling = integers(2), ctypes.c_double()
    places = [*map(ctypes.byref, numbers), ctypes.byref(ceiling)]
    ask(library, "cudnnGetActivationDescriptor", library.activation(rectify), *places)
    assert numbers[0].value == (headers.RELU if rectify else headers.IDENTITY)


@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_is_described(library, directions):
    numbers = [*integers(12), ctypes.c_void_p(), ctypes.c_uint32()]
    layer = library.recurrence(5, 200, directions, FMA_MATH)
    ask(library, "cudnnGetRNNDescriptor_v8", layer, *map(ctypes.byref, numbers))
    kinds = [headers.STANDARD, headers.LSTM, headers.DOUBLE_BIAS, directions - 1, headers.LINEAR_INPUT, 0, 0, FMA_MATH]
    sizes = [5, 200, 200, 1]
    assert [number.value for number in numbers] == [*kinds, *sizes, None, headers.PADDED_IO]


def test_sequences_and_states_are_described(library):
    numbers, lengths, fill = integers(5), (ctypes.c_int * 3)(), ctypes.c_float(1)
    described = library.sequences(3, 7, 5)
    ask(
        library, "cudnnGetRNNDataDescriptor", described, *map(ctypes.byref, numbers), 3, lengths, ctypes.byref(fill)
    )  # fmt: skip
    assert [number.value for number in numbers] == [headers.FLOAT, headers.BATCH_MAJOR, 7, 3, 5]
    assert (list(lengths), fill.value) == ([7, 7, 7], 0)
    kind, count, sizes, strides = *integers(2), (ctypes.c_int * 3)(), (ctypes.c_int * 3)()
    places = ctypes.byref(kind), ctypes.byref(count), sizes, strides
    ask(library, "cudnnGetTensorNdDescriptor", library.states(2, 3, 200), 3, *places)
    assert (list(sizes), list(strides)) == ([2, 3, 200], [600, 200, 1])


def test_what_cudnn_refuses_is_told(library):
    with pytest.raises(CudnnError, match="cudnnSetTensor4dDescriptor: CUDNN_STATUS_BAD_PARAM"):
        library.tensor((0, -1, 2, 3), NHWC)


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(headers, "NAME", "libcudnn.so.of-no-version")
    with pytest.raises(CudnnUnavailable, match=r"pip install nvidia-cudnn-cu13\. Without it convolutions .* LSTMs"):
        Library.load()


def test_every_function_is_given_as_many_arguments_as_the_header_says(library):
    """Counted by hand in cudnn_ops.h, cudnn_cnn.h and cudnn_adv.h."""
    counts = {
        "cudnnConvolutionForward": 13, "cudnnConvolutionBackwardData": 13, "cudnnConvolutionBackwardFilter": 13,
        "cudnnConvolutionBiasActivationForward": 18, "cudnnGetConvolutionForwardWorkspaceSize": 7,
        "cudnnRNNForward": 20, "cudnnRNNBackwardData_v8": 22, "cudnnRNNBackwardWeights_v8": 16,
        "cudnnSetRNNDescriptor_v8": 15, "cudnnGetRNNWeightParams": 10, "cudnnGetRNNTempSpaceSizes": 6,
        "cudnnSetRNNDataDescriptor": 8, "cudnnTransformTensor": 7, "cudnnSetDropoutDescriptor": 6,
    }  # fmt: skip
    for name, count in counts.items():
        assert len(library._functions[name].argtypes) == count, name


# ------------------------------------------------------------------------------------------ the calls, to a recorder


class Recorder(Library):
    """The library's descriptors, but what needs a GPU is only noted: (name, arguments)."""

    DEVICE = ("cudnnCreate", "cudnnSetStream", "cudnnConvolution", "cudnnTransform", "cudnnRNN", "cudnnSetDropout",
              "cudnnGetRNN", "cudnnGetConvolutionForwardW", "cudnnGetConvolutionBackward")  # fmt: skip

    def __init__(self, loaded):
        super().__init__(loaded)
        self.calls = []

    def __call__(self, name, *args):
        if name != "cudnnCreate" and not name.startswith(self.DEVICE[1:]):
            return super().__call__(name, *args)
        converted = [kind.from_param(a) for kind, a in zip(self._functions[name].argtypes, args, strict=True)]
        assert len(converted) == len(args)
        self.calls.append((name, args))
        if name == "cudnnGetRNNWeightParams":
            self._place(args)

    def _place(self, args):
        """Lay weights out as cuDNN does: matrices of input and state, then both biases."""
        _, _, direction, _, base, gate, _, at, _, bias_at = args
        inputs, hidden = 5, 200
        matrices = 4 * hidden * (inputs + hidden)
        place = direction * matrices + (
            gate * hidden * inputs if gate < 4 else 4 * hidden * inputs + (gate - 4) * hidden**2
        )
        at._obj.value = base + 4 * place
        bias_at._obj.value = base + 4 * (2 * matrices + (8 * direction + gate) * hidden)


class Memory(np.ndarray):
    """NumPy's arrays with an address as CuPy's have it."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class Arrays:
    """As much of CuPy as the plans take; every run lasts as long as ``seconds`` says."""

    float32, uint8, int32 = np.float32, np.uint8, np.int32

    def __init__(self):
        self.cuda = SimpleNamespace(
            get_current_stream=lambda: SimpleNamespace(ptr=12345, is_capturing=lambda: self.capturing)
        )
        self.capturing = False

    def empty(self, size, dtype):
        return np.zeros(size, dtype).view(Memory)

    def full(self, size, value, dtype):
        return np.full(size, value, dtype).view(Memory)


@pytest.fixture
def cudnn(library, monkeypatch):
    monkeypatch.setattr(Library, "load", classmethod(lambda cls: Recorder(library._loaded)))
    made = Cudnn(Arrays())
    made.finish = lambda *args: made.library.calls.append(("finish", args))
    made.seconds = lambda run: run() or 1.0
    return made


def floats(*shape):
    return np.ones(shape, np.float32).view(Memory)


def names(cudnn):
    return [name for name, _ in cudnn.library.calls if name != "cudnnSetStream"]


def test_all_algorithms_are_tried_and_then_one_is_launched(cudnn):
    x, w, b, y = floats(2, 5, 6, 4), floats(3, 3, 3, 4), floats(3), floats(2, 3, 4, 3)
    cudnn.convolve(x, w, b, y, rectify=True)
    [trials] = cudnn.trials.values()
    assert len({(t.algorithm, t.layout, t.fused) for t in trials}) == 8 * 2 * 2
    del cudnn.library.calls[:]
    cudnn.convolve(x, w, b, y, rectify=True)
    assert names(cudnn) == ["cudnnConvolutionForward", "finish"]
    cudnn.convolve(x, w, b, y)
    assert "cudnnConvolutionBiasActivationForward" in names(cudnn)
    assert len(cudnn.trials) == 2
    del cudnn.library.calls[:]
    cudnn.convolve(x, w, None, y)
    assert not {"finish", "cudnnConvolutionBiasActivationForward"} & {*names(cudnn)}
    del cudnn.library.calls[:]
    cudnn.convolve(x, w, None, y)
    assert names(cudnn) == ["cudnnConvolutionForward"]
    assert cudnn.path(x.shape, w.shape).endswith(", forward without bias: algorithm 0 NHWC")


def test_16_bits_are_described_as_such_and_take_the_bias_with_them(cudnn, monkeypatch):
    x, w, b, y, dx = (a.astype(np.float16).view(Memory) for a in (floats(2, 5, 6, 4), floats(3, 3, 3, 4), floats(3),
                                                                 floats(2, 3, 4, 3), floats(2, 5, 6, 4)))  # fmt: skip
    kinds, maths = set(), set()
    for name, at in (("cudnnSetTensor4dDescriptor", 2), ("cudnnSetFilter4dDescriptor", 1)):
        note(cudnn.library, name, lambda args, at=at: kinds.add(args[at]))
    note(cudnn.library, "cudnnSetConvolutionMathType", lambda args: maths.add(args[1]))
    cudnn.convolve(x, w, b, y, rectify=True)
    cudnn.convolve_images(w, y, dx)
    assert kinds == {headers.KINDS["float16"]}
    assert maths == {headers.TENSOR_OP_MATH}
    assert {trial.fused for trial in next(iter(cudnn.trials.values()))} == {True}
    assert "finish" not in names(cudnn)
    assert cudnn.path(x.shape, w.shape, "float16") == "forward: algorithm 0 NHWC fused, images: algorithm 0 NHWC"
    assert cudnn.path(x.shape, w.shape) == ""
    assert [plan._sizes["x"] for plan in cudnn._plans.values()] == [x.size * 2] * 2
    cudnn.convolve(*(a.astype(np.float32).view(Memory) for a in (x, w, b, y)))
    assert maths == {headers.TENSOR_OP_MATH, FMA_MATH}


def note(library, name, found):
    """Tell ``found`` the arguments of each call of a function, which is called all the same."""
    function = library._functions[name]
    library._functions[name] = lambda *args: found(args) or function(*args)


def test_the_fastest_is_kept_and_runs_between_copies(cudnn):
    seconds = iter([3.0] * 20 + [1.0] + [2.0] * 100)
    cudnn.seconds = lambda run: run() or next(seconds)
    x, w, dy = floats(2, 5, 6, 4), floats(3, 3, 3, 4), floats(2, 3, 4, 3)
    for _ in range(2):
        del cudnn.library.calls[:]
        cudnn.convolve_images(w, dy, x)
    assert names(cudnn) == ["cudnnConvolutionBackwardData"]
    assert cudnn.path(x.shape, w.shape) == "images: algorithm 0 NHWC"
    seconds = iter([3.0] * 8 + [1.0] + [2.0] * 100)
    for _ in range(2):
        del cudnn.library.calls[:]
        cudnn.convolve_weights(x, dy, w)
    assert names(cudnn) == ["cudnnTransformTensor", "cudnnTransformTensor", "cudnnConvolutionBackwardFilter",
                            "cudnnTransformTensor"]  # fmt: skip
    assert cudnn.path(x.shape, w.shape) == "images: algorithm 0 NHWC, weights: algorithm 1 NCHW"
    cudnn.recurrence(3, 7, 5, 200, 2, True)
    assert cudnn.path(w.shape, x.shape) == ""
    calls = [args for name, args in cudnn.library.calls if name != "cudnnSetStream"]
    assert [calls[0][3], calls[1][3], calls[3][6]] == [x.data.ptr, dy.data.ptr, w.data.ptr]
    assert [calls[2][3], calls[2][5], calls[2][12]] == [calls[0][6], calls[1][6], calls[3][3]]


def test_deterministic_leaves_out_what_varies(cudnn):
    cudnn.deterministic = True
    cudnn.convolve_weights(floats(2, 5, 6, 4), floats(2, 3, 4, 3), floats(3, 3, 3, 4))
    [trials] = cudnn.trials.values()
    assert {trial.algorithm for trial in trials} == {1, 2, 4, 5, 6}


def test_an_algorithm_that_is_wrong_is_not_taken(cudnn):
    """The first sets the standard; here each of the others adds up something else."""
    x, w, b, y = floats(2, 5, 6, 4), floats(3, 3, 3, 4), floats(3), floats(2, 3, 4, 3)
    runs = []

    def seconds(run):
        runs.append(run)
        y[...] = 7 if len(runs) == 1 else np.nan if len(runs) == 2 else 7.1
        return 5.0 - 0.01 * len(runs)

    cudnn.seconds = seconds
    cudnn.convolve(x, w, b, y)
    [[only]] = cudnn.trials.values()
    assert (only.algorithm, only.layout) == (0, NHWC)
    assert "algorithm 0 NHWC" in str(only)


def test_a_new_shape_in_a_capture_is_refused(cudnn):
    cudnn._xp.capturing = True
    with pytest.raises(RuntimeError, match="for the first time while a graph is captured"):
        cudnn.convolve_weights(floats(2, 5, 6, 4), floats(2, 3, 4, 3), floats(3, 3, 3, 4))


def test_an_lstm_makes_three_calls(cudnn):
    plan = cudnn.recurrence(3, 7, 5, 200, 2, True)
    x, y, last = floats(3, 7, 5), floats(3, 7, 400), floats(2, 3, 200)
    weights, reserve = floats(2 * 800 * 207), floats(1)
    views = plan.views(weights)
    assert [[view.shape for view in direction] for direction in views] == [[(800, 5), (800, 200), (800, 1)]] * 2
    assert views[1][0].ctypes.data == weights.ctypes.data + 4 * 800 * 205
    assert plan is cudnn.recurrence(3, 7, 5, 200, 2, True)
    del cudnn.library.calls[:]
    plan.forward(x, weights, y, last, reserve)
    plan.backward(y, y, last, x, weights, reserve)
    plan.backward_weights(x, y, weights, reserve)
    assert names(cudnn) == ["cudnnRNNForward", "cudnnRNNBackwardData_v8", "cudnnRNNBackwardWeights_v8"]


# ------------------------------------------------------------------------------------------------------------ the ops


class StandIn:
    """The methods of ``Cudnn`` on NumPy's arrays, by the functions for arrays that are checked elsewhere."""

    def __init__(self):
        self.called = []

    def convolve(self, x, w, b, y, *, stride=1, padding=(0, 0), rectify=False):
        b = np.zeros_like(w[:, 0, 0, 0]) if b is None else b
        self._note("convolve", x, w, b, y)
        y[...], _ = self._by_hand(x, w, b, stride, padding, "relu" if rectify else None)

    def convolve_images(self, w, dy, dx, *, stride=1, padding=(0, 0)):
        self._note("convolve_images", w, dy, dx)
        _, pullback = self._by_hand(np.zeros_like(dx), w, np.zeros_like(w[:, 0, 0, 0]), stride, padding)
        dx[...] = self._inside(pullback(dy)[0], padding)

    def convolve_weights(self, x, dy, dw, *, stride=1, padding=(0, 0)):
        self._note("convolve_weights", x, dy, dw)
        _, pullback = self._by_hand(x, dw * 0, np.zeros_like(dw[:, 0, 0, 0]), stride, padding)
        dw[...] = pullback(dy, first=False)[1].transpose(3, 0, 1, 2)

    def _by_hand(self, x, w, b, stride, padding, activation=None):
        x = np.pad(x, [(0, 0), *((pad, pad) for pad in padding), (0, 0)])
        w = np.nan_to_num(w).transpose(1, 2, 3, 0)
        return _handwritten.conv2d(Workspace(np), x, w, b, stride=stride, activation=activation)

    def _inside(self, dx, padding):
        (lines, columns), (_, height, width, _) = padding, dx.shape
        return dx[:, lines : height - lines, columns : width - columns]

    def _note(self, name, *arrays):
        assert all(array.flags.c_contiguous and array.dtype == arrays[0].dtype for array in arrays)
        assert arrays[0].dtype.name in headers.KINDS
        self.called.append(name)

    def recurrence(self, n, t, inputs, hidden, directions, training):
        return StandInPlan(self, inputs, hidden, directions)


class StandInPlan:
    def __init__(self, cudnn, inputs, hidden, directions):
        self._cudnn, self._inputs, self._hidden, self._directions = cudnn, inputs, hidden, directions
        self.weights, self.reserve = directions * 4 * hidden * (inputs + hidden + 2), 16

    def views(self, weights):
        rows, found, at = 4 * self._hidden, [], 0
        for _ in range(self._directions):
            places = []
            for columns in (self._inputs, self._hidden, 1, 1):
                places.append(weights[at : at + rows * columns].reshape(rows, columns))
                at += rows * columns
            assert (places.pop() == 0).all() or weights is self._gradients
            found.append(places)
        return found

    _gradients = _pullback = None

    def _run(self, x, weights):
        parts = [a for w_x, w_h, b in self.views(weights) for a in (w_x.T, w_h.T, b[:, 0])]
        op = _handwritten.lstm if self._directions == 1 else _handwritten.bilstm
        return op(Workspace(np), x, *parts, return_sequences=True)

    def forward(self, x, weights, y, last, reserve):
        self._cudnn._note("forward", x, weights, y)
        y[...], self._pullback = self._run(x, weights)
        if last is not None:
            last[0] = y[:, -1, : self._hidden]
            if self._directions == 2:
                last[1] = y[:, 0, self._hidden :]
        reserve[:] = 7

    def backward(self, y, dy, dlast, dx, weights, reserve):
        self._cudnn._note("backward", y, dy, dx)
        assert (reserve == 7).all()
        dy = dy.copy()
        if dlast is not None:
            dy[:, -1, : self._hidden] += dlast[0]
            if self._directions == 2:
                dy[:, 0, self._hidden :] += dlast[1]
        dx[...], *self._grads = self._pullback(dy)

    def backward_weights(self, x, y, dweights, reserve):
        self._cudnn._note("backward_weights", x, y, dweights)
        self._gradients = dweights
        views = [view for direction in self.views(dweights) for view in direction]
        for view, gradient in zip(views, self._grads, strict=True):
            view += gradient.T if gradient.ndim == 2 else gradient[:, None]


@pytest.fixture
def with_cudnn(emulator, monkeypatch):
    """An emulator whose ops have cuDNN's stand-in."""
    stand_in, ops = StandIn(), emulator.ops

    def with_stand_in(*args, **how):
        made = ops(*args, **how)
        made.cudnn = stand_in
        return made

    monkeypatch.setattr(emulator, "ops", with_stand_in)
    emulator.called = stand_in.called
    return emulator


@pytest.mark.parametrize("options", [{}, {"padding": "same", "activation": "relu"}], ids=["valid", "same, relu"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(3, 3, 4), (5, 5, 3), (1, 1, 8), (2, 4, 5)])
def test_a_convolution_by_cudnn_agrees(with_cudnn, kernel, stride, options):
    with_cudnn.verify(images(kernel, n=2, outputs=6, stride=stride, **options))
    assert with_cudnn.called == ["convolve", "convolve_weights", "convolve_images"]
    assert "conv2d_forward" not in with_cudnn.launched


@pytest.mark.parametrize("kernel", [(3, 3, 4), (5, 5, 3)])
def test_a_convolution_of_16_bits_is_cudnns(with_cudnn, kernel):
    dims = {"N": 2, "H": 7, "W": 6, **dict(zip("RSC", kernel, strict=True)), "O": 6}
    case = cases.case("conv2d", "forward_backward", dims, "float16", padding="same", activation="relu")
    with_cudnn.verify(case)
    assert with_cudnn.called == ["convolve", "convolve_weights", "convolve_images"]
    assert not with_cudnn.launched


@pytest.mark.parametrize("direction", ["forward", "weight_gradients"])
def test_no_more_than_what_is_asked_for_is_computed(with_cudnn, direction):
    with_cudnn.verify(images((3, 3, 4), n=2, outputs=6, direction=direction))
    assert "convolve_images" not in with_cudnn.called
    assert ("convolve_weights" in with_cudnn.called) == (direction != "forward")


def test_few_channels_are_left_to_our_own_kernels(with_cudnn):
    with_cudnn.verify(images((3, 3, 3)))
    assert not with_cudnn.called


def pooled(x, w, b, *, pool=2, **options):
    """What a convolution and its pool are in the contract."""
    return contract.max_pool2d(contract.conv2d(x, w, b, **options), pool=pool)


def verify_pooled(ops, kernel, size=(7, 8), outputs=6, **options):
    """Compare the two in one with the contract, as the conformance suite does with ops."""
    rng, inputs = np.random.default_rng(0), kernel[2]
    shapes = (2, *size, inputs), (*kernel, outputs), (outputs,)
    args = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    exact = [a.astype(np.float64) for a in args]
    wanted = pooled(*exact, **options)
    dy = rng.normal(size=wanted.shape).astype(np.float32)
    y, pullback = ops.conv2d_max_pool2d(Workspace(Poisoned()), *args, **options)
    parity.compare("y", y, wanted, "float32", kernel[0] * kernel[1] * inputs)
    gradients = contract.reference_vjp(lambda *a: pooled(*a, **options), exact, dy.astype(np.float64))
    for name, gradient, of_contract in zip("xwb", pullback(dy), gradients, strict=True):
        parity.compare(f"the gradient of {name}", gradient, of_contract, "float32", dy.size)
    for gradient, other in zip(pullback(dy, first=False)[1:], pullback(dy)[1:], strict=True):
        np.testing.assert_array_equal(gradient, other)


@pytest.mark.parametrize("options", [{}, {"padding": "same", "activation": "relu"}], ids=["valid", "same, relu"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pool", [2, 3])
@pytest.mark.parametrize(("kernel", "outputs"), [((3, 3, 4), 8), ((1, 1, 8), 5), ((2, 4, 5), 12)])
def test_a_pool_takes_in_bias_and_rectifier(with_cudnn, kernel, outputs, pool, stride, options):
    size = (pool * stride * 2 + 1, pool * stride + 4)  # with a remainder, which no window has
    verify_pooled(with_cudnn.ops(), kernel, size, outputs, pool=pool, stride=stride, **options)
    assert with_cudnn.called[:3] == ["convolve", "convolve_weights", "convolve_images"]
    vector = 1 if outputs % 4 else 4
    assert with_cudnn.launched == {f"max_pool_{vector}", f"max_pool_back_{vector}", "rectified_sums"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("__ldg(bias + c * SIZE + e)", "__ldg(bias + e)"),
        ("if (bias) best.v[e] += ", "if (bias) best.v[e] -= "),
        ("if (rectify && best.v[e] < 0.f) best.v[e] = 0.f;", ""),
    ],
    ids=["the bias of another channel", "a bias of another sign", "the negative ones kept"],
)
def test_a_wrong_pool_is_seen(with_cudnn, old, new):
    assert Kernels("glue").text.count(old) == 1
    ops = with_cudnn.ops(change=lambda text: text.replace(old, new))
    with pytest.raises(parity.ParityError):
        verify_pooled(ops, (3, 3, 4), outputs=8, activation="relu")


@pytest.mark.parametrize(("name", "pools"), [("mnist_cnn", 1), ("cifar10_cnn", 2)])
def test_training_pools_where_it_convolves(with_cudnn, monkeypatch, name, pools):
    """And comes to the same losses and predictions as with one op after the other."""
    backend = pytest.importorskip("shim.backends.cupy", reason="CuPy is not installed")
    model, found = models.load(name, dropout=False), []
    params, batches = model.initial(), [model.batch(step, size=3) for step in range(2)]

    class Device:
        to_device = staticmethod(lambda value: np.array(value, order="C"))
        to_numpy = staticmethod(np.asarray)

    for together in (True, False):
        cuda, called = with_cudnn.ops().of_a_trainer(), Counter()
        programs = backend.programs(cuda)
        ops = {op: counted(called, op, function) for op, function in programs.ops.items()}
        if not together:
            monkeypatch.setattr(_cuda_trainer, "takes_pool", lambda *args: False)
        how = model, params, model.optimizer, 3, lambda function: function
        trainer = _cuda_trainer.Trainer(replace(programs, ops=ops), cuda, Device, *how)
        losses = [float(trainer.step(*batch)) for batch in batches]
        found.append([*losses, *trainer.evaluate(*batches[0]), trainer.predict(batches[1][0])])
        assert called["conv2d_max_pool2d"] == (pools * 4 if together else 0)
        assert called["max_pool2d"] == (0 if together else pools * 4)
        assert called["conv2d"] == 4 * sum(op.op == "conv2d" for op in models.record(model)) - together * pools * 4
    for first, other in zip(*found, strict=True):
        np.testing.assert_allclose(first, other, rtol=1e-4, atol=1e-5)


def counted(called, op, function):
    def call(*args, **options):
        called[op] += 1
        return function(*args, **options)

    return call


def test_a_convolution_that_no_pool_takes_in_runs_where_its_result_is_used():
    called = []

    def call(name, *args, **options):
        called.append((name, *args, options))
        return f"{name} {len(called)}"

    ops = SimpleNamespace(relu=functools.partial(call, "relu"), conv2d=None, max_pool2d=None)
    ops = _cuda_trainer.with_pools(ops, call, lambda x, w: w == "many channels")
    y = ops.conv2d("x", "many channels", "b", stride=2)
    assert not called
    assert ops.relu(y) == "relu 2"
    assert ops.relu(y) == "relu 3"
    assert ops.max_pool2d(y) == "conv2d_max_pool2d 4"
    assert ops.conv2d(y, "few channels", "b") == "conv2d 5"
    assert ops.max_pool2d("conv2d 5", pool=3) == "max_pool2d 6"
    assert called == [
        ("conv2d", "x", "many channels", "b", {"stride": 2}),
        ("relu", "conv2d 1", {}),
        ("relu", "conv2d 1", {}),
        ("conv2d_max_pool2d", "x", "many channels", "b", {"stride": 2, "pool": 2}),
        ("conv2d", "conv2d 1", "few channels", "b", {}),
        ("max_pool2d", "conv2d 5", {"pool": 3}),
    ]


@pytest.mark.parametrize(("op", "reverse"), [("lstm", {}), ("lstm", {"reverse": True}), ("bilstm", {})])
@pytest.mark.parametrize("sequences", [False, True], ids=["last", "all"])
def test_an_lstm_by_cudnn_agrees(with_cudnn, op, reverse, sequences):
    options = {"return_sequences": sequences} | reverse
    for direction in ("forward", "forward_backward", "weight_gradients"):
        with_cudnn.verify(lstm(3, 4, 130, op=op, direction=direction, **options))
    assert with_cudnn.called == ["forward", *["forward", "backward", "backward_weights"] * 2]


def test_another_sigmoid_is_left_to_array_functions(with_cudnn):
    with_cudnn.verify(lstm(3, 4, 130, recurrent_activation="hard_sigmoid"))
    assert not with_cudnn.called


def test_gradients_of_an_lstm_outlive_the_next_call(with_cudnn):
    (x, *weights), dy = lstm(3, 4, 130, inputs=1).arrays()
    ops, work = with_cudnn.ops(), Workspace(np)
    grads = ops.lstm(work, x, *weights)[1](dy)
    kept = [gradient.copy() for gradient in grads]
    ops.lstm(work, 2 * x, *weights)[1](dy)
    for gradient, before in zip(grads, kept, strict=True):
        np.testing.assert_array_equal(gradient, before)


@pytest.mark.parametrize("wrong", ["transpose", "padding", "bias"])
def test_a_wrong_convolution_is_seen(with_cudnn, monkeypatch, wrong):
    convolve = StandIn.convolve

    def changed(self, x, w, b, y, *, padding, **options):
        w = np.ascontiguousarray(w[:, ::-1]) if wrong == "transpose" else w
        padding = padding[::-1] if wrong == "padding" else padding
        convolve(self, x, w, b * (wrong != "bias"), y, padding=padding, **options)

    monkeypatch.setattr(StandIn, "convolve", changed)
    with pytest.raises((parity.ParityError, ValueError)):
        with_cudnn.verify(images((3, 1, 4), n=2, outputs=6, padding="same"))
