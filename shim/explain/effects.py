"""Sums and differences of medians, with intervals that know what their parts have in common.

All parts are resampled together: a resample draws the same rounds for every case and contestant, as
:mod:`shim.statistics` does for one row, so that what a process or a busy machine does to all of them alike cancels in a
difference, and a sum is as uncertain as its parts are together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shim import statistics


@dataclass(frozen=True)
class Effect:
    """What is made of medians: its value, its value in each resample and in each round, in seconds or as a share."""

    value: float
    resamples: np.ndarray
    rounds: np.ndarray

    def __add__(self, other: Effect) -> Effect:
        return Effect(self.value + other.value, self.resamples + other.resamples, self.rounds + other.rounds)

    def __mul__(self, other: Effect | float) -> Effect:
        if isinstance(other, Effect):
            return Effect(self.value * other.value, self.resamples * other.resamples, self.rounds * other.rounds)
        return Effect(self.value * other, self.resamples * other, self.rounds * other)

    def __neg__(self) -> Effect:
        return self * -1

    def __sub__(self, other: Effect) -> Effect:
        return self + -other

    def estimate(self) -> statistics.Estimate:
        """Return the value with its 95 % interval, which is NaN for fewer than three rounds."""
        rounds = len(self.rounds)
        if rounds < statistics.ROUNDS_FOR_A_VERDICT:
            return statistics.Estimate(self.value, math.nan, math.nan)
        level = statistics.expanded_level(rounds)
        low, high = (float(end) for end in np.quantile(self.resamples, [level, 1 - level]))
        if rounds < statistics.ROUNDS_FOR_PERCENTILES:
            half = statistics.student(rounds) * float(self.rounds.std(ddof=1)) / math.sqrt(rounds)
            middle = float(self.rounds.mean())
            low, high = min(low, middle - half), max(high, middle + half)
        return statistics.Estimate(self.value, min(low, self.value), max(high, self.value))


def total(effects: Iterable[Effect]) -> Effect:
    """Return the sum of at least one effect."""
    first, *others = effects
    for effect in others:
        first = first + effect
    return first


def common_rounds(samples: Iterable[statistics.Samples]) -> list[int]:
    """Return the rounds in which every one of these has a sample."""
    present = [set(np.flatnonzero((~np.isnan(statistics.as_matrix(s))).any(axis=1)).tolist()) for s in samples]
    return sorted(set.intersection(*present)) if present else []


def median(samples: statistics.Samples, rounds: Sequence[int]) -> Effect:
    """Return the median of the samples of some rounds; each of them must have one."""
    matrix = statistics.as_matrix(samples)[list(rounds)]
    known = ~np.isnan(matrix)
    values = matrix[known]
    below, above = statistics.resampled_medians(values, np.nonzero(known)[0], len(matrix))
    return Effect(float(np.median(values)), (below + above) / 2, np.nanmedian(matrix, axis=1))
