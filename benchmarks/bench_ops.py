"""The ops, forward and forward with all gradients, at the shapes of the models' layers."""

from __future__ import annotations

from .common import Timed, case_ids, grid, outside_profile


class Dense(Timed):
    params = grid(case_ids("dense"))
    left_out = outside_profile("dense")

    def timeop_dense(self, target, case_id):
        self.call()

    timeop_dense.pretty_name = "dense"


class Conv2d(Timed):
    params = grid(case_ids("conv2d"))
    left_out = outside_profile("conv2d")

    def timeop_conv2d(self, target, case_id):
        self.call()

    timeop_conv2d.pretty_name = "conv2d"


class Lstm(Timed):
    params = grid(case_ids("lstm"))
    left_out = outside_profile("lstm")

    def timeop_lstm(self, target, case_id):
        self.call()

    timeop_lstm.pretty_name = "lstm"


class Bilstm(Timed):
    params = grid(case_ids("bilstm"))
    left_out = outside_profile("bilstm")

    def timeop_bilstm(self, target, case_id):
        self.call()

    timeop_bilstm.pretty_name = "bilstm"


class EmbeddingAverage(Timed):
    params = grid(case_ids("embedding_average"))
    left_out = outside_profile("embedding_average")

    def timeop_embedding_average(self, target, case_id):
        self.call()

    timeop_embedding_average.pretty_name = "embedding_average"


class Embedding(Timed):
    params = grid(case_ids("embedding"))
    left_out = outside_profile("embedding")

    def timeop_embedding(self, target, case_id):
        self.call()

    timeop_embedding.pretty_name = "embedding"
