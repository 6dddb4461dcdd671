"""``python -m shim.cntk``: install CNTK 2.7 into this environment, look after it, remove it."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

from shim.cntk._install import InstallError, install, remove, status
from shim.cntk._place import VERSION

_EXAMPLES = """examples:
  python -m shim.cntk install          download CNTK (75 MB) and install it into this environment (240 MB)
  python -m shim.cntk status           check all its files, load it, and evaluate something
  python -m shim.cntk status --json    the same, for machines
  python -m shim.cntk remove

The exit status is 0 if all is well, 1 if not, 2 for wrong arguments."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; print the result, or the reason to stderr; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m shim.cntk",
        description="CNTK 2.7 on CPython 3.8 to 3.13, Linux on x86-64, on the CPU.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("install", "status", "remove"), help="what to do in this environment")
    parser.add_argument("--version", default=VERSION, help=f"the version to install; there is only {VERSION}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    try:
        answer, text = _do(chosen.action, chosen.version)
    except InstallError as error:
        answer, text = {"problem": str(error)}, str(error)
    except KeyboardInterrupt:
        answer, text = {"problem": "interrupted"}, "interrupted; nothing was installed"
    problem = answer.get("problem")
    if chosen.json:
        print(json.dumps(answer))
    else:
        print(f"error: {text}" if problem else text, file=sys.stderr if problem else sys.stdout)
    return 1 if problem else 0


def _do(action: str, version: str) -> tuple[dict[str, Any], str]:
    if action == "install":
        folder = install(version)
        return {"version": VERSION, "folder": str(folder)}, f"CNTK {VERSION} is in {folder}; `import cntk` loads it"
    if action == "remove":
        removed = remove()
        return {"removed": removed}, f"CNTK {VERSION} is removed" if removed else "there was no CNTK"
    found = status()
    return found, found["problem"] or f"CNTK {VERSION} in {found['folder']} is unaltered, loads and evaluates"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # temporary files are deleted on the way out
    sys.exit(main())
