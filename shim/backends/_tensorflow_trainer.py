"""The training of the TensorFlow backend: a whole step in one graph, ended by TensorFlow's training kernels."""

from __future__ import annotations

import functools
import itertools

import tensorflow as tf

from shim import models
from shim.backends import _tensorflow_optimizers
from shim.backends._state import pack, unpack
from shim.models import optimizers
from shim.protocol import Unsupported


def _identity(x, *, rate=0.0):
    return x


class Trainer:
    """A :class:`shim.protocol.Trainer`; ``backend`` is the TensorFlow backend's module.

    Steps on the rows in use look the tables up before everything else and move the rows after it. XLA compiles what is
    between: it would copy the whole table to change some rows, and so would a graph that reads the variable as a whole.
    """

    def __init__(self, backend, model, params, optimizer, mode, seed):
        self._backend, self._model, self._optimizer, self._mode, self._seed = backend, model, optimizer, mode, seed
        self.by_rows = models.with_rows(model, optimizer)
        self._tables = models.tables_by_rows(model, params, optimizer) if self.by_rows else []
        self._trained = models.trained(model, params)
        self._params = {name: tf.Variable(value, trainable=name in self._trained) for name, value in params.items()}
        self._slots = {name: _tensorflow_optimizers.slots(optimizer, params[name]) for name in self._trained}
        self._count = tf.Variable(0, dtype=tf.int64)
        self.step = backend.built(self._step_on_rows if self._tables else self._step, "graph" if self._tables else mode)
        self.gradients = self._gradients_on_rows if self._tables else backend.built(self._gradients, mode)
        self.evaluate = backend.built(self._evaluate, mode)
        self.predict = backend.built(self._predict, mode)
        self._between = tf.function(self._step_with, autograph=False, jit_compile=mode == "xla")

    def _step(self, x, labels):
        # Not a default for rows: a concrete function would fail to bind its arguments on each call, which costs 2 ms.
        return self._step_with(x, labels, [])

    def _step_with(self, x, labels, rows):
        """Take a step on all weights; if ``rows`` of the tables are given, not on these, and return their gradients."""
        loss, gradients, of_rows, moved = self._differentiate(x, labels, rows)
        for name, gradient in gradients.items():
            _tensorflow_optimizers.update(self._optimizer, self._params[name], self._slots[name], gradient, self._count)
        for name, moment in moved:
            self._params[name].assign_add((1 - models.MOMENTUM) * (moment - self._params[name]))
        self._count.assign_add(1)
        return (loss, of_rows) if rows else loss

    def _gradients(self, x, labels):
        return self._differentiate(x, labels, [])[:2]

    def _gradients_on_rows(self, x, labels):
        raise Unsupported("a step on the rows in use is several graphs, which are not timed without the optimizer")

    def _differentiate(self, x, labels, rows):
        """Return the main loss, gradients by name and those of ``rows``, and pairs (name, moment) of the batch."""
        places, names, moved = itertools.count(), iter(self._model.moments), []

        def drop(x, *, rate=0.0):
            seed = tf.stack([self._seed, (next(places) << 32) + self._count])
            return tf.nn.experimental.stateless_dropout(x, rate, seed, rng_alg="philox")

        def normalise(x, gamma, beta, mean, variance):
            moved.extend(zip(next(names), tf.nn.moments(x, axes=[0]), strict=True))
            return self._backend.batch_norm.bare(x, gamma, beta, mean, variance, training=True)

        left = iter(rows)
        lookups = self._lookups(lambda name, ids: next(left)) if rows else {}
        dropout = drop if self._model.dropout else _identity
        ops = self._backend.ops(self._mode, dropout=dropout, batch_norm=normalise, **lookups)
        dense = [name for name in self._trained if not rows or name not in self._tables]
        sources = [self._params[name] for name in dense] + list(rows)
        with tf.GradientTape() as tape:
            tape.watch(rows)
            _, losses = models.losses(self._model, ops, self._params, x, labels)
            loss = models.weighted(losses)
        gradients = self._backend.gradients(tape, loss, sources)
        return losses[0][0], dict(zip(dense, gradients, strict=False)), gradients[len(dense) :], moved

    def _step_on_rows(self, x, labels):
        found = []

        def look_up(name, ids):
            found.append((name, ids, tf.gather(self._params[name], ids)))
            return found[-1][2]

        # Of this pass nothing but the lookups is left in the graph.
        ops = self._backend.ops("graph", dropout=_identity, **self._lookups(look_up))
        models.losses(self._model, ops, self._params, x, labels)
        count = self._count.read_value()
        loss, gradients = self._between(x, labels, [rows for _, _, rows in found])
        for (name, ids, _), gradient in zip(found, gradients, strict=True):
            lr = tf.cast(optimizers.rate(self._optimizer, tf.cast(count, gradient.dtype)), gradient.dtype)
            unique, rows = _tensorflow_optimizers.summed(ids, gradient)
            tf.raw_ops.ResourceScatterSub(resource=self._params[name].handle, indices=unique, updates=lr * rows)
        return loss

    def _lookups(self, rows):
        """Return the ops that look up tables, with ``rows(name, ids)`` for the rows of those that are trained."""

        def embedding(ids, table):
            name = next((name for name in self._tables if table is self._params[name]), None)
            return rows(name, ids) if name else tf.gather(table, ids)

        def embedding_average(ids, table, *, padding_id=None):
            return self._backend.average(embedding(ids, table), ids, padding_id)

        return {"embedding": embedding, "embedding_average": embedding_average}

    def _inference_ops(self):
        lookups = self._lookups(lambda name, ids: tf.gather(self._params[name], ids)) if self._tables else {}
        return self._backend.ops(self._mode, dropout=_identity, **lookups)

    def _evaluate(self, x, labels):
        logits, losses = models.losses(self._model, self._inference_ops(), self._params, x, labels)
        one_of_many = len(logits.shape) == 2
        predicted = tf.argmax(logits, axis=-1, output_type=tf.int32) if one_of_many else tf.cast(logits > 0, tf.int32)
        return losses[0][0], tf.reduce_sum(tf.cast(predicted == labels, tf.int32))

    def _predict(self, x):
        return models.logits(self._model, self._inference_ops(), self._params, x)

    def updater(self, gradients):
        def move(*arrays):
            for name, gradient in zip(self._trained, arrays, strict=True):
                weight, slots = self._params[name], self._slots[name]
                _tensorflow_optimizers.update(self._optimizer, weight, slots, gradient, self._count)
            return self._count.assign_add(1)

        arrays = [self._backend.to_device(gradients[name]) for name in self._trained]
        return functools.partial(self._backend.built(move, self._mode), *arrays)

    def params(self):
        return {name: weight.numpy() for name, weight in self._params.items()}

    def state(self):
        slots = {name: [slot.numpy() for slot in slots] for name, slots in self._slots.items()}
        return pack(self.params(), slots, self._count.numpy())

    def restore(self, state):
        weights, slots, count = unpack(state, self._trained)
        for name, value in weights.items():
            self._params[name].assign(value)
        for name, values in slots.items():
            for slot, value in zip(self._slots[name], values, strict=True):
                slot.assign(value)
        self._count.assign(count)
