"""Training on Keras: a real ``keras.Model`` made from a model's description and weights, trained by Keras' own step."""

from __future__ import annotations

import functools
import itertools

import keras
import numpy as np
from keras import layers, ops

from shim import models
from shim.backends._keras_programs import Weight, call, check_dtype, compiled, dtype, engine
from shim.protocol import Unsupported, bare_ops

if engine == "tensorflow":
    import tensorflow as tf

    from shim.backends import _tensorflow_optimizers
elif engine == "jax":
    import jax

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


class _SummedRows:
    """Of an id that repeats in a batch Keras moves the row once for each part, and loses digits."""

    def apply(self, grads, trainable_variables=None):
        return super().apply([_summed(g) if isinstance(g, tf.IndexedSlices) else g for g in grads], trainable_variables)


def _summed(gradient):
    ids, rows = _tensorflow_optimizers.summed(gradient.indices, gradient.values)
    return tf.IndexedSlices(rows, ids, gradient.dense_shape)


def _optimizer(optimizer, with_rows):
    """Return Keras' optimizer with the same constants, in float64 for what Keras would cast from float32.

    ``with_rows`` leaves the gradients of tables as rows, which other engines than TensorFlow cannot.
    """
    if with_rows and engine != "tensorflow":
        raise Unsupported(f"Keras on {engine} has dense gradients of tables only, not table_gradient='rows'")
    exact = np.float64 if keras.config.floatx() == "float64" else float
    rate = optimizer.learning_rate
    if optimizer.decay:
        rate, decay = exact(rate), exact(optimizer.decay)
        rate = keras.optimizers.schedules.InverseTimeDecay(rate, decay_steps=1, decay_rate=decay)
    make, constants = _OPTIMIZERS[optimizer.name]
    if engine == "tensorflow":
        make = type(make.__name__, (_SummedRows if with_rows else _DenseGradients, make), {})
    number = exact if optimizer.name == "adam" else float  # Adadelta multiplies by it before it is cast
    return make(rate, **{name: number(getattr(optimizer, name)) for name in constants})


class _BatchLoss(keras.metrics.Metric):
    """The loss of the last batch, in place of the mean over all batches of an epoch that Keras shows."""

    def __init__(self):
        super().__init__(name="batch_loss")
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
        self.by_rows = models.with_rows(description, optimizer)
        keras_optimizer = _optimizer(optimizer, self.by_rows)
        heads = description.loss if isinstance(description.loss, tuple) else [(description.loss, None)]
        self._heads = len(heads)
        self._weights = {name: Weight(np.array(value)) for name, value in params.items()}
        self._model = self._build(backend, description, seed)
        self._compile(keras_optimizer, heads, description.batch(0, self._dtype, 1))
        self._prediction = compiled(functools.partial(_predict, self._model))
        self._evaluation = compiled(functools.partial(_evaluate, self._model, getattr(backend, heads[0][0]).bare))
        self._take_state()

    def _build(self, backend, description, seed):
        x, _ = description.batch(0, self._dtype, 1)
        seeds = itertools.count(1000 * seed)

        def drop(x, *, rate=0.0):
            return layers.Dropout(rate, seed=next(seeds), dtype=dtype(x))(x) if description.dropout else x

        def normalise(x, *weights):
            return call(layers.BatchNormalization(momentum=models.MOMENTUM, dtype=dtype(x)), x, *weights)

        symbol = keras.Input(x.shape[1:], dtype=dtype(x))
        outputs = description.apply(bare_ops(backend, dropout=drop, batch_norm=normalise), self._weights, symbol)
        model = keras.Model(symbol, list(outputs) if self._heads > 1 else outputs)
        for name, weight in self._weights.items():
            weight.variable.assign(weight.value)
            weight.variable.trainable = name in models.trained(description, self._weights)
        return model

    def _compile(self, optimizer, heads, batch):
        """Compile and build as ``fit`` does, but track the loss of each batch: that of the main head."""
        losses, weights = ([_LOSSES[name](from_logits=True) for name, _ in heads], [weight for _, weight in heads])
        several = {"loss": losses, "loss_weights": weights}
        self._model.compile(optimizer, **(several if self._heads > 1 else {"loss": losses[0]}))
        self._model._symbolic_build(data_batch=self._targets(*batch))
        if self._heads > 1:
            self._model._compile_loss.metrics[0] = _BatchLoss()
        else:
            object.__setattr__(self._model, "_loss_tracker", _BatchLoss())  # Keras does not track its own either
        self._model.make_train_function()

    def _targets(self, x, labels):
        """Return a batch as Keras takes it: with the same labels for every head."""
        return x, [labels] * self._heads if self._heads > 1 else labels

    def _take_state(self):
        """On JAX, as in ``fit``, the state goes from step to step outside of the model."""
        model = self._model
        parts = (model.trainable_variables, model.non_trainable_variables)
        parts += (model.optimizer.variables, model.metrics_variables)
        self._state = tuple([_committed(v.value) for v in part] for part in parts)

    def _variables(self):
        """Return the variables that hold all of the state, at its present values, by our names."""
        model = self._model
        held = model.trainable_variables + model.non_trainable_variables + model.optimizer.variables
        if engine == "jax":
            for variable, value in zip(held, itertools.chain(*self._state[:3]), strict=True):
                variable.assign(value)
        return {f"variable/{k}": variable for k, variable in enumerate(held)}

    def step(self, x, labels):
        keras.config.set_floatx(self._dtype)
        batch = [self._targets(x, labels)]
        if engine == "jax":
            logs, self._state = self._model.train_function(self._state, iter(batch))
        else:
            logs = self._model.train_function(batch)
        return logs["batch_loss"]

    def evaluate(self, x, labels):
        keras.config.set_floatx(self._dtype)
        return self._evaluation(*self._state[:2], x, labels)

    def predict(self, x):
        keras.config.set_floatx(self._dtype)
        return self._prediction(*self._state[:2], x)

    def gradients(self, x, labels):
        raise Unsupported("Keras' compiled step has the optimizer in it and is not timed without")

    def updater(self, gradients):
        raise Unsupported("Keras' optimizers run inside its compiled step and are not timed alone")

    def params(self):
        self._variables()
        return {name: self._to_numpy(weight.variable.value) for name, weight in self._weights.items()}

    def state(self):
        """Weights, moving moments and generators of dropout, then what the optimizer keeps."""
        return {name: self._to_numpy(variable.value) for name, variable in self._variables().items()}

    def restore(self, state):
        for name, variable in self._variables().items():
            variable.assign(state[name])
        self._take_state()


def _committed(value):
    """On JAX, bind an array to its device, as those of batches are: else the second step would be compiled anew."""
    return jax.device_put(value, value.sharding) if engine == "jax" else value


def _predict(model, trainable, others, x):
    outputs, _ = model.stateless_call(trainable, others, x, training=False)
    return outputs[0] if isinstance(outputs, list) else outputs


def _evaluate(model, loss, trainable, others, x, labels):
    logits = _predict(model, trainable, others, x)
    predicted = ops.argmax(logits, axis=-1) if len(logits.shape) == 2 else logits > 0
    right = ops.cast(ops.equal(ops.cast(predicted, labels.dtype), labels), "int32")
    return loss(logits, labels), ops.sum(right)
