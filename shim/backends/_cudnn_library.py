"""The library of cuDNN 9 through ctypes: its functions, and descriptors of what the backend computes with it.

Names and numbers are those of cuDNN's headers. Descriptors need no GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

NAME = "libcudnn.so.9"
KINDS = {"float32": 0, "float16": 2}
FLOAT, NCHW, NHWC = KINDS["float32"], 0, 1
DEFAULT_MATH, TENSOR_OP_MATH, FMA_MATH = 0, 1, 3  # the first rounds float32 to TF32, the second no inputs
CROSS_CORRELATION, NOT_PROPAGATE_NAN = 1, 0
RELU, IDENTITY = 1, 5
PRECOMPUTED = 1  # the only algorithm of a convolution that takes a bias without a rectifier
STANDARD, LSTM, DOUBLE_BIAS, LINEAR_INPUT, PADDED_IO = 0, 2, 2, 0, 1
BATCH_MAJOR, ADD = 2, 0
INFERENCE, TRAINING = 0, 1

#: direction -> function, its operands (images x, filters w, results y) and result, algorithms, those that vary
DIRECTIONS = {
    "forward": ("Forward", "xw", "y", range(8), ()),
    "images": ("BackwardData", "wy", "x", range(6), (0,)),
    "weights": ("BackwardFilter", "xy", "w", range(7), (0, 3)),
}

_KINDS = {
    "p": ctypes.c_void_p, "i": ctypes.c_int, "z": ctypes.c_size_t, "d": ctypes.c_double, "f": ctypes.c_float,
    "q": ctypes.c_ulonglong, "u": ctypes.c_uint32,
}  # fmt: skip
_CONVOLUTION = "pp pppp pi pz ppp"
#: function -> its arguments: pointer, int, size_t, double, float, unsigned long long, uint32_t
ARGUMENTS = {
    "cudnnCreate": "p",
    "cudnnSetStream": "pp",
    "cudnnCreateTensorDescriptor": "p",
    "cudnnSetTensor4dDescriptor": "p ii iiii",
    "cudnnSetTensorNdDescriptor": "p ii pp",
    "cudnnTransformTensor": "p ppp ppp",
    "cudnnCreateFilterDescriptor": "p",
    "cudnnSetFilter4dDescriptor": "p ii iiii",
    "cudnnCreateConvolutionDescriptor": "p",
    "cudnnSetConvolution2dDescriptor": "p iiiiii ii",
    "cudnnSetConvolutionMathType": "p i",
    "cudnnGetConvolution2dForwardOutputDim": "ppp pppp",
    "cudnnCreateActivationDescriptor": "p",
    "cudnnSetActivationDescriptor": "p ii d",
    "cudnnConvolutionBiasActivationForward": "pp pppp pi pz ppp pp p pp",
    **{f"cudnnGetConvolution{function}WorkspaceSize": "ppppp ip" for function, *_ in DIRECTIONS.values()},
    **{f"cudnnConvolution{function}": _CONVOLUTION for function, *_ in DIRECTIONS.values()},
    "cudnnCreateDropoutDescriptor": "p",
    "cudnnSetDropoutDescriptor": "pp f pz q",
    "cudnnCreateRNNDescriptor": "p",
    "cudnnSetRNNDescriptor_v8": "p iiiii iii iiii pu",
    "cudnnCreateRNNDataDescriptor": "p",
    "cudnnSetRNNDataDescriptor": "p ii iii pp",
    "cudnnGetRNNTempSpaceSizes": "pp ip pp",
    "cudnnGetRNNWeightSpaceSize": "pp p",
    "cudnnGetRNNWeightParams": "pp i zp i pp pp",
    "cudnnRNNForward": "pp i p pp pp ppp ppp zp zp zp",
    "cudnnRNNBackwardData_v8": "pp p ppp pp pppp pppp zp zp zp",
    "cudnnRNNBackwardWeights_v8": "pp i p pp pp pp zp zp zp",
}


class CudnnUnavailable(RuntimeError):
    """There is no cuDNN 9 here; the message says what to install and what is lost without it."""


class CudnnError(RuntimeError):
    """cuDNN refused a call; the message is its own."""


class Library:
    """The functions of cuDNN, called by name; each status but success raises :class:`CudnnError`."""

    def __init__(self, loaded):
        self._loaded, self._functions = loaded, {}
        for name, kinds in ARGUMENTS.items():
            function = self._functions[name] = loaded[name]
            function.argtypes = [_KINDS[kind] for kind in kinds.replace(" ", "")]
            function.restype = ctypes.c_int
        loaded.cudnnGetVersion.restype = ctypes.c_size_t
        loaded.cudnnGetErrorString.restype = ctypes.c_char_p
        loaded.cudnnGetErrorString.argtypes = [ctypes.c_int]
        loaded.cudnnGetLastErrorString.restype = None
        loaded.cudnnGetLastErrorString.argtypes = [ctypes.c_char_p, ctypes.c_size_t]

    @classmethod
    def load(cls):
        """Load the library of this Python's packages, or else one that is loaded already or on the search path."""
        reason = None
        for name in (*_installed(), NAME):
            try:
                return cls(ctypes.CDLL(name))
            except (OSError, AttributeError) as error:
                reason = error
        raise CudnnUnavailable(
            f"no cuDNN 9 ({reason}); install it: pip install nvidia-cudnn-cu13. Without it convolutions of more than "
            "three channels are products of patches, and LSTMs of more than 128 units go step by step"
        )

    def __call__(self, name, *args):
        status = self._functions[name](*args)
        if status:
            text = ctypes.create_string_buffer(1024)
            self._loaded.cudnnGetLastErrorString(text, len(text))
            status_name = self._loaded.cudnnGetErrorString(status).decode()
            raise CudnnError(f"{name}: {status_name} {text.value.decode(errors='replace')}".rstrip())

    def create(self, kind):
        """Make a descriptor; it lives to the end of the process, as the plans do."""
        made = ctypes.c_void_p()
        self(f"cudnnCreate{kind}Descriptor", ctypes.byref(made))
        return made

    @property
    def version(self):
        """Such as 9.19.0."""
        number = self._loaded.cudnnGetVersion()
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    def tensor(self, shape, layout, kind=FLOAT):
        """Describe an array (N, H, W, C), or its copy (N, C, H, W) where the layout is that."""
        (n, h, w, c), made = shape, self.create("Tensor")
        self("cudnnSetTensor4dDescriptor", made, layout, kind, n, c, h, w)
        return made

    def filters(self, shape, layout, kind=FLOAT):
        """Describe filters (O, R, S, C), or their copy (O, C, R, S) where the layout is that."""
        (o, r, s, c), made = shape, self.create("Filter")
        self("cudnnSetFilter4dDescriptor", made, kind, layout, o, c, r, s)
        return made

    def convolution(self, stride, padding, math):
        """Describe a convolution with as many zeros before an axis as after it, ``padding`` for lines and columns.

        It adds up in float32.
        """
        made = self.create("Convolution")
        sizes = (*padding, stride, stride, 1, 1)
        self("cudnnSetConvolution2dDescriptor", made, *sizes, CROSS_CORRELATION, FLOAT)
        self("cudnnSetConvolutionMathType", made, math)
        return made

    def activation(self, rectify):
        made = self.create("Activation")
        self("cudnnSetActivationDescriptor", made, RELU if rectify else IDENTITY, NOT_PROPAGATE_NAN, 0.0)
        return made

    def recurrence(self, inputs, hidden, directions, math, dropout=None):
        """Describe one layer of LSTMs; without projection its size is that of the hidden state."""
        made = self.create("RNN")
        kind = STANDARD, LSTM, DOUBLE_BIAS, directions - 1, LINEAR_INPUT, FLOAT, FLOAT, math
        self("cudnnSetRNNDescriptor_v8", made, *kind, inputs, hidden, hidden, 1, dropout, PADDED_IO)
        return made

    def sequences(self, n, t, width, layout=BATCH_MAJOR):
        """Describe an array (N, T, width) of sequences of T steps each."""
        made, lengths, zero = self.create("RNNData"), (ctypes.c_int * n)(*[t] * n), ctypes.c_float(0)
        self("cudnnSetRNNDataDescriptor", made, FLOAT, layout, t, n, width, lengths, ctypes.byref(zero))
        return made

    def states(self, directions, n, hidden):
        made, sizes = self.create("Tensor"), (ctypes.c_int * 3)(directions, n, hidden)
        strides = (ctypes.c_int * 3)(n * hidden, hidden, 1)
        self("cudnnSetTensorNdDescriptor", made, FLOAT, 3, sizes, strides)
        return made


def _installed():
    try:
        spec = importlib.util.find_spec("nvidia.cudnn")
    except ModuleNotFoundError:
        return []
    folders = spec.submodule_search_locations or () if spec else ()
    return [str(path) for folder in folders if (path := Path(folder) / "lib" / NAME).exists()]
