"""Backends made up for tests: they compute what the contract says, take as long as they are told, or break.

Workers find them through :func:`install`, which writes one module a name into a folder that is on their path.
"""

from __future__ import annotations

from pathlib import Path

import shim

BODY = """
import os, signal, sys, time
import numpy as np
from shim import contract
from shim.protocol import program

DEVICES = ("cpu",)
MODES = ("eager", "other")
SECONDS, calls = 0.0, 0

def setup(device="cpu", precision="float32", threads=None): pass
def to_device(value): return value
def to_numpy(array): return array
def synchronize(outputs): pass
def implementation(case, mode=MODES[0]): return "made up"
def describe(): return {"device": "cpu", "precision": "float32", "threads": 1, "versions": {"numpy": np.__version__}}

def result(op, options, args):
    global calls
    calls += 1
    if SECONDS:
        end = time.perf_counter() + SECONDS
        while time.perf_counter() < end: pass
    wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in args]
    return contract.op(op).reference(*wide, **options).astype(args[-1].dtype)

@program
def forward(op, options, mode):
    return lambda *args: result(op, options, args)

@program
def forward_backward(op, options, mode, first=True):
    def run(args, dy):
        wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in args]
        function = lambda *a: contract.op(op).reference(*a, **options)
        grads = [g.astype(dy.dtype) for g in contract.reference_vjp(function, wide, dy)]
        return result(op, options, args), grads[0 if first else 1:]
    return run
"""
#: name -> what is appended to the body
FAULTS = {
    "good": "",
    "slow": "SECONDS = 0.0004",
    "late": "good_forward = forward\ndef forward(*args): time.sleep(0.4); return good_forward(*args)",
    "noisy": "print('hello from a framework')\nos.write(1, b'and from its C code\\n')",
    "wrong": "good_result = result\nresult = lambda *a: good_result(*a) + np.float32(1)",
    "raises": "def forward(op, options, mode): raise NotImplementedError('no kernel for this')",
    "forward_only": "from shim.protocol import Unsupported\nDIRECTIONS = ('forward',)\n"
    "def forward_backward(*args, **options): raise Unsupported('no gradients here; it computes forward only')\n"
    "def trainer(*args, seed=0): raise Unsupported('no training here; it computes forward only')",
    "gpu": "DEVICES = ('cuda',)\n"
    "def describe(): return {'device': 'A GPU', 'precision': 'float32', 'threads': 1, 'versions': {},"
    " 'libraries': {'driver': '1.2'}}",
    "no_gpu": "DEVICES = ('cuda',)\ndef setup(device='cuda', **others): raise RuntimeError('no driver; install one')",
    "missing": "raise ImportError('libfast.so.3: cannot open shared object file')",
    "hangs": "time.sleep(600)",
    "crashes": "os.kill(os.getpid(), signal.SIGSEGV)",
    "dies": "good_result = result\ndef result(*a):\n    if calls > 30: os.kill(os.getpid(), signal.SIGKILL)\n"
    "    return good_result(*a)",
}


def install(folder: Path, monkeypatch) -> None:
    """Make every made-up backend known here and in workers, which then run in this very interpreter."""
    import sys

    from shim import backends, environments
    from shim.backends import BACKENDS

    path = folder / "path"
    (path / "fake").mkdir(parents=True)
    (path / "shim").symlink_to(Path(shim.__file__).parent, target_is_directory=True)
    for name, fault in FAULTS.items():
        (path / "fake" / f"{name}.py").write_text(f"{BODY}\n{fault}\n")
        monkeypatch.setitem(BACKENDS, name, "numpy")
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(path / "fake")])
    (path / "sitecustomize.py").write_text(
        "import shim.backends as known\n"
        f"known.__path__.append({str(path / 'fake')!r})\n"
        f"known.BACKENDS.update(dict.fromkeys({list(FAULTS)!r}, 'numpy'))\n"
    )
    monkeypatch.setattr(environments, "source", lambda: path)
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    monkeypatch.setenv("SHIM_HOME", str(folder / "home"))
