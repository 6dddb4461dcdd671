"""Training on the CNTK backend: CNTK's gradients, and NumPy updates in the memory of CNTK's parameters."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np

from shim import contract, models
from shim.backends import _cntk_graph as graph
from shim.backends._cntk_graph import C
from shim.backends._handwritten import Rows
from shim.backends._handwritten_programs import by_name
from shim.backends._state import pack, refill
from shim.backends._updates import rows_in_use, tables_by_rows, update
from shim.models import optimizers
from shim.protocol import bare_ops


class Symbol:
    """A node of a graph as models see it: indexing takes an axis away, where CNTK keeps it with length 1."""

    def __init__(self, node):
        self.node, self.shape, self.dtype = node, tuple(node.shape), np.dtype(node.dtype)

    def __getitem__(self, index):
        return Symbol(C.reshape(self.node[index], np.broadcast_to(np.empty(()), self.shape)[index].shape))


class _Batch:
    """A model for the shapes of one batch, and the range of the ids in it.

    ``total`` is the weighted loss that is trained, ``loss`` and ``logits`` are those of the main head. Without labels
    there are logits alone.
    """

    def __init__(self, ops, model, parameters, dtype, x, labels=None):
        self._limits = {}
        ops = SimpleNamespace(**{name: self._recorded(contract.op(name), f) for name, f in vars(ops).items()})
        params = {name: Symbol(p) for name, p in parameters.items()}
        self._x = graph.variable(x.shape, dtype)
        if labels is None:
            self.logits = models.logits(model, ops, params, Symbol(self._x)).node
            return
        self.labels = graph.variable(labels.shape, dtype)
        logits, losses = models.losses(model, ops, params, Symbol(self._x), Symbol(self.labels))
        nodes = [(loss.node, weight) for loss, weight in losses]
        self.logits, self.loss, self.total = logits.node, nodes[0][0], models.weighted(nodes)

    def _recorded(self, entry, build):
        def call(*args, **options):
            dims = entry.dims([a.shape for a in args])
            for argument, a in zip(entry.arguments, args, strict=True):
                if argument.below is not None:
                    limit = dims.get(argument.below, 2)
                    self._limits[a.node.uid] = min(limit, self._limits.get(a.node.uid, limit))
            return Symbol(build(*(a.node for a in args), **options))

        return call

    def feed(self, dtype, x, labels=None):
        """Return what the graph is to be fed with, ids checked."""
        feed = {}
        given = [(self._x, x, "ids")] + ([] if labels is None else [(self.labels, labels, "labels")])
        for node, value, name in given:
            if isinstance(value, graph.Ids):
                value.check(name, self._limits.get(node.uid, graph.EXACT))
                value = value.floats(dtype)
            feed[node] = value
        return feed


class _RowsInUse:
    """The rows of tables that a batch uses, in small tables of one size that a graph computes on.

    NumPy brings them there and moves those of the tables themselves after the step: the cost does not depend on the
    length of the tables. The gradient of a sparse ``C.times`` would not be dense either, but takes several times as
    long; see ``docs/cntk.md``.
    """

    def __init__(self, tables, ids):
        self._tables, size = tables, ids.host.size + 1
        self._rows = {name: np.zeros((size, table.shape[1]), table.dtype) for name, table in tables.items()}
        self._gradients = {name: np.zeros_like(rows) for name, rows in self._rows.items()}
        self.parameters = {name: graph.shared(rows) for name, rows in self._rows.items()}
        self.slots = {self.parameters[name]: graph.lent(gradient) for name, gradient in self._gradients.items()}

    def bring(self, ids):
        """Fill the small tables and return the places of ``ids`` in them; that of 0, the padding, is 0."""
        ids.check("ids", min(map(len, self._tables.values())))
        self._ids, places = np.unique(np.append(0, ids.host), return_inverse=True)
        for name, table in self._tables.items():
            table.take(self._ids, axis=0, out=self._rows[name][: len(self._ids)], mode="clip")
            self.parameters[name].record_value_update()
        return graph.Ids(places[1:].reshape(ids.shape).astype(np.int32))

    def gradients(self):
        """Return the gradient of each table as its rows."""
        return {name: Rows([(self._ids, g[: len(self._ids)])]) for name, g in self._gradients.items()}


class Trainer:
    """One graph for each batch size and purpose, over parameters whose memory is that of the NumPy weights.

    CNTK's generators cannot be read. Instead each ``state`` sows them anew, from the seed and the steps so far, and
    ``restore`` does the same: what follows is then the same as well.
    """

    def __init__(self, backend, model, params, optimizer, seed):
        self._backend, self._model, self._optimizer, self._seed = backend, model, optimizer, seed
        self._weights = {name: np.array(value, order="C") for name, value in params.items()}
        self._dtype = next(iter(self._weights.values())).dtype
        self._parameters = {name: graph.shared(w) for name, w in self._weights.items()}
        self._trained = models.trained(model, self._weights)
        names = tables_by_rows(model, params, optimizer)
        self._tables, self.by_rows = {name: self._weights[name] for name in names}, bool(names)
        self._gradients = {name: np.zeros_like(self._weights[name]) for name in self._trained if name not in names}
        self._slots = {self._parameters[name]: graph.lent(g) for name, g in self._gradients.items()}
        self._states = {name: optimizers.init(optimizer, self._weights[name]) for name in self._trained}
        self._one = graph.array(np.ones((), self._dtype))
        self._count = self._sown = 0
        self._drops, self._steps, self._evaluations, self._predictions = [], {}, {}, {}

    def step(self, x, labels):
        value, moved, gradients = self._differentiate(x, labels)
        self._update(gradients)
        for name, moment in zip(itertools.chain(*self._model.moments), moved, strict=True):
            weight = self._weights[name]
            weight += (1 - models.MOMENTUM) * (moment.data.to_ndarray().reshape(weight.shape) - weight)
        self._renew()
        self._count += 1
        return value

    def gradients(self, x, labels):
        value, _, gradients = self._differentiate(x, labels)
        return value, by_name(gradients, gradients.values())

    def _differentiate(self, x, labels):
        """Return the main loss, the moments of the batch, and gradients by name, in memory that is used again."""
        key = x.shape, x.dtype, labels.shape
        if key not in self._steps:
            self._steps[key] = self._build_step(x, labels)
        batch, function, total, loss, moments, slots, rows = self._steps[key]
        x = rows.bring(x) if rows else x
        state, outputs = graph.run(function, batch.feed(self._dtype, x, labels), function.outputs, {total})
        value, moved = graph.clone(outputs[loss]), [graph.clone(outputs[moment]) for moment in moments]
        graph.pull_back(function, state, {total: self._one}, dict(slots))
        return value, moved, self._gradients | (rows.gradients() if rows else {})

    def _update(self, gradients):
        for name, gradient in gradients.items():
            update(self._optimizer, np, self._count, self._weights[name], gradient, self._states[name])

    def updater(self, gradients):
        arrays = {
            name: rows_in_use(gradients[name]) if name in self._tables else np.array(gradients[name], order="C")
            for name in self._trained
        }

        def call():
            self._update(arrays)
            self._renew()
            self._count += 1

        return call

    def _renew(self):
        """Tell CNTK that weights have changed, else what is computed from weights alone is not computed again."""
        for parameter in self._parameters.values():
            parameter.record_value_update()

    def evaluate(self, x, labels):
        key = x.shape, x.dtype, labels.shape
        if key not in self._evaluations:
            self._evaluations[key] = self._build_evaluation(x, labels)
        batch, function = self._evaluations[key]
        _, outputs = graph.run(function, batch.feed(self._dtype, x, labels), function.outputs)
        return tuple(graph.clone(outputs[output]) for output in function.outputs)

    def predict(self, x):
        key = x.shape, x.dtype
        if key not in self._predictions:
            batch = self._build(self._parameters, x, dropout=_identity, batch_norm=self._backend.batch_norm.bare)
            self._predictions[key] = batch, C.combine([batch.logits])
        batch, function = self._predictions[key]
        _, outputs = graph.run(function, batch.feed(self._dtype, x), function.outputs)
        return graph.clone(outputs[function.output])

    def params(self):
        return {name: w.copy() for name, w in self._weights.items()}

    def state(self):
        self._sow()
        slots = {name: [value.copy() for value in values] for name, values in self._states.items()}
        return pack(self.params(), slots, self._count)

    def restore(self, state):
        self._count = refill(self._weights, self._states, state, np.asarray)
        self._renew()
        self._sow()

    def _sow(self):
        self._sown = self._count
        for node, place in self._drops:
            node.set_attribute("rngSeed", self._dropout_seed(place))

    def _dropout_seed(self, place):
        return int(np.random.SeedSequence([self._seed, self._sown, *place]).generate_state(1)[0])

    def _build_step(self, x, labels):
        places, moments = itertools.count(1), []

        def drop(x, *, rate=0.0):
            if not rate:
                return x
            place = next(places), *x.shape
            node = C.dropout(x, rate, seed=self._dropout_seed(place))
            self._drops.append((node.root_function, place))
            return node

        def normalise(x, gamma, beta, mean, variance):
            moments.extend(self._backend.moments(x))
            return self._backend.batch_norm.bare(x, gamma, beta, *moments[-2:])

        rows = _RowsInUse(self._tables, x) if self._tables else None
        small, slots = (rows.parameters, self._slots | rows.slots) if rows else ({}, self._slots)
        dropout = drop if self._model.dropout else _identity
        batch = self._build(self._parameters | small, x, labels, dropout=dropout, batch_norm=normalise)
        function = C.combine(list({node.uid: node for node in (batch.total, batch.loss, *moments)}.values()))
        reached = {p.uid for p in function.parameters}
        slots = {p: slot for p, slot in slots.items() if p.uid in reached}
        total, loss, *moments = (node.output for node in (batch.total, batch.loss, *moments))
        return batch, function, total, loss, moments, slots, rows

    def _build_evaluation(self, x, labels):
        normalise = self._backend.batch_norm.bare
        batch = self._build(self._parameters, x, labels, dropout=_identity, batch_norm=normalise)
        if len(batch.logits.shape) == 2:
            predicted = C.reshape(C.argmax(batch.logits, axis=-1), batch.labels.shape)
        else:
            predicted = C.greater(batch.logits, 0.0)
        right = C.reduce_sum(C.equal(predicted, batch.labels), axis=C.Axis.all_static_axes())
        return batch, C.combine([batch.loss, right])

    def _build(self, parameters, x, labels=None, **replaced):
        ops = bare_ops(self._backend, **replaced)
        return _Batch(ops, self._model, parameters, self._dtype, x, labels)


def _identity(x, *, rate=0.0):
    return x
