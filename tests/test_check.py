"""What a backend is not made for is counted apart, by its reason, and a refusal of what it offers is a failure."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import fake_backends
import pytest
from click.testing import CliRunner

from shim import cases, check, cli, parity, protocol
from shim.cli import installed

CASE = cases.case("dense", "forward_backward", parity.SMALL["dense"])


def outcome(error=None, unsupported=None):
    return check.Outcome("keras-numpy", "auto", CASE.id, None if error or unsupported else 0.5, error, unsupported)


def test_what_cannot_be_done_is_counted_by_its_reason(capsys):
    summary = check.summary([outcome(), outcome(unsupported="no gradients"), outcome(unsupported="no gradients")])
    assert (summary["passed"], summary["failed"], summary["unsupported"]) == (1, 0, 2)
    installed.print_check("keras-numpy", summary)
    printed = capsys.readouterr().out
    assert printed.startswith("keras-numpy: 1 passed, 0 failed, 2 cannot be done, worst error 0.50")
    assert "2 of them: no gradients" in printed


def test_a_refusal_of_what_is_offered_has_failed():
    summary = check.summary([outcome(error="refused, although it is offered: no", unsupported="no")])
    assert (summary["failed"], summary["unsupported"]) == (1, 0)


@pytest.mark.parametrize(
    ("limits", "offered"),
    [
        ({}, True),
        ({"DIRECTIONS": ("forward",)}, False),
        ({"DTYPES": ("float64",)}, False),
        ({"DTYPES": ("float32",)}, True),
    ],
)
def test_a_backend_says_what_it_offers(limits, offered):
    assert protocol.offers(SimpleNamespace(**limits), CASE) == offered


HALF = {d: cases.case("dense", d, parity.SMALL["dense"], "bfloat16") for d in ("forward", "forward_backward")}


@pytest.mark.parametrize(
    ("limits", "forward", "backward"),
    [
        ({}, False, False),
        ({"HALVES": ("float16",)}, False, False),
        ({"HALVES": ("float16", "bfloat16")}, True, True),
        ({"FORWARD_HALVES": {"bfloat16": ("dense", "lstm")}}, True, False),
        ({"FORWARD_HALVES": {"bfloat16": ("conv2d",), "float16": ("dense",)}}, False, False),
        ({"HALVES": ("bfloat16",), "DIRECTIONS": ("forward",)}, True, False),
    ],
)
def test_a_backend_says_which_halves_it_offers(limits, forward, backward):
    backend = SimpleNamespace(**limits)
    assert [protocol.offers(backend, case) for case in HALF.values()] == [forward, backward]
    assert not protocol.offers(backend, cases.parse("mnist_mlp/train_step/N128/bfloat16"))


def test_an_unknown_dtype_is_told_with_the_choices(monkeypatch):
    for dtype, message in (("float8", "unknown dtype 'float8'; the dtypes are: float32, float64, float16, bfloat16"),
                           ("bfloat16", "from the package ml_dtypes; run: pip install ml_dtypes")):  # fmt: skip
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        for case_id in (f"dense/forward/N3-I5-O7/{dtype}", f"mnist_mlp/train_step/N128/{dtype}"):
            result = CliRunner().invoke(cli.main, ["bench", "--case", case_id, "--backends", "numpy"])
            assert result.exit_code
            assert message in " ".join(result.output.split())


def test_a_device_that_is_not_there_is_told_before_any_case(tmp_path, monkeypatch):
    fake_backends.install(tmp_path, monkeypatch)
    result = CliRunner().invoke(cli.main, ["check", "no_gpu", "--device", "cuda"])
    assert result.exit_code == 1
    assert result.output == "Error: checking no_gpu stopped with status 1: no driver; install one\n"
    result = CliRunner().invoke(cli.main, ["check", "gpu", "--device", "cuda", "--op", "flatten"])
    assert result.output.startswith("gpu: ")
    assert result.exit_code == 0, result.output
