"""The optimizers' formulas in place: each weight in pieces that stay in the cache, with no array made on the way."""

from __future__ import annotations

import numpy as np

from shim import models
from shim.backends._handwritten import Rows
from shim.models import optimizers

BLOCK = 2**15  # elements of a piece; with its gradient, state and scratch it fits the second-level cache of a core


def tables_by_rows(model, params, optimizer):
    """Return the names of the tables whose gradients are :class:`Rows`, if :func:`update` takes such."""
    taken = models.with_rows(model, optimizer) or optimizer.name == "adam"
    return models.tables_by_rows(model, params, optimizer) if taken else []


def rows_in_use(gradient, to_device=np.asarray):
    """Return the rows of a NumPy gradient that are not zero, as :class:`Rows` on a device."""
    ids = np.flatnonzero(gradient.any(axis=1))
    return Rows([(to_device(ids), to_device(gradient[ids]))])


def update(optimizer, xp, step, p, g, states):
    """Update a C-contiguous weight and its states as :func:`shim.models.optimizers.update` does.

    A gradient of :class:`Rows` is for descent, which reads and writes those rows only, and for Adam, which moves the
    others as well, but by a shorter formula.
    """
    if isinstance(g, Rows):
        ids, rows = g.summed(xp)
        moved = [a[ids] for a in (p, *states)]
        update(optimizer, xp, step, moved[0], rows, moved[1:])
        if optimizer.name == "adam":
            _update(optimizer, xp, step, _adam_at_rest, p, *states)
        for a, values in zip((p, *states), moved, strict=True):
            a[ids] = values
    else:
        _update(optimizer, xp, step, FORMULAS[optimizer.name], p, g, *states)


def _update(optimizer, xp, step, formula, p, *others):
    """Update a weight, piece by piece, by what a formula makes of its gradient and states."""
    rate = optimizers.adam_rate if optimizer.name == "adam" else optimizers.rate
    lr, arrays = rate(optimizer, step), [a.reshape(-1) for a in (p, *others)]
    scratch = xp.empty((2, min(BLOCK, p.size)), p.dtype)
    for start in range(0, p.size, BLOCK):
        part, *others = (a[start : start + BLOCK] for a in arrays)
        t = scratch[0, : part.size]
        xp.multiply(formula(optimizer, xp, t, scratch[1, : part.size], *others), lr, out=t)
        xp.subtract(part, t, out=part)


# Each formula returns what the learning rate multiplies, in t, which is free to use like d, or in g itself.


def _sgd(o, xp, t, d, g):
    return g


def _rmsprop(o, xp, t, d, g, v):
    _average(xp, v, o.rho, xp.multiply(g, g, out=t), t)
    xp.sqrt(xp.add(v, o.epsilon, out=t), out=t)
    return xp.divide(g, t, out=t)


def _adam(o, xp, t, d, g, m, v):
    _average(xp, m, o.beta_1, g, t)
    _average(xp, v, o.beta_2, xp.multiply(g, g, out=t), t)
    xp.add(xp.sqrt(v, out=t), o.epsilon, out=t)
    return xp.divide(m, t, out=t)


def _adam_at_rest(o, xp, t, d, m, v):
    """Adam where the gradient is zero."""
    xp.multiply(m, o.beta_1, out=m)
    xp.multiply(v, o.beta_2, out=v)
    xp.add(xp.sqrt(v, out=t), o.epsilon, out=t)
    return xp.divide(m, t, out=t)


def _adadelta(o, xp, t, d, g, a, u):
    _average(xp, a, o.rho, xp.multiply(g, g, out=t), t)
    xp.divide(xp.add(u, o.epsilon, out=d), xp.add(a, o.epsilon, out=t), out=d)
    xp.multiply(xp.sqrt(d, out=d), g, out=d)
    _average(xp, u, o.rho, xp.multiply(d, d, out=t), t)
    return d


def _average(xp, average, rho, value, t):
    """Move a running average towards ``value`` by ``1 - rho``."""
    xp.subtract(value, average, out=t)
    xp.multiply(t, 1 - rho, out=t)
    xp.add(average, t, out=average)


FORMULAS = {"sgd": _sgd, "rmsprop": _rmsprop, "adam": _adam, "adadelta": _adadelta}
