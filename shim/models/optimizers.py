"""The optimizers: Keras 3's formulas, constants and defaults, dense: every weight moves at every step.

A backend uses its framework's fastest kernel for the same formula; what it computes is compared with :func:`update`.
Learning-rate decay is that of Keras' ``InverseTimeDecay``: ``learning_rate / (1 + decay * step)``, steps from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

#: name -> how many arrays of state it keeps for a weight, all of them zero at first
STATES = {"sgd": 0, "rmsprop": 1, "adam": 2, "adadelta": 2}
#: options of the models with tables: Adam moves every row at every step, plain descent may leave out those not in use
TABLES: dict[str, tuple[str, ...]] = {"optimizer": ("adam", "sgd"), "table_gradient": ("dense", "rows")}


@dataclass(frozen=True)
class Optimizer:
    """An optimizer with its constants; :func:`sgd` and its neighbours fill in Keras 3's defaults.

    Only plain gradient descent is defined, so ``momentum`` is 0. Raises ``ValueError`` for an unknown name and for
    constants outside their range.
    """

    name: str
    learning_rate: float
    decay: float = 0.0
    rho: float = 0.9
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-7
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in STATES:
            raise ValueError(f"unknown optimizer {self.name!r}; the optimizers are: {', '.join(STATES)}")
        if not self.learning_rate > 0:
            raise ValueError(f"{self.name}: learning_rate must be positive, got {self.learning_rate}")
        if not self.decay >= 0:
            raise ValueError(f"{self.name}: decay must not be negative, got {self.decay}")
        if self.momentum != 0:
            raise ValueError(f"{self.name}: momentum is not supported, got {self.momentum}")


def sgd(learning_rate: float = 0.01, decay: float = 0.0) -> Optimizer:
    """Return gradient descent: ``p -= lr * g``."""
    return Optimizer("sgd", learning_rate, decay)


def rmsprop(learning_rate: float = 0.001, decay: float = 0.0) -> Optimizer:
    """Return RMSprop (Tieleman and Hinton, lecture 6.5 of "Neural networks for machine learning", 2012)."""
    return Optimizer("rmsprop", learning_rate, decay)


def adam(learning_rate: float = 0.001, decay: float = 0.0, epsilon: float = 1e-7) -> Optimizer:
    """Return Adam (Kingma and Ba, "Adam: a method for stochastic optimization", 2014)."""
    return Optimizer("adam", learning_rate, decay, epsilon=epsilon)


def adadelta(learning_rate: float = 0.001, decay: float = 0.0) -> Optimizer:
    """Return Adadelta (Zeiler, "ADADELTA: an adaptive learning rate method", 2012)."""
    return Optimizer("adadelta", learning_rate, decay, rho=0.95)


def rate(optimizer: Optimizer, step: Any) -> Any:
    """Return the learning rate of a step, the first one being 0."""
    return optimizer.learning_rate / (1.0 + optimizer.decay * step) if optimizer.decay else optimizer.learning_rate


def adam_rate(optimizer: Optimizer, step: Any) -> Any:
    """Return Adam's learning rate of a step with both bias corrections folded in.

    ``lr * sqrt(1 - beta_2**t) / (1 - beta_1**t)`` with t = step + 1. Keras adds epsilon to ``sqrt(v)`` as it is, not
    to the corrected one of the paper; for the paper's form pass ``epsilon / sqrt(1 - beta_2**t)``.
    """
    t = step + 1
    return rate(optimizer, step) * (1.0 - optimizer.beta_2**t) ** 0.5 / (1.0 - optimizer.beta_1**t)


def init(optimizer: Optimizer, param: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the optimizer's state for one weight before the first step: NumPy zeros of its shape and dtype."""
    return tuple(np.zeros_like(param) for _ in range(STATES[optimizer.name]))


def update(
    optimizer: Optimizer, xp: Any, p: Any, g: Any, state: tuple[Any, ...], step: Any
) -> tuple[Any, tuple[Any, ...]]:
    """Return a weight and its state after one step, as new arrays of the same dtype.

    ``xp`` supplies ``sqrt`` and ``asarray`` for the arrays (``numpy``, ``jax.numpy``). ``step`` counts from 0 and may
    be a traced integer. Each formula, with ``lr = rate(step)``::

        sgd       p -= lr * g
        rmsprop   v = rho * v + (1 - rho) * g**2;  p -= lr * g / sqrt(v + epsilon)
        adam      m = beta_1 * m + (1 - beta_1) * g;  v = beta_2 * v + (1 - beta_2) * g**2
                  p -= adam_rate(step) * m / (sqrt(v) + epsilon)
        adadelta  a = rho * a + (1 - rho) * g**2;  d = g * sqrt(u + epsilon) / sqrt(a + epsilon)
                  u = rho * u + (1 - rho) * d**2;  p -= lr * d

    The state is () for sgd, (v,) for rmsprop, (m, v) for adam and (a, u) for adadelta.
    """
    now = adam_rate(optimizer, step) if optimizer.name == "adam" else rate(optimizer, step)
    lr = xp.asarray(now, p.dtype)  # an integer array as step makes float64 of it
    rho, epsilon = optimizer.rho, optimizer.epsilon
    if optimizer.name == "sgd":
        return p - lr * g, ()
    if optimizer.name == "rmsprop":
        v = rho * state[0] + (1 - rho) * g * g
        return p - lr * g / xp.sqrt(v + epsilon), (v,)
    if optimizer.name == "adam":
        m = optimizer.beta_1 * state[0] + (1 - optimizer.beta_1) * g
        v = optimizer.beta_2 * state[1] + (1 - optimizer.beta_2) * g * g
        return p - lr * m / (xp.sqrt(v) + epsilon), (m, v)
    a, u = state
    a = rho * a + (1 - rho) * g * g
    d = g * xp.sqrt(u + epsilon) / xp.sqrt(a + epsilon)
    return p - lr * d, (a, rho * u + (1 - rho) * d * d)
