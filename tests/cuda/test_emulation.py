"""The emulation itself: it stands still where a GPU would, poisons memory, and sanitizers see what it does wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulator import SANITIZE, missing

from shim.backends._cuda_kernels import Kernels, KernelsUnavailable

START = '#include "emulation.h"\nextern "C" __global__ void probe(float* p) {\n'
END = "\n}\nEMULATE(probe)\n"
FOLDER = Path(__file__).parent


def launch(emulator, body, size=64, seed=1, shared=256):
    p = np.zeros(size, np.float32)
    emulator.load(Kernels("probe", START + body + END), seed)("probe", (1,), (64,), p, shared=shared)
    return p


def test_threads_are_numbered(emulator):
    assert (launch(emulator, "p[threadIdx.x] = threadIdx.x;") == np.arange(64)).all()


def test_shuffles_stay_inside_a_warp(emulator):
    p = launch(emulator, "p[threadIdx.x] = __shfl_xor_sync(~0u, (int)threadIdx.x, 5) + __shfl_sync(~0u, 1.f, 3);")
    assert (p == (np.arange(64) ^ 5) + 1).all()


def test_shared_memory_starts_as_nan(emulator):
    assert np.isnan(launch(emulator, "DYNAMIC_SHARED(float, s); p[threadIdx.x] = s[threadIdx.x];")).all()


def test_the_order_of_the_threads_comes_from_the_seed(emulator):
    body = "DYNAMIC_SHARED(int, turn); if (threadIdx.x == 9) *turn = 0; __syncthreads(); p[threadIdx.x] = (*turn)++;"
    orders = [launch(emulator, body, seed=seed) for seed in (1, 1, 2)]
    assert sorted(orders[0]) == list(range(64))
    assert (orders[0] == orders[1]).all()
    assert (orders[0] != orders[2]).any()


@pytest.mark.parametrize("body", ["if (threadIdx.x % 2) __shfl_sync(~0u, 1.f, 0); else __syncthreads();"])
def test_a_barrier_that_some_threads_never_reach_is_told(emulator, body):
    with pytest.raises(RuntimeError, match="probe stands still"):
        launch(emulator, body)


def test_a_source_that_does_not_compile_is_told(emulator):
    with pytest.raises(RuntimeError, match=r"g\+\+ cannot compile probe:(?s:.)*nothing"):
        launch(emulator, "p[0] = nothing;")


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.float32).T, np.zeros(4), np.zeros(4, np.int64)])
def test_other_arrays_are_refused(emulator, wrong):
    module = emulator.load(Kernels("probe", START + END))
    with pytest.raises(ValueError, match=f"contiguous arrays of .*, not {wrong.dtype}"):
        module("probe", (1,), (32,), wrong)


def test_without_a_compiler_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelsUnavailable, match=r"no g\+\+ on PATH; install it, such as: apt-get install g\+\+"):
        Kernels("lstm").emulated(tmp_path)


# -------------------------------------------------------------------------------------------------- with sanitizers


def sanitized(arguments, **variables):
    """Run Python with AddressSanitizer loaded; return how it ended and what it said."""
    asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout
    if not Path(asan.strip()).is_absolute():
        missing("g++ comes without AddressSanitizer")
    environ = os.environ | {
        "LD_PRELOAD": asan.strip(),
        "PYTEST_ADDOPTS": "",
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONPATH": os.pathsep.join([str(FOLDER.parents[1]), str(FOLDER)]),
        SANITIZE: "1",
    }
    done = subprocess.run([sys.executable, *arguments], env=environ | variables, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_every_kernel_stays_inside_its_memory(libraries):
    """All checks again, with AddressSanitizer and UndefinedBehaviorSanitizer, which also sees misaligned vectors."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / "test_emulated.py")]
    status, output = sanitized([*command, "-k", "every_kernel or many_widths or (many_shapes and not N130)"])
    assert status == 0, output[-3000:]
    assert " passed" in output
    assert "skipped" not in output


WRONG = {
    "a store past an array": (
        "from emulator import lstm; from shim.backends._cuda_kernels import Kernels\n"
        "old = 'if (u < HIDDEN) dz['; assert old in Kernels('lstm').text\n"
        "e.verify(lstm(2, 3, 5), change=lambda text: text.replace(old, 'dz['))",
        "heap-buffer-overflow",
    ),
    "shared memory too small": (
        "from shim.backends import _cuda_lstm; launch = _cuda_lstm.lstm_launch\n"
        "_cuda_lstm.lstm_launch = lambda padded: (launch(padded)[0], launch(padded)[1] - 4, launch(padded)[2])\n"
        "from emulator import lstm; e.verify(lstm(2, 3, 16))",
        "heap-buffer-overflow",
    ),
    "a misaligned vector": (
        "from shim.backends import _cuda_tables; _cuda_tables.lanes = lambda width, itemsize: (8, 2)\n"
        "from emulator import average; e.verify(average(2, 3, 7, 5))",
        "misaligned address",
    ),
}


@pytest.mark.parametrize(("code", "finding"), WRONG.values(), ids=WRONG)
def test_the_sanitizers_see_what_is_wrong(libraries, code, finding):
    start = "import sys; from emulator import Emulator; e = Emulator(sys.argv[1])\n"
    status, output = sanitized(["-c", start + code, str(libraries)])
    assert status != 0
    assert finding in output, output[-3000:]
