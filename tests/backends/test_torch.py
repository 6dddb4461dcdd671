"""What only the backend torch has: LSTMs whose weights lie as cuDNN reads them, tried without a GPU; its kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shim import cases, contract, models, parity
from shim.backends import _torch_lstm
from shim.backends import torch as backend


@pytest.fixture
def flat(monkeypatch):
    monkeypatch.setattr(_torch_lstm, "by_cudnn", lambda x: True)


def _directions(count, inputs=3, units=2):
    rng = np.random.default_rng(0)
    shapes = [(inputs, 4 * units), (units, 4 * units), (4 * units,)]
    return [[torch.tensor(rng.standard_normal(shape)) for shape in shapes] for _ in range(count)]


def _offsets(parts):
    """Return where each part begins in the memory that they share, after a check that they fill it."""
    assert all(part.is_contiguous() for part in parts)
    assert {part.untyped_storage().data_ptr() for part in parts} == {parts[0].untyped_storage().data_ptr()}
    assert parts[0].untyped_storage().nbytes() == sum(part.nbytes for part in parts)
    return [part.storage_offset() for part in parts]


@pytest.mark.parametrize(("count", "offsets"), [(1, [0, 24, 40, 48]), (2, [0, 24, 80, 88, 40, 64, 96, 104])])
def test_the_matrices_of_all_directions_come_before_the_biases(flat, count, offsets):
    directions = _directions(count)
    copies = _torch_lstm.weights(directions[0][0], directions)
    assert _offsets(copies) == offsets
    _torch_lstm.flatten(directions)
    views = _torch_lstm.weights(directions[0][0], directions)
    assert _offsets(views) == offsets
    assert all(torch.equal(copy, view) for copy, view in zip(copies, views, strict=True))
    assert all(w_ih.data_ptr() == w_x.data_ptr() for w_ih, (w_x, _, _) in zip(views[::4], directions, strict=True))
    assert not any(second.any() for second in views[3::4])


@pytest.mark.parametrize("op", ["lstm", "bilstm"])
def test_gradients_of_copied_weights_are_those_of_the_contract(flat, op):
    for case in parity.conformance_cases():
        if case.op == op:
            parity.verify(backend, case, "eager")


@pytest.mark.parametrize("name", ["imdb_bidirectional_lstm", "lstm_text_generation"])
def test_trainings_with_flat_weights_go_the_same_way_on_from_a_checkpoint_too(flat, monkeypatch, name):
    model = models.load(name, dropout=False)
    params = model.initial()
    x, labels = map(backend.to_device, model.batch(size=2))

    def steps(trainer, count=2):
        return [float(trainer.step(x, labels)) for _ in range(count)]

    first, second = (backend.trainer(model, params, model.optimizer, "eager") for _ in range(2))
    monkeypatch.setattr(_torch_lstm, "_one_piece", None)  # no weight is moved again
    losses = steps(first)
    second.restore(first.state())
    losses += steps(second)
    for trainer in first, second:
        weight = next(value for name, value in trainer._params.items() if name.endswith("w_h"))
        kept = [value for value in trainer._kernel.state[weight].values() if value.shape == weight.shape]
        assert kept
        assert {value.stride() for value in [weight, *kept]} == {(1, len(weight))}
    monkeypatch.undo()
    third = backend.trainer(model, params, model.optimizer, "eager")
    assert losses == pytest.approx(steps(third, 4), rel=1e-6)


def test_single_precision_is_ieee_in_cublas_and_cudnn():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    assert not cudnn.allow_tf32
    assert not matmul.allow_tf32
    assert "tf32" not in {cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision}


@pytest.mark.parametrize("dtype", contract.FLOATS)
@pytest.mark.parametrize(("op", "mark"), [("lstm", "aten::mkldnn_rnn_layer"), ("conv2d", "aten::mkldnn_convolution")])
def test_the_profiler_sees_the_library_that_is_named(op, mark, dtype):
    case = cases.case(op, "forward", parity.SMALL[op], dtype)
    args = [backend.to_device(value) for value in case.arrays()[0]]
    run = backend.forward(op)
    run(*args)
    with torch.profiler.profile() as profile:
        run(*args)
    called = {event.key for event in profile.key_averages()}
    assert called & {"aten::lstm", "aten::convolution"}
    assert backend.implementation(case).startswith("oneDNN") == (mark in called)
