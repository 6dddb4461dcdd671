"""Settings of a target's process: one thing changed, such as ``torch/one-thread``, so that its effect can be measured.

A target with a setting uses the environment of the target without it, and is a contestant of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shim import environments


@dataclass(frozen=True)
class Setting:
    """What a setting changes: ``variables`` of the environment, the number of ``threads``, None being that of the run.

    ``awake`` is whether idle CPUs are kept awake, ``pinned`` whether threads stay on their CPUs. ``backends`` are those
    on which it has an effect, none standing for all.
    """

    text: str
    variables: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    awake: bool = True
    pinned: bool = True
    backends: tuple[str, ...] = ()


NONE = Setting("as it is")
SETTINGS = {
    "one-thread": Setting("on one CPU, with one thread", threads=1),
    "cpus-sleep": Setting("with CPUs that may sleep while a thread waits, as outside of measurements", awake=False),
    "threads-move": Setting(
        "with threads that the system moves from CPU to CPU, as outside of measurements", pinned=False
    ),
    "huge-pages": Setting(
        "with large arrays in pages of 2 MB, for which NumPy asks Linux by itself",
        {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    ),
    "no-onednn": Setting(
        "Eigen's kernels instead of oneDNN's",
        {"TF_ENABLE_ONEDNN_OPTS": "0"},
        backends=("tensorflow", "keras-tensorflow"),
    ),
    # Until 2020, MKL took the code for the oldest CPUs wherever the vendor is not Intel, unless it was told otherwise.
    "mkl-avx2": Setting(
        "MKL's code for AVX2, whatever CPU it finds", {"MKL_DEBUG_CPU_TYPE": "5"}, backends=("cntk", "keras-cntk")
    ),
}


def split(target: str) -> tuple[str, Setting]:
    """Return a target without its setting, and the setting; ``ValueError`` with the choices for an unknown one."""
    plain, slash, name = target.partition("/")
    backend, _ = environments.parse(plain)
    if not slash:
        return plain, NONE
    offered = [key for key, setting in SETTINGS.items() if backend in setting.backends or not setting.backends]
    if name not in offered:
        raise ValueError(f"{plain} has no setting {name!r}; it has: {', '.join(offered)}")
    return plain, SETTINGS[name]
