"""Training on Keras 2.3.1: a ``keras.Model`` made from a model's description and weights, by ``train_on_batch``."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from shim import cntk as loader
from shim import models
from shim.backends import _cntk_graph as graph
from shim.backends._cntk_graph import C
from shim.backends._keras_cntk_layers import K, Weight, call, check_dtype, values
from shim.backends._keras_cntk_layers import sigmoid_cross_entropy as sigmoid
from shim.backends._state import pack, unpack
from shim.cntk.keras import keras
from shim.protocol import Unsupported, bare_ops

layers = keras.layers

#: loss -> a loss as ``compile`` takes it, and the limit of its labels by the size of the logits
_LOSSES = {
    "softmax_cross_entropy": (keras.losses.SparseCategoricalCrossentropy(from_logits=True), lambda size: size),
    "sigmoid_cross_entropy": (sigmoid, lambda size: 2),
}


class _RMSprop(keras.optimizers.RMSprop):
    """With epsilon inside the root, as in Keras 3; Keras 2 adds it to the root."""

    def get_updates(self, loss, params):
        gradients = self.get_gradients(loss, params)
        averages = [K.zeros(K.int_shape(p)) for p in params]
        self.weights = [self.iterations, *averages]
        self.updates = [K.update_add(self.iterations, 1)]
        lr = self.learning_rate
        if self.initial_decay > 0:
            lr = lr * (1.0 / (1.0 + self.decay * self.iterations))
        for p, g, average in zip(params, gradients, averages, strict=True):
            moved = self.rho * average + (1.0 - self.rho) * K.square(g)
            self.updates += [K.update(average, moved), K.update(p, p - lr * g / K.sqrt(moved + self.epsilon))]
        return self.updates


#: optimizer -> Keras' own, and the constants that it takes beside learning rate and decay
_OPTIMIZERS = {
    "sgd": (keras.optimizers.SGD, ()),
    "rmsprop": (_RMSprop, ("rho", "epsilon")),
    "adam": (keras.optimizers.Adam, ("beta_1", "beta_2", "epsilon")),
    "adadelta": (keras.optimizers.Adadelta, ("rho", "epsilon")),
}


def _optimizer(optimizer):
    make, constants = _OPTIMIZERS[optimizer.name]
    given = {name: getattr(optimizer, name) for name in constants}
    return make(learning_rate=optimizer.learning_rate, decay=optimizer.decay, **given)


class _BatchNormalization(layers.BatchNormalization):
    """Keeps the updates of its moving moments apart: the training function would make them after those of the weights,
    by another forward pass, and so from weights that this batch has moved already.
    """

    def add_update(self, updates, inputs=None):
        self.moves = list(updates)


class _LossOfHead:
    """A metric that is the loss of one head in the batch at hand."""

    updates = ()

    def __init__(self, name, shown):
        self.name, self._shown = name, shown

    def update_state(self, loss):
        if self._shown:
            self._call_result = loss
        return []

    def result(self):
        """Keras calls it for its effect."""

    def reset_states(self):
        """Nothing is kept from batch to batch."""


class _Model(keras.Model):
    """Of several heads it tells the loss of the first one. Keras' own metrics are read before they are updated on CNTK
    and tell 0; another metric would be evaluated by a forward pass of its own, after the update of the weights.
    """

    def _set_metric_attributes(self):
        super()._set_metric_attributes()
        if len(self.outputs) > 1:
            self._output_loss_metrics = [_LossOfHead(name, k == 0) for k, name in enumerate(self.output_names)]


class _Symbol:
    """A tensor as models see it. Of the one column of a head they take the values, where Keras keeps the column."""

    def __init__(self, node):
        self.node = node

    def __getitem__(self, index):
        if index != (slice(None), 0) or K.int_shape(self.node) != (None, 1):
            raise Unsupported(f"Keras on CNTK takes [:, 0] of one column only, not {index} of {K.int_shape(self.node)}")
        return self


def _on_symbols(function):
    def lifted(*args, **options):
        return _Symbol(function(*(getattr(a, "node", a) for a in args), **options))

    return lifted


def _is_dropout(node):
    return getattr(node, "op_name", None) == "Dropout"  # variables have no operation


class Trainer:
    """A compiled model. CNTK's generators cannot be read: each ``state`` and ``restore`` sows those of dropout anew."""

    by_rows = False

    def __init__(self, backend, description, params, optimizer, seed):
        for value in params.values():
            check_dtype(value.dtype)
        if models.with_rows(description, optimizer):
            raise Unsupported("Keras on cntk has dense gradients of tables only, not table_gradient='rows'")
        self._seed, self._count, self._ids = seed, 0, graph.EXACT
        self._weights = {name: Weight(value.shape, name in description.constants) for name, value in params.items()}
        with loader.quiet():
            self._build(backend, description, optimizer)
        self._held = {name: w.variable for name, w in self._weights.items() if w.variable is not None}
        self._others = {name: np.array(value) for name, value in params.items() if name not in self._held}
        if any(value.any() for value in self._others.values()):
            raise Unsupported("Keras on CNTK takes a bias that is not trained only if it is 0")
        self._put(params)
        self._sow()

    def _build(self, backend, description, optimizer):
        x, _ = description.batch(0, "float32", 1)
        ops = bare_ops(backend, **self._replaced(backend, description))
        ops = SimpleNamespace(**{name: _on_symbols(function) for name, function in vars(ops).items()})
        inputs = keras.Input(x.shape[1:], dtype=x.dtype.name)
        outputs = description.apply(ops, self._weights, _Symbol(inputs))
        heads = [(description.loss, 1.0)] if isinstance(description.loss, str) else description.loss
        outputs = [output.node for output in (outputs if len(heads) > 1 else [outputs])]
        self._heads = len(heads)
        self._model = model = _Model(inputs, outputs)
        losses, weights = zip(*((_LOSSES[name][0], weight) for name, weight in heads), strict=True)
        model.compile(_optimizer(optimizer), list(losses), loss_weights=list(weights))
        model._make_train_function()  # as the first step does; before it the optimizer has no state
        self._classes = _LOSSES[heads[0][0]][1](K.int_shape(outputs[0])[-1])
        moves = [move.output for layer in model.layers for move in getattr(layer, "moves", ())]
        self._moves = C.combine(moves) if moves else None
        self._drops = C.logging.graph.depth_first_search(model.total_loss, _is_dropout)
        self._prediction = K.function([inputs, K.learning_phase()], [outputs[0]])
        labels = K.placeholder((None,))
        loss = getattr(backend, heads[0][0]).bare(outputs[0], labels)
        predicted = K.argmax(outputs[0]) if heads[0][0].startswith("softmax") else K.greater(outputs[0], 0.0)
        right = K.sum(K.equal(predicted, labels))
        self._evaluation = K.function([inputs, labels, K.learning_phase()], [loss, right])

    def _replaced(self, backend, description):
        def drop(x, *, rate=0.0):
            return layers.Dropout(rate)(x) if description.dropout and rate else x

        def noted(lookup):
            def call(ids, table, **options):
                self._ids = min(self._ids, table.shape[0])
                return lookup(ids, table, **options)

            return call

        def normalise(x, *weights):
            return call(_BatchNormalization(momentum=models.MOMENTUM), x, *weights)

        lookups = {name: noted(getattr(backend, name).bare) for name in ("embedding", "embedding_average")}
        return {"dropout": drop, "batch_norm": normalise} | lookups

    def _input(self, x):
        """Return the input that Keras is fed with, ids checked."""
        if isinstance(x, graph.Ids):
            x.check("ids", self._ids)
        return values(x)

    def _fed(self, x, labels):
        """Return what Keras is fed with, ids checked."""
        labels.check("labels", self._classes)
        return self._input(x), values(labels)

    def step(self, x, labels):
        x, labels = self._fed(x, labels)
        if self._moves:
            K.set_value(K.learning_phase(), 1)  # an evaluation has left it at 0
            self._moves.eval({self._model.inputs[0]: x.astype(np.float32, copy=False)}, as_numpy=False)
        told = self._model.train_on_batch(x, [labels] * self._heads)
        self._count += 1
        return told if self._heads == 1 else told[1]

    def evaluate(self, x, labels):
        return tuple(self._evaluation([*self._fed(x, labels), 0]))

    def predict(self, x):
        (logits,) = self._prediction([self._input(x), 0])
        return logits[:, 0] if logits.shape[1] == 1 else logits

    def gradients(self, x, labels):
        raise Unsupported("Keras' training function has the optimizer in it and is not timed without")

    def updater(self, gradients):
        raise Unsupported("Keras' optimizers run inside its training function and are not timed alone")

    def params(self):
        held = {name: K.get_value(variable) for name, variable in self._held.items()}
        return {name: held[name] if name in held else self._others[name].copy() for name in self._weights}

    def state(self):
        self._sow()
        return pack(self.params(), {"optimizer": self._model.optimizer.get_weights()}, self._count)

    def restore(self, state):
        weights, slots, self._count = unpack(state, ["optimizer"])
        self._put(weights)
        self._model.optimizer.set_weights(slots["optimizer"])
        self._sow()

    def _put(self, weights):
        K.batch_set_value([(v, np.ascontiguousarray(weights[name])) for name, v in self._held.items()])

    def _sow(self):
        for place, node in enumerate(self._drops):
            entropy = np.random.SeedSequence([self._seed, self._count, place])
            node.set_attribute("rngSeed", int(entropy.generate_state(1)[0]))
