"""What a backend is not made for is counted apart, by its reason, and a refusal of what it offers is a failure."""

from __future__ import annotations

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


def test_a_device_that_is_not_there_is_told_before_any_case(tmp_path, monkeypatch):
    fake_backends.install(tmp_path, monkeypatch)
    result = CliRunner().invoke(cli.main, ["check", "no_gpu", "--device", "cuda"])
    assert result.exit_code == 1
    assert result.output == "Error: checking no_gpu stopped with status 1: no driver; install one\n"
    result = CliRunner().invoke(cli.main, ["check", "gpu", "--device", "cuda", "--op", "flatten"])
    assert result.output.startswith("gpu: ")
    assert result.exit_code == 0, result.output
