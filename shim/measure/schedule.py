"""The order of blocks in a round: random, balanced, and the same again from the same seed.

A sweep holds one block of every case and contestant. Cases come in random order; within a case the contestants follow
one another, so that what slows the machine for a while slows all of them. Their order there goes through the rows of a
Williams square: over a run every contestant comes equally often (within one) in every place, and, where the rows are
used up, equally often after every other one, which cancels what one block leaves behind for the next.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple


class Block(NamedTuple):
    """One block to play."""

    sweep: int
    case: str
    contestant: str


def blocks(seed: int, round: int, sweeps: int, cases: Sequence[str], contestants: Sequence[str]) -> list[Block]:
    """Return the blocks of a round in the order in which they are played."""
    order = random.Random(f"{seed} {round}")
    found = []
    for sweep in range(sweeps):
        for case in order.sample(cases, len(cases)):
            row = _rows(seed, case, contestants)[(round * sweeps + sweep) % _row_count(len(contestants))]
            found += [Block(sweep, case, contestant) for contestant in row]
    return found


def start_order(seed: int, round: int, targets: Sequence[str]) -> list[str]:
    """Return the order in which the workers of a round are started."""
    return random.Random(f"{seed} {round} start").sample(targets, len(targets))


def williams(n: int) -> list[list[int]]:
    """Return the orders of ``n`` things in which each has each place, and each neighbour before it, equally often."""
    first = [(k + 1) // 2 if k % 2 else -(k // 2) for k in range(n)]
    rows = [[(place + shift) % n for place in first] for shift in range(n)]
    return rows if n % 2 == 0 or n == 1 else rows + [row[::-1] for row in rows]


def _row_count(n: int) -> int:
    return n if n % 2 == 0 or n == 1 else 2 * n


def _rows(seed: int, case: str, contestants: Sequence[str]) -> list[list[str]]:
    order = random.Random(f"{seed} {case}")
    names = order.sample(contestants, len(contestants))
    rows = williams(len(names))
    order.shuffle(rows)
    return [[names[k] for k in row] for row in rows]
