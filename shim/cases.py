"""Cases and case sets: which op or model, at which shape, with which options, dtype and direction.

A case has a stable id, ``op/direction/shape/dtype``, such as ``lstm/forward_backward/N32-T100-I128-H64/float32``;
options that differ from the default follow the shape (``...-O64-padding=same/float32``). Ids are what run files,
result histories and commands use, so shapes are only ever added here, never changed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shim import contract

TRAIN_STEP, PREDICT = "train_step", "predict"
OPTIMIZER_STEP = "optimizer_step"  # the optimizer alone, with gradients that are there already
GRADIENTS = "gradients"  # a training step without its optimizer: all ops of a batch, with their gradients
MODEL_DIRECTIONS = (TRAIN_STEP, PREDICT, OPTIMIZER_STEP, GRADIENTS)


@dataclass(frozen=True)
class Case:
    """One thing to measure. ``op`` is the name of an op, or of a model if the direction is one of a model."""

    op: str
    direction: str
    dims: tuple[tuple[str, int], ...]
    options: tuple[tuple[str, Any], ...] = ()
    dtype: str = "float32"

    @property
    def is_model(self) -> bool:
        return self.direction in MODEL_DIRECTIONS

    @property
    def trains(self) -> bool:
        return self.direction == TRAIN_STEP

    @property
    def shape(self) -> str:
        """The shape and options as they stand in the id."""
        parts = [f"{axis}{length}" for axis, length in self.dims]
        return "-".join(parts + [f"{name}={value}" for name, value in self.options])

    @property
    def id(self) -> str:
        return f"{self.op}/{self.direction}/{self.shape}/{self.dtype}"

    def __str__(self) -> str:
        return self.id

    def arrays(self, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
        """Draw the arguments and the output gradient, the same ones for every backend.

        Values are scaled so that results stay near 1. Ids repeat, and the first row of ids is all 0 where there is
        more than one, so that a padding id meets a row of nothing else.
        """
        entry = contract.op(self.op)
        dims, options = dict(self.dims), dict(self.options)
        rng = np.random.default_rng([seed, zlib.crc32(self.shape.encode())])
        args = [
            _draw(rng, argument, entry.shape(argument.axes, dims), dims, self.dtype) for argument in entry.arguments
        ]
        dy = rng.standard_normal(entry.result_shape(dims, options)).astype(self.dtype)
        return args, dy

    def work(self) -> contract.Work:
        """Return the least work of one call; ``ValueError`` for a model."""
        itemsize = np.dtype(self.dtype).itemsize
        return contract.op(self.op).work(dict(self.dims), dict(self.options), self.direction, itemsize)


def _draw(
    rng: np.random.Generator, argument: contract.Argument, shape: tuple[int, ...], dims: contract.Dims, dtype: str
) -> np.ndarray:
    if argument.below is not None:
        ids = rng.integers(0, dims.get(argument.below, 2), shape, dtype=np.int32)
        if ids.ndim == 2 and len(ids) > 1:
            ids[0] = 0
        return ids
    if argument.name == "variance":
        return rng.uniform(0.5, 1.5, shape).astype(dtype)
    scale = 1.0
    if argument.name.startswith("w"):
        scale = np.prod(shape[:-1]) ** -0.5
    elif len(shape) == 1:
        scale = 0.1
    return (scale * rng.standard_normal(shape)).astype(dtype)


def case(op: str, direction: str, dims: Mapping[str, int], dtype: str = "float32", **options: Any) -> Case:
    """Make a case of an op, its axes and options in the contract's order and default options left out."""
    entry = contract.op(op)
    entry.check_options(options)
    order = list(dict.fromkeys(axis.lstrip("4") for a in entry.arguments for axis in _axes(a)))
    if set(dims) != set(order):
        raise ValueError(f"{op} has the axes {', '.join(order)}; got {', '.join(dims)}")
    directions = (*contract.DIRECTIONS, contract.WEIGHTS) if entry.has_weights else contract.DIRECTIONS
    if direction not in directions:
        raise ValueError(f"unknown direction {direction!r}; the directions are: {', '.join(directions)}")
    contract.check_dtype(dtype)
    chosen = tuple(
        (name, options[name])
        for name in entry.options
        if options.get(name, default := entry.defaults()[name]) != default
    )
    return Case(op, direction, tuple((axis, int(dims[axis])) for axis in order), chosen, dtype)


def _axes(argument: contract.Argument) -> Iterable[str]:
    bound = [argument.below] if argument.below and argument.below.isalpha() else []
    return [*argument.axes, *bound]


def parse(id: str) -> Case:
    """Return the case with this id; raise ``ValueError`` saying what is wrong with it."""
    parts = id.split("/")
    if len(parts) != 4:
        raise ValueError(f"case {id!r} is not of the form op/direction/shape/dtype")
    op, direction, shape, dtype = parts
    dims: dict[str, int] = {}
    options: dict[str, Any] = {}
    for token in shape.split("-"):
        if match := re.fullmatch(r"([A-Z]|\.\.\.)([1-9]\d*)", token):
            dims[match[1]] = int(match[2])
        elif match := re.fullmatch(r"([a-z_]+)=([\w.]+)", token):
            options[match[1]] = literal(match[2])
        else:
            raise ValueError(f"case {id!r}: cannot read {token!r}; axes look like N32, options like padding=same")
    if direction in MODEL_DIRECTIONS:
        if set(dims) != {"N"}:
            raise ValueError(f"a model has the axis N; got {', '.join(dims)}")
        return of_model(op, direction, dims["N"], dtype, options)
    return case(op, direction, dims, dtype, **options)


def literal(text: str) -> Any:
    """Return the value of an option as it stands in an id: True, False, None, a number or a word."""
    constants = {"True": True, "False": False, "None": None}
    if re.fullmatch(r"\d+\.\d+", text):
        return float(text)
    return constants[text] if text in constants else int(text) if text.isdigit() else text


RELU = {"activation": "relu"}
SAME_RELU = {"padding": "same", "activation": "relu"}

# The layers of the article's models with their batch sizes, in the order of the network.
ARTICLE: dict[str, tuple[tuple[str, dict[str, int], dict[str, Any]], ...]] = {
    "imdb_bidirectional_lstm": (
        ("embedding", {"N": 32, "T": 100, "V": 20000, "D": 128}, {}),
        ("bilstm", {"N": 32, "T": 100, "I": 128, "H": 64}, {}),
        ("dense", {"N": 32, "I": 128, "O": 1}, {}),
    ),
    "imdb_fasttext": (
        ("embedding_average", {"N": 32, "T": 400, "V": 1205419, "D": 50}, {}),
        ("embedding_average", {"N": 32, "T": 400, "V": 20000, "D": 50}, {}),
        ("dense", {"N": 32, "I": 50, "O": 1}, {}),
    ),
    "mnist_mlp": (
        ("dense", {"N": 128, "I": 784, "O": 512}, RELU),
        ("dense", {"N": 128, "I": 512, "O": 512}, RELU),
        ("dense", {"N": 128, "I": 512, "O": 10}, {}),
    ),
    "mnist_cnn": (
        ("conv2d", {"N": 128, "H": 28, "W": 28, "C": 1, "R": 3, "S": 3, "O": 32}, RELU),
        ("conv2d", {"N": 128, "H": 26, "W": 26, "C": 32, "R": 3, "S": 3, "O": 64}, RELU),
        ("max_pool2d", {"N": 128, "H": 24, "W": 24, "C": 64}, {}),
        ("dense", {"N": 128, "I": 9216, "O": 128}, RELU),
        ("dense", {"N": 128, "I": 128, "O": 10}, {}),
    ),
    "cifar10_cnn": (
        ("conv2d", {"N": 32, "H": 32, "W": 32, "C": 3, "R": 3, "S": 3, "O": 32}, SAME_RELU),
        ("conv2d", {"N": 32, "H": 32, "W": 32, "C": 32, "R": 3, "S": 3, "O": 32}, RELU),
        ("max_pool2d", {"N": 32, "H": 30, "W": 30, "C": 32}, {}),
        ("conv2d", {"N": 32, "H": 15, "W": 15, "C": 32, "R": 3, "S": 3, "O": 64}, SAME_RELU),
        ("conv2d", {"N": 32, "H": 15, "W": 15, "C": 64, "R": 3, "S": 3, "O": 64}, RELU),
        ("max_pool2d", {"N": 32, "H": 13, "W": 13, "C": 64}, {}),
        ("dense", {"N": 32, "I": 2304, "O": 512}, RELU),
        ("dense", {"N": 32, "I": 512, "O": 10}, {}),
    ),
    "lstm_text_generation": (
        ("lstm", {"N": 128, "T": 40, "I": 57, "H": 128}, {}),
        ("dense", {"N": 128, "I": 128, "O": 57}, {}),
    ),
    "text_generator": (
        ("embedding", {"N": 128, "T": 40, "V": 57, "D": 300}, {}),
        ("lstm", {"N": 128, "T": 40, "I": 300, "H": 128}, {}),
        ("dense", {"N": 128, "I": 128, "O": 57}, {}),
        ("dense", {"N": 128, "I": 128, "O": 512}, {}),
        ("dense", {"N": 128, "I": 512, "O": 256}, {}),
        ("dense", {"N": 128, "I": 256, "O": 57}, {}),
    ),
}  # fmt: skip

# One small case an op, odd sizes, for a comparison in seconds.
SMOKE: tuple[tuple[str, dict[str, int], dict[str, Any]], ...] = (
    ("dense", {"N": 5, "I": 7, "O": 3}, RELU),
    ("conv2d", {"N": 3, "H": 7, "W": 5, "C": 3, "R": 3, "S": 3, "O": 5}, {"padding": "same"}),
    ("lstm", {"N": 3, "T": 5, "I": 7, "H": 5}, {}),
    ("embedding_average", {"N": 5, "T": 7, "V": 11, "D": 3}, {}),
)
# The training steps of all seven models, small enough that each backend does one in a fraction of a second.
SCALED: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("mnist_mlp", 128, {}),
    ("mnist_cnn", 32, {}),
    ("cifar10_cnn", 16, {}),
    ("imdb_bidirectional_lstm", 32, {}),
    ("imdb_fasttext", 32, {"pairs": 100_000}),
    ("lstm_text_generation", 32, {}),
    ("text_generator", 32, {}),
)
SCALED_LAYERS = ("mnist_mlp", "imdb_bidirectional_lstm")  # the cheap ones; the others are in the set article
SETS = ("article", "models", "scaled", "smoke")


def case_set(name: str, models: Iterable[str] = (), dtype: str = "float32") -> list[Case]:
    """Return the cases of a set, each layer once and forward before forward+backward.

    ``models`` keeps only the layers or the training steps of these models; none given means all. In the set ``models``,
    a model may be a variant such as ``imdb_fasttext-ngrams=1``.
    Raises ``ValueError`` for an unknown set or model.
    """
    models = tuple(models)
    if name == "models":
        return _train_steps(models, dtype)
    if name == "scaled":
        return _scaled(models, dtype)
    if name == "smoke":
        layers = list(SMOKE)
    elif name == "article":
        for model in models:
            if model not in ARTICLE:
                raise ValueError(f"unknown model {model!r}; the models are: {', '.join(ARTICLE)}")
        layers = [layer for model in models or ARTICLE for layer in ARTICLE[model]]
    else:
        raise ValueError(f"unknown case set {name!r}; the sets are: {', '.join(SETS)}")
    cases = [case(op, d, dims, dtype, **options) for op, dims, options in layers for d in contract.DIRECTIONS]
    return list(dict.fromkeys(cases))


def _train_steps(chosen: tuple[str, ...], dtype: str) -> list[Case]:
    from shim import models

    return [of_model(name, TRAIN_STEP, None, dtype, {}) for name in chosen or models.names()]


def _scaled(chosen: tuple[str, ...], dtype: str) -> list[Case]:
    """Return the layers of two models and the training steps of all, or what belongs to the chosen models."""
    names = [name for name, _, _ in SCALED]
    for name in chosen:
        if name not in names:
            raise ValueError(f"unknown model {name!r}; the models are: {', '.join(names)}")
    steps = [of_model(m, TRAIN_STEP, n, dtype, options) for m, n, options in SCALED if not chosen or m in chosen]
    layers = [name for name in SCALED_LAYERS if not chosen or name in chosen]
    return [*(case_set("article", layers, dtype) if layers else []), *steps]


def of_model(name: str, direction: str, batch_size: int | None, dtype: str, options: Mapping[str, Any]) -> Case:
    """Make a case of a model; options that are the default are left out. ``ValueError`` for unknown ones."""
    from shim import models

    model = models.load(name, **options)
    contract.check_dtype(dtype)
    return Case(model.name, direction, (("N", batch_size or model.batch_size),), model.options, dtype)
