"""Shapes that others have published times of, so that a map of them stands beside their figures.

These are facts, each with its source. A figure is of another machine, often of years ago, and of what ``covers`` says:
it is shown beside a time of here, and nothing is concluded from the two.

* DeepBench: the training sets of ``code/kernels/*.h``, of which a CPU does one call with gradients in a second at most.
  A product of M x K by K x N is a dense layer of N rows with K inputs and M outputs, which adds a bias. Convolutions
  are those without padding and those of stride 1 whose padding is ``same``; DeepBench holds images as NCHW. Its LSTM
  leaves out the product of the inputs and what belongs to it in the gradient.
* PTB: the LSTM of "Benchmarking State-of-the-Art Deep Learning Software Tools" (arXiv 1608.07249), two layers of 256
  units after an embedding of 256. Both layers have the shape here; the figures are a training step of the whole
  network, with the embedding and the softmax over 10,000 words, from a rerun of that comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shim import cases

DEEPBENCH = "https://github.com/baidu-research/DeepBench"
PTB = "https://arxiv.org/abs/1608.07249"
PTB_RERUN = "https://github.com/guolinke/deep-learning-benchmarks"
BOTH = "forward_backward"


@dataclass(frozen=True)
class Figure:
    """A published time in seconds; ``covers`` says of what. It is shown on maps of ``direction``, on all if None."""

    seconds: float
    device: str
    library: str
    covers: str
    direction: str | None
    source: str


@dataclass(frozen=True)
class Shape:
    """A shape of a list, with what was published about it."""

    dims: Mapping[str, int]
    options: Mapping[str, Any]
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Listed:
    """The shapes of a map that are no grid: a list, so that nothing lies between two of them."""

    name: str
    op: str
    title: str
    source: str
    note: str
    shapes: tuple[Shape, ...]
    axes: tuple[tuple[str, tuple[int, ...]], ...] = ()  # none: see shim.explain.winmap.Grid

    def cells(self, direction: str = BOTH, dtype: str = "float32") -> dict[tuple[int, ...], cases.Case]:
        """Return the case of each shape by its place in the list."""
        return {
            (k,): cases.case(self.op, direction, shape.dims, dtype, **shape.options)
            for k, shape in enumerate(self.shapes)
        }

    def figures(self, point: tuple[int, ...], direction: str) -> list[Figure]:
        """Return what was published about a shape in this direction."""
        return [f for f in self.shapes[point[0]].figures if f.direction in (None, direction)]


def _readme(milliseconds: float, device: str, covers: str, direction: str) -> Figure:
    library = "cuBLAS" if covers == "the product" else "cuDNN"
    return Figure(milliseconds / 1e3, device, library, covers, direction, f"{DEEPBENCH}#training-results")


def _v100(milliseconds: float, covers: str, direction: str) -> Figure:
    library = "cuBLAS" if covers == "the product" else "cuDNN 7.6.2"
    path = f"{DEEPBENCH}/blob/master/results/train/DeepBench_NV_V100.xlsx"
    return Figure(milliseconds / 1e3, "Tesla V100", library, covers, direction, path)


def _gemm(m: int, n: int, k: int, *figures: Figure) -> Shape:
    return Shape({"N": n, "I": k, "O": m}, {}, figures)


def _conv(w: int, h: int, c: int, n: int, k: int, s: int, r: int, *figures: Figure, **options: Any) -> Shape:
    return Shape({"N": n, "H": h, "W": w, "C": c, "R": r, "S": s, "O": k}, options, figures)


def _product(milliseconds: float, device: str) -> Figure:
    if device == "Tesla V100":
        return _v100(milliseconds, "the product", "forward")
    return _readme(milliseconds, device, "the product", "forward")


def _all_three(milliseconds: float, device: str) -> Figure:
    return _readme(milliseconds, device, "forward and both gradients", BOTH)


def _lstm(hidden: int, n: int, t: int, forward: float = 0, of_inputs: float = 0, of_weights: float = 0) -> Shape:
    """Milliseconds of the forward pass and the two parts of its gradient, on a V100."""
    figures = [_v100(forward, "forward, without the product of the inputs", "forward")] if forward else []
    if of_inputs:
        both = round(forward + of_inputs + of_weights, 3)
        figures.append(_v100(both, "forward and gradients, without the product of the inputs", BOTH))
    return Shape({"N": n, "T": t, "I": hidden, "H": hidden}, {"return_sequences": True}, tuple(figures))


def _ptb(n: int, t: int, **seconds: float) -> Shape:
    figures = tuple(
        Figure(value, "Tesla K40m", library, "a training step of the whole network", None, PTB_RERUN)
        for library, value in seconds.items()
    )
    return Shape({"N": n, "T": t, "I": 256, "H": 256}, {"return_sequences": True}, figures)


_SAME: dict[str, Any] = {"padding": "same"}
_NOTE = (
    "A selection of its training set that a CPU computes in a second; figures are of other machines, for orientation."
)

_ALL = (
    Listed(
        "deepbench", "dense", "DeepBench, products", f"{DEEPBENCH}/blob/master/code/kernels/gemm_problems.h",
        f"{_NOTE} Ours adds a bias.",
        (
            _gemm(1760, 16, 1760, _product(0.038, "Tesla V100")),
            _gemm(1760, 32, 1760),
            _gemm(1760, 64, 1760),
            _gemm(1760, 128, 1760, _product(0.10, "GTX 1080 Ti")),
            _gemm(2048, 16, 2048),
            _gemm(2048, 64, 2048),
            _gemm(2048, 128, 2048, _product(0.106, "Tesla V100")),
            _gemm(2560, 16, 2560),
            _gemm(2560, 64, 2560, _product(0.16, "Tesla P100")),
            _gemm(3072, 16, 1024),
            _gemm(3072, 128, 1024),
            _gemm(512, 16, 512),
            _gemm(1024, 16, 512),
            _gemm(1024, 700, 512),
        ),
    ),
    Listed(
        "deepbench", "conv2d", "DeepBench, convolutions", f"{DEEPBENCH}/blob/master/code/kernels/conv_problems.h",
        f"{_NOTE} DeepBench holds images as NCHW, ours are NHWC, with a bias.",
        (
            _conv(480, 48, 1, 16, 16, 3, 3, **_SAME),
            _conv(240, 24, 16, 16, 32, 3, 3, **_SAME),
            _conv(120, 12, 32, 16, 64, 3, 3, **_SAME),
            _conv(60, 6, 64, 16, 128, 3, 3, **_SAME),
            _conv(54, 54, 64, 8, 64, 3, 3, _all_three(0.64, "Titan Xp"), **_SAME),
            _conv(27, 27, 128, 8, 128, 3, 3, **_SAME),
            _conv(14, 14, 128, 8, 256, 3, 3, **_SAME),
            _conv(7, 7, 256, 8, 512, 3, 3, **_SAME),
            _conv(7, 7, 512, 16, 512, 3, 3, _all_three(1.37, "GTX 1080 Ti"), **_SAME),
            _conv(28, 28, 192, 16, 32, 5, 5, _all_three(1.57, "Titan X (Pascal)"), **_SAME),
            _conv(28, 28, 192, 16, 64, 1, 1),
            _conv(14, 14, 512, 16, 192, 1, 1),
            _conv(7, 7, 832, 16, 256, 1, 1),
            _conv(700, 161, 1, 4, 32, 20, 5, stride=2),
        ),
    ),
    Listed(
        "deepbench", "lstm", "DeepBench, LSTMs", f"{DEEPBENCH}/blob/master/code/kernels/rnn_problems.h",
        f"{_NOTE} Ours includes the product of the inputs, as wide as the state, and the gradient of the input.",
        (
            _lstm(512, 16, 25, 1.095, 0.937, 0.165),
            _lstm(512, 32, 25),
            _lstm(512, 64, 25, 1.34),
            _lstm(512, 128, 25, 1.559, 1.594, 0.703),
            _lstm(1024, 16, 25),
            _lstm(1024, 32, 25, 1.978, 1.746, 0.698),
            _lstm(256, 16, 150, 4.542, 5.073, 0.221),
            _lstm(256, 32, 150),
            _lstm(256, 64, 150, 6.700, 5.802, 0.605),
        ),
    ),
    Listed(
        "ptb", "lstm", "The LSTM of arXiv 1608.07249", PTB,
        "One of its two layers, which have the same shape. Figures are of other machines, and of a training step of "
        "the whole network, from a rerun of 2016 with cuDNN 5.1; the paper's own tables are not here.",
        (
            _ptb(64, 32),
            _ptb(128, 32, **{"CNTK 1.7.1": 0.076, "Theano 0.8": 0.103, "TensorFlow 0.10": 0.109, "Torch 7": 0.163}),
            _ptb(256, 32),
            _ptb(64, 64),
            _ptb(128, 64, **{"CNTK 1.7.1": 0.147, "Theano 0.8": 0.200, "TensorFlow 0.10": 0.212, "Torch 7": 0.318}),
            _ptb(256, 64),
        ),
    ),
)  # fmt: skip

LISTS = {(listed.name, listed.op): listed for listed in _ALL}
NAMES = tuple(dict.fromkeys(name for name, _ in LISTS))
