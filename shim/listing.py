"""What there is, as plain values to print or to write as JSON: environments and backends. Imports no framework.

A backend that needs a GPU is asked, in a process of its own, which one it has.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from shim import environments, installer
from shim.backends import BACKENDS, file
from shim.measure import process


def table(targets: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Return the environments of these targets; by default of all backends and all versions that were tried."""
    return [
        asdict(row)
        | {
            "path": str(row.path),
            "versions": ", ".join(f"{name} {version}" for name, version in main_versions(row).items()),
            "size": f"{row.bytes / 1e6:.0f} MB" if row.bytes else "",
        }
        for row in environments.rows(targets)
    ]


def backends() -> list[dict[str, Any]]:
    """Return for each backend whether it is installed, and its devices and modes, the default mode first.

    ``device`` is what a backend without ``cpu`` among its devices found, None for others and where it is not installed;
    ``reason`` says why one is not ready for use.
    """
    return [
        {
            "target": row.target,
            "state": row.state,
            "versions": main_versions(row),
            "devices": devices(row.target),
            "modes": _constant(row.target, "MODES"),
        }
        | _found(row)
        for row in environments.rows(BACKENDS)
    ]


def main_versions(row: environments.Environment) -> dict[str, str]:
    """Return the versions of the backend's own package and of NumPy, as far as they are installed."""
    main = installer.main_package(environments.parse(row.target)[0], row.versions)
    return dict([main] if main else []) | {name: v for name, v in row.versions.items() if name == "numpy"}


def devices(backend: str) -> list[str]:
    """Return the devices that a backend can run on."""
    return _constant(backend, "DEVICES")


def _found(row: environments.Environment) -> dict[str, str | None]:
    needed = devices(row.target)
    if row.state != "ready" or "cpu" in needed:
        return {"device": None, "reason": row.reason}
    cpu = min(os.sched_getaffinity(0))
    given = environments.variables() | process.variables(1, needed[0])
    worker = process.Worker(environments.python(row.target), given, [cpu])
    try:
        reply = worker.ask("load", backend=row.target, device=needed[0])
    except process.WorkerDied as error:
        return {"device": None, "reason": f"its process {error}"}
    finally:
        worker.kill()
    if not reply["ok"]:
        return {"device": None, "reason": reply["reason"]}
    libraries = (f"{name} {version}" for name, version in reply["describe"]["libraries"].items())
    return {"device": ", ".join([reply["describe"]["device"], *libraries]), "reason": None}


def _constant(backend: str, name: str) -> list[str]:
    """Read a constant from a backend's source, since importing the module would import its framework."""
    tree = ast.parse(file(backend).read_text(encoding="utf-8"))
    values = {
        ast.unparse(target): node.value for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
    }
    return list(ast.literal_eval(values[name])) if name in values else []
