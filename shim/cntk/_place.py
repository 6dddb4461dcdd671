"""Where CNTK is installed, which file it comes from, and on which Pythons it can be loaded."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

VERSION = "2.7.post2"
WHEEL = f"cntk-{VERSION}-cp36-cp36m-manylinux1_x86_64.whl"
SHA256 = "71133245e10cdc1eca0b44b5fe241b2c97d0c16b8e12425896541a94ab1b5589"

STUBS = "stubs"
RECORD = "installed.json"
#: what an installation is known by; another one is made again
CONTENT = {"wheel": WHEEL, "sha256": SHA256, "layout": 1}


def folder() -> Path:
    """Return the folder of this environment that CNTK is installed in."""
    return Path(sys.prefix) / "share" / "shim" / f"cntk-{VERSION}"


def unsupported() -> str | None:
    """Return why CNTK 2.7 cannot be loaded by this Python on this system, or None if it can."""
    if sys.platform != "linux" or os.uname().machine != "x86_64" or sys.maxsize < 2**32:
        return f"CNTK 2.7 exists for Linux on x86-64, and this is {sys.platform} on {os.uname().machine}"
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError):
        libc = None
    if not libc:
        return "CNTK 2.7 needs the GNU C library, which this Python does not use"
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.implementation.name != "cpython" or not (3, 8) <= sys.version_info[:2] <= (3, 13):
        return f"CNTK 2.7 can be loaded by CPython 3.8 to 3.13, and this is {sys.implementation.name} {version}"
    if sysconfig.get_config_var("Py_GIL_DISABLED") or sys.abiflags:
        return f"CNTK 2.7 needs the ordinary build of Python, and this is {version}{sys.abiflags}"
    return None


def record(place: Path) -> dict[str, Any] | None:
    """Return what is written in an installation, or None where there is none."""
    try:
        found = json.loads((place / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def checked(place: Path | None = None) -> Path:
    """Return the folder of a usable installation; raise ``ImportError`` where there is none or this Python cannot."""
    problem = unsupported()
    if problem:
        raise ImportError(problem)
    place = place or folder()
    found = record(place)
    if found is None or any(found.get(key) != value for key, value in CONTENT.items()):
        state = "is not installed in this environment" if found is None else "was installed by another version of shim"
        raise ImportError(f"CNTK {state}; run: {sys.executable} -m shim.cntk install")
    return place
