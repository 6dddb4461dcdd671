"""Training on Keras: a real ``keras.Model`` made from a model's description and weights, trained by Keras' own step."""

from __future__ import annotations

import functools
import itertools

import keras
import numpy as np
from keras import layers, ops

from shim.backends._keras_programs import Weight, call, check_dtype, compiled, dtype, engine
from shim.protocol import bare_ops

if engine == "tensorflow":
    import tensorflow as tf

_LOSSES = {
    "softmax_cross_entropy": keras.losses.SparseCategoricalCrossentropy,
    "sigmoid_cross_entropy": keras.losses.BinaryCrossentropy,
}
#: optimizer -> Keras' own, and the constants that it takes beside the learning rate
_OPTIMIZERS = {
    "sgd": (keras.optimizers.SGD, ()),
    "rmsprop": (keras.optimizers.RMSprop, ("rho", "epsilon")),
    "adam": (keras.optimizers.Adam, ("beta_1", "beta_2", "epsilon")),
    "adadelta": (keras.optimizers.Adadelta, ("rho", "epsilon")),
}


class _DenseGradients:
    """Of an id that repeats in a batch Keras squares each part of the gradient instead of their sum, on TensorFlow."""

    def apply(self, grads, trainable_variables=None):
        return super().apply([tf.convert_to_tensor(g) for g in grads], trainable_variables)


def _optimizer(optimizer):
    rate = optimizer.learning_rate
    if optimizer.decay:
        rate = keras.optimizers.schedules.InverseTimeDecay(rate, decay_steps=1, decay_rate=optimizer.decay)
    make, constants = _OPTIMIZERS[optimizer.name]
    if engine == "tensorflow":
        make = type(make.__name__, (_DenseGradients, make), {})
    exact = np.float64 if keras.config.floatx() == "float64" else float  # ops.cast makes float32 of a plain float
    return make(rate, **{name: exact(getattr(optimizer, name)) for name in constants})


class _BatchLoss(keras.metrics.Metric):
    """The loss of the last batch, in place of the mean over all batches of an epoch that Keras shows."""

    def __init__(self):
        super().__init__(name="loss")
        self.last = self.add_variable((), "zeros")

    def update_state(self, loss, sample_weight=None):
        self.last.assign(loss)

    def result(self):
        return ops.copy(self.last)


class Trainer:
    """A ``keras.Model``, trained by the ``train_function`` that its ``fit`` calls for each batch."""

    def __init__(self, backend, description, params, optimizer, seed):
        self._to_numpy = backend.to_numpy
        self._dtype = dtype(next(iter(params.values())))
        check_dtype(self._dtype)
        keras.config.set_floatx(self._dtype)
        self._weights = {name: Weight(np.array(value)) for name, value in params.items()}
        self._model = model = keras.Model(*self._graph(backend, description, seed))
        for weight in self._weights.values():
            weight.variable.assign(weight.value)
        model.compile(_optimizer(optimizer), _LOSSES[description.loss](from_logits=True))
        object.__setattr__(model, "_loss_tracker", _BatchLoss())  # Keras does not track its own as an attribute either
        model.optimizer.build(model.trainable_variables)
        model.make_train_function()
        if engine == "jax":  # as in fit, the state goes from step to step outside of the model
            parts = (model.trainable_variables, model.non_trainable_variables)
            parts += (model.optimizer.variables, model.metrics_variables)
            self._state = tuple([v.value for v in part] for part in parts)
        self._evaluation = compiled(functools.partial(_evaluate, model, getattr(backend, description.loss).bare))

    def _graph(self, backend, description, seed):
        x, _ = description.batch(0, self._dtype, 1)
        seeds = itertools.count(1000 * seed)

        def drop(x, *, rate=0.0):
            return layers.Dropout(rate, seed=next(seeds), dtype=dtype(x))(x) if description.dropout else x

        def normalise(x, *weights):
            return call(layers.BatchNormalization(dtype=dtype(x)), x, *weights)

        symbol = keras.Input(x.shape[1:], dtype=dtype(x))
        own = bare_ops(backend, dropout=drop, batch_norm=normalise)
        return symbol, description.apply(own, self._weights, symbol)

    def step(self, x, labels):
        keras.config.set_floatx(self._dtype)
        if engine == "jax":
            logs, self._state = self._model.train_function(self._state, iter([(x, labels)]))
        else:
            logs = self._model.train_function([(x, labels)])
        return logs["loss"]

    def evaluate(self, x, labels):
        keras.config.set_floatx(self._dtype)
        model = self._model
        variables = self._state[:2] if engine == "jax" else (model.trainable_variables, model.non_trainable_variables)
        return self._evaluation(*([getattr(v, "value", v) for v in part] for part in variables), x, labels)

    def params(self):
        if engine == "jax":
            variables = self._model.trainable_variables + self._model.non_trainable_variables
            for variable, value in zip(variables, self._state[0] + self._state[1], strict=True):
                variable.assign(value)
        return {name: self._to_numpy(weight.variable.value) for name, weight in self._weights.items()}


def _evaluate(model, loss, trainable, others, x, labels):
    logits, _ = model.stateless_call(trainable, others, x, training=False)
    predicted = ops.argmax(logits, axis=-1) if len(logits.shape) == 2 else logits > 0
    right = ops.cast(ops.equal(ops.cast(predicted, labels.dtype), labels), "int32")
    return loss(logits, labels), ops.sum(right)
