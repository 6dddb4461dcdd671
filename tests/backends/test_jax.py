"""What only the backend jax has: cuDNN's LSTM, tried without a GPU by the reference of ``jax.experimental.rnn``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from shim import cases, parity
from shim.backends import _jax_lstm
from shim.backends import jax as backend


@pytest.fixture
def cudnn(monkeypatch):
    """Take CUDA's path on the CPU; return the calls that it makes of ``rnn.lstm``."""
    calls = []

    def lstm(x, h_0, c_0, weights, seq_lengths, *sizes):
        calls.append(sizes)
        assert x.dtype == h_0.dtype == weights.dtype == np.float32
        assert weights.shape == (rnn.get_num_params_in_lstm(*sizes[:3], sizes[-1]),)
        parts = rnn.unpack_lstm_weights(weights, *sizes[:3], sizes[-1])
        return rnn.lstm_ref(x, h_0, c_0, *parts, seq_lengths, *sizes)

    monkeypatch.setattr(rnn, "lstm", lstm)
    monkeypatch.setattr(backend, "_by_cudnn", lambda x, gates: x.dtype == np.float32 and gates == "sigmoid")
    backend._program.cache_clear()
    yield calls
    backend._program.cache_clear()


@pytest.mark.parametrize("op", ["lstm", "bilstm"])
def test_the_lstm_of_cudnn_is_the_contract(cudnn, op):
    for case in parity.conformance_cases(["float32"]):
        if case.op == op:
            before = len(cudnn)
            parity.verify(backend, case, "jit")
            assert (len(cudnn) == before) == ("recurrent_activation" in dict(case.options)), case


def test_both_directions_are_one_call_in_a_training_too(cudnn):
    parity.verify(backend, cases.parse("imdb_bidirectional_lstm/train_step/N2/float32"), "jit")
    assert set(cudnn) == {(128, 64, 1, 0.0, True)}


def test_other_types_keep_the_scan(cudnn):
    parity.verify(backend, cases.case("lstm", "forward", parity.SMALL["lstm"], "float64"), "jit")
    assert not cudnn


def test_weights_are_packed_as_jax_unpacks_them():
    rng = np.random.default_rng(0)
    shapes = [(3, 8), (2, 8), (8,)]
    directions = [[rng.standard_normal(shape) for shape in shapes] for _ in range(2)]
    packed = _jax_lstm.pack([[jnp.array(part) for part in direction] for direction in directions])
    w_ih, w_hh, b_ih, b_hh = rnn.unpack_lstm_weights(packed, 3, 2, 1, True)
    for k, (w_x, w_h, b) in enumerate(directions):
        np.testing.assert_array_equal(w_ih[k], w_x.T)
        np.testing.assert_array_equal(w_hh[k], w_h.T)
        np.testing.assert_array_equal(b_ih[k], b)
        assert not b_hh[k].any()


@pytest.mark.parametrize(("precision", "tf32"), [("highest", False), ("tensorfloat32", True)])
def test_the_precision_of_products_is_that_of_cudnn(precision, tf32):
    with jax.default_matmul_precision(precision):
        assert rnn._lstm_cudnn_allow_tf32(None) is tf32


def test_a_program_with_cudnn_says_so():
    text = """
ENTRY %main (x: f32[3,5]) -> f32[3,5] {
  %a = (f32[3]) custom-call(%x), custom_call_target="cudnn_rnn_ffi"
  %b = (f32[3]) custom-call(%a), custom_call_target="cudnn_rnn_bwd_ffi"
  %c = (f32[3]) custom-call(%b), custom_call_target="__cublas$lt$matmul"
}"""
    assert backend._path(text) == "XLA: cuDNN LSTM through jax.experimental.rnn, dot by cuBLAS"
