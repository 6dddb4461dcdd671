"""Training steps of the models, with their batch size, optimizer and dropout."""

from __future__ import annotations

from .common import Timed, grid


class TrainStep(Timed):
    params = grid(["mnist_mlp/train_step/N128/float32", "imdb_bidirectional_lstm/train_step/N32/float32"])

    def timeop_train_step(self, target, case_id):
        self.call()

    timeop_train_step.pretty_name = "training step"
