"""The backend cupy where there is no GPU: what it says, and that CuPy has what its code calls."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulator import missing

from shim import backends
from shim.backends import _cuda_device
from shim.backends._cuda_device import GpuUnavailable
from shim.backends._cuda_kernels import Kernels

ROOT = Path(__file__).parents[2]
FOLDER = Path(backends.__file__).parent


@pytest.fixture(scope="module")
def cupy():
    try:
        import cupy
    except ImportError as error:
        missing(error)
    return cupy


@pytest.fixture
def nothing_there(cupy):
    if cupy.cuda.runtime.driverGetVersion():
        pytest.skip("there is a driver here")


def test_without_cupy_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(GpuUnavailable, match=r"CuPy is not installed; run 'shim env cupy', or: pip install 'shim\[cup"):
        Kernels("optimizers").on_gpu()


NO_DRIVER = "can use no GPU: there is no NVIDIA driver here; on a machine with a GPU install"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ((35, "x", 0, 13020), r"no NVIDIA driver here.*docker run --gpus all"),
        ((35, "x", 12040, 13020), r"too old, for CUDA 12.4, and this CuPy needs CUDA 13;.*pip install cupy-cuda12x"),
        ((100, "x", 13000, 13020), r"a driver but no GPU.*nvidia-smi lists them$"),
        ((100, "x", 13000, 13020, "-1"), r"CUDA_VISIBLE_DEVICES='-1' may hide it: unset CUDA_VISIBLE_DEVICES"),
        ((2, "x", 13000, 13020), r"memory is full.*or take another GPU: CUDA_VISIBLE_DEVICES=1"),
        ((46, "x", 13000, 13020), "another process has it for itself"),
        ((999, "cudaErrorUnknown: unknown", 13000, 13020), "^cudaErrorUnknown: unknown; nvidia-smi may tell more"),
    ],
    ids=["no driver", "old driver", "no GPU", "hidden GPU", "full memory", "in use", "other"],
)
def test_each_error_says_what_mends_it(error, message):
    found = _cuda_device.explain(*error)
    with pytest.raises(GpuUnavailable, match=message):
        raise GpuUnavailable(found)


def test_without_a_driver_the_backend_says_so(nothing_there):
    backend = backends.load("cupy")
    for call in (backend.setup, lambda: backend.to_device(np.ones(3, np.float32)), Kernels("optimizers").on_gpu):
        with pytest.raises(GpuUnavailable, match=NO_DRIVER):
            call()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"device": "cpu"}, "unknown device 'cpu'; choose from: cuda"),
        ({"precision": "float16"}, "unknown precision 'float16'; choose from: float32, tf32"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_told_before_the_gpu_is_opened(cupy, setting, message):
    with pytest.raises(ValueError, match=message):
        backends.load("cupy").setup(**setting)


def test_a_missing_library_is_named(cupy, monkeypatch):
    def absent():
        raise ImportError('Failure finding "libcublas.so.13"')

    monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", lambda: (13, 0))
    monkeypatch.setattr(cupy.cuda, "get_cublas_handle", absent)
    with pytest.raises(GpuUnavailable, match=r"cannot use cuBLAS \(.*\); run 'shim env cupy'"):
        _cuda_device.check_libraries(cupy)


def test_products_in_float32_are_not_rounded_to_tf32(cupy, monkeypatch):
    """Whatever the environment says."""
    backend = backends.load("cupy")
    monkeypatch.setenv("CUPY_TF32", "1")
    backend._choose_precision("float32")
    assert backend._precision() == "float32"


def test_the_first_step_of_bench_gpu_ends_without_a_gpu(nothing_there):
    command = [sys.executable, "-m", "shim.check", "cupy", "--device=cuda"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert NO_DRIVER in done.stderr
    assert done.stderr.count("\n") == 1, "a traceback is no message"


def test_bench_gpu_checks_before_it_measures():
    variables = {"TOOL": "", "SHIM": "shim", "GPU": "cupy torch"}
    command = ["make", "-n", "bench-gpu", *(f"{name}={value}" for name, value in variables.items())]
    steps = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    parts = ["shim env cupy\n", "shim check cupy --device cuda --op flatten\n", "shim env cupy torch\n",
             "shim check cupy torch --device cuda || failed=1;", "shim bench "]  # fmt: skip
    assert sorted(parts, key=steps.index) == parts
    assert "--device cuda --backends cupy,torch --set $set" in steps


@pytest.mark.parametrize(("fails", "status"), [("nothing", 0), ("check cupy torch", 2), ("bench", 2), ("flatten", 2)])
def test_bench_gpu_measures_what_it_can_and_its_status_tells_of_failures(tmp_path, fails, status):
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    command = tmp_path / "shim"
    command.write_text(f'#!/bin/sh\necho "$*" >> called\ncase "$*" in *"{fails}"*) exit 1;; esac\n')
    command.chmod(0o755)
    done = subprocess.run(
        ["make", "bench-gpu", "TOOL=", f"SHIM={command}", "GPU=cupy torch"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    called = [" ".join(line.split()[:2]) for line in (tmp_path / "called").read_text().splitlines()]
    after = [] if fails == "flatten" else ["env cupy", "check cupy", "bench --device", "bench --device"]
    assert called == ["env cupy", "check cupy", *after]


# ------------------------------------------------------------------------------------------------ what CuPy offers

SHARED = [
    *sorted(path.stem for path in FOLDER.glob("_handwritten*.py")),
    "_tape",
    "_updates",
    *sorted(path.stem for path in FOLDER.glob("_cuda_*.py")),
    "cupy",
]


def calls(text):
    """Return (name, number of positional arguments, keywords) of each call of a function of ``xp``."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            owner, _, name = ast.unparse(node.func).removeprefix("self._").removeprefix("cuda.").partition(".")
            if owner == "xp" and "(" not in name and not any(isinstance(a, ast.Starred) for a in node.args):
                found.append((name, len(node.args), tuple(k.arg for k in node.keywords)))
    return found


def test_cupy_has_every_array_function_with_its_arguments(cupy):
    checked = set()
    for file in SHARED:
        for name, count, keywords in calls((FOLDER / f"{file}.py").read_text()):
            refuse_unless_offered(cupy, name, count, keywords)
            checked.add(name)
    assert {"matmul", "copyto", "lib.stride_tricks.as_strided", "add.at", "argsort"} <= checked


def refuse_unless_offered(cupy, name, count, keywords):
    function = cupy
    for part in name.split("."):
        function = getattr(function, part)
    if not isinstance(function, cupy.ufunc) and inspect.isfunction(function):
        inspect.signature(function).bind(*range(count), **dict.fromkeys(keywords))


@pytest.mark.parametrize(
    ("name", "count", "keywords"), [("take", 2, ("axis", "mode")), ("nan_to_nothing", 1, ()), ("ones", 4, ())]
)
def test_what_cupy_does_not_offer_is_seen(cupy, name, count, keywords):
    with pytest.raises((AttributeError, TypeError)):
        refuse_unless_offered(cupy, name, count, keywords)


# --------------------------------------------------------------------------------------------------- random words


def test_random_words_are_those_of_splitmix64(cupy):
    generator = backends.load("cupy").SplitMix64(np)
    generator.state = np.uint64(1234567)
    words = np.concatenate([generator.words(2), generator.words(3)])
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert words.tolist() == known


def test_seeds_are_told_apart(cupy):
    first, again, other = (backends.load("cupy").SplitMix64(np, seed).words(3).tolist() for seed in (1, 1, 2))
    assert first == again != other
