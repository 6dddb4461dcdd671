"""What a backend module defines, and the two decorators that put checks around it and keep them off the clock.

A backend is a module. It defines ``DEVICES`` and ``MODES`` (the first mode is the one its users would ship), the
functions of :class:`Backend`, and one function for each contract entry, on its own arrays. An op function carries
:func:`op` and ``forward`` and ``forward_backward`` carry :func:`program`: both check what comes in from outside, and
both keep the bare function reachable as ``.bare``, which is all that models call and clocks see.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import numpy as np

from shim import contract

Array = Any  # a backend's own array or symbol


class Unsupported(NotImplementedError):
    """A backend cannot do what was asked for, by its nature; the message says what it is limited to."""


class Trainer(Protocol):
    """A model with its weights and optimizer on one backend, ready to train.

    ``by_rows`` says whether ``step`` differentiates tables by the rows that a batch looks up, and not as a whole.
    """

    by_rows: bool

    def step(self, x: Array, labels: Array) -> Array:
        """Update the weights with one batch and return its mean loss, before the update, as a scalar array.

        Of a model with several heads that is the loss of the main one.
        """

    def evaluate(self, x: Array, labels: Array) -> tuple[Array, Array]:
        """Return the mean loss of a batch and its number of right predictions, dropout off, as scalar arrays."""

    def predict(self, x: Array) -> Array:
        """Return the logits of a batch, those of the main head, dropout off and with the moving moments."""

    def params(self) -> dict[str, np.ndarray]:
        """Return a copy of the weights as NumPy arrays, those that are not trained included."""

    def state(self) -> dict[str, np.ndarray]:
        """Return a copy of all that the next steps depend on: weights, optimizer, counters, generator of dropout.

        NumPy arrays without objects, by names of the backend's own.
        """

    def gradients(self, x: Array, labels: Array) -> tuple[Array, dict[str, Any]]:
        """Return what ``step`` would, and the gradient of each trained weight: ``step`` without its optimizer.

        The gradient of a table may be pieces, a list of pairs (ids, rows) that add up. Weights stay as they are.
        """

    def updater(self, gradients: Mapping[str, np.ndarray]) -> Callable[[], Any]:
        """Return a call that moves the trained weights with these gradients: the last part of ``step`` alone.

        What it returns is for ``synchronize``.
        """

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from the state of a trainer of the same backend, mode, model, optimizer and seed."""


class Backend(Protocol):
    """The functions of a backend module, beside its ops.

    A backend that cannot do everything says so in ``DIRECTIONS`` or ``DTYPES``, see :func:`offers`, and raises
    :class:`Unsupported` when it is asked all the same. ``HALVES`` names the dtypes of 16 bits that it has for ops, and
    ``FORWARD_HALVES`` those for the forward pass of some ops alone. One that computes recurrences with approximate
    exponentials says so by ``approximates()``, and one that compiles across ops names the modes in ``FUSES``, see
    :func:`fuses`.
    """

    DEVICES: tuple[str, ...]
    MODES: tuple[str, ...]

    def setup(self, device: str = "cpu", precision: str = "float32", threads: int | None = None) -> None:
        """Choose device, matmul precision and thread count, once per process and before any array.

        ``precision`` is ``float32`` (IEEE) or, where a device has it, ``tf32``. Raises ``ValueError`` otherwise.
        """

    def to_device(self, value: np.ndarray) -> Array:
        """Copy a NumPy array to the device, dtype unchanged."""

    def to_numpy(self, array: Array) -> np.ndarray:
        """Copy an array of the backend to the host, dtype unchanged."""

    def synchronize(self, outputs: Any) -> None:
        """Return once everything in a nested structure of outputs has been computed."""

    def forward(self, op: str, options: Mapping[str, Any], mode: str) -> Callable[..., Array]:
        """Build ``run(*args) -> y``."""

    def forward_backward(
        self, op: str, options: Mapping[str, Any], mode: str, first: bool = True
    ) -> Callable[..., Any]:
        """Build ``run(args, dy) -> (y, grads)``, one gradient for each float argument, in order.

        With ``first=False`` that of the first argument is left out, as in the layer next to the data.
        """

    def trainer(
        self, model: Any, params: Mapping[str, np.ndarray], optimizer: Any, mode: str, seed: int = 0
    ) -> Trainer:
        """Build a :class:`Trainer` from a model, its initial weights and an optimizer; ``seed`` is for dropout."""

    def implementation(self, case: Any) -> str:
        """Name the kernel path that a case takes, such as ``oneDNN`` or ``XLA while loop``."""

    def describe(self) -> dict[str, Any]:
        """Return versions, device, precision and thread count in use."""


def directions(backend: Any) -> tuple[str, ...]:
    """Return the directions of ops that a backend computes; one without ``forward_backward`` does not train either."""
    found: tuple[str, ...] = getattr(backend, "DIRECTIONS", contract.DIRECTIONS)
    return found


def dtypes(backend: Any) -> tuple[str, ...]:
    """Return the dtypes that a backend computes ops and models in."""
    found: tuple[str, ...] = getattr(backend, "DTYPES", ("float32", "float64"))
    return found


def dtypes_of(backend: Any, op: str, direction: str) -> tuple[str, ...]:
    """Return the dtypes that a backend computes an op in."""
    some: Mapping[str, Sequence[str]] = getattr(backend, "FORWARD_HALVES", {}) if direction == "forward" else {}
    return (*dtypes(backend), *getattr(backend, "HALVES", ()), *(dtype for dtype, ops in some.items() if op in ops))


def fuses(backend: Any, mode: str) -> bool:
    """Return whether a mode compiles the ops of a model as one program."""
    return mode in getattr(backend, "FUSES", ())


def approximates(backend: Any) -> bool:
    """Return whether the gates of recurrences in float32 are approximate where a backend computes, as on GPUs."""
    return bool(getattr(backend, "approximates", bool)())


def offers(backend: Any, case: Any) -> bool:
    """Return whether a backend says that it can run a case."""
    direction = "forward" if case.direction == "forward" else "forward_backward"
    computed = dtypes(backend) if case.is_model else dtypes_of(backend, case.op, direction)
    return direction in directions(backend) and case.dtype in computed


class Program:
    """A built op. The first call checks its arguments; ``bare`` is the callable without any check, for the clock."""

    __slots__ = ("_check", "bare")

    def __init__(self, bare: Callable[..., Any], check: Callable[..., None]) -> None:
        self.bare = bare
        self._check: Callable[..., None] | None = check

    def __call__(self, *args: Any) -> Any:
        if self._check is not None:
            self._check(*args)
            self._check = None
        return self.bare(*args)


def op(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a backend's op function check shapes, dtypes, ids and options; ``.bare`` is the function itself."""
    entry = contract.op(function.__name__)
    module = sys.modules[function.__module__]

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        entry.check(args, options, module.to_numpy)
        _check_dtype(module, entry, "forward", args)
        return function(*args, **options)

    checked.bare = function  # type: ignore[attr-defined]
    return checked


def program(build: Callable[..., Callable[..., Any]]) -> Callable[..., Program]:
    """Make a backend's ``forward`` or ``forward_backward`` check its names now and its arguments on the first call."""
    module = sys.modules[build.__module__]
    backward = build.__name__ == "forward_backward"

    @functools.wraps(build)
    def checked(op: str, options: Mapping[str, Any] | None = None, mode: str | None = None, **wanted: bool) -> Program:
        entry, options, mode = contract.op(op), dict(options or {}), mode or module.MODES[0]
        entry.check_options(options)
        check_choice("mode", mode, module.MODES)

        def check(*args: Any) -> None:
            arrays = args[0] if backward else args
            entry.check(arrays, options, module.to_numpy)
            _check_dtype(module, entry, build.__name__, arrays)
            if not backward:
                return
            dims = entry.dims([a.shape for a in arrays])
            wanted = entry.result_shape(dims, options)
            if not entry.result.endswith("...") and tuple(args[1].shape) != wanted:
                raise ValueError(f"{op}: dy has shape {tuple(args[1].shape)}, expected {wanted}")

        return Program(build(op, options, mode, **wanted), check)

    return checked


def _check_dtype(module: ModuleType, entry: contract.Op, direction: str, arrays: Sequence[Array]) -> None:
    known = dtypes_of(module, entry.name, direction)
    for argument, array in zip(entry.arguments, arrays, strict=True):
        if argument.is_float and contract.dtype_name(array) not in known:
            what = f"{module.__name__.rpartition('.')[2]} computes {entry.name} {direction}"
            raise Unsupported(f"{what} in {', '.join(known)} only, not in {contract.dtype_name(array)}")


def bare_ops(module: ModuleType, **replaced: Callable[..., Any]) -> SimpleNamespace:
    """Return the op functions of a backend without their checks: the ``ops`` that a model is written against.

    ``replaced`` puts other functions in the place of some, such as a dropout bound to a generator.
    """
    return SimpleNamespace(**{name: getattr(module, name).bare for name in contract.OPS} | replaced)


def check_choice(what: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise ``ValueError`` with the choices unless ``value`` is one of them."""
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}; choose from: {', '.join(map(str, choices))}")
