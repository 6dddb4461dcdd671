"""A pytest plugin for CNTK's own tests: names of 2019 that these use, and a line for each result.

The library itself needs none of these names. Results go to the file $CNTK_RESULTS as they come, one JSON value a line,
so that they survive a process that dies.
"""

import collections
import collections.abc
import inspect
import json
import os

import numpy as np

import shim.cntk

for name in ("Callable", "Iterable", "Mapping", "Sequence"):
    if not hasattr(collections, name):
        setattr(collections, name, getattr(collections.abc, name))

if not hasattr(inspect, "getargspec"):
    ArgSpec = collections.namedtuple("ArgSpec", "args varargs keywords defaults")
    inspect.getargspec = lambda function: ArgSpec(*inspect.getfullargspec(function)[:4])

for name, value in {"bool": bool, "float": float, "int": int, "object": object, "product": np.prod, "str": str}.items():
    if name not in vars(np):
        setattr(np, name, value)
if not hasattr(np, "asscalar"):
    np.asscalar = np.ndarray.item
if not hasattr(np.lib, "pad"):
    np.lib.pad = np.pad

shim.cntk.load()


def _write(outcome, test):
    with open(os.environ["CNTK_RESULTS"], "a", encoding="utf-8") as file:
        file.write(json.dumps([outcome, test]) + "\n")


def pytest_collectreport(report):
    if report.outcome != "passed":
        _write("error" if report.failed else "skipped", report.nodeid)


def pytest_runtest_logreport(report):
    if hasattr(report, "wasxfail"):
        _write("xfailed" if report.skipped else "xpassed", report.nodeid)
    elif report.when == "call" or report.skipped:
        _write(report.outcome, report.nodeid)
    elif report.failed:
        _write("error", report.nodeid)
