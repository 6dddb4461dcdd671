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


def _descend(table, ids, rows, lr, places):
    """Return a table after a step on the rows that ids name, those of one id summed first, and ``places`` (V).

    Those are scratch: where an id was last written marks one of its positions, whose row gets the sum. Adding every
    row by itself would lose digits.
    """
    ids = ids.reshape(-1)
    rows, positions = rows.reshape(len(ids), -1), jnp.arange(len(ids), dtype=jnp.int32)
    places = places.at[ids].set(positions, mode="promise_in_bounds")
    owners = places[ids]
    sums = jnp.zeros_like(rows).at[owners].add(rows, mode="promise_in_bounds")
    once = jnp.where(owners == positions, ids, len(table))  # what is out of bounds is dropped: no second visit to a row
    return table.at[once].add(-lr * sums, mode="drop"), places


def _scatter(dense, pairs):
    """Add rows to a dense gradient, where their ids say."""
    for ids, rows in pairs:
        dense = dense.at[ids].add(rows, mode="promise_in_bounds")
    return dense


def _identity(x, *, rate=0.0):
    return x


class Trainer:
    """A :class:`shim.protocol.Trainer`; ``backend`` is the JAX backend's module."""

    def __init__(self, backend, model, params, optimizer, seed):
        self._backend, self._trained = backend, models.trained(model, params)
        slots = {name: optimizers.init(optimizer, params[name]) for name in self._trained}
        self._tables = tables = models.tables_by_rows(model, params, optimizer)
        self.by_rows = bool(tables)
        with_rows = models.with_rows(model, optimizer)
        key = jax.random.key(seed)
        inference = bare_ops(backend, dropout=_identity)

        def losses(trained, added, others, x, labels, count):
            """Return the weighted loss, and with it the main one, the weights that are not trained, moved on, and
            the ids of each lookup in ``tables``. To the rows of that lookup ``added`` is added: zeros, whose gradient
            is that of the rows, while that of the table itself would be as large as the table."""
            draws, step_key = itertools.count(), jax.random.fold_in(key, count)
            looked_up = {name: [] for name in tables}
            names, moved = iter(model.moments), dict(others)

            def dropout(x, *, rate=0.0):
                return drop(jax.random.fold_in(step_key, next(draws)), x, rate)

            def normalise(x, gamma, beta, mean, variance):
                for name, moment in zip(next(names), (x.mean(axis=0), x.var(axis=0)), strict=True):
                    moved[name] = models.MOMENTUM * others[name] + (1 - models.MOMENTUM) * moment
                return backend.batch_norm.bare(x, gamma, beta, mean, variance, training=True)

            def embedding(ids, table):
                rows = backend.embedding.bare(ids, table)
                for name in tables:
                    if table is others[name]:
                        looked_up[name].append(ids)
                        rows = rows + added[name][len(looked_up[name]) - 1] if added else rows
                return rows

            def embedding_average(ids, table, *, padding_id=None):
                return backend.average(embedding(ids, table), ids, padding_id)

            lookups = {"embedding": embedding, "embedding_average": embedding_average} if tables else {}
            dropout = dropout if model.dropout else _identity
            ops = bare_ops(backend, dropout=dropout, batch_norm=normalise, **lookups)
            _, found = models.losses(model, ops, trained | others, x, labels)
            return models.weighted(found), (found[0][0], {n: moved[n] for n in moved if n not in tables}, looked_up)

        def update(state, grads):
            trained, others, slots, count, scratch = state
            updated = {n: optimizers.update(optimizer, jnp, trained[n], grads[n], slots[n], count) for n in trained}
            trained, slots = ({name: pair[k] for name, pair in updated.items()} for k in (0, 1))
            return trained, others, slots, count + 1, scratch

        def differentiate(trained, others, x, labels, count):
            """Return the main loss, the weights that are not trained, moved on, and gradients, of tables as pieces."""
            constant = others | {name: trained[name] for name in tables}
            trained, added = {name: trained[name] for name in trained if name not in tables}, {}
            if tables:
                _, (_, _, looked_up) = jax.eval_shape(losses, trained, added, constant, x, labels, count)
                added = {
                    n: [jnp.zeros((*i.shape, constant[n].shape[1]), constant[n].dtype) for i in looked_up[n]]
                    for n in tables
                }
            both = jax.value_and_grad(losses, (0, 1), has_aux=True)
            (_, (loss, moved, looked_up)), (grads, rows) = both(trained, added, constant, x, labels, count)
            pieces = {name: list(zip(looked_up[name], rows[name], strict=True)) for name in tables}
            return loss, moved, grads | pieces

        def gradients(state, x, labels):
            trained, others, _, count, _ = state
            loss, _, grads = differentiate(trained, others, x, labels, count)
            return loss, grads

        def step(state, x, labels):
            trained, others, slots, count, scratch = state
            loss, moved, grads = differentiate(trained, others, x, labels, count)
            pieces = {name: grads.pop(name) for name in tables}
            for name, pairs in pieces.items():
                if with_rows:
                    lr = jnp.asarray(optimizers.rate(optimizer, count), trained[name].dtype)
                    for ids, gradient in pairs:
                        trained[name], scratch[name] = _descend(trained[name], ids, gradient, lr, scratch[name])
                else:
                    grads[name] = _scatter(scratch[name], pairs)
            updated = {n: optimizers.update(optimizer, jnp, trained[n], g, slots[n], count) for n, g in grads.items()}
            trained |= {name: pair[0] for name, pair in updated.items()}
            slots |= {name: pair[1] for name, pair in updated.items()}
            for name in tables if not with_rows else ():
                scratch[name] = grads[name]
                # Zeros made of the new weights: then XLA clears after the optimizer has read, and makes no copy.
                for ids, _ in pieces[name]:
                    zeros = jnp.minimum(jnp.square(trained[name][ids]), 0)
                    scratch[name] = scratch[name].at[ids].set(zeros, mode="promise_in_bounds")
            return (trained, moved, slots, count + 1, scratch), loss

        def evaluation(trained, others, x, labels):
            logits, found = models.losses(model, inference, trained | others, x, labels)
            predicted = logits.argmax(axis=-1) if logits.ndim == 2 else logits > 0
            return found[0][0], (predicted == labels).sum(dtype=jnp.int32)

        def prediction(trained, others, x):
            return models.logits(model, inference, trained | others, x)

        # For descent on rows see _descend. Else it is a dense gradient, zero again after each step: to lay it out anew
        # would take longer than the optimizer.
        self._scratch = {
            name: np.zeros(len(params[name]), np.int32) if with_rows else np.zeros_like(params[name]) for name in tables
        }
        self._place(params, slots, 0)
        self._step, self._update = jax.jit(step, donate_argnums=0), jax.jit(update, donate_argnums=0)
        self._gradients = jax.jit(gradients)
        self._evaluation, self._prediction = jax.jit(evaluation), jax.jit(prediction)

    def _place(self, params, slots, count):
        trained = {name: params[name] for name in self._trained}
        others = {name: value for name, value in params.items() if name not in trained}
        state = trained, others, slots, np.int32(count), self._scratch
        self._state = jax.tree.map(self._backend.to_device, state)

    def step(self, x, labels):
        self._state, loss = self._step(self._state, x, labels)
        return loss

    def gradients(self, x, labels):
        return self._gradients(self._state, x, labels)

    def updater(self, gradients):
        grads = jax.tree.map(self._backend.to_device, dict(gradients))

        def call():
            self._state = self._update(self._state, grads)
            return self._state[3]

        return call

    def evaluate(self, x, labels):
        return self._evaluation(*self._state[:2], x, labels)

    def predict(self, x):
        return self._prediction(*self._state[:2], x)

    def params(self):
        return jax.tree.map(self._backend.to_numpy, self._state[0] | self._state[1])

    def state(self):
        slots, count = jax.tree.map(self._backend.to_numpy, self._state[2:4])
        return pack(self.params(), slots, count)

    def restore(self, state):
        weights, slots, count = unpack(state, self._trained)
        self._place(weights, {name: tuple(values) for name, values in slots.items()}, count)
