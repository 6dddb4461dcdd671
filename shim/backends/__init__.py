"""The backends by name. A backend is one module in this folder; adding one means adding it to :data:`BACKENDS`."""

from __future__ import annotations

import importlib
from types import ModuleType

#: name -> the package it needs, as it is imported
BACKENDS = {
    "numpy": "numpy",
    "tensorflow": "tensorflow",
    "jax": "jax",
    "torch": "torch",
    "cntk": "cntk",
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


def load(name: str) -> ModuleType:
    """Import and return the backend module called ``name``, as :mod:`shim.protocol` describes it.

    Raises ``ValueError`` for an unknown name and :class:`BackendUnavailable` where the framework is missing or broken.
    """
    check_name(name)
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
    return importlib.import_module(f"shim.backends.{name}")
