"""The backends by name. A backend is one module in this folder; adding one means adding it to :data:`BACKENDS`.

One file may serve several names: ``keras.py`` is ``keras-tensorflow``, ``keras-jax`` and so on. A name's own file, such
as ``keras_jax.py``, would go before. What follows the dash is the engine under Keras, which takes one engine a process.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

#: name -> the package it needs, as it is imported
BACKENDS = {
    "numpy": "numpy",
    "tensorflow": "tensorflow",
    "jax": "jax",
    "torch": "torch",
    "cntk": "cntk",
    "cupy": "cupy",
    "keras-tensorflow": "keras",
    "keras-jax": "keras",
    "keras-torch": "keras",
    "keras-numpy": "keras",
    "keras-openvino": "keras",
    "keras-cntk": "shim.cntk.keras",
    "null": "numpy",
}

#: package -> the module that installs it, as in ``python -m shim.cntk install``, since no package installer takes it
INSTALLED_BY = {"cntk": "shim.cntk"}


class BackendUnavailable(RuntimeError):
    """A backend's framework cannot be imported here; the message names the command that mends it."""


def names() -> tuple[str, ...]:
    """Return the name of every backend this package knows, installed or not."""
    return tuple(BACKENDS)


def check_name(name: str) -> None:
    """Raise ``ValueError`` with the choices unless ``name`` is a backend."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; the backends are: {', '.join(BACKENDS)}")


def file(name: str) -> Path:
    """Return the source file of a backend: its own, else the one that it shares."""
    modules = (f"{__name__}.{module}" for module in (name.replace("-", "_"), name.partition("-")[0]))
    return next(Path(spec.origin) for spec in map(importlib.util.find_spec, modules) if spec and spec.origin)


def variables(name: str) -> dict[str, str]:
    """Return the environment variables that a backend's package must find when it is imported."""
    engine = name.partition("-")[2]
    return {"KERAS_BACKEND": engine, "KERAS_TORCH_DEVICE": "cpu"} if engine else {}


def load(name: str) -> ModuleType:
    """Import and return the backend module called ``name``, as :mod:`shim.protocol` describes it.

    Raises ``ValueError`` for an unknown name and :class:`BackendUnavailable` where the framework is missing or broken,
    or where this process already runs Keras on another engine.
    """
    check_name(name)
    _check_engine(name)
    os.environ.update(variables(name))
    package = BACKENDS[name]
    try:
        importlib.import_module(package)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            problem = f"needs the package {package!r}, which is not installed in this environment"
        else:
            problem = f"needs the package {package!r}, which cannot be imported here ({error})"
        by = INSTALLED_BY.get(package)
        other = f"python -m {by} install" if by else f"pip install 'shim[{name}]'"
        raise BackendUnavailable(f"backend {name!r} {problem}; run 'shim env {name}', or: {other}") from None
    return _module(name)


def _module(name: str) -> ModuleType:
    """Import a backend under its own name; a file that serves several names is loaded under the one asked for."""
    full = f"{__name__}.{name.replace('-', '_')}"
    if importlib.util.find_spec(full) is None:
        spec = importlib.util.spec_from_file_location(full, file(name))
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[full] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[full]
            raise
    return importlib.import_module(full)


def _check_engine(name: str) -> None:
    wanted, keras = name.partition("-")[2], sys.modules.get("keras")
    if wanted and keras is not None and hasattr(keras, "config") and keras.config.backend() != wanted:
        raise BackendUnavailable(
            f"backend {name!r} needs Keras on {wanted}, but this process runs Keras on {keras.config.backend()}; "
            "load it in a new process: Keras takes one engine a process"
        )
