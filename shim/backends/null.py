"""The backend that does nothing: every program returns at once, which shows what the harness itself costs."""

from __future__ import annotations

import math
import sys

import numpy as np

from shim import contract
from shim.protocol import check_choice, op, program

DEVICES = ("cpu",)
MODES = ("null",)


def setup(device="cpu", precision="float32", threads=None):
    check_choice("device", device, DEVICES)
    check_choice("precision", precision, ("float32",))


def to_device(value):
    return value


def to_numpy(array):
    return array


def synchronize(outputs):
    pass


def _nothing(entry):
    def returns_zeros(*args, **options):
        dims = entry.dims([a.shape for a in args])
        return np.zeros(entry.result_shape(dims, options), next(a.dtype for a in args if a.dtype.kind == "f"))

    returns_zeros.__name__, returns_zeros.__module__ = entry.name, __name__
    return op(returns_zeros)


for _entry in contract.OPS.values():
    setattr(sys.modules[__name__], _entry.name, _nothing(_entry))


@program
def forward(op, options, mode):
    return lambda *args: None


@program
def forward_backward(op, options, mode, first=True):
    return lambda args, dy: (None, ())


class _Trainer:
    by_rows = False

    def __init__(self, params):
        self._params = {name: np.array(value) for name, value in params.items()}

    def step(self, x, labels):
        return np.float32(math.nan)

    def evaluate(self, x, labels):
        return np.float32(math.nan), np.int32(0)

    def predict(self, x):
        return np.float32(math.nan)

    def params(self):
        return {name: value.copy() for name, value in self._params.items()}

    def state(self):
        return self.params()

    def gradients(self, x, labels):
        return np.float32(math.nan), {}

    def updater(self, gradients):
        return lambda: None

    def restore(self, state):
        self._params = {name: np.array(value) for name, value in state.items()}


def trainer(model, params, optimizer, mode, seed=0):
    check_choice("mode", mode, MODES)
    return _Trainer(params)


def implementation(case, mode=MODES[0]):
    return "nothing"


def describe():
    return {"device": "cpu", "versions": {}, "threads": 1, "precision": "float32"}
