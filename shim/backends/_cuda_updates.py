"""The optimizers' steps on the kernels of ``optimizers.cu``: all dense weights of a model in one launch."""

from __future__ import annotations

import math

from shim.backends import _updates
from shim.backends._cuda_kernels import blocks_of
from shim.backends._cuda_tables import Touched, descend
from shim.backends._handwritten import Rows
from shim.models import optimizers

BLOCK = 256  # threads
CHUNK = 4 * BLOCK  # elements of a weight for a block
WEIGHTS = 16  # of one launch
NARROWEST = 3  # rows of which four neighbours lie in two at most


class Steps:
    """What differs from one training step to the next, on the device.

    ``step`` holds the number of the step, from 1 on, and ``rate`` its learning rate, for :func:`update_all`. Both stay
    the same arrays, so a captured step goes on with them.
    """

    def __init__(self, cuda, optimizer, count=0):
        self._cuda, self._optimizer = cuda, optimizer
        self.step, self.rate = cuda.xp.empty(1, "int32"), cuda.xp.empty(1, "float32")
        self.set(count)

    def set(self, count):
        """Make the step after ``count`` others the next one."""
        self.step.fill(count + 1)
        self.rate.fill(_rate(self._optimizer, count))

    def advance(self, generator=None):
        """Go on to the next step in one launch, and with the generator past the words taken in this step."""
        o, state, words = self._optimizer, None, 0
        if generator is not None:
            state, words = generator.array, generator.begin()
        logarithms = [math.log(beta) if o.name == "adam" else 0.0 for beta in (o.beta_1, o.beta_2)]
        args = self.step, self.rate, state, float(o.learning_rate), float(o.decay), *logarithms, words
        self._cuda.kernels("optimizers")("next_step", (1,), (1,), *args)


def update(cuda, optimizer, xp, step, p, g, states):
    """Update a weight and its states in place as :func:`shim.models.optimizers.update` does.

    A gradient of :class:`Touched` or :class:`Rows` is for descent, which moves those rows only, and for Adam.
    """
    if p.dtype != "float32" or isinstance(g, Rows):
        _updates.update(optimizer, xp, step, p, g, states)
        return
    update_all(cuda, optimizer, [p], [g], [states], xp.full(1, _rate(optimizer, step), "float32"))


def update_all(cuda, optimizer, weights, gradients, states, rate):
    """Update weights of float32 and their states in place, by a learning rate on the device.

    All dense gradients take one launch for each sixteen of them, those of :class:`Touched` one each.
    """
    launch, constants, dense = cuda.kernels("optimizers"), _constants(optimizer), []
    for p, g, slots in zip(weights, gradients, states, strict=True):
        if not isinstance(g, Touched):
            dense.append((p, cuda.xp.ascontiguousarray(g), slots))
        elif optimizer.name == "sgd":
            descend(cuda, p, g, rate)
        else:
            _adam_touched(launch, p, g, slots, rate, constants)
    for start in range(0, len(dense), WEIGHTS):
        blocks, args = 0, []
        for p, g, slots in dense[start : start + WEIGHTS]:
            args += [p, g, *slots, *[None] * (2 - len(slots)), p.size, blocks]
            blocks += blocks_of(p.size, CHUNK)
        args += [None, None, None, None, 0, -1] * (WEIGHTS - len(args) // 6)
        launch(optimizer.name, (blocks,), (BLOCK,), *args, rate, *constants)


def _adam_touched(launch, p, g, states, rate, constants):
    width = p.shape[1]
    vector = 4 if width >= NARROWEST else 1
    args = p, g.values, g.stamps, g.step, *states, rate, p.size, *_reciprocal(width), int(g.clears)
    launch(f"adam_touched_{vector}", (blocks_of(p.size, BLOCK * vector),), (BLOCK,), *args, *constants)


def _reciprocal(width):
    """Return a factor of 32 bits, as a signed number, and a shift that divide integers below 2**31 by a width."""
    shift = 31 + (width - 1).bit_length()
    factor = -(-(2**shift) // width)
    return factor - 2**32 if factor >= 2**31 else factor, shift


def _rate(optimizer, step):
    return float((optimizers.adam_rate if optimizer.name == "adam" else optimizers.rate)(optimizer, step))


def _constants(optimizer):
    if optimizer.name == "sgd":
        return []
    if optimizer.name == "adam":
        return [1 - optimizer.beta_1, 1 - optimizer.beta_2, optimizer.epsilon]
    return [1 - optimizer.rho, optimizer.epsilon]
