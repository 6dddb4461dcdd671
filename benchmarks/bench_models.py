"""The models: training steps, predictions, peak memory, and the accuracy after a short training."""

from __future__ import annotations

import os
import tempfile

from .common import PROFILE, Benchmark, Timed, grid, load, model_ids, models_outside_profile, parse

SAMPLES = 1600  # to train on, and at most a quarter of it to test on
STEPS = 5


class TrainStep(Timed):
    """With the model's batch size, optimizer and dropout."""

    params = grid(model_ids("train_step"))
    left_out = models_outside_profile("train_step")

    def timeop_train_step(self, target, case_id):
        self.call()

    timeop_train_step.pretty_name = "training step"


class Predict(Timed):
    """The logits of one batch."""

    params = grid(model_ids("predict"))
    left_out = models_outside_profile("predict")

    def timeop_predict(self, target, case_id):
        self.call()

    timeop_predict.pretty_name = "prediction"


class _Whole(Benchmark):
    """A model in a process of its own, without the comparison with the contract, which needs memory itself."""

    params = grid(model_ids("train_step"))
    param_names = ["backend", "case"]  # noqa: RUF012 - asv takes nothing but lists
    left_out = models_outside_profile("train_step")

    def setup(self, target, case_id):
        if case_id in self.left_out:
            raise NotImplementedError(f"not in the profile {PROFILE}")
        self.case, (self.backend, self.mode) = parse(case_id), load(target)

    def trainer(self):
        from shim import models

        model = models.load(self.case.op, **dict(self.case.options))
        params = model.initial(0, self.case.dtype)
        return model, self.backend.trainer(model, params, model.optimizer, self.mode, seed=0)


class Memory(_Whole):
    """The most memory that a process takes which imports the framework and trains for five steps on made-up data.

    The system counts from before the process has its own program: what asv takes is the least that it can show.
    """

    def peakmem_training(self, target, case_id):
        model, trainer = self.trainer()
        batch = [self.backend.to_device(value) for value in model.batch(0, self.case.dtype)]
        for _ in range(STEPS):
            loss = trainer.step(*batch)
        self.backend.synchronize(loss)

    peakmem_training.pretty_name = "peak memory of training"


class Accuracy(_Whole):
    """The share of right predictions after an epoch on a few thousand of the embedded samples, always the same ones."""

    unit = "share"

    def track_accuracy(self, target, case_id):
        x, labels, x_test, labels_test, model, trainer = *self.samples(), *self.trainer()
        import numpy as np

        size, to_device, drawn = model.batch_size, self.backend.to_device, np.random.default_rng(1)
        for part in np.split(np.random.default_rng(0).permutation(len(labels)), range(size, len(labels), size)):
            batch = x[part] if model.augment is None else model.augment(x[part], drawn)
            trainer.step(to_device(model.prepare(batch)), to_device(labels[part]))
        right = 0
        for part in np.split(np.arange(len(labels_test)), range(size, len(labels_test), size)):
            batch = to_device(model.prepare(x_test[part])), to_device(labels_test[part])
            right += int(self.backend.to_numpy(trainer.evaluate(*batch)[1]))
        return right / len(labels_test)

    track_accuracy.pretty_name = "accuracy after a short training"

    def samples(self):
        """Return samples to train and to test on; where a data set has none of the latter, those that follow."""
        from shim import data, models

        os.environ.pop("SHIM_DATA", None)
        model = models.load(self.case.op, **dict(self.case.options))
        with tempfile.TemporaryDirectory() as empty:
            os.environ["SHIM_HOME"] = empty  # no downloaded files
            found = data.load(model.data, **model.data_options)
        x, labels, few = found.x_train, found.y_train, SAMPLES // 4
        test = (found.x_test, found.y_test) if len(found.y_test) else (x[SAMPLES:], labels[SAMPLES:])
        return x[:SAMPLES], labels[:SAMPLES], test[0][:few], test[1][:few]
