"""CNTK 2.7 on Python 3.8 to 3.13: install its only Linux build, which is for Python 3.6, and load it.

``python -m shim.cntk install`` once in an environment; then ``import cntk`` works there. This package needs only the
standard library, and NumPy to load CNTK.
"""

from shim.cntk._errors import errors, plain_message, quiet
from shim.cntk._install import InstallError, install, remove, status
from shim.cntk._load import load
from shim.cntk._place import VERSION

__all__ = ["VERSION", "InstallError", "errors", "install", "load", "plain_message", "quiet", "remove", "status"]
