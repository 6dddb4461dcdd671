"""The order of blocks is random, balanced, complete and the same again from the same seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shim.measure import schedule

CASES = ["dense", "conv2d", "lstm"]


def names(number):
    return [f"contestant {k}" for k in range(number)]


@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(1, 5), st.integers(1, 6))
def test_every_sweep_holds_every_case_and_contestant_once(seed, round, sweeps, number):
    blocks = schedule.blocks(seed, round, sweeps, CASES, names(number))
    assert Counter(blocks) == Counter((s, c, n) for s in range(sweeps) for c in CASES for n in names(number))
    assert [block.sweep for block in blocks] == sorted(block.sweep for block in blocks)
    assert blocks == schedule.blocks(seed, round, sweeps, CASES, names(number))


def test_seeds_and_rounds_differ():
    orders = {tuple(schedule.blocks(s, r, 2, CASES, names(4))) for s in range(5) for r in range(5)}
    assert len(orders) == 25


def test_contestants_of_a_case_follow_one_another():
    blocks = schedule.blocks(3, 0, 2, CASES, names(4))
    assert sum(a.case != b.case for a, b in pairwise(blocks)) <= 2 * len(CASES) - 1


@pytest.mark.parametrize(("number", "rounds", "sweeps"), [(2, 3, 2), (3, 4, 3), (4, 4, 3), (5, 10, 1), (1, 2, 2)])
def test_places_and_neighbours_are_balanced_over_a_run(number, rounds, sweeps):
    places, neighbours = Counter(), Counter()
    for round in range(rounds):
        order = [b for b in schedule.blocks(7, round, sweeps, CASES, names(number)) if b.case == "lstm"]
        for sweep in range(sweeps):
            row = [block.contestant for block in order if block.sweep == sweep]
            places.update(enumerate(row))
            neighbours.update(pairwise(row))
    assert len(set(places.values())) == 1
    assert len(places) == number**2
    assert len(set(neighbours.values())) <= 1
    assert len(neighbours) == number * (number - 1)


@given(st.integers(1, 9))
def test_williams_squares_balance_places_and_neighbours(number):
    rows = schedule.williams(number)
    assert all(sorted(row) == list(range(number)) for row in rows)
    assert set(Counter(place for row in rows for place in enumerate(row)).values()) == {len(rows) // number}
    assert len(set(Counter(pair for row in rows for pair in pairwise(row)).values())) <= 1


def test_start_orders_differ_between_rounds():
    orders = {tuple(schedule.start_order(0, round, names(4))) for round in range(10)}
    assert len(orders) > 5
    assert schedule.start_order(0, 3, names(4)) == schedule.start_order(0, 3, names(4))
