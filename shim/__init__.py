"""Identical deep-learning operations on many backends, measured side by side.

``import shim`` loads no framework; :func:`load` loads the one asked for.
"""

from shim.backends import BackendUnavailable, load, names

__version__ = "0.1.0"
__all__ = ["BackendUnavailable", "__version__", "load", "names"]
