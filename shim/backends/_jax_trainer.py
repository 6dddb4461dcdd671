"""The training of the JAX backend: one pure function from state and batch to state and loss."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from shim import models
from shim.backends._state import pack, unpack
from shim.models import optimizers
from shim.protocol import bare_ops


def drop(key, x, rate):
    """Return ``x`` after dropout with the mask that ``key`` stands for."""
    if not rate:
        return x
    kept = jax.random.bernoulli(key, np.float32(1 - rate), x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def _identity(x, *, rate=0.0):
    return x


class Trainer:
    """A :class:`shim.protocol.Trainer`; ``backend`` is the JAX backend's module."""

    def __init__(self, backend, model, params, optimizer, seed):
        self._backend, self._trained = backend, models.trained(model, params)
        slots = {name: optimizers.init(optimizer, params[name]) for name in self._trained}
        self._place(params, slots, 0)
        key = jax.random.key(seed)
        inference = bare_ops(backend, dropout=_identity)

        def losses(trained, others, x, labels, count):
            """Return the weighted loss, and with it the main one and the weights that are not trained, moved on."""
            draws, step_key = itertools.count(), jax.random.fold_in(key, count)
            names, moved = iter(model.moments), dict(others)

            def dropout(x, *, rate=0.0):
                return drop(jax.random.fold_in(step_key, next(draws)), x, rate)

            def normalise(x, gamma, beta, mean, variance):
                for name, moment in zip(next(names), (x.mean(axis=0), x.var(axis=0)), strict=True):
                    moved[name] = models.MOMENTUM * others[name] + (1 - models.MOMENTUM) * moment
                return backend.batch_norm.bare(x, gamma, beta, mean, variance, training=True)

            ops = bare_ops(backend, dropout=dropout if model.dropout else _identity, batch_norm=normalise)
            _, found = models.losses(model, ops, trained | others, x, labels)
            return models.weighted(found), (found[0][0], moved)

        def step(state, x, labels):
            trained, others, slots, count = state
            (_, (loss, moved)), grads = jax.value_and_grad(losses, has_aux=True)(trained, others, x, labels, count)
            updated = {n: optimizers.update(optimizer, jnp, trained[n], grads[n], slots[n], count) for n in trained}
            trained, slots = ({name: pair[k] for name, pair in updated.items()} for k in (0, 1))
            return (trained, moved, slots, count + 1), loss

        def evaluation(trained, others, x, labels):
            logits, found = models.losses(model, inference, trained | others, x, labels)
            predicted = logits.argmax(axis=-1) if logits.ndim == 2 else logits > 0
            return found[0][0], (predicted == labels).sum(dtype=jnp.int32)

        def prediction(trained, others, x):
            return models.logits(model, inference, trained | others, x)

        self._step = jax.jit(step, donate_argnums=0)
        self._evaluation, self._prediction = jax.jit(evaluation), jax.jit(prediction)

    def _place(self, params, slots, count):
        trained = {name: params[name] for name in self._trained}
        others = {name: value for name, value in params.items() if name not in trained}
        self._state = jax.tree.map(self._backend.to_device, (trained, others, slots, np.int32(count)))

    def step(self, x, labels):
        self._state, loss = self._step(self._state, x, labels)
        return loss

    def evaluate(self, x, labels):
        return self._evaluation(*self._state[:2], x, labels)

    def predict(self, x):
        return self._prediction(*self._state[:2], x)

    def params(self):
        return jax.tree.map(self._backend.to_numpy, self._state[0] | self._state[1])

    def state(self):
        slots, count = jax.tree.map(self._backend.to_numpy, self._state[2:])
        return pack(self.params(), slots, count)

    def restore(self, state):
        weights, slots, count = unpack(state, self._trained)
        self._place(weights, {name: tuple(values) for name, values in slots.items()}, count)
