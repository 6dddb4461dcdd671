"""The contract's references against plain loops, closed forms and hand-counted work."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shim import cases, contract, parity

RNG = np.random.default_rng(0)


def draw(*shape):
    return RNG.standard_normal(shape)


def test_dense_is_a_matrix_product():
    x, w, b = draw(3, 7), draw(7, 5), draw(5)
    wanted = [[sum(x[n, i] * w[i, o] for i in range(7)) + b[o] for o in range(5)] for n in range(3)]
    np.testing.assert_allclose(contract.dense(x, w, b), wanted, rtol=1e-13)
    np.testing.assert_allclose(contract.dense(x, w, b, activation="relu"), np.maximum(wanted, 0), rtol=1e-13)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_conv2d_is_a_sum_over_windows(stride, padding):
    x, w, b = draw(2, 7, 6, 3), draw(3, 2, 3, 5), draw(5)
    y = contract.conv2d(x, w, b, stride=stride, padding=padding)
    top, left = 0, 0
    if padding == "same":
        assert y.shape == (2, -(-7 // stride), -(-6 // stride), 5)
        top = max((y.shape[1] - 1) * stride + 3 - 7, 0) // 2
        left = max((y.shape[2] - 1) * stride + 2 - 6, 0) // 2
    for n, p, q, o in np.ndindex(y.shape):
        total = b[o]
        for r, s, c in np.ndindex(3, 2, 3):
            row, column = p * stride + r - top, q * stride + s - left
            if 0 <= row < 7 and 0 <= column < 6:
                total += x[n, row, column, c] * w[r, s, c, o]
        assert y[n, p, q, o] == pytest.approx(total, rel=1e-12)


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def hard_sigmoid(v):
    return min(max(0.2 * v + 0.5, 0.0), 1.0)


@pytest.mark.parametrize("gate", [sigmoid, hard_sigmoid])
def test_lstm_follows_its_equations_one_number_at_a_time(gate):
    x, w_x, w_h, b = draw(2, 3, 5), draw(5, 16), draw(4, 16), draw(16)
    y = contract.lstm(x, w_x, w_h, b, return_sequences=True, recurrent_activation=gate.__name__)
    for n in range(2):
        h, c = [0.0] * 4, [0.0] * 4
        for t in range(3):
            z = [
                sum(x[n, t, i] * w_x[i, k] for i in range(5)) + sum(h[j] * w_h[j, k] for j in range(4)) + b[k]
                for k in range(16)
            ]
            c = [gate(z[4 + j]) * c[j] + gate(z[j]) * math.tanh(z[8 + j]) for j in range(4)]
            h = [gate(z[12 + j]) * math.tanh(c[j]) for j in range(4)]
            np.testing.assert_allclose(y[n, t], h, rtol=1e-12)
    np.testing.assert_array_equal(contract.lstm(x, w_x, w_h, b, recurrent_activation=gate.__name__), y[:, -1])


def test_a_reversed_lstm_reads_the_sequence_backwards_and_stays_aligned():
    x, weights = draw(2, 5, 3), (draw(3, 16), draw(4, 16), draw(16))
    backwards = contract.lstm(x, *weights, reverse=True, return_sequences=True)
    np.testing.assert_array_equal(backwards, contract.lstm(x[:, ::-1], *weights, return_sequences=True)[:, ::-1])
    np.testing.assert_array_equal(contract.lstm(x, *weights, reverse=True), backwards[:, 0])


def test_bilstm_joins_both_directions():
    x, forwards, backwards = draw(2, 5, 3), (draw(3, 16), draw(4, 16), draw(16)), (draw(3, 16), draw(4, 16), draw(16))
    y = contract.bilstm(x, *forwards, *backwards)
    np.testing.assert_array_equal(y[:, :4], contract.lstm(x, *forwards))
    np.testing.assert_array_equal(y[:, 4:], contract.lstm(x, *backwards, reverse=True))


def test_embedding_average_counts_repeats_and_leaves_padding_out():
    table = draw(5, 3)
    ids = np.array([[1, 1, 4], [0, 2, 0], [0, 0, 0]], np.int32)
    np.testing.assert_allclose(contract.embedding_average(ids, table)[0], (2 * table[1] + table[4]) / 3)
    padded = contract.embedding_average(ids, table, padding_id=0)
    np.testing.assert_allclose(padded[1], table[2])
    np.testing.assert_array_equal(padded[2], np.zeros(3))


def test_max_pool_drops_the_remainder():
    x = draw(1, 5, 7, 2)
    y = contract.max_pool2d(x)
    assert y.shape == (1, 2, 3, 2)
    assert y[0, 1, 2, 1] == x[0, 2:4, 4:6, 1].max()


def test_batch_norm_normalises():
    x, ones = 3 + 2 * draw(500, 3), np.ones(3)
    y = contract.batch_norm(x, ones, 0 * ones, 0 * ones, ones, training=True)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=0), 1, atol=1e-3)
    np.testing.assert_allclose(contract.batch_norm(x, ones, ones, ones, ones), (x - 1) / np.sqrt(1.001) + 1)


def test_cross_entropies_are_those_of_the_probabilities():
    logits, labels = draw(5, 7), np.array([0, 6, 3, 3, 1], np.int32)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = -np.log(p[np.arange(5), labels]).mean()
    assert contract.softmax_cross_entropy(logits, labels) == pytest.approx(wanted, rel=1e-13)
    z, y = np.array([-3.0, 0.5, 40.0]), np.array([0, 1, 0], np.int32)
    wanted = np.mean([-math.log(1 - sigmoid(-3)), -math.log(sigmoid(0.5)), 40.0])
    assert contract.sigmoid_cross_entropy(z, y) == pytest.approx(wanted, rel=1e-13)


@pytest.mark.parametrize(
    "case", [c for c in parity.conformance_cases(["float64"]) if "backward" in c.direction], ids=str
)
def test_complex_step_agrees_with_finite_differences(case):
    function = lambda *a: contract.op(case.op).reference(*a, **dict(case.options))  # noqa: E731
    args, dy = case.arrays(seed=1)
    gradients = contract.reference_vjp(function, args, dy)
    for k, gradient in zip([k for k, a in enumerate(args) if a.dtype.kind == "f"], gradients, strict=True):
        direction = np.random.default_rng(k).standard_normal(args[k].shape)
        ends = [(function(*args[:k], args[k] + step * direction, *args[k + 1 :]) * dy).sum() for step in (1e-6, -1e-6)]
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx((gradient * direction).sum(), rel=1e-6, abs=1e-7)


# Counted by hand; a multiply-add is two operations, four bytes a number.
WORK = {
    "dense/forward/N3-I7-O5/float32": (2 * 3 * 7 * 5, 4 * (21 + 35 + 5 + 15)),
    "dense/forward_backward/N3-I7-O5/float32": (3 * 210, 4 * (76 + 21 + 35 + 5 + 15 + 21 + 35 + 5)),
    "conv2d/forward/N1-H5-W5-C2-R3-S3-O4/float32": (2 * 9 * 4 * 18, 4 * (50 + 72 + 4 + 36)),
    "conv2d/forward/N1-H5-W5-C2-R3-S3-O4-stride=2-padding=same/float32": (2 * 9 * 4 * 18, 4 * (50 + 72 + 4 + 36)),
    "lstm/forward/N2-T3-I5-H4/float32": (3 * 2 * 2 * 16 * 9, 4 * (30 + 80 + 64 + 16 + 8)),
    "bilstm/forward/N2-T3-I5-H4/float32": (2 * 3 * 2 * 2 * 16 * 9, 4 * (30 + 2 * (80 + 64 + 16) + 16)),
    "embedding_average/forward/N2-T3-V1000-D5/float32": (2 * 3 * 5, 4 * (6 + 30 + 10)),
    "embedding_average/forward_backward/N2-T3-V1000-D5/float32": (60, 4 * (46 + 6 + 10 + 5000)),
    "embedding/forward/N2-T3-V1000-D5/float32": (0, 4 * (6 + 30 + 30)),
    "max_pool2d/forward/N1-H4-W4-C3/float32": (48, 4 * (48 + 12)),
}


@pytest.mark.parametrize("id", WORK)
def test_work_is_what_was_counted_by_hand(id):
    work = cases.parse(id).work()
    assert (work.flops, work.bytes) == WORK[id]


def test_work_of_the_articles_layers_is_the_published_count():
    bilstm = cases.parse("bilstm/forward/N32-T100-I128-H64/float32").work()
    assert bilstm.flops == 32 * 19_660_800
    conv = cases.parse("conv2d/forward/N128-H26-W26-C32-R3-S3-O64-activation=relu/float32").work()
    assert conv.flops == 128 * 21_233_664


@pytest.mark.parametrize("case", parity.conformance_cases(["float64"]), ids=str)
def test_result_shapes_are_those_of_the_reference(case):
    args, dy = case.arrays()
    assert contract.op(case.op).reference(*args, **dict(case.options)).shape == dy.shape or case.op in (
        "relu",
        "dropout",
    )


def test_same_padding_puts_the_odd_row_at_the_end():
    assert contract.same_padding(7, 2, 1) == (0, 1)
    assert contract.same_padding(7, 3, 2) == (1, 1)
    assert contract.same_padding(8, 3, 3) == (0, 1)


def test_shape_errors_name_the_argument_and_what_is_known():
    with pytest.raises(ValueError, match=r"lstm: w_h has shape \(4, 20\), expected \(H, 4H\) with N=2, T=3, I=5, H=4"):
        contract.op("lstm").dims([(2, 3, 5), (5, 16), (4, 20), (16,)])
