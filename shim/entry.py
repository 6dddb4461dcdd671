"""What an entry of the contract is: an op with its arguments, its options, its work, and the complex step over it."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Dims = dict[str, int]
DIRECTIONS = ("forward", "forward_backward")
#: Forward and the gradients of all float arguments but the first: what the layer next to the data needs in training.
WEIGHTS = "weight_gradients"
HALVES = ("float16", "bfloat16")
FLOATS = ("float32", "float64", *HALVES)


@dataclass(frozen=True)
class Argument:
    """One argument of an op: its axes and, for integers, the axis that bounds them."""

    name: str
    axes: tuple[str, ...]
    below: str | None = None

    @property
    def is_float(self) -> bool:
        return self.below is None


@dataclass(frozen=True)
class Work:
    """The least work of one call: floating-point operations (a multiply-add is two) and bytes moved."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Op:
    """A contract entry."""

    name: str
    reference: Callable[..., np.ndarray]
    arguments: tuple[Argument, ...]
    result: str
    options: Mapping[str, Sequence[Any]]
    derive: Callable[[Dims, Mapping[str, Any]], Dims]
    forward_flops: Callable[[Dims], float]
    backward_flops: Callable[[Dims], float]
    longest_sum: Callable[[Dims], float]

    @property
    def has_weights(self) -> bool:
        """Whether the first argument is data and others, floats too, follow."""
        return self.arguments[0].is_float and sum(a.is_float for a in self.arguments) > 1

    def defaults(self) -> dict[str, Any]:
        """Return every option with its default value."""
        signature = inspect.signature(self.reference)
        return {name: signature.parameters[name].default for name in self.options}

    def dims(self, shapes: Sequence[Sequence[int]]) -> Dims:
        """Solve the axes from the shapes of the arguments; raise ``ValueError`` where they disagree."""
        if len(shapes) != len(self.arguments):
            names = ", ".join(a.name for a in self.arguments)
            raise ValueError(f"{self.name} takes {len(self.arguments)} arguments ({names}), got {len(shapes)}")
        dims: Dims = {}
        for argument, shape in zip(self.arguments, shapes, strict=True):
            axes, shape = argument.axes, tuple(shape)
            if axes[-1] == "...":
                shape = (*shape[: len(axes) - 1], math.prod(shape[len(axes) - 1 :]))
            if len(axes) != len(shape) or not all(
                dims.setdefault(axis.lstrip("4"), length // _factor(axis)) * _factor(axis) == length
                for axis, length in zip(axes, shape, strict=True)
            ):
                known = ", ".join(f"{k}={v}" for k, v in dims.items())
                raise ValueError(
                    f"{self.name}: {argument.name} has shape {tuple(shape)}, "
                    f"expected ({', '.join(argument.axes)}) with {known}"
                )
        return dims

    def shape(self, axes: str | Sequence[str], dims: Dims) -> tuple[int, ...]:
        """Return the lengths of ``axes``, written as in the shape string."""
        axes = axes.split() if isinstance(axes, str) else axes
        return tuple(dims[axis.lstrip("4")] * _factor(axis) for axis in axes)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise ``ValueError`` for an unknown option or a value outside its choices."""
        for name, value in options.items():
            if name not in self.options:
                raise ValueError(f"{self.name} has no option {name!r}; it has: {', '.join(self.options) or 'none'}")
            if not _is_choice(value, self.options[name]):
                choices = ", ".join(map(repr, self.options[name]))
                raise ValueError(f"{self.name}: {name}={value!r} is not one of {choices}")

    def check(self, args: Sequence[Any], options: Mapping[str, Any], to_numpy: Callable[[Any], np.ndarray]) -> None:
        """Raise ``ValueError`` unless ``args`` and ``options`` are what this op takes, ids in range included."""
        self.check_options(options)
        for argument, value in zip(self.arguments, args, strict=False):
            if not hasattr(value, "shape") or not hasattr(value, "dtype"):
                raise ValueError(f"{self.name}: {argument.name} is a {type(value).__name__}; pass an array (to_device)")
        dims = self.dims([value.shape for value in args])
        kinds = {a.name: dtype_name(v) for a, v in zip(self.arguments, args, strict=True)}
        floats = {kinds[a.name] for a in self.arguments if a.is_float}
        if len(floats) > 1 or not floats <= set(FLOATS):
            listed = ", ".join(f"{a.name} {kinds[a.name]}" for a in self.arguments if a.is_float)
            raise ValueError(f"{self.name}: all float arguments must share one of {', '.join(FLOATS)}; got {listed}")
        for argument, value in zip(self.arguments, args, strict=True):
            if argument.below is None:
                continue
            if kinds[argument.name] != "int32":
                raise ValueError(f"{self.name}: {argument.name} must be int32, got {kinds[argument.name]}")
            limit, ids = dims.get(argument.below, 2), to_numpy(value)
            wrong = (ids < 0) | (ids >= limit)
            if wrong.any():
                where = tuple(int(i) for i in np.argwhere(wrong)[0])
                place = f"{argument.name}[{', '.join(map(str, where))}]"
                raise ValueError(f"{self.name}: {place} = {ids[where]} is outside 0..{limit - 1}")

    def result_shape(self, dims: Dims, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the shape of the result."""
        return self.shape(self.result_axes(options), self.all_dims(dims, options))

    def result_axes(self, options: Mapping[str, Any]) -> str:
        """Return the axes of the result: ``A | B`` in the shape string is B with ``return_sequences``."""
        last, _, sequences = self.result.partition(" | ")
        return sequences if sequences and {**self.defaults(), **options}["return_sequences"] else last

    def all_dims(self, dims: Dims, options: Mapping[str, Any]) -> Dims:
        """Return ``dims`` with the axes of the result that follow from them."""
        return dims | self.derive(dims, {**self.defaults(), **options})

    def work(self, dims: Dims, options: Mapping[str, Any], direction: str, itemsize: int = 4) -> Work:
        """Count the least work of one call.

        Bytes are those of the arguments read and the results written once each; of a table only the gathered rows
        are read, while its dense gradient is written whole. The backward pass reads the arguments and the output
        gradient again and writes one gradient for each float argument; without that of the first, half of its
        operations are left.
        """
        full = self.all_dims(dims, options)
        result = math.prod(self.result_shape(dims, options))
        sizes = {a.name: math.prod(self.shape(a.axes, dims)) for a in self.arguments}
        gathered = {
            name: min(size, sizes.get("ids", 0) * dims.get("D", 0)) for name, size in sizes.items() if name == "table"
        }
        read = sum((sizes | gathered).values())
        forward = Work(self.forward_flops(full), float(itemsize * (read + result)))
        if direction == "forward":
            return forward
        first = 1 if direction == WEIGHTS else 0
        written = sum(sizes[a.name] for a in self.arguments[first:] if a.is_float)
        saved = sum(size for name, size in sizes.items() if name not in gathered)
        return Work(
            forward.flops + self.backward_flops(full) * (0.5 if first else 1.0),
            forward.bytes + itemsize * (saved + result + written),
        )


def check_dtype(name: str) -> None:
    """Raise ``ValueError`` unless ``name`` is one of :data:`FLOATS`; from then on NumPy knows it."""
    if name not in FLOATS:
        raise ValueError(f"unknown dtype {name!r}; the dtypes are: {', '.join(FLOATS)}")
    if name == "bfloat16":
        try:
            importlib.import_module("ml_dtypes")  # which tells NumPy
        except ImportError:
            raise ValueError("NumPy has bfloat16 from the package ml_dtypes; run: pip install ml_dtypes") from None


def dtype_name(array: Any) -> str:
    """Return the plain name of an array's dtype, ``float32`` for NumPy, TensorFlow, JAX and torch alike."""
    return getattr(array.dtype, "name", None) or str(array.dtype).rpartition(".")[2]


def reference_vjp(f: Callable[..., np.ndarray], args: Sequence[np.ndarray], dy: np.ndarray) -> list[np.ndarray]:
    """Return the gradient of ``sum(f(*args) * dy)`` for each float argument, exact to rounding (complex step)."""

    def derivative(k: int, index: tuple[int, ...]) -> float:
        moved = list(args)
        moved[k] = args[k].astype(complex)
        moved[k][index] += 1e-30j
        return float((f(*moved).imag * dy).sum() / 1e-30)

    return [
        np.reshape([derivative(k, i) for i in np.ndindex(a.shape)], a.shape)
        for k, a in enumerate(args)
        if a.dtype.kind == "f"
    ]


def reference_directional(
    f: Callable[..., np.ndarray], args: Sequence[np.ndarray], dy: np.ndarray, directions: Sequence[np.ndarray]
) -> list[float]:
    """Return ``<gradient, direction>`` for each float argument: one evaluation each, whatever the size.

    ``directions`` holds one array per float argument. This is how gradients are checked at full size.
    """
    products = []
    floats = [k for k, a in enumerate(args) if a.dtype.kind == "f"]
    for k, direction in zip(floats, directions, strict=True):
        moved = list(args)
        moved[k] = args[k] + 1e-30j * direction
        products.append(float((f(*moved).imag * dy).sum() / 1e-30))
    return products


def _is_choice(value: Any, choices: Sequence[Any]) -> bool:
    if isinstance(choices, range):  # any whole number from its start; the range itself is what the tests cover
        return type(value) is int and value >= choices.start
    if isinstance(choices[0], float):  # a rate
        return isinstance(value, (int, float)) and 0 <= value < 1
    return any(type(value) is type(choice) and value == choice for choice in choices)


def _factor(axis: str) -> int:
    return 4 if axis.startswith("4") else 1


def parse_argument(text: str) -> Argument:
    name, _, axes = text.strip().partition(": ")
    kind, *rest = axes.split()
    if kind.startswith("int32<"):
        return Argument(name, tuple(rest), below=kind.removeprefix("int32<"))
    return Argument(name, tuple(axes.split()))
