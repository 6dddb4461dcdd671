"""A tape of a few lines: the ops that were called with its variables, in order, and the walk back over them."""

from __future__ import annotations


class Variable:
    """An array whose uses are recorded. It has a shape and a dtype, and can be indexed."""

    __slots__ = ("tape", "value")

    def __init__(self, tape, value):
        self.tape, self.value = tape, value

    @property
    def shape(self):
        return self.value.shape

    @property
    def dtype(self):
        return self.value.dtype

    def __getitem__(self, index):
        return self.tape.call(_index, (self,), {"index": index})


class Tape:
    """Records calls of hand-written ops. The k-th call of every round has the same workspace, of ``workspace(keep)``.

    With ``recording`` false nothing is recorded and no workspace keeps what only gradients need.
    """

    def __init__(self, workspace, recording=True):
        self.recording, self._workspace = recording, workspace
        self._records, self._workspaces, self._calls = [], [], 0

    def start(self, params):
        """Forget the round before and return ``params`` as variables."""
        self._records, self._calls = [], 0
        return {name: Variable(self, value) for name, value in params.items()}

    def call(self, function, args, options):
        """Call ``function(work, *arrays, **options)`` and return its result as a variable."""
        if self._calls == len(self._workspaces):
            self._workspaces.append(self._workspace(self.recording))
        work = self._workspaces[self._calls]
        self._calls += 1
        y, pullback = function(work, *(a.value if isinstance(a, Variable) else a for a in args), **options)
        result = Variable(self, y)
        if self.recording:
            self._records.append((result, args, pullback))
        return result

    def gradients(self, losses, variables):
        """Return the gradient of ``losses``, pairs (scalar, weight) that are added up, for each of ``variables``."""
        xp = self._workspaces[0].xp
        gradients = {loss: xp.full((), weight, loss.dtype) for loss, weight in losses}
        for result, args, pullback in reversed(self._records):
            dy = gradients.pop(result, None)
            if dy is None:
                continue
            floats = [a for a in args if a.dtype.kind == "f"]
            for a, gradient in zip(floats, pullback(dy, first=isinstance(args[0], Variable)), strict=True):
                if isinstance(a, Variable):
                    gradients[a] = gradients[a] + gradient if a in gradients else gradient
        return [gradients[v] if v in gradients else xp.zeros(v.shape, v.dtype) for v in variables]


def _index(work, x, *, index):
    if index == (slice(None), 0) and x.shape[1:] == (1,):  # that is all of it
        return x.reshape(-1), lambda dy, first=True: [dy.reshape(x.shape)]

    def pullback(dy, first=True):
        dx = work.xp.zeros(x.shape, x.dtype)
        dx[index] = dy
        return [dx]

    return x[index], pullback
