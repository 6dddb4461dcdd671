"""The command line. Each command is a thin layer over one module; frameworks are loaded in their own processes."""

from shim.cli import explaining, installed, measuring, training
from shim.cli.common import main

__all__ = ["explaining", "installed", "main", "measuring", "training"]
