"""What there is, as plain values to print or to write as JSON: environments and backends. Imports no framework."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from shim import environments, installer
from shim.backends import BACKENDS, file


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
    """Return for each backend whether it is installed, and its devices and modes, the default mode first."""
    return [
        {
            "target": row.target,
            "state": row.state,
            "versions": main_versions(row),
            "devices": _constant(row.target, "DEVICES"),
            "modes": _constant(row.target, "MODES"),
        }
        for row in environments.rows(BACKENDS)
    ]


def main_versions(row: environments.Environment) -> dict[str, str]:
    """Return the versions of the backend's own package and of NumPy, as far as they are installed."""
    main = installer.main_package(environments.parse(row.target)[0], row.versions)
    return dict([main] if main else []) | {name: v for name, v in row.versions.items() if name == "numpy"}


def _constant(backend: str, name: str) -> list[str]:
    """Read a constant from a backend's source, since importing the module would import its framework."""
    tree = ast.parse(file(backend).read_text(encoding="utf-8"))
    pairs = (
        (ast.unparse(target), node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
    )
    return next((list(ast.literal_eval(value)) for target, value in pairs if target == name), [])
