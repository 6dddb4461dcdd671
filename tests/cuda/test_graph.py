"""Training steps that are recorded once and replayed: what is launched again must be the whole step."""

from __future__ import annotations

import numpy as np
import pytest

from shim import models
from shim.backends import _cuda_trainer
from shim.backends._cuda_graph import Replayed
from shim.backends._cuda_ops import CudaOps

WHOLLY_ON_KERNELS = ("mnist_mlp", "imdb_fasttext-ngrams=1", "imdb_bidirectional_lstm", "lstm_text_generation")


class Recorder:
    """What launches kernels and multiplies, at once or into a list of what is to be done."""

    def __init__(self, load, product):
        self._load, self._product, self.list = load, product, None

    def load(self, kernels):
        module = self._load(kernels)
        return lambda *args, **how: self._do(module, args, how)

    def product(self, *args, **how):
        self._do(self._product, args, how)
        return args[2]

    def _do(self, function, args, how):
        if self.list is None:
            function(*args, **how)
        else:
            self.list.append((function, args, how))

    def graph(self, function, arrays):
        """Record a function like a CUDA graph, in which nothing runs before it is replayed."""
        inputs, self.list = [a.copy() for a in arrays], []
        outputs = function(*inputs)
        recorded, self.list = self.list, None

        def replay(*arrays):
            for kept, array in zip(inputs, arrays, strict=True):
                kept[...] = array
            for launch, args, how in recorded:
                launch(*args, **how)
            return outputs.copy()

        return replay


@pytest.fixture
def backend(emulator):
    backend = pytest.importorskip("shim.backends.cupy", reason="CuPy is not installed")

    class Device:
        to_device = staticmethod(lambda value: np.array(value, order="C"))
        to_numpy = staticmethod(np.asarray)

    def trainer(model, recorded):
        plain = emulator.ops()
        recorder = Recorder(emulator.load, plain.product)
        cuda = CudaOps(plain.xp, recorder.load, recorder.product).of_a_trainer()

        def record(function):
            return Replayed(function, recorder.graph) if recorded else function

        params = {name: value.astype("float32") for name, value in model.initial(0, "float32").items()}
        return _cuda_trainer.Trainer(backend.programs(cuda), cuda, Device, model, params, model.optimizer, 3, record)

    return trainer


def batches(model):
    sizes = (3, 3, 2, 3, 2, 3)  # each is run, then recorded, then replayed
    return [model.batch(step, "float32", size) for step, size in enumerate(sizes)]


@pytest.mark.parametrize("name", [*WHOLLY_ON_KERNELS, "imdb_fasttext-ngrams=1-optimizer=sgd-table_gradient=rows"])
def test_what_is_replayed_is_the_whole_step(backend, name):
    """With dropout, whose words differ from step to step, and decaying learning rates."""
    model = models.load(name)
    trainers = [backend(model, recorded) for recorded in (False, True)]
    losses = [[float(trainer.step(*batch)) for batch in batches(model)] for trainer in trainers]
    assert losses[0] == losses[1]
    wanted, params = (trainer.params() for trainer in trainers)
    for key, value in wanted.items():
        np.testing.assert_array_equal(params[key], value, err_msg=key)


@pytest.mark.parametrize("name", ["mnist_mlp", "lstm_text_generation"])
def test_the_gradients_of_each_batch_are_replayed(backend, name):
    model = models.load(name, dropout=False)
    plain, recorded = (backend(model, recorded) for recorded in (False, True))
    for batch in batches(model):
        wanted, found = (
            (loss.copy(), {name: g.copy() for name, g in gradients.items()})
            for loss, gradients in (trainer.gradients(*batch) for trainer in (plain, recorded))
        )
        assert found[0] == wanted[0]
        assert list(found[1]) == list(wanted[1]) == models.trained(model, plain.params())
        for name, gradient in wanted[1].items():
            assert gradient.any(), name
            np.testing.assert_array_equal(found[1][name], gradient, err_msg=name)
        losses = [float(trainer.step(*batch)) for trainer in (plain, recorded)]  # the weights move on
        assert losses == [wanted[0]] * 2


def test_a_step_has_a_number_of_its_own(backend):
    """It marks the rows that a step touches; the optimizer reads the gradient of no others."""
    trainer = backend(models.load("imdb_fasttext-ngrams=1"), recorded=True)
    for batch in batches(trainer._model)[:2]:
        assert trainer._steps.step.item() == trainer._count + 1
        trainer.step(*batch)
    [held] = (
        held for work in trainer._tapes[3]._workspaces for layout, (_, held) in work._held.items()
        if layout.__name__ == "_untouched"
    )  # fmt: skip
    assert set(np.unique(held.stamps)) == {0, 1, 2}
    assert not held.values.any()


def test_a_restored_trainer_replays_from_there(backend):
    model = models.load("mnist_mlp")
    first, second = (backend(model, recorded=True) for _ in range(2))
    given = batches(model)
    for batch in given[:4]:
        first.step(*batch)
    for batch in given:  # somewhere else, with graphs of its own
        second.step(*batch)
    second.restore(first.state())
    assert [float(first.step(*batch)) for batch in given] == [float(second.step(*batch)) for batch in given]


def test_what_cannot_be_recorded_is_run():
    def refuse(function, arrays):
        raise NotImplementedError("no graphs here")

    double = Replayed(lambda x: 2 * x, refuse)
    x = np.arange(3.0)
    assert (double(x) == 2 * x).all()
    with pytest.warns(UserWarning, match="launched kernel by kernel.*no graphs here"):
        assert (double(x) == 2 * x).all()
    assert (double(x + 1) == 2 * x + 2).all()
