"""The environment record: what a time depends on beside the code. Every field is present; "unknown" is an answer."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import threadpoolctl

import shim

UNKNOWN = "unknown"
_SYSTEM = Path("/sys/devices/system")

#: Variables that change speed or results. Whole names or families, never anything that may hold a secret.
VARIABLES = re.compile(
    r"(OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|DNNL|ONEDNN|MALLOC|XLA|ATEN)_\w+"
    r"|TF_(NUM_INT(RA|ER)OP_THREADS|ENABLE_ONEDNN_OPTS|XLA_FLAGS|CPP_MIN_LOG_LEVEL|DETERMINISTIC_OPS"
    r"|FORCE_GPU_ALLOW_GROWTH|GPU_ALLOCATOR|USE_LEGACY_KERAS|ENABLE_TENSOR_FLOAT_32_EXECUTION|CPU_ALLOCATOR_USE_BFC)"
    r"|JAX_(PLATFORMS|ENABLE_X64|NUM_CPU_DEVICES|DISABLE_JIT|DEFAULT_MATMUL_PRECISION|CPU_ENABLE_ASYNC_DISPATCH"
    r"|ENABLE_COMPILATION_CACHE)"
    r"|TORCHINDUCTOR_(COMPILE_THREADS|FREEZING|MAX_AUTOTUNE)"
    r"|NPROC|NUMEXPR_NUM_THREADS|VECLIB_MAXIMUM_THREADS|NPY_\w+|NUMPY_MADVISE_HUGEPAGE|KERAS_BACKEND"
    r"|CUDA_(VISIBLE_DEVICES|LAUNCH_BLOCKING|MODULE_LOADING|CACHE_DISABLE|DEVICE_ORDER)|NVIDIA_TF32_OVERRIDE"
    r"|GLIBC_TUNABLES|LD_PRELOAD|PYTHON(HASHSEED|MALLOC|OPTIMIZE|DEVMODE)"
)


def environment() -> dict[str, Any]:
    """Return what is known of this machine, this checkout and the relevant variables; the host's name is left out."""
    return {
        "cpu": cpu_model(),
        "architecture": platform.machine() or UNKNOWN,
        "cores": psutil.cpu_count(logical=True) or UNKNOWN,
        "cores_physical": psutil.cpu_count(logical=False) or UNKNOWN,
        "affinity": _asked(lambda: sorted(os.sched_getaffinity(0))),
        "frequency_mhz": _asked(lambda: round(psutil.cpu_freq().max or psutil.cpu_freq().current)),
        "governor": _read(_SYSTEM / "cpu/cpu0/cpufreq/scaling_governor"),
        "turbo": _turbo(),
        "numa_nodes": len(list(_SYSTEM.glob("node/node[0-9]*"))) or UNKNOWN,
        "caches": _caches(),
        "memory_bytes": _asked(lambda: psutil.virtual_memory().total),
        "huge_pages": _chosen(_read(Path("/sys/kernel/mm/transparent_hugepage/enabled"))),
        "system": _system(),
        "kernel": platform.release() or UNKNOWN,
        "virtualised": _virtualised(),
        "load_average": load_average(),
        "python": platform.python_version(),
        "blas": _asked(_blas),
        "shim": shim.__version__,
        "git": git(Path(shim.__file__).resolve().parent.parent),
        "variables": relevant(os.environ),
    }


def relevant(variables: Mapping[str, str]) -> dict[str, str]:
    """Return those of the variables that change speed or results."""
    return {name: variables[name] for name in sorted(variables) if VARIABLES.fullmatch(name)}


def load_average() -> Any:
    """Return the load of the last minute."""
    return _asked(lambda: round(os.getloadavg()[0], 2))


def parallel_speedup(threads: int) -> Any:
    """Return how many times as fast a matrix product is with ``threads`` threads as with one; "unknown" for one thread.

    It is close to ``threads`` where each has a core of its own. The CPUs of a virtual machine may share one, and not
    do so some minutes later: that changes every time of more than one thread.
    """
    if threads < 2:
        return UNKNOWN
    import numpy as np

    a = np.ones((512, 512), np.float32)
    out = a @ a

    def seconds(limit: int) -> float:
        with threadpoolctl.threadpool_limits(limit, user_api="blas"):
            np.matmul(a, a, out=out)
            times = []
            for _ in range(5):
                start = perf_counter()
                np.matmul(a, a, out=out)
                times.append(perf_counter() - start)
        return min(times)

    return _asked(lambda: round(seconds(1) / seconds(threads), 2))


def git(folder: Path) -> dict[str, Any]:
    """Return the commit of a checkout and whether tracked files differ from it; "unknown" outside of one."""
    if not (folder / ".git").exists():
        return {"commit": UNKNOWN, "dirty": UNKNOWN}
    status = _asked(lambda: _git(folder, "status", "--porcelain", "--untracked-files=no"))
    return {
        "commit": _asked(lambda: _git(folder, "rev-parse", "HEAD")),
        "dirty": UNKNOWN if status == UNKNOWN else bool(status),
    }


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()


def _asked(question: Callable[[], Any]) -> Any:
    """Return the answer, or "unknown" where the system has none."""
    try:
        return question()
    except (OSError, AttributeError, ValueError, NotImplementedError, RuntimeError, subprocess.SubprocessError):
        return UNKNOWN


def _read(path: Path) -> str:
    try:
        return path.read_text().strip() or UNKNOWN
    except OSError:
        return UNKNOWN


def _chosen(text: str) -> str:
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else text


def cpu_model() -> str:
    match = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return match[1].strip() if match else platform.processor() or UNKNOWN


def _turbo() -> str:
    no_turbo = _read(_SYSTEM / "cpu/intel_pstate/no_turbo")
    boost = _read(_SYSTEM / "cpu/cpufreq/boost")
    if no_turbo != UNKNOWN:
        return "off" if no_turbo == "1" else "on"
    return {"0": "off", "1": "on"}.get(boost, UNKNOWN)


def _caches() -> dict[str, str]:
    found = {}
    for folder in sorted((_SYSTEM / "cpu/cpu0/cache").glob("index*")):
        kind = {"Data": "d", "Instruction": "i"}.get(_read(folder / "type"), "")
        found[f"L{_read(folder / 'level')}{kind}"] = _read(folder / "size")
    return found


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", UNKNOWN)
    except OSError:
        return platform.system() or UNKNOWN


def _virtualised() -> str:
    """Return "no", or what a virtual machine or container says of itself."""
    found = []
    if re.search(r"^flags\s*:.*\bhypervisor\b", _read(Path("/proc/cpuinfo")), re.MULTILINE):
        maker = _read(Path("/sys/class/dmi/id/sys_vendor"))
        found.append("virtual machine" if maker == UNKNOWN else f"virtual machine ({maker})")
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        found.append("container")
    return ", ".join(found) or ("no" if platform.machine() in ("x86_64", "AMD64") else UNKNOWN)


def _blas() -> list[dict[str, Any]]:
    """Return the BLAS that this tool's own NumPy uses; those of the targets stand in their worker records."""
    import numpy as np

    np.ones((2, 2)) @ np.ones((2, 2))
    keys = ("internal_api", "version", "num_threads", "architecture", "threading_layer")
    return [{k: pool[k] for k in keys if pool.get(k)} for pool in threadpoolctl.threadpool_info()]
