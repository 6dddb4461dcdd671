"""The optimizers' steps, each as one launch of a kernel of ``optimizers.cu``."""

from __future__ import annotations

from shim.backends import _updates
from shim.backends._handwritten import Rows
from shim.models import optimizers

BLOCK = 256  # threads
PER_THREAD = 4  # elements of a weight


def update(cuda, optimizer, xp, step, p, g, states):
    """Update a weight and its states in place as :func:`shim.models.optimizers.update` does.

    A gradient of :class:`Rows` is for descent, which moves those rows only, and for Adam, which moves all.
    """
    if p.dtype != "float32":
        _updates.update(optimizer, xp, step, p, g, states)
        return
    launch, name = cuda.kernels("optimizers"), optimizer.name
    rate = optimizers.adam_rate if name == "adam" else optimizers.rate
    constants = [float(rate(optimizer, step))]
    if name == "adam":
        constants += [1 - optimizer.beta_1, 1 - optimizer.beta_2, optimizer.epsilon]
    elif name != "sgd":
        constants += [1 - optimizer.rho, optimizer.epsilon]
    size = p.size
    if isinstance(g, Rows):
        name, (places, g) = f"{name}_rows", g.summed(xp)
        places = places.astype("int32", copy=False)
        if optimizer.name == "adam":
            places = _slots(xp, len(p), places)
        else:
            size = g.size
        args = p, places, g, *states, size, p.shape[1], *constants
    else:
        args = p, xp.ascontiguousarray(g), *states, size, *constants
    launch(name, (_parts(size, BLOCK * PER_THREAD),), (BLOCK,), *args)


def _parts(size, part):
    return max(1, -(-size // part))


def _slots(xp, rows, ids):
    slots = xp.full(rows, -1, "int32")
    slots[ids] = xp.arange(len(ids), dtype="int32")
    return slots
