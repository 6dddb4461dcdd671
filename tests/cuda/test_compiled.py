"""What the kernels need on a GPU, as NVIDIA's compiler tells it: it runs without one."""

from __future__ import annotations

import math

import pytest
from emulator import missing

from shim.backends._cuda_conv2d import conv2d_constants
from shim.backends._cuda_kernels import Kernels, KernelsUnavailable, Resources, parse_resources
from shim.backends._cuda_lstm import LSTM_SIZES, lstm_constants, lstm_launch
from shim.backends._cuda_tables import BLOCK

REGISTERS = 65536  # of a multiprocessor, all architectures here
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10}  # bytes that a block may have
HIDDEN = (1, 3, 16, 17, 32, 47, 48, 63, 64, 65, 80, 81, 95, 96, *range(97, 129))  # registers are short from 97 on


def compiled(kernels, architecture):
    try:
        found = kernels.compiled(architecture)
    except KernelsUnavailable as error:
        missing(error)
    assert set(found) == set(kernels.names), "EMULATE(...) at the end of the file does not name the kernels in it"
    return found


@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize("hard", [False, True], ids=["sigmoid", "hard_sigmoid"])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_lstms_keep_their_weights_in_registers(architecture, hidden, hard):
    constants = lstm_constants(hidden, hard)
    padded = constants["PADDED"]
    threads, *shared = lstm_launch(padded)
    found = compiled(Kernels("lstm", **constants), architecture)
    spilled = 8 if architecture == "sm_80" and hidden > 96 else 0  # beside 22 weights of 32 bytes
    for name, dynamic in zip(("lstm_forward", "lstm_backward"), shared, strict=True):
        assert found[name].spilled <= spilled
        assert found[name].registers * threads <= REGISTERS
        assert found[name].registers >= 4 * constants["UNITS"] * constants["HELD"]  # so they are there
        assert found[name].shared == 0  # all that there is is asked for at the launch
        assert dynamic <= SHARED[architecture]


@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize(("name", "registers"), [("embedding_average", 56), ("optimizers", 32), ("glue", 48)])
def test_other_kernels_are_light(architecture, name, registers):
    """With 32 registers a multiprocessor is full of threads, with 64 a block may have 1024."""
    for kernel, found in compiled(Kernels(name), architecture).items():
        assert found.spilled == found.shared == 0
        full = kernel.startswith(("average", "scatter", "descend")) and not kernel.endswith("float16_8")
        assert found.registers <= (32 if full else registers)


@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (3, 3, 1), (5, 5, 1), (1, 1, 3)])
def test_convolutions_keep_their_weights_in_registers(architecture, kernel, stride):
    found = compiled(Kernels("conv2d", **conv2d_constants(kernel, stride)), architecture)
    for resources in found.values():
        assert resources.spilled == resources.shared == 0
        assert resources.registers * BLOCK * (2 if stride == 1 else 1) <= REGISTERS
    assert found["conv2d_forward"].registers >= math.prod(kernel)


@pytest.mark.parametrize("hidden", range(1, 129))
def test_every_size_of_an_lstm_has_constants(hidden):
    constants = lstm_constants(hidden)
    assert hidden <= constants["PADDED"] < hidden + 16
    assert constants["HELD"] <= constants["PADDED"] // 4
    assert lstm_launch(constants["PADDED"])[0] % 32 == 0
    assert constants["PADDED"] in LSTM_SIZES


def test_a_kernel_that_the_emulation_does_not_know_is_seen():
    text = Kernels("optimizers").text + '\nextern "C" __global__ void forgotten(float* p) { p[0] = 1; }\n'
    with pytest.raises(AssertionError, match="does not name the kernels"):
        compiled(Kernels("optimizers", text), "sm_90")


def test_spilled_registers_are_seen():
    """With more weights than there are registers."""
    found = compiled(Kernels("lstm", **lstm_constants(128) | {"HELD": 32}), "sm_90")
    assert found["lstm_forward"].spilled > 0
    assert found["lstm_backward"].spilled > 0


def test_the_source_of_an_error_is_named():
    try:
        with pytest.raises(RuntimeError, match=r"optimizers does not compile for sm_90.*\n.*optimizers.cu.*nothing"):
            Kernels("optimizers", "__global__ void k(float* p) { *p = nothing; }").compiled("sm_90")
    except KernelsUnavailable as error:
        missing(error)


def test_what_the_compiler_says_is_read():
    log = """ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 512 bytes smem
ptxas info    : Compiling entry function 'b' for 'sm_90'
ptxas info    : Function properties for b
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers
"""
    assert parse_resources(log) == {"a": Resources(40, 16, 512), "b": Resources(16, 0, 0)}
