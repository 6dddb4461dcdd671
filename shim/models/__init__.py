"""The models, each described once: a function of the ops with its weights, loss, optimizer and data.

A model is one file in this folder that defines ``MODEL``. Its ``apply`` calls nothing but ``ops.<contract op>`` with
options by keyword, and indexes at most ``[:, 0]``, so that it runs on every backend. The initial weights are drawn
once in NumPy: no backend draws its own.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from shim import cases, contract
from shim.models.optimizers import Optimizer

_NOT_MODELS = ("initializers", "optimizers")


@dataclass(frozen=True)
class Model:
    """One model with everything that its training needs.

    ``apply(ops, params, inputs)`` returns the logits, (N, K) for ``softmax_cross_entropy`` and (N) for
    ``sigmoid_cross_entropy``. ``weights(rng)`` draws the initial float64 weights, ``sample(rng, size)`` a made-up
    batch with the shapes and the range of real inputs. With ``dropout`` false, trainers take every rate as 0.
    """

    name: str
    apply: Callable[[Any, Mapping[str, Any], Any], Any]
    weights: Callable[[np.random.Generator], dict[str, np.ndarray]]
    sample: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    loss: str
    optimizer: Optimizer
    data: str
    batch_size: int
    epochs: int
    dropout: bool = True

    def initial(self, seed: int = 0, dtype: str = "float32") -> dict[str, np.ndarray]:
        """Return the initial weights: drawn in float64, then cast, so that dtypes start from the same point."""
        return {name: value.astype(dtype) for name, value in self.weights(np.random.default_rng(seed)).items()}

    def batch(self, seed: int = 0, dtype: str = "float32", size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return a made-up batch of inputs, in ``dtype`` unless they are ids, and int32 labels."""
        x, labels = self.sample(np.random.default_rng(seed), self.batch_size if size is None else size)
        return x.astype("int32" if x.dtype.kind == "i" else dtype), labels.astype("int32")


def names() -> tuple[str, ...]:
    """Return the name of every model."""
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_MODELS)


def load(name: str, **changes: Any) -> Model:
    """Return a model, with ``changes`` to its fields such as ``dropout=False`` or ``epochs=2``.

    Raises ``ValueError`` with the choices for an unknown model or field.
    """
    if name not in names():
        raise ValueError(f"unknown model {name!r}; the models are: {', '.join(names())}")
    model: Model = importlib.import_module(f"shim.models.{name}").MODEL
    fields = [field.name for field in dataclasses.fields(Model)]
    for change in changes:
        if change not in fields:
            raise ValueError(f"a model has no {change!r}; it has: {', '.join(fields)}")
    return dataclasses.replace(model, **changes)


@dataclass(frozen=True)
class _Symbol:
    """An array that has a shape and a dtype but no values."""

    shape: tuple[int, ...]
    dtype: Any

    def __getitem__(self, index: Any) -> _Symbol:
        return _Symbol(np.broadcast_to(np.empty(()), self.shape)[index].shape, self.dtype)


def record(
    model: Model, direction: str = "forward_backward", size: int | None = None, dtype: str = "float32"
) -> list[cases.Case]:
    """List the ops that one batch of a model calls, its loss last, as cases with their shapes, options and work."""
    calls: list[cases.Case] = []

    def recorder(entry: contract.Op) -> Callable[..., _Symbol]:
        def call(*args: Any, **options: Any) -> _Symbol:
            dims = entry.dims([a.shape for a in args])
            calls.append(cases.case(entry.name, direction, dims, dtype, **options))
            return _Symbol(_result_shape(entry, args, dims, options), np.dtype(dtype))

        return call

    ops = SimpleNamespace(**{name: recorder(entry) for name, entry in contract.OPS.items()})
    if not model.dropout:
        ops.dropout = lambda x, *, rate=0.0: x
    params = {name: _Symbol(value.shape, value.dtype) for name, value in model.initial(dtype=dtype).items()}
    x, labels = (_Symbol(value.shape, value.dtype) for value in model.batch(0, dtype, size))
    getattr(ops, model.loss)(model.apply(ops, params, x), labels)
    return calls


def _result_shape(entry: contract.Op, args: Any, dims: contract.Dims, options: Mapping[str, Any]) -> tuple[int, ...]:
    if entry.result.endswith("..."):  # the dims hold only the product of those axes
        return tuple(args[0].shape)
    return entry.result_shape(dims, options)
