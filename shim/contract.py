"""The operations, each defined once: an executable float64 reference with its shapes, options and work.

Everything a backend computes is compared with this module. A reference is analytic, so it also accepts complex
arguments, and its gradient is the complex step over the same formula (:func:`reference_vjp`): no derivative is
written a second time. Layouts follow Keras: batch first, NHWC images, HWIO kernels, LSTM gates in the order i, f, g, o.

Shape strings name each axis by one capital letter. ``4H`` is four times ``H``, ``int32<V`` marks integers in
``0 .. V-1``, and ``...`` stands for any further axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shim.entry import DIRECTIONS as DIRECTIONS
from shim.entry import FLOATS as FLOATS
from shim.entry import HALVES as HALVES
from shim.entry import WEIGHTS as WEIGHTS
from shim.entry import Argument as Argument
from shim.entry import Dims as Dims
from shim.entry import Op as Op
from shim.entry import Work as Work
from shim.entry import check_dtype as check_dtype
from shim.entry import dtype_name as dtype_name
from shim.entry import parse_argument
from shim.entry import reference_directional as reference_directional
from shim.entry import reference_vjp as reference_vjp

OPS: dict[str, Op] = {}
GATES = ("sigmoid", "hard_sigmoid")  # of an LSTM
MEASURED = ("dense", "conv2d", "lstm", "bilstm", "embedding_average", "embedding", "max_pool2d")


def op(name: str) -> Op:
    """Return the entry called ``name``; raise ``ValueError`` with the choices if there is none."""
    if name not in OPS:
        raise ValueError(f"unknown op {name!r}; the ops are: {', '.join(OPS)}")
    return OPS[name]


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding before and after an axis for ``same``, the odd element after (TensorFlow's rule)."""
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def _define(
    shapes: str,
    *,
    flops: Callable[[Dims], float],
    backward: float | Callable[[Dims], float] = 2.0,
    longest_sum: Callable[[Dims], float] = lambda n: 1,
    derive: Callable[[Dims, Mapping[str, Any]], Dims] = lambda n, options: {},
    **options: Sequence[Any],
) -> Callable[[Callable[..., np.ndarray]], Callable[..., np.ndarray]]:
    """Enter a reference into :data:`OPS`; ``backward`` is its work, as a multiple of the forward work if a number."""
    left, _, result = shapes.partition("->")
    arguments = tuple(parse_argument(text) for text in left.split(","))
    backward_flops = backward if callable(backward) else lambda n: backward * flops(n)

    def enter(reference: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        name = reference.__name__
        OPS[name] = Op(name, reference, arguments, result.strip(), options, derive, flops, backward_flops, longest_sum)
        return reference

    return enter


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.tanh(0.5 * x) + 0.5


def _hard_sigmoid(x: np.ndarray) -> np.ndarray:
    y = 0.2 * x + 0.5
    return np.where(y.real <= 0, 0.0, np.where(y.real >= 1, 1.0, y))


def _activate(x: np.ndarray, activation: str | None) -> np.ndarray:
    return relu(x) if activation == "relu" else x


# ---------------------------------------------------------------------------------------------------- the four ops


@_define(
    "x: N I, w: I O, b: O -> N O",
    flops=lambda n: 2 * n["N"] * n["I"] * n["O"],
    longest_sum=lambda n: max(n["N"], n["I"], n["O"]),
    activation=(None, "relu"),
)
def dense(x, w, b, *, activation=None):
    """Multiply by a matrix, add a bias, and optionally rectify: ``activation(x @ w + b)``.

    Shapes: x (N, I); w (I, O); b (O); result (N, O).
    """
    return _activate(x @ w + b, activation)


def _conv2d_axes(n: Dims, options: Mapping[str, Any]) -> Dims:
    stride, same = options["stride"], options["padding"] == "same"
    return {
        out: -(-n[axis] // stride) if same else (n[axis] - n[kernel]) // stride + 1
        for out, axis, kernel in zip("PQ", "HW", "RS", strict=True)
    }


@_define(
    "x: N H W C, w: R S C O, b: O -> N P Q O",
    flops=lambda n: 2 * n["N"] * n["P"] * n["Q"] * n["O"] * n["R"] * n["S"] * n["C"],
    longest_sum=lambda n: max(n["R"] * n["S"] * max(n["C"], n["O"]), n["N"] * n["P"] * n["Q"]),
    stride=range(1, 4),
    derive=_conv2d_axes,
    padding=("valid", "same"),
    activation=(None, "relu"),
)
def conv2d(x, w, b, *, stride=1, padding="valid", activation=None):
    """Cross-correlate images with kernels, add a bias, and optionally rectify.

    ``y[n, p, q, o] = b[o] + sum over r, s, c of x[n, p*stride + r, q*stride + s, c] * w[r, s, c, o]``; with
    ``same`` the image is padded with zeros so that P = ceil(H / stride), the odd row and column at the end.

    Shapes: x (N, H, W, C); w (R, S, C, O); b (O); result (N, P, Q, O).
    """
    kernel = w.shape[:2]
    if padding == "same":
        pads = [same_padding(length, k, stride) for length, k in zip(x.shape[1:3], kernel, strict=True)]
        x = np.pad(x, [(0, 0), *pads, (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))[:, ::stride, ::stride]
    return _activate(np.tensordot(windows, w, axes=([4, 5, 3], [0, 1, 2])) + b, activation)


def _lstm_flops(n: Dims) -> float:
    return 8 * n["N"] * n["T"] * n["H"] * (n["I"] + n["H"])


def _lstm_sum(n: Dims) -> float:
    return n["T"] * max(n["N"], n["I"] + 4 * n["H"])


@_define(
    "x: N T I, w_x: I 4H, w_h: H 4H, b: 4H -> N H | N T H",
    flops=_lstm_flops,
    longest_sum=_lstm_sum,
    return_sequences=(False, True),
    reverse=(False, True),
    recurrent_activation=GATES,
)
def lstm(x, w_x, w_h, b, *, return_sequences=False, reverse=False, recurrent_activation="sigmoid"):
    """Run a long short-term memory over a batch of sequences, from a zero state.

    At each step, with gates of H columns each in this order::

        i, f, g, o = split(x[t] @ w_x + h @ w_h + b)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)

    With ``recurrent_activation="hard_sigmoid"`` the three sigmoids are those of Keras 2, ``clip(0.2 * z + 0.5, 0, 1)``.
    Keras 3's are others, ``clip(z / 6 + 0.5, 0, 1)``.

    ``reverse`` walks from the last step to the first; sequences stay aligned with the input, so the last output is
    then that of step 0.

    Shapes: x (N, T, I); w_x (I, 4H); w_h (H, 4H); b (4H); result (N, H), or (N, T, H) with ``return_sequences``.
    Reference: Gers, Schmidhuber and Cummins, "Learning to forget", Neural Computation 12 (2000).
    """
    size = w_h.shape[0]
    sigmoid = _sigmoid if recurrent_activation == "sigmoid" else _hard_sigmoid
    h = c = np.zeros((x.shape[0], size))
    steps = []
    for t in range(x.shape[1])[:: -1 if reverse else 1]:
        z = x[:, t] @ w_x + h @ w_h + b
        i, f, g, o = (z[:, k * size : (k + 1) * size] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        steps.append(h)
    return np.stack(steps[:: -1 if reverse else 1], axis=1) if return_sequences else h


@_define(
    "x: N T I, w_x: I 4H, w_h: H 4H, b: 4H, w_x_reverse: I 4H, w_h_reverse: H 4H, b_reverse: 4H -> N G | N T G",
    flops=lambda n: 2 * _lstm_flops(n),
    longest_sum=lambda n: 2 * _lstm_sum(n),
    derive=lambda n, options: {"G": 2 * n["H"]},
    return_sequences=(False, True),
    recurrent_activation=GATES,
)
def bilstm(
    x, w_x, w_h, b, w_x_reverse, w_h_reverse, b_reverse, *, return_sequences=False, recurrent_activation="sigmoid"
):
    """Run one LSTM forwards and one backwards and concatenate their outputs, forwards first.

    Shapes: x (N, T, I); weights and options as for :func:`lstm`, one set of weights a direction; result (N, 2H), or
    (N, T, 2H) with ``return_sequences``.
    """
    options = {"return_sequences": return_sequences, "recurrent_activation": recurrent_activation}
    forwards = lstm(x, w_x, w_h, b, **options)
    backwards = lstm(x, w_x_reverse, w_h_reverse, b_reverse, reverse=True, **options)
    return np.concatenate([forwards, backwards], axis=-1)


@_define(
    "ids: int32<V N T, table: V D -> N D",
    flops=lambda n: n["N"] * n["T"] * n["D"],
    backward=1.0,
    longest_sum=lambda n: n["N"] * n["T"],
    padding_id=(None, 0),
)
def embedding_average(ids, table, *, padding_id=None):
    """Average the rows of a table that each sample names.

    With ``padding_id`` the positions that hold it are left out, and a row of nothing else gives 0; with ``None``
    every position counts. A row named twice counts twice, and its gradient is the sum over all its uses.

    Shapes: ids (N, T) int32; table (V, D); result (N, D).
    """
    if padding_id is None:
        return table[ids].mean(axis=1)
    kept = ids != padding_id
    return (table[ids] * kept[:, :, None]).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)[:, None]


# -------------------------------------------------------------------------------------------------------- the glue


@_define("ids: int32<V N T, table: V D -> N T D", flops=lambda n: 0, backward=lambda n: n["N"] * n["T"] * n["D"],
         longest_sum=lambda n: n["N"] * n["T"])  # fmt: skip
def embedding(ids, table):
    """Look rows up in a table. Shapes: ids (N, T) int32; table (V, D); result (N, T, D)."""
    return table[ids]


@_define(
    "x: N H W C -> N P Q C",
    flops=lambda n: n["N"] * n["H"] * n["W"] * n["C"],
    backward=1.0,
    pool=range(2, 4),
    derive=lambda n, options: {out: n[axis] // options["pool"] for out, axis in zip("PQ", "HW", strict=True)},
)
def max_pool2d(x, *, pool=2):
    """Take the maximum over windows of ``pool`` x ``pool`` without overlap; a remainder at the edge is dropped.

    Shapes: x (N, H, W, C); result (N, H // pool, W // pool, C).
    """
    n, height, width, c = x.shape
    p, q = height // pool, width // pool
    windows = x[:, : p * pool, : q * pool].reshape(n, p, pool, q, pool, c)
    windows = windows.transpose(0, 1, 3, 5, 2, 4).reshape(n, p, q, c, pool * pool)
    return np.take_along_axis(windows, windows.real.argmax(axis=-1)[..., None], axis=-1)[..., 0]


@_define("x: N ... -> N ...", flops=lambda n: n["N"] * n["..."], backward=1.0)
def relu(x):
    """Replace negative values by 0. Shapes: x (N, ...); result as x."""
    return np.where(x.real > 0, x, 0.0)


@_define("x: N ... -> N ...", flops=lambda n: 2 * n["N"] * n["..."], backward=0.5, rate=(0.0,))
def dropout(x, *, rate=0.0):
    """Set each value to 0 with probability ``rate`` and divide the others by ``1 - rate``.

    Only ``rate=0`` is the same everywhere: backends draw from their own generators.
    Shapes: x (N, ...); result as x.
    """
    if rate:
        raise ValueError("the reference of dropout is defined for rate=0 only")
    return x


@_define(
    "x: N C, gamma: C, beta: C, mean: C, variance: C -> N C",
    flops=lambda n: 8 * n["N"] * n["C"],
    backward=1.5,
    longest_sum=lambda n: n["N"],
    training=(False, True),
)
def batch_norm(x, gamma, beta, mean, variance, *, training=False):
    """Normalise each channel, with the batch's moments in training and the given ones otherwise (Keras, epsilon 1e-3).

    Shapes: x (N, C); gamma, beta, mean, variance (C); result (N, C).
    """
    if training:
        mean = x.mean(axis=0)
        variance = ((x - mean) ** 2).mean(axis=0)
    return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta


@_define("x: N A, y: N B -> N F", flops=lambda n: 0, derive=lambda n, options: {"F": n["A"] + n["B"]})
def concat(x, y):
    """Join along the last axis. Shapes: x (N, A); y (N, B); result (N, A + B)."""
    return np.concatenate([x, y], axis=-1)


@_define("x: N H W C -> N F", flops=lambda n: 0, derive=lambda n, options: {"F": n["H"] * n["W"] * n["C"]})
def flatten(x):
    """Make one axis of all but the first. Shapes: x (N, H, W, C); result (N, H * W * C)."""
    return x.reshape(x.shape[0], -1)


@_define("logits: N K, labels: int32<K N ->", flops=lambda n: 4 * n["N"] * n["K"], backward=0.5,
         longest_sum=lambda n: n["N"] * n["K"])  # fmt: skip
def softmax_cross_entropy(logits, labels):
    """Return the mean over the batch of ``-log softmax(logits)[label]``.

    Shapes: logits (N, K); labels (N) int32; result ().
    """
    shifted = logits - logits.real.max(axis=-1, keepdims=True)
    normaliser = np.log(np.exp(shifted).sum(axis=-1))
    return (normaliser - shifted[np.arange(len(labels)), labels]).mean()


@_define("logits: N, labels: int32<2 N ->", flops=lambda n: 4 * n["N"], backward=0.5, longest_sum=lambda n: n["N"])
def sigmoid_cross_entropy(logits, labels):
    """Return the mean over the batch of the binary cross-entropy of ``sigmoid(logits)``.

    Shapes: logits (N); labels (N) int32, 0 or 1; result ().
    """
    positive = np.where(logits.real > 0, logits, 0.0)
    magnitude = np.where(logits.real > 0, logits, -logits)
    return (positive - logits * labels + np.log1p(np.exp(-magnitude))).mean()
