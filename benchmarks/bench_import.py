"""What starting costs: ``import shim``, and loading a backend with its framework, each in a fresh process."""

from __future__ import annotations

from .common import Benchmark, grid, load


class Import(Benchmark):
    rounds = 1
    repeat = 10

    def timeraw_shim(self):
        return "import shim"

    timeraw_shim.pretty_name = "import shim"


class Load(Benchmark):
    params = grid()
    param_names = ["backend"]  # noqa: RUF012
    rounds = 1
    repeat = 3

    def setup(self, target):
        load(target)  # skips where there is none, and reads the files once before they are timed

    def timeraw_backend(self, target):
        name = target.partition(":")[0].partition("@")[0]
        return f"shim.load({name!r})", "import shim"

    timeraw_backend.pretty_name = "load a backend"
