"""CUDA kernels from the files in ``kernels/``, and three ways to use one: run it on a GPU, run it on a CPU, compile it.

``Kernels("lstm", PADDED=64, ...)`` is a file with its constants. :meth:`Kernels.on_gpu` compiles it through CuPy,
:meth:`Kernels.emulated` as plain C++ with g++, whose threads take turns in an order drawn from a seed. Both return a
:class:`Module`, which launches kernels in the same words, so all around a kernel is the same code, too. With
:meth:`Kernels.compiled` nothing runs: it tells what the kernels need on a GPU that need not be there.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shim.backends._cuda_device import open_device

FOLDER = Path(__file__).parent / "kernels"
FILES = ("lstm", "columns", "embedding_average", "conv2d", "glue", "optimizers")
DTYPES = ("float32", "float16", "bfloat16", "int32", "uint8", "uint64")
STATIC_LIMIT = 48 << 10  # bytes of shared memory; above, a kernel has to ask for them
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g")


class KernelsUnavailable(RuntimeError):
    """What a way to use the kernels needs is not there; the message names it."""


@dataclass(frozen=True)
class Resources:
    """What one block of a kernel needs: registers of a thread, bytes of a thread spilled, bytes of shared memory."""

    registers: int
    spilled: int
    shared: int


class Kernels:
    """A file of kernels with its constants; ``text`` stands in for the file's."""

    def __init__(self, name, text=None, **constants):
        self.name, self.constants = name, constants
        self.text = text if text is not None else (FOLDER / f"{name}.cu").read_text(encoding="utf-8")
        self.options = tuple(f"-D{constant}={value}" for constant, value in constants.items())

    def __repr__(self):
        return " ".join((self.name, *(f"{constant}={value}" for constant, value in self.constants.items())))

    @property
    def names(self):
        """The kernels of the file."""
        return tuple(re.findall(r"^EMULATE\((\w+)\)$", self.text, re.MULTILINE))

    def on_gpu(self):
        """Compile through CuPy, at the first launch; raise ``GpuUnavailable`` without CuPy or a GPU."""
        module = open_device().RawModule(code=self.text, options=("-std=c++17", *self.options))
        return Module(functools.partial(_on_gpu, functools.cache(functools.partial(_function, module))))

    def emulated(self, folder, seed=0, sanitize=False):
        """Compile with g++ into ``folder``; raise :class:`KernelsUnavailable` without g++.

        ``sanitize`` stops the process where memory is misused; AddressSanitizer has to be loaded before all else.
        """
        return Module(functools.partial(_emulated, self._library(Path(folder), sanitize), seed))

    def _library(self, folder, sanitize):
        if shutil.which("g++") is None:
            raise KernelsUnavailable("no g++ on PATH; install it, such as: apt-get install g++")
        flags = ["-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-Wall", "-Werror"]
        flags += ["-Wno-unknown-pragmas", "-Wno-unused-variable", *(SANITIZERS if sanitize else ())]
        command = ["g++", *flags, "-shared", "-fPIC", "-DEMULATED", *self.options, f"-I{FOLDER}", "-x", "c++"]
        header = (FOLDER / "emulation.h").read_text(encoding="utf-8")
        digest = hashlib.sha256("\0".join([self.text, header, *command]).encode()).hexdigest()[:16]
        library = folder / f"{self.name}-{digest}.so"
        if not library.exists():
            source, unfinished = library.with_suffix(".cpp"), library.with_suffix(f".{os.getpid()}")
            source.write_text(self.text, encoding="utf-8")
            done = subprocess.run([*command, str(source), "-o", str(unfinished)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"g++ cannot compile {self!r}:\n{done.stderr}")
            unfinished.replace(library)
        return ctypes.CDLL(str(library))

    def compiled(self, architecture):
        """Compile for a GPU such as ``sm_90`` and return the :class:`Resources` of each kernel.

        Raises :class:`KernelsUnavailable` without NVIDIA's compiler library.
        """
        return _compiled(self, architecture)


class Module:
    """Kernels ready to run; ``launched`` names those that did."""

    def __init__(self, launch):
        self._launch, self.launched = launch, set()

    def __call__(self, kernel, grid, block, *args, shared=0):
        """Launch over ``grid`` blocks of ``block`` threads, with so many bytes of ``shared`` memory.

        An int is passed as 32 bits, a float as float32, None as a null pointer; arrays must be
        C-contiguous and of :data:`DTYPES`.
        """
        grid, block = ((*size, 1, 1)[:3] for size in (grid, block))
        self._launch(kernel, grid, block, tuple(map(_argument, args)), shared)
        self.launched.add(kernel)


def blocks_of(size, part):
    """Return how many blocks of ``part`` there are for so many elements, at least one."""
    return max(1, -(-size // part))


def _argument(value):
    if value is None:
        return np.uintp(0)
    if isinstance(value, float):
        return np.float32(value)
    if isinstance(value, int):
        return np.int32(value)
    if not (value.flags.c_contiguous and value.dtype.name in DTYPES):
        raise ValueError(f"kernels take contiguous arrays of {' or '.join(DTYPES)}, not {value.dtype} {value.shape}")
    return value


def _function(module, kernel, shared):
    function = module.get_function(kernel)
    if shared > STATIC_LIMIT:
        function.max_dynamic_shared_size_bytes = shared
    return function


def _on_gpu(function, kernel, grid, block, args, shared):
    function(kernel, shared)(grid, block, args, shared_mem=shared)


def _emulated(library, seed, kernel, grid, block, args, shared):
    values = [ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else _scalar(a) for a in args]
    places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
    sizes = [(ctypes.c_uint * 3)(*size) for size in (grid, block)]
    function = library[f"emulated_{kernel}"]
    if function(*sizes, ctypes.c_size_t(shared), places, ctypes.c_uint(seed)):
        raise RuntimeError(f"{kernel} stands still: some threads wait for others that never come")


def _scalar(value):
    return np.ctypeslib.as_ctypes_type(value.dtype)(value.item())


def _compiled(kernels, architecture):
    try:
        from cuda.bindings import nvrtc
    except ImportError:
        raise KernelsUnavailable("cuda-bindings is not installed; see requirements/_cuda.txt") from None

    def check(result):
        status, *values = result
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"{kernels!r} does not compile for {architecture}: {status.name}\n{log()}")
        return values[0] if values else None

    def log():
        buffer = b" " * nvrtc.nvrtcGetProgramLogSize(program)[1]
        nvrtc.nvrtcGetProgramLog(program, buffer)
        return buffer.decode().rstrip("\0 \n")

    program = nvrtc.nvrtcCreateProgram(kernels.text.encode(), f"{kernels.name}.cu".encode(), 0, [], [])[1]
    options = [f"--gpu-architecture={architecture}", "-std=c++17", "--ptxas-options=-v", *kernels.options]
    check(nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options]))
    return parse_resources(log())


def parse_resources(log):
    """Read the :class:`Resources` of each kernel from what ``ptxas -v`` says."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        shared = re.search(r"(\d+) bytes smem", part)
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        found[part.partition("'")[0]] = Resources(registers, spilled, int(shared[1]) if shared else 0)
    return found
