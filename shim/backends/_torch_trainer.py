"""The training of the PyTorch backend: autograd and torch's own optimizer kernels, with Keras' formulas."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from shim import models
from shim.backends import _torch_lstm
from shim.backends._state import pack, unpack
from shim.models import optimizers
from shim.protocol import bare_ops


class _RMSprop:
    """Keras' RMSprop has epsilon inside the root; ``torch.optim.RMSprop`` has it outside."""

    def __init__(self, params, lr, rho, epsilon):
        self.params, self.rho, self.epsilon = params, rho, epsilon
        self.param_groups = [{"lr": lr}]
        self.state = {p: {"square_avg": torch.zeros_like(p)} for p in params}

    @torch.no_grad()
    def step(self):
        grads = [p.grad for p in self.params]
        squares = [self.state[p]["square_avg"] for p in self.params]
        torch._foreach_mul_(squares, self.rho)
        torch._foreach_addcmul_(squares, grads, grads, 1 - self.rho)
        roots = torch._foreach_add(squares, self.epsilon)
        torch._foreach_sqrt_(roots)
        torch._foreach_addcdiv_(self.params, grads, roots, -self.param_groups[0]["lr"])


#: what an optimizer keeps for each weight, in torch's own names
_SLOTS = {
    "sgd": (),
    "rmsprop": ("square_avg",),
    "adam": ("step", "exp_avg", "exp_avg_sq"),
    "adadelta": ("step", "square_avg", "acc_delta"),
}


def _kernel(optimizer, params):
    lr, rho, epsilon = optimizer.learning_rate, optimizer.rho, optimizer.epsilon
    if optimizer.name == "rmsprop":
        return _RMSprop(params, lr, rho, epsilon)
    if optimizer.name == "adam":
        return torch.optim.Adam(params, lr, (optimizer.beta_1, optimizer.beta_2), epsilon, fused=True)
    if optimizer.name == "adadelta":
        return torch.optim.Adadelta(params, lr, rho, epsilon, foreach=True)
    return torch.optim.SGD(params, lr, fused=True)


# The gradients of these are sparse tensors with one row for each lookup.
def _embedding(ids, table):
    return F.embedding(ids, table, sparse=True)


def _embedding_average(ids, table, *, padding_id=None):
    return F.embedding_bag(ids, table, mode="mean", padding_idx=padding_id, sparse=True)


def _identity(x, *, rate=0.0):
    return x


class Trainer:
    """A :class:`shim.protocol.Trainer`; ``backend`` is the PyTorch backend's module.

    ``compiled`` turns a function into a compiled one, unless it is None; ``outside`` are the ops that it leaves out.
    """

    def __init__(self, backend, model, params, optimizer, seed, outside, compiled):
        torch.manual_seed(seed)
        self._backend, self._model, self._optimizer, self._steps = backend, model, optimizer, 0
        self._params = {name: backend.to_device(value) for name, value in params.items()}
        if any(map(_torch_lstm.by_cudnn, self._params.values())):
            self._flatten(next(iter(params.values())).dtype)
        self._trained = {name: self._params[name].requires_grad_() for name in models.trained(model, params)}
        self._kernel = _kernel(optimizer, list(self._trained.values()))
        self._with_rows, self._dense = models.with_rows(model, optimizer), {}
        self._tables = [self._params[name] for name in models.tables_by_rows(model, params, optimizer)]
        self.by_rows = bool(self._tables)
        lookups = {"embedding": _embedding, "embedding_average": _embedding_average} if self._tables else {}
        if compiled:  # inductor does not compile sparse gradients
            lookups = {name: torch.compiler.disable(lookup) for name, lookup in lookups.items()}
        normalise = backend.batch_norm.bare

        def loss(params, x, labels):
            """Return the weighted loss, the main one, and (variance, mean) of each batch_norm."""
            moments = []

            def batch_norm(x, gamma, beta, mean, variance):
                moments.append(torch.var_mean(x.detach(), 0, correction=0))  # F.batch_norm's variance is another one
                return normalise(x, gamma, beta, mean, variance, training=True)

            dropout = {} if model.dropout else {"dropout": _identity}
            ops = bare_ops(backend, batch_norm=batch_norm, **outside, **dropout, **lookups)
            _, losses = models.losses(model, ops, params, x, labels)
            return models.weighted(losses), losses[0][0], moments

        inference = bare_ops(backend, dropout=_identity, **outside)

        def evaluation(params, x, labels):
            logits, losses = models.losses(model, inference, params, x, labels)
            predicted = logits.argmax(dim=-1) if logits.ndim == 2 else logits > 0
            return losses[0][0], (predicted == labels).sum()

        def prediction(params, x):
            return models.logits(model, inference, params, x)

        functions = loss, evaluation, prediction
        self._loss, self._evaluation, self._prediction = (compiled(f) if compiled else f for f in functions)

    @torch.no_grad()
    def _flatten(self, dtype):
        """Flatten the weights of LSTMs, found by a prediction, before the optimizer lays its state out like them."""
        flattening = {name: _torch_lstm.flattening(getattr(self._backend, name).bare) for name in ("lstm", "bilstm")}
        x, _ = self._model.batch(0, dtype, 1)
        ops = bare_ops(self._backend, dropout=_identity, **flattening)
        models.logits(self._model, ops, self._params, self._backend.to_device(x))

    def step(self, x, labels):
        total, loss, moments = self._loss(self._params, x, labels)
        total.backward()
        self._update()
        for param in self._trained.values():
            param.grad = None
        for (mean, variance), (new_variance, new_mean) in zip(self._model.moments, moments, strict=True):
            self._params[mean].lerp_(new_mean, 1 - models.MOMENTUM)
            self._params[variance].lerp_(new_variance, 1 - models.MOMENTUM)
        return loss.detach()

    def gradients(self, x, labels):
        total, loss, _ = self._loss(self._params, x, labels)
        total.backward()
        self._lay_out()
        found = {name: param.grad for name, param in self._trained.items()}
        for name, param in self._trained.items():
            if found[name].is_sparse:
                found[name] = [(found[name]._indices()[0], found[name]._values())]
            param.grad = None
        return loss.detach(), found

    def _update(self):
        lr = self._constants()
        for table in self._tables if self._with_rows else ():
            self._descend(table, lr)
        self._lay_out()
        self._kernel.step()
        self._steps += 1

    def _constants(self):
        """Set what changes from step to step and return the learning rate."""
        group, optimizer = self._kernel.param_groups[0], self._optimizer
        group["lr"] = optimizers.rate(optimizer, self._steps)
        if optimizer.name == "adam":  # torch adds epsilon to the corrected root, Keras to the root as it is
            group["eps"] = optimizer.epsilon / (1 - optimizer.beta_2 ** (self._steps + 1)) ** 0.5
        return group["lr"]

    def updater(self, gradients):
        pairs = [(param, self._like(param, gradients[name])) for name, param in self._trained.items()]

        def call():
            for param, gradient in pairs:
                param.grad = gradient
            self._constants()
            self._kernel.step()
            self._steps += 1
            for param, _ in pairs:
                param.grad = None

        return call

    def _like(self, param, value):
        """Return a value on the device and, if it has the weight's shape, in its layout, as autograd and torch's
        optimizers leave theirs: the fused kernels pair entries by their place in memory."""
        value = self._backend.to_device(value)
        return torch.empty_like(param, requires_grad=False).copy_(value) if value.shape == param.shape else value

    def _lay_out(self):
        """Make the sparse gradients that the kernel takes dense, always in the same memory: only what the step before
        had written is cleared. New zeros at each step would take several times as long as the optimizer."""
        for table in () if self._with_rows else self._tables:
            ids, rows = table.grad._indices()[0], table.grad._values()
            dense, written = self._dense.get(table) or (torch.zeros_like(table, requires_grad=False), ids)
            dense.index_fill_(0, written, 0)
            self._dense[table] = dense, ids
            table.grad = dense.scatter_add_(0, ids[:, None].expand_as(rows), rows)

    @torch.no_grad()
    def _descend(self, table, lr):
        """Move the rows that a sparse gradient names; summed first, since many small steps would lose digits."""
        gradient = table.grad.coalesce()
        ids, rows = gradient.indices()[0], gradient.values()
        table.scatter_add_(0, ids[:, None].expand_as(rows), rows.mul_(-lr))  # a fifth of the time of index_add_
        table.grad = None  # done: nothing is left to the kernel

    @torch.inference_mode()
    def evaluate(self, x, labels):
        return self._evaluation(self._params, x, labels)

    @torch.inference_mode()
    def predict(self, x):
        return self._prediction(self._params, x)

    def params(self):
        return {name: self._backend.to_numpy(value) for name, value in self._params.items()}

    def state(self):
        """Torch makes an optimizer's state at the first step: before it there is none."""
        kept = {name: self._kernel.state.get(p, {}) for name, p in self._trained.items()}
        names = _SLOTS[self._optimizer.name]
        slots = {name: [self._backend.to_numpy(s[slot]) for slot in names if s] for name, s in kept.items()}
        generators = {"generator": torch.get_rng_state().numpy()}
        if torch.cuda.is_available():
            generators["cuda_generator"] = torch.cuda.get_rng_state().numpy()
        return pack(self.params(), slots, self._steps, **generators)

    def restore(self, state):
        weights, slots, self._steps = unpack(state, self._trained)
        with torch.no_grad():
            for name, value in weights.items():
                self._params[name].copy_(torch.from_numpy(np.asarray(value)))
        names = _SLOTS[self._optimizer.name]
        for name, values in slots.items():
            if values:
                param = self._trained[name]
                kept = zip(names, (self._like(param, value) for value in values), strict=True)
                self._kernel.state[param] = dict(kept)
        torch.set_rng_state(torch.from_numpy(np.asarray(state["generator"])))
        if "cuda_generator" in state:
            torch.cuda.set_rng_state(torch.from_numpy(np.asarray(state["cuda_generator"])))
