"""Case ids: every case comes back from its id, and a wrong id says what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shim import cases, contract, models, parity


@pytest.mark.parametrize("name", cases.SETS)
def test_every_case_of_a_set_comes_back_from_its_id(name):
    found = cases.case_set(name)
    assert len({case.id for case in found}) == len(found) > 0
    assert [cases.parse(case.id) for case in found] == found


@st.composite
def any_case(draw):
    entry = contract.op(draw(st.sampled_from(list(contract.OPS))))
    dims = {axis: draw(st.integers(1, 10**6)) for axis in parity.SMALL[entry.name]}
    options = {name: draw(st.sampled_from(list(choices))) for name, choices in entry.options.items()}
    return cases.case(entry.name, draw(st.sampled_from(contract.DIRECTIONS)), dims, "float64", **options)


@settings(derandomize=True)
@given(any_case())
def test_any_case_comes_back_from_its_id(case):
    assert cases.parse(case.id) == case


def test_the_scaled_set_has_a_step_of_every_model_and_the_layers_of_two():
    found = cases.case_set("scaled")
    assert {case.op for case in found if case.is_model} == set(models.names())
    assert {case for case in found if not case.is_model} == set(cases.case_set("article", cases.SCALED_LAYERS))
    ids = [case.id for case in cases.case_set("scaled", ["imdb_fasttext"])]
    assert ids == ["imdb_fasttext/train_step/N32-pairs=100000/float32"]
    with pytest.raises(ValueError, match="unknown model 'resnet'; the models are: mnist_mlp, mnist_cnn"):
        cases.case_set("scaled", ["resnet"])


def test_ids_are_the_documented_ones():
    assert "lstm/forward_backward/N128-T40-I57-H128/float32" in {c.id for c in cases.case_set("article")}
    conv = cases.case("conv2d", "forward", parity.SMALL["conv2d"], padding="same", stride=1)
    assert conv.id == "conv2d/forward/N2-H7-W8-C3-R3-S2-O5-padding=same/float32"


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("lstm/forward/N3", "not of the form op/direction/shape/dtype"),
        ("gru/forward/N3/float32", "unknown op 'gru'"),
        ("dense/backward/N3-I5-O7/float32", "unknown direction 'backward'"),
        ("dense/forward/N3-I5/float32", "dense has the axes N, I, O; got N, I"),
        ("dense/forward/N3-I5-O0/float32", "cannot read 'O0'"),
        ("dense/forward/N3-I5-O7/int8", "unknown dtype 'int8'"),
        ("dense/forward/N3-I5-O7-activation=tanh/float32", "activation='tanh' is not one of None, 'relu'"),
    ],
)
def test_a_wrong_id_says_what_is_wrong(id, message):
    with pytest.raises(ValueError, match=message):
        cases.parse(id)


@pytest.mark.parametrize(("name", "models"), [("articles", ()), ("article", ("resnet",))])
def test_unknown_sets_and_models_are_refused_with_the_choices(name, models):
    with pytest.raises(ValueError, match=r"unknown .* are: "):
        cases.case_set(name, models)


def test_arrays_are_the_same_every_time_and_ids_are_in_range():
    case = cases.case("embedding_average", "forward", {"N": 5, "T": 9, "V": 7, "D": 3})
    (ids, table), dy = case.arrays()
    again = case.arrays()
    np.testing.assert_array_equal(ids, again[0][0])
    np.testing.assert_array_equal(table, again[0][1])
    assert ids.dtype == np.int32
    assert (ids[0] == 0).all()
    assert set(np.unique(ids)) <= set(range(7))
    assert len(np.unique(ids)) < ids.size
    assert dy.dtype == table.dtype == np.float32


def test_forward_and_backward_draw_the_same_arguments():
    forward, backward = (cases.case("dense", d, parity.SMALL["dense"]).arrays()[0] for d in contract.DIRECTIONS)
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a, b)
