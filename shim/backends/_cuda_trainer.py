"""Training on CUDA kernels: each step, evaluation and prediction one graph, or launch by launch."""

from __future__ import annotations

import functools
from collections import defaultdict
from types import SimpleNamespace

from shim.backends import _handwritten_programs
from shim.backends._cuda_conv2d import takes_pool
from shim.backends._cuda_tables import touched
from shim.backends._cuda_updates import Steps, update_all
from shim.backends._handwritten_programs import by_name
from shim.backends._tape import Tape
from shim.protocol import Unsupported


class Trainer(_handwritten_programs.Trainer):
    """The trainer of hand-written ops on the ops of ``cuda``, which are its own.

    Each batch size has a tape and workspace to itself. ``record(function)`` makes of a function of arrays one that does
    the same: :class:`shim.backends._cuda_graph.Replayed` or the function itself. In float32 the number of the step,
    its learning rate and the state of dropout's generator are on the device, so nothing that is recorded changes.
    """

    def __init__(self, programs, cuda, backend, model, params, optimizer, seed, record):
        self._cuda, self._steps = cuda, Steps(cuda, optimizer)
        cuda.step = self._steps.step
        super().__init__(programs, backend, model, params, optimizer, seed)
        self._on_kernels = all(value.dtype == "float32" for value in self._params.values())
        self._tapes = defaultdict(lambda: Tape(programs.workspace))
        self._evaluation_tapes = defaultdict(lambda: Tape(programs.workspace, recording=False))
        self._found = {}
        functions = self._one_step, self._one_gradient, self._evaluate, self._predict
        recorded = map(record, functions) if self._on_kernels else functions
        self._step, self._gradient, self.evaluate, self.predict = recorded

    def _ops(self, normalising, **replaced):
        ops = super()._ops(normalising, **replaced)
        return with_pools(ops, self._programs.call, functools.partial(takes_pool, self._cuda))

    def _one_step(self, x, labels):
        self._training = self._tapes[len(x)]
        loss = super()._step(x, labels)
        self._steps.advance(self._generator)
        return loss

    def gradients(self, x, labels):
        if self.by_rows:
            raise Unsupported("the optimizer clears the gradients of tables, so that none is made without it")
        loss = self._gradient(x, labels)
        return loss, by_name(self._trained, self._found[len(x)])

    def _one_gradient(self, x, labels):
        """Return the main loss; the gradients, which each replay writes anew, stay where they are."""
        self._training = self._tapes[len(x)]
        loss, self._found[len(x)] = self._differentiate(x, labels)
        self._generator.begin()
        return loss

    def _evaluate(self, x, labels):
        self._evaluation = self._evaluation_tapes[len(x)]
        return super().evaluate(x, labels)

    def _predict(self, x):
        self._evaluation = self._evaluation_tapes[len(x)]
        return super().predict(x)

    def _update(self, gradients):
        if not self._on_kernels:
            super()._update(gradients)
            return
        params, states = ([values[name] for name in self._trained] for values in (self._params, self._states))
        update_all(self._cuda, self._optimizer, params, gradients, states, self._steps.rate)

    def updater(self, gradients):
        if not self._on_kernels:
            return super().updater(gradients)
        to_device = self._backend.to_device
        arrays = [
            touched(self._xp, gradients[name], to_device) if name in self._tables else to_device(gradients[name])
            for name in self._trained
        ]

        def call():
            self._update(arrays)
            self._steps.advance()
            self._count += 1

        return call

    def restore(self, state):
        super().restore(state)
        self._steps.set(self._count)


class Awaited:
    """A convolution that has been called for and runs when its result is used, unless a pool takes it in."""

    def __init__(self, call, args, options):
        self.args, self.options, self._call = args, options, call

    @functools.cached_property
    def result(self):
        return self._call("conv2d", *self.args, **self.options)


def with_pools(ops, call, takes_pool):
    """Return the ops of a model with ``max_pool2d`` of a convolution as one op, where ``takes_pool(x, w)`` says so."""

    def used(function):
        def op(*args, **options):
            return function(*(a.result if isinstance(a, Awaited) else a for a in args), **options)

        return op

    def conv2d(x, w, b, **options):
        return Awaited(call, (x, w, b), options) if takes_pool(x, w) else call("conv2d", x, w, b, **options)

    def max_pool2d(x, *, pool=2):
        if isinstance(x, Awaited):
            return call("conv2d_max_pool2d", *x.args, **x.options, pool=pool)
        return call("max_pool2d", x, pool=pool)

    others = {name: used(op) for name, op in vars(ops).items()}
    return SimpleNamespace(**others | {"conv2d": used(conv2d), "max_pool2d": max_pool2d})
