"""What rows take on the GPU itself, for the table and the page: see :mod:`shim.measure.device`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from shim.report import words


@dataclass(frozen=True)
class DeviceTimes:
    """One call of a row on the device, in seconds: medians of the samples of one process, hot and with a cold L2."""

    kernel: float
    span: float
    cold_kernel: float
    cold_span: float
    kernels: float
    longest: tuple[tuple[str, float], ...] = ()  # names, with their shares of the hot kernel time

    def __str__(self) -> str:
        return f"{words.duration(self.kernel)} in {self.kernels:.4g} kernels"


def times(run: Any, labels: Mapping[tuple[str, str | None], str]) -> dict[tuple[str, str], DeviceTimes]:
    """Return the times of each (case, contestant) that has some."""
    return {
        (r["case"], labels[r["target"], r["mode"]]): _times(r)
        for r in run.devices
        if (r["target"], r["mode"]) in labels
    }


def _times(record: Mapping[str, Any]) -> DeviceTimes:
    hot, cold = record["hot"], record["cold"]
    kernel, cold_kernel = (median(state["kernel_seconds"]) for state in (hot, cold))
    total = kernel or 1.0
    return DeviceTimes(
        kernel=kernel,
        span=median(hot["span_seconds"]),
        cold_kernel=cold_kernel,
        cold_span=median(cold["span_seconds"]),
        kernels=hot["kernels"],
        longest=tuple((words.line(one["name"], 60), one["seconds"] / total) for one in hot.get("longest", ())[:3]),
    )


def warnings(run: Any) -> Iterator[str]:
    """Say once for each reason which targets have no times on the device."""
    targets: dict[str, dict[str, None]] = {}
    for warning in run.warnings:
        if warning.get("stage") == "device":
            found = targets.setdefault(words.line(warning.get("reason", ""), 300), {})
            found[words.line(warning.get("target", "?"), 40)] = None
    for reason, names in targets.items():
        yield f"Not all times on the device of {words.listing(list(names))} were measured: {reason}."
