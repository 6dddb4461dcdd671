"""The GPU of a process, opened through CuPy, or an error that says what is missing and how to mend it."""

from __future__ import annotations

import os

INSUFFICIENT_DRIVER, OUT_OF_MEMORY, NO_DEVICE, IN_USE = 35, 2, 100, 46  # of cudaError
INSTALL = "run 'shim env cupy', or: pip install 'shim[cupy]'"
DRIVER = "install NVIDIA's newest (Ubuntu: sudo ubuntu-drivers install)"


class GpuUnavailable(RuntimeError):
    """No GPU can be used through CuPy; the message says why and what mends it."""


def open_device():
    """Return CuPy with its GPU ready for use: a context, its compiler and its products. Raises GpuUnavailable."""
    try:
        import cupy
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise GpuUnavailable(f"CuPy is not installed; {INSTALL}") from None
        raise GpuUnavailable(f"CuPy cannot be imported here ({error}); {INSTALL}") from None
    runtime = cupy.cuda.runtime
    try:
        cupy.cuda.Device().use()
        runtime.memGetInfo()  # makes the context
    except runtime.CUDARuntimeError as error:
        driver, needed = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        reason = explain(error.status, str(error), driver, needed, os.environ.get("CUDA_VISIBLE_DEVICES"))
        raise GpuUnavailable(f"CuPy {cupy.__version__} can use no GPU: {reason}") from None
    check_libraries(cupy)
    return cupy


def explain(status, text, driver, needed, visible=None):
    """Say what an error of CUDA means and which command mends it.

    ``driver`` and ``needed`` are versions of CUDA, 13020 for 13.2: what the driver is for, 0 without one, and what CuPy
    was built with. ``visible`` is $CUDA_VISIBLE_DEVICES.
    """
    if status == INSUFFICIENT_DRIVER and not driver:
        return (
            f"there is no NVIDIA driver here; on a machine with a GPU {DRIVER}, "
            "and start a container with: docker run --gpus all"
        )
    if status == INSUFFICIENT_DRIVER:
        return (
            f"its driver is too old, for CUDA {shown(driver)}, and this CuPy needs CUDA {needed // 1000}; {DRIVER}, "
            f"or take the CuPy of the driver: pip install cupy-cuda{driver // 1000}x in place of this one"
        )
    if status == NO_DEVICE:
        hidden = f"; CUDA_VISIBLE_DEVICES={visible!r} may hide it: unset CUDA_VISIBLE_DEVICES" if visible else ""
        return f"there is a driver but no GPU, or none that this process may use; nvidia-smi lists them{hidden}"
    if status == OUT_OF_MEMORY:
        return (
            "its memory is full before this process has any; end those that hold it, which nvidia-smi lists, "
            "or take another GPU: CUDA_VISIBLE_DEVICES=1"
        )
    if status == IN_USE:
        return "another process has it for itself; end that one, which nvidia-smi lists"
    return f"{text}; nvidia-smi may tell more"


def check_libraries(cupy):
    """Raise GpuUnavailable where CuPy finds no compiler, or no library for products."""
    for name, use in (
        ("NVRTC", lambda: cupy.cuda.nvrtc.getVersion()),
        ("cuBLAS", lambda: cupy.cuda.cublas.getVersion(cupy.cuda.get_cublas_handle())),
    ):
        try:
            use()
        except (ImportError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise GpuUnavailable(f"CuPy {cupy.__version__} cannot use {name} ({reason}); {INSTALL}") from None


def describe(cupy):
    """Return the GPU's name, and the versions of its driver and of the libraries in use."""
    runtime, device = cupy.cuda.runtime, cupy.cuda.Device()
    name = runtime.getDeviceProperties(device.id)["name"].decode()
    free, total = runtime.memGetInfo()
    return f"{name}, {total / 2**30:.0f} GiB ({free / 2**30:.0f} free)", {
        "driver": f"for CUDA {shown(runtime.driverGetVersion())}",
        "CUDA runtime": shown(runtime.runtimeGetVersion()),
        "cuBLAS": str(cupy.cuda.cublas.getVersion(cupy.cuda.get_cublas_handle())),
        "NVRTC": ".".join(map(str, cupy.cuda.nvrtc.getVersion())),
        "compute capability": f"{device.compute_capability[:-1]}.{device.compute_capability[-1]}",
    }


def shown(version):
    return f"{version // 1000}.{version % 1000 // 10}"
