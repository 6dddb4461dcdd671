"""The models, each described once: a function of the ops with its weights, loss, optimizer and data.

A model is one file in this folder that defines ``MODEL``. Its ``apply`` calls nothing but ``ops.<contract op>`` with
options by keyword, and indexes at most ``[:, 0]``, so that it runs on every backend. The initial weights are drawn
once in NumPy: no backend draws its own.

A model that comes in variants also defines ``OPTIONS``, the choices of each option with the default first, and
``build(**options)``. A variant is written as in case ids: ``imdb_fasttext-ngrams=1``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import operator
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from shim import cases, contract
from shim.models.optimizers import Optimizer

_NOT_MODELS = ("initializers", "optimizers")
#: What is left of a moving moment of batch_norm after a step, Keras' default; the batch's moment makes up the rest.
MOMENTUM = 0.99


def _unchanged(x: np.ndarray) -> np.ndarray:
    return x


@dataclass(frozen=True)
class Model:
    """One model with everything that its training needs.

    ``apply(ops, params, inputs)`` returns the logits, (N, K) for ``softmax_cross_entropy`` and (N) for
    ``sigmoid_cross_entropy``. ``weights(rng)`` draws the initial float64 weights, ``sample(rng, size)`` a made-up
    batch with the shapes and the range of real inputs. With ``dropout`` false, trainers take every rate as 0.

    ``loss`` may also be several pairs (name, weight); ``apply`` then returns as many logits. Their weighted sum is
    trained; the first head is the model's result, whose loss and predictions are reported.

    Not every weight is trained: ``constants`` names those that never change, ``moments`` the moving mean and variance
    of each ``batch_norm``, in the order of the calls. In training they follow the batch's moments (:data:`MOMENTUM`).

    ``data`` is a data set with ``data_options`` for its loader. ``prepare(x)`` makes inputs of a batch of it, after
    ``augment(x, rng)`` in training; both run on the host, on NumPy arrays.

    With ``table_gradient="rows"`` the gradient of a table that ``embedding`` or ``embedding_average`` looks up is that
    of the rows in the batch, duplicates summed, and a step moves those rows alone. Plain descent does the same with a
    dense gradient; the other optimizers move every row at every step, so they have none of rows (:func:`with_rows`).
    """

    name: str
    apply: Callable[[Any, Mapping[str, Any], Any], Any]
    weights: Callable[[np.random.Generator], dict[str, np.ndarray]]
    sample: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    loss: str | tuple[tuple[str, float], ...]
    optimizer: Optimizer
    data: str
    batch_size: int
    epochs: int
    dropout: bool = True
    data_options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[np.ndarray], np.ndarray] = _unchanged
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None
    constants: tuple[str, ...] = ()
    moments: tuple[tuple[str, str], ...] = ()
    table_gradient: str = "dense"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """The name with the options that are not the default, as :func:`load` reads it."""
        return "-".join([self.name, *(f"{option}={value}" for option, value in self.options)])

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
    """Return a model, with ``changes`` to its options or its fields such as ``dropout=False`` or ``epochs=2``.

    Options may also follow the name: ``imdb_fasttext-ngrams=1``. Raises ``ValueError`` with the choices for an unknown
    model, option or field.
    """
    name, *parts = name.split("-")
    if name not in names():
        raise ValueError(f"unknown model {name!r}; the models are: {', '.join(names())}")
    changes = {option: cases.literal(value) for option, _, value in (p.partition("=") for p in parts)} | changes
    module = importlib.import_module(f"shim.models.{name}")
    choices: dict[str, Sequence[Any]] = getattr(module, "OPTIONS", {})
    fields = [f.name for f in dataclasses.fields(Model)]
    for change, value in changes.items():
        if change not in (*choices, *fields):
            raise ValueError(f"{name} has no {change!r}; it has: {', '.join(dict.fromkeys((*choices, *fields)))}")
        if change in choices and value not in choices[change]:
            raise ValueError(f"{name}: {change}={value!r} is not one of {', '.join(map(repr, choices[change]))}")
    chosen = {o: changes[o] for o, values in choices.items() if changes.get(o, values[0]) != values[0]}
    model: Model = module.build(**chosen) if chosen else module.MODEL
    changed = {change: value for change, value in changes.items() if change not in choices}
    model = dataclasses.replace(model, **changed, options=tuple(chosen.items()))
    with_rows(model, model.optimizer)
    return model


def with_rows(model: Model, optimizer: Optimizer) -> bool:
    """Return whether steps move only the rows of tables that a batch uses.

    Raises ``ValueError`` if the model asks for it and the optimizer moves every row at every step.
    """
    if model.table_gradient == "rows" and optimizer.name != "sgd":
        raise ValueError(
            f"{model.name}: table_gradient='rows' goes with optimizer='sgd'; {optimizer.name} moves every row at every "
            f"step; write {model.name}-optimizer=sgd-table_gradient=rows"
        )
    return model.table_gradient == "rows"


def trained(model: Model, params: Mapping[str, Any]) -> list[str]:
    """Return the names of the weights that the optimizer moves, in their order."""
    others = {*model.constants, *(name for pair in model.moments for name in pair)}
    return [name for name in params if name not in others]


def logits(model: Model, ops: Any, params: Mapping[str, Any], x: Any) -> Any:
    """Return the logits of the main head."""
    outputs = model.apply(ops, params, x)
    return outputs if isinstance(model.loss, str) else outputs[0]


def losses(
    model: Model, ops: Any, params: Mapping[str, Any], x: Any, labels: Any
) -> tuple[Any, list[tuple[Any, float]]]:
    """Return the logits of the main head, and each head's loss with its weight, the main one first."""
    outputs = model.apply(ops, params, x)
    if isinstance(model.loss, str):
        return outputs, [(getattr(ops, model.loss)(outputs, labels), 1.0)]
    heads = zip(model.loss, outputs, strict=True)
    return outputs[0], [(getattr(ops, name)(logits, labels), weight) for (name, weight), logits in heads]


def weighted(losses: Sequence[tuple[Any, float]]) -> Any:
    """Return the weighted sum of losses; a weight of 1 multiplies nothing."""
    return functools.reduce(operator.add, (loss if weight == 1 else weight * loss for loss, weight in losses))


def gradients(model: Model, params: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Draw small gradients for the trained weights, to try an optimizer on.

    That of a table is zero outside as many rows as a batch looks up.
    """
    rng = np.random.default_rng(seed)
    found = {
        name: (1e-2 * rng.standard_normal(params[name].shape, np.float32)).astype(params[name].dtype)
        for name in trained(model, params)
    }
    for name, rows in _lookups(model, params).items():
        if name in found and len(found[name]) > rows:
            at_rest = np.ones(len(found[name]), bool)
            at_rest[rng.choice(len(at_rest), rows, replace=False)] = False
            found[name][at_rest] = 0
    return found


@dataclass(frozen=True)
class _Symbol:
    """An array that has a shape and a dtype but no values; ``moves`` if it depends on a trained weight."""

    shape: tuple[int, ...]
    dtype: Any
    name: str | None = None
    moves: bool = False

    def __getitem__(self, index: Any) -> _Symbol:
        return dataclasses.replace(self, shape=np.broadcast_to(np.empty(()), self.shape)[index].shape, name=None)


def record(
    model: Model, direction: str = "forward_backward", size: int | None = None, dtype: str = "float32"
) -> list[cases.Case]:
    """List the ops that one batch of a model calls, its losses last, as cases with their shapes, options and work.

    Forward alone stands for inference, where ``batch_norm`` uses the moving moments. With gradients, a layer next to
    the data has no gradient of its input (``weight_gradients``).
    """
    params = model.initial(dtype=dtype)
    calls = []
    for entry, args, options in _calls(model, params, size, dtype):
        if entry.name == "batch_norm":
            options = {"training": direction != "forward"}
        wanted = direction if any(a.moves for a in args) else "forward"
        if wanted != "forward" and entry.has_weights and not args[0].moves:
            wanted = contract.WEIGHTS
        calls.append(cases.case(entry.name, wanted, entry.dims([a.shape for a in args]), dtype, **options))
    return calls


def tables_by_rows(model: Model, params: Mapping[str, np.ndarray], optimizer: Optimizer) -> list[str]:
    """Return the names of the trained tables that a trainer had better differentiate by rows.

    These are all that ``embedding`` and ``embedding_average`` look up if the model asks for it (:func:`with_rows`) or
    one of them has more rows than a batch looks up: its dense gradient is mostly zeros, and laying that out anew at
    each step would take longer than the optimizer.
    """
    lookups = _lookups(model, params)
    tables = [name for name in trained(model, params) if name in lookups]
    large = any(len(params[name]) > lookups[name] for name in tables)
    return tables if with_rows(model, optimizer) or large else []


def _lookups(model: Model, params: Mapping[str, np.ndarray]) -> dict[str | None, int]:
    """Return how many rows of each table a batch looks up, by the table's name."""
    found: dict[str | None, int] = {}
    for entry, args, _ in _calls(model, params):
        if entry.name.startswith("embedding"):
            found[args[1].name] = found.get(args[1].name, 0) + math.prod(args[0].shape)
    return found


def _calls(
    model: Model, params: Mapping[str, np.ndarray], size: int | None = None, dtype: str = "float32"
) -> list[tuple[contract.Op, tuple[_Symbol, ...], dict[str, Any]]]:
    """Apply a model to symbols and return its calls of ops in their order, with arguments and options."""
    calls: list[tuple[contract.Op, tuple[_Symbol, ...], dict[str, Any]]] = []

    def recorder(entry: contract.Op) -> Callable[..., _Symbol]:
        def call(*args: Any, **options: Any) -> _Symbol:
            calls.append((entry, args, options))
            shape = _result_shape(entry, args, entry.dims([a.shape for a in args]), options)
            return _Symbol(shape, np.dtype(dtype), moves=any(a.moves for a in args))

        return call

    ops = SimpleNamespace(**{name: recorder(entry) for name, entry in contract.OPS.items()})
    if not model.dropout:
        ops.dropout = lambda x, *, rate=0.0: x
    moving = trained(model, params)
    symbols = {name: _Symbol(value.shape, value.dtype, name, name in moving) for name, value in params.items()}
    x, labels = (_Symbol(value.shape, value.dtype) for value in model.batch(0, dtype, size))
    losses(model, ops, symbols, x, labels)
    return calls


def _result_shape(entry: contract.Op, args: Any, dims: contract.Dims, options: Mapping[str, Any]) -> tuple[int, ...]:
    if entry.result.endswith("..."):  # the dims hold only the product of those axes
        return tuple(args[0].shape)
    return entry.result_shape(dims, options)
