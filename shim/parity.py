"""Does a backend compute what the contract says? Asked in the measuring process itself, before any clock starts.

A small case is compared entry by entry, its gradients against the complex step. At full size the result is compared
entry by entry and each gradient along one random direction: a wrong gradient of whatever kind moves that product by
about its own error, and the float64 contract needs one evaluation for each argument instead of one for each entry.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from shim import cases, contract, files, protocol
from shim.measure import clock

#: An error may reach this many times ``eps * sqrt(longest sum) * max|reference|``.
FACTOR = 8.0
#: For recurrences of backends that say so: GPUs compute exponentials to some 1e-6, and steps take over earlier errors.
APPROXIMATE = 32.0
#: Relative tolerance of training losses.
TRAINING = {"float32": 1e-4, "float64": 1e-9}
#: Of gradients of a whole model, as a share of their size: rectifiers and pools near a tie go the other way.
GRADIENT = {"float32": 1e-3, "float64": 1e-8}
ENTRY_BY_ENTRY = 1500  # float entries in all arguments; above, gradients are compared along a direction
STEPS = 3


class ParityError(RuntimeError):
    """A backend's result or gradient differs from the contract."""


def verify(
    backend: ModuleType, case: cases.Case, mode: str, run: Any = None, cache: Path | None = None
) -> dict[str, Any]:
    """Compare a backend's program with the contract and return ``{"passed", "worst", "id"}``.

    ``worst`` is the largest error as a share of its tolerance. ``run`` is the program if it is built already.
    ``cache`` is a folder that keeps references between processes. Raises :class:`ParityError`.
    """
    if case.direction == cases.OPTIMIZER_STEP:
        worst = _verify_optimizer(backend, case, mode)
    elif case.direction == cases.GRADIENTS:
        worst = _verify_gradients(backend, case, mode, _load_reference(case, cache))
    elif case.is_model:
        verify_model = _verify_training if case.trains else _verify_prediction
        worst = verify_model(backend, case, mode, _load_reference(case, cache))
    elif dict(case.options).get("rate"):
        worst = _verify_dropout(backend, case, mode, run)
    else:
        worst = _verify_op(backend, case, mode, run, _load_reference(case, cache))
    return {"passed": True, "worst": worst, "id": reference_id(case)}


def compare(
    what: str, actual: Any, wanted: np.ndarray, dtype: str, longest_sum: float, factor: float = FACTOR
) -> float:
    """Return the largest error as a share of the tolerance; raise :class:`ParityError` above 1 and for NaN.

    Shape and dtype must be those asked for.
    """
    if tuple(actual.shape) != wanted.shape:
        raise ParityError(f"{what} has shape {tuple(actual.shape)}, expected {wanted.shape}")
    if contract.dtype_name(actual) != dtype:
        raise ParityError(f"{what} is {contract.dtype_name(actual)}, expected {dtype}")
    if wanted.size == 0:
        return 0.0
    error = float(np.max(np.abs(np.asarray(actual, np.float64) - wanted)))
    return _share(what, error, factor * _eps(dtype) * longest_sum**0.5 * float(np.max(np.abs(wanted))))


def _share(what: str, error: float, tolerance: float) -> float:
    if not error <= tolerance:  # written so that NaN fails
        raise ParityError(f"{what} differs from the contract by {error:.3g}; {tolerance:.3g} is allowed")
    return error / tolerance if tolerance else 0.0


def _eps(dtype: str) -> float:
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype) or float(np.finfo(dtype).eps)


def _verify_op(backend: ModuleType, case: cases.Case, mode: str, run: Any, reference: dict[str, np.ndarray]) -> float:
    entry, options = contract.op(case.op), dict(case.options)
    args, dy = case.arrays()
    own = type(backend.to_device(dy))
    y, grads = _run(backend, case, mode, run, args, dy)
    longest = entry.longest_sum(entry.all_dims(dict(case.dims), options))
    _check_array("the result", y, own)
    recurrent = case.op in ("lstm", "bilstm")
    factor = APPROXIMATE if recurrent and case.dtype == "float32" and protocol.approximates(backend) else FACTOR
    added = 1.0 if case.dtype in contract.HALVES else longest  # results of 16 bits are sums of float32 everywhere
    worst = compare("the result", backend.to_numpy(y), reference["y"], case.dtype, added, factor)
    floats = [(argument.name, a) for argument, a in zip(entry.arguments, args, strict=True) if argument.is_float]
    left_out = 1 if case.direction == contract.WEIGHTS else 0
    wanted = floats[left_out:]
    if case.direction != "forward" and len(grads) != len(wanted):
        raise ParityError(f"{len(grads)} gradients returned, expected one for each of {len(wanted)} float arguments")
    for k, (gradient, (name, value)) in enumerate(zip(grads, wanted, strict=False), left_out):
        what = f"the gradient of {name}"
        _check_array(what, gradient, own)
        actual = backend.to_numpy(gradient)
        if "g0" in reference:
            worst = max(worst, compare(what, actual, reference[f"g{k}"], case.dtype, longest, factor))
        else:
            worst = max(
                worst, _compare_along(what, actual, value, reference["products"][k], case, k, factor * longest**0.5)
            )
    return worst


def _run(backend: ModuleType, case: cases.Case, mode: str, run: Any, args: Sequence[Any], dy: Any) -> tuple[Any, Any]:
    run = run or clock.build_program(backend, case, mode)
    device_args = [backend.to_device(a) for a in args]
    y, grads = (run(*device_args), ()) if case.direction == "forward" else run(device_args, backend.to_device(dy))
    backend.synchronize((y, grads))
    return y, grads


def _verify_dropout(backend: ModuleType, case: cases.Case, mode: str, run: Any) -> float:
    """Check what every mask has in common: the share it keeps, and the same factor for result and gradient."""
    (x,), dy = case.arrays()
    y, grads = (
        backend.to_numpy(a) if k == 0 else [backend.to_numpy(g) for g in a]
        for k, a in enumerate(_run(backend, case, mode, run, [x], dy))
    )
    kept, rate = np.asarray(y != 0), dict(case.options)["rate"]
    worst = compare("the result", y, np.where(kept, x.astype(np.float64) / (1 - rate), 0), case.dtype, 1)
    for gradient in grads:
        wanted = np.where(kept, dy.astype(np.float64) / (1 - rate), 0)
        worst = max(worst, compare("the gradient of x", gradient, wanted, case.dtype, 1))
    return max(worst, _share("the share dropped", abs(kept.mean() + rate - 1), 6 * (rate * (1 - rate) / x.size) ** 0.5))


def _check_array(what: str, array: Any, own: type) -> None:
    if not isinstance(array, own):
        raise ParityError(f"{what} is a {type(array).__name__}, expected the backend's own {own.__name__}")


def _compare_along(
    what: str, actual: np.ndarray, value: np.ndarray, wanted: float, case: cases.Case, k: int, factor: float
) -> float:
    if actual.shape != value.shape:
        raise ParityError(f"{what} has shape {actual.shape}, expected {value.shape}")
    if contract.dtype_name(actual) != case.dtype:
        raise ParityError(f"{what} is {contract.dtype_name(actual)}, expected {case.dtype}")
    actual = actual.astype(np.float64)
    error = abs(float((actual * _direction(case, k, value.shape)).sum()) - wanted)
    return _share(what, error, factor * _eps(case.dtype) * float(np.linalg.norm(actual)))


def _direction(case: cases.Case, k: int, shape: tuple[int, ...]) -> np.ndarray:
    signs = np.random.default_rng([k, 20170608]).integers(0, 2, shape, dtype=np.int8)
    return 2.0 * signs - 1.0


# ------------------------------------------------------------------------------------------------------ references


def reference_id(case: cases.Case) -> str:
    """Return a hash of what the reference depends on: the case and the sources that define it."""
    digest = hashlib.sha256(case.id.encode())
    for source in _sources(case.is_model):
        digest.update(source)
    return digest.hexdigest()[:16]


@functools.cache
def _sources(model: bool) -> tuple[bytes, ...]:
    package = Path(__file__).parent
    paths = [package / "contract.py", package / "entry.py", package / "cases.py", Path(__file__)]
    if model:
        paths += sorted((package / "models").glob("*.py"))
    return tuple(path.read_bytes() for path in paths)


def _load_reference(case: cases.Case, cache: Path | None) -> dict[str, np.ndarray]:
    path = cache / f"{reference_id(case)}.npz" if cache else None
    if path and path.exists():
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    reference = _model_reference(case) if case.is_model else _op_reference(case)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as opened:
            np.savez(opened, **reference)  # type: ignore[arg-type]
    return reference


def _op_reference(case: cases.Case) -> dict[str, np.ndarray]:
    function = functools.partial(contract.op(case.op).reference, **dict(case.options))
    drawn, dy = case.arrays()
    are_floats = [argument.is_float for argument in contract.op(case.op).arguments]
    args = [a.astype(np.float64) if f else a for a, f in zip(drawn, are_floats, strict=True)]
    reference = {"y": np.asarray(function(*args))}
    if case.direction == "forward":
        return reference
    dy = dy.astype(np.float64)
    floats = [a for a, f in zip(args, are_floats, strict=True) if f]
    if sum(a.size for a in floats) <= ENTRY_BY_ENTRY:
        gradients = contract.reference_vjp(function, args, dy)
        return reference | {f"g{k}": gradient for k, gradient in enumerate(gradients)}
    directions = [_direction(case, k, a.shape) for k, a in enumerate(floats)]
    return reference | {"products": np.array(contract.reference_directional(function, args, dy, directions))}


# -------------------------------------------------------------------------------------------------------- training


def training_losses(
    backend: ModuleType, name: str, mode: str, dtype: str, steps: int, batch_size: int | None = None, **options: Any
) -> np.ndarray:
    """Train a model without dropout from its float32 initial weights and return the loss of each step."""
    from shim import models

    model = models.load(name, dropout=False, **options)
    params = {key: value.astype(dtype) for key, value in model.initial(0, "float32").items()}
    trainer = backend.trainer(model, params, model.optimizer, mode)
    losses = []
    for step in range(steps):
        x, labels = model.batch(step, "float32", batch_size)
        x = x.astype(dtype) if x.dtype.kind == "f" else x
        losses.append(trainer.step(backend.to_device(x), backend.to_device(labels)))
    return np.array([float(backend.to_numpy(loss)) for loss in losses])


def _model_reference(case: cases.Case) -> dict[str, np.ndarray]:
    import shim

    numpy_backend = shim.load("numpy")
    mode, batch_size = numpy_backend.MODES[0], dict(case.dims)["N"]
    if case.direction == cases.GRADIENTS:
        return _gradients_reference(numpy_backend, case, mode)
    if not case.trains:
        return {"logits": _prediction(numpy_backend, case, mode, "float64")}
    losses = training_losses(numpy_backend, case.op, mode, "float64", STEPS, batch_size, **dict(case.options))
    return {"losses": losses}


def _prediction(backend: ModuleType, case: cases.Case, mode: str, dtype: str) -> np.ndarray:
    """Return the logits of one batch from a model's float32 initial weights."""
    from shim import models

    model = models.load(case.op, **dict(case.options))
    params = {key: value.astype(dtype) for key, value in model.initial(0, "float32").items()}
    x, _ = model.batch(0, "float32", dict(case.dims)["N"])
    trainer = backend.trainer(model, params, model.optimizer, mode)
    logits: np.ndarray = backend.to_numpy(
        trainer.predict(backend.to_device(x.astype(dtype) if x.dtype.kind == "f" else x))
    )
    return logits


def _verify_prediction(backend: ModuleType, case: cases.Case, mode: str, reference: dict[str, np.ndarray]) -> float:
    """Compare logits as training losses are: as a share of their size."""
    wanted, actual = reference["logits"], _prediction(backend, case, mode, case.dtype)
    if actual.shape != wanted.shape:
        raise ParityError(f"the prediction has shape {actual.shape}, expected {wanted.shape}")
    error = float(np.max(np.abs(actual - wanted)))
    return _share("the prediction", error, TRAINING[case.dtype] * float(np.max(np.abs(wanted))))


def _verify_training(backend: ModuleType, case: cases.Case, mode: str, reference: dict[str, np.ndarray]) -> float:
    losses = training_losses(backend, case.op, mode, case.dtype, STEPS, dict(case.dims)["N"], **dict(case.options))
    return compare_losses(losses, reference["losses"], case.dtype)


def _without_dropout(case: cases.Case, dtype: str) -> tuple[Any, dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return a model without dropout, its float32 initial weights and a batch, in ``dtype``."""
    from shim import models

    model = models.load(case.op, dropout=False, **dict(case.options))
    params = {name: value.astype(dtype) for name, value in model.initial(0, "float32").items()}
    x, labels = model.batch(0, "float32", dict(case.dims)["N"])
    return model, params, x.astype(dtype) if x.dtype.kind == "f" else x, labels


def _gradients_reference(backend: ModuleType, case: cases.Case, mode: str) -> dict[str, np.ndarray]:
    """Return each gradient along one direction and its size: a step of plain descent moves by the gradient."""
    from shim import models
    from shim.models import optimizers

    model, params, x, labels = _without_dropout(case, "float64")
    trainer = backend.trainer(model, params, optimizers.sgd(learning_rate=1.0), mode)
    trainer.step(x, labels)
    moved, found = trainer.params(), {}
    for k, name in enumerate(models.trained(model, params)):
        gradient = params[name] - moved[name]
        found[name] = np.array([(gradient * _direction(case, k, gradient.shape)).sum(), np.linalg.norm(gradient)])
    return found


def _verify_gradients(backend: ModuleType, case: cases.Case, mode: str, reference: dict[str, np.ndarray]) -> float:
    """Compare the gradient of each weight along one direction, as a share of its size."""
    model, params, x, labels = _without_dropout(case, case.dtype)
    trainer = backend.trainer(model, params, model.optimizer, mode)
    _, gradients = trainer.gradients(backend.to_device(x), backend.to_device(labels))
    if set(gradients) != set(reference):
        raise ParityError(f"gradients of {', '.join(gradients)} were returned, expected {', '.join(reference)}")
    worst = 0.0
    for k, (name, (wanted, size)) in enumerate(reference.items()):
        actual = _laid_out(backend, gradients[name], params[name])
        if actual.shape != params[name].shape:
            raise ParityError(f"the gradient of {name} has shape {actual.shape}, expected {params[name].shape}")
        error = abs(float((actual * _direction(case, k, actual.shape)).sum()) - wanted)
        worst = max(worst, _share(f"the gradient of {name}", error, GRADIENT[case.dtype] * size))
    return worst


def _laid_out(backend: ModuleType, gradient: Any, weight: np.ndarray) -> np.ndarray:
    """Return a gradient as a NumPy array; one of pieces has the shape of the weight."""
    if not isinstance(gradient, list):
        return gradient if isinstance(gradient, np.ndarray) else backend.to_numpy(gradient)
    dense = np.zeros_like(weight)
    for ids, rows in gradient:
        ids, rows = (a if isinstance(a, np.ndarray) else backend.to_numpy(a) for a in (ids, rows))
        np.add.at(dense, ids.reshape(-1), rows.reshape(-1, dense.shape[1]))
    return dense


def _verify_optimizer(backend: ModuleType, case: cases.Case, mode: str) -> float:
    """Compare some entries of every weight after a few steps with the formula in float64."""
    from shim import models

    model = models.load(case.op, **dict(case.options))
    params = model.initial(0, case.dtype)
    gradients = models.gradients(model, params)
    trainer = backend.trainer(model, params, model.optimizer, mode)
    call = trainer.updater(gradients)
    for _ in range(STEPS):
        backend.synchronize(call())
    worst, moved = 0.0, trainer.params()
    for name, gradient in gradients.items():
        places = np.linspace(0, gradient.size - 1, 1000).astype(int)
        start, g = (a.reshape(-1)[places].astype(np.float64) for a in (params[name], gradient))
        wanted, states = start, models.optimizers.init(model.optimizer, start)
        for step in range(STEPS):
            wanted, states = models.optimizers.update(model.optimizer, np, wanted, g, states, step)
        error = float(np.max(np.abs(moved[name].reshape(-1)[places] - wanted)))
        allowed = TRAINING[case.dtype] * float(np.max(np.abs(wanted - start)))
        allowed += FACTOR * _eps(case.dtype) * float(np.max(np.abs(wanted)))
        worst = max(worst, _share(f"the weight {name}", error, allowed))
    return worst


def compare_losses(losses: Sequence[float] | np.ndarray, wanted: np.ndarray, dtype: str) -> float:
    """Return the largest relative error of training losses as a share of the tolerance, or raise ParityError."""
    error = float(np.max(np.abs(np.asarray(losses) / wanted - 1)))
    return _share("the training loss", error, TRAINING[dtype])


# ----------------------------------------------------------------------------------------- the conformance suite

#: Small odd sizes, all different within an op, so that no square hides a transpose.
SMALL: dict[str, dict[str, int]] = {
    "dense": {"N": 3, "I": 7, "O": 5},
    "conv2d": {"N": 2, "H": 7, "W": 8, "C": 3, "R": 3, "S": 2, "O": 5},
    "lstm": {"N": 3, "T": 5, "I": 7, "H": 4},
    "bilstm": {"N": 2, "T": 5, "I": 3, "H": 4},
    "embedding_average": {"N": 5, "T": 7, "V": 11, "D": 3},
    "embedding": {"N": 3, "T": 7, "V": 5, "D": 2},
    "max_pool2d": {"N": 2, "H": 7, "W": 8, "C": 3},
    "relu": {"N": 3, "...": 5},
    "dropout": {"N": 3, "...": 5},
    "batch_norm": {"N": 7, "C": 5},
    "concat": {"N": 3, "A": 5, "B": 7},
    "flatten": {"N": 3, "H": 2, "W": 5, "C": 7},
    "softmax_cross_entropy": {"N": 5, "K": 7},
    "sigmoid_cross_entropy": {"N": 5},
}


def half_cases() -> list[cases.Case]:
    """Return every op with its default options in dtypes of 16 bits, in both directions, at a small odd shape."""
    return [
        cases.case(name, direction, SMALL[name], dtype)
        for name in contract.OPS
        for dtype in contract.HALVES
        for direction in contract.DIRECTIONS
    ]


def conformance_cases(dtypes: Sequence[str] = ("float32", "float64")) -> list[cases.Case]:
    """Return every op with every combination of its options, in every dtype and direction, at a small odd shape.

    The direction without the first gradient is there with the default options only.
    """
    found = [
        cases.case(name, contract.WEIGHTS, SMALL[name], dtype)
        for name, entry in contract.OPS.items()
        if entry.has_weights
        for dtype in dtypes
    ]
    for name, entry in contract.OPS.items():
        combinations: list[dict[str, Any]] = [{}]
        for option, choices in entry.options.items():
            combinations = [chosen | {option: value} for chosen in combinations for value in choices]
        found += [
            cases.case(name, direction, SMALL[name], dtype, **chosen)
            for chosen in combinations
            for dtype in dtypes
            for direction in contract.DIRECTIONS
        ]
    return found
