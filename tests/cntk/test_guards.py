"""The guard of the thread count: it notices evaluations, and evaluating goes on working behind it."""

from __future__ import annotations

import subprocess
import sys

EVALUATE = """
import numpy as np
from shim import cntk as loader
C = loader.load()
x = C.input_variable((3,), dynamic_axes=[])
y = x * 2.0 + 1.0
value, output = C.Value(np.ones(3, "f")), y.output
for _ in range(60):
    keep = [lambda a, b: a for _ in range(50)]  # takes the memory of whatever function was freed
    results = {output: None}
    y._forward({x: value}, results, C.cpu(), set())
    assert y.eval({x: np.ones(3, "f")}).tolist() == [3, 3, 3]
"""
CHANGE = """
count = C.cntk_py.get_max_num_cputhreads()
C.cntk_py.set_max_num_cputhreads(count)  # no change
C.cntk_py.set_max_num_cputhreads(count + 1)
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_thousands_of_functions_later_evaluating_still_calls_the_right_one():
    done = run(EVALUATE)
    assert done.returncode == 0, done.stderr


def test_the_thread_count_cannot_change_once_something_was_evaluated():
    done = run(EVALUATE + CHANGE)
    assert done.returncode == 1
    assert "something has been evaluated in this process" in done.stderr.splitlines()[-1]
