"""Attribution: known parts come back from made-up samples, and what is missing or impossible is said."""

from __future__ import annotations

import dataclasses
import io
import json

import example_run as example
import numpy as np
import pytest
from rich.console import Console

from shim import cases, contract, models, statistics
from shim.explain import attribution, effects
from shim.measure import runfile
from shim.report import explanation, words

TARGETS = (("torch", "eager"), ("tensorflow", "graph"))
MODEL = models.load("mnist_mlp")
CASES = attribution.wanted(MODEL, 5)
CALL = {"torch": (1e-6, 2e-5), "tensorflow": (1e-4, 1.5e-4)}  # of an empty call, forward and with its gradient
#: what each part takes without the call: forward, backward
NET = {
    "torch": {"dense": (3e-4, 6e-4), "other": (1e-5, 2e-5)},
    "tensorflow": {"dense": (5e-4, 9e-4), "other": (0, 1e-5)},
}
OPTIMIZER = {"torch": 4e-4, "tensorflow": 3e-4}
SEQUENCE = {"torch": 2e-4, "tensorflow": 0.0}
FUSION = {"torch": 0.0, "tensorflow": -1e-4}
RESIDUAL = {"torch": 1e-4, "tensorflow": -2e-4}


def seconds_of(case, target):
    call = dict(zip(contract.DIRECTIONS, CALL[target], strict=True))
    if case.direction == cases.OPTIMIZER_STEP:
        return OPTIMIZER[target] + call["forward"]
    if case.direction in (cases.TRAIN_STEP, cases.GRADIENTS):
        parts = sum(sum(NET[target].get(op.op, NET[target]["other"])) for op in models.record(MODEL))
        together = call["forward_backward"] + parts + FUSION[target] + SEQUENCE[target]
        return together if case.direction == cases.GRADIENTS else together + OPTIMIZER[target] + RESIDUAL[target]
    if case.shape == "N1-...1":
        return call[case.direction]
    forward, backward = NET[target].get(case.op, NET[target]["other"])
    if case.direction == "forward":
        return forward + call["forward"]
    return forward + backward + call["forward_backward"]


TORCH, TENSORFLOW = ((CASES[2].id, target) for target, _ in TARGETS)  # all ops of a batch together
REASON = "the step has the optimizer in it"


def records(spread=1e-6, rounds=5, leave_out=(), **options):
    table = [[seconds_of(case, target) for target, _ in TARGETS] for case in CASES]
    found = example.records(TARGETS, [c.id for c in CASES], table, rounds=rounds, spread=spread, **options)
    return [r for r in found if (r.get("case"), r.get("target")) not in leave_out]


def without(*leave_out):
    """Return records in which some contestants have no time for all ops of a batch together, with the reason."""
    lines = records(leave_out=leave_out)
    failures = [example.failure(target, dict(TARGETS)[target], case) for case, target in leave_out]
    return [*lines[:-1], *(failure | {"reason": REASON} for failure in failures), lines[-1]]


@pytest.fixture
def read(tmp_path):
    return lambda lines: runfile.read(example.write(tmp_path / "run.jsonl", lines))


# ------------------------------------------------------------------------------------------------------------ recording


def in_small(case):
    """Whether a case is a lookup in a table of only as many rows as it looks up."""
    dims = dict(case.dims)
    return case.op.startswith("embedding") and dims["V"] == dims["N"] * dims["T"]


@pytest.mark.parametrize("name", models.names())
def test_the_recorded_layers_are_exactly_those_of_the_article(name):
    variants = [models.load(name), *([models.load(name, ngrams=1)] if name == "imdb_fasttext" else [])]
    wanted = {c for model in variants for c in attribution.wanted(model) if not c.is_model and not in_small(c)}
    layers = {(c.op, c.dims, c.options) for c in wanted if c.op in contract.MEASURED}
    assert layers == {
        (c.op, c.dims, c.options)
        for layer in cases.ARTICLE[name]
        for c in [cases.case(layer[0], "forward", layer[1], **layer[2])]
    }
    assert {(c.op, c.dims, c.options) for c in wanted if c.direction == "forward"} >= layers


@pytest.mark.parametrize(
    ("name", "next_to_the_data"),
    [
        ("mnist_mlp", {"dense"}),
        ("mnist_cnn", {"conv2d"}),
        ("cifar10_cnn", {"conv2d"}),
        ("lstm_text_generation", {"lstm"}),
        ("text_generator", set()),
        ("imdb_bidirectional_lstm", set()),
        ("imdb_fasttext-ngrams=1", set()),
    ],
)
def test_only_the_layer_next_to_the_data_needs_no_gradient_of_its_input(name, next_to_the_data):
    recorded = models.record(models.load(name), size=3)
    assert [c.op for c in recorded if c.direction == contract.WEIGHTS] == sorted(next_to_the_data)
    assert {c.direction for c in recorded} <= {contract.WEIGHTS, "forward_backward"}
    assert all(cases.parse(c.id) == c for c in recorded)


def test_the_step_the_optimizer_and_the_empty_calls_are_timed_too():
    assert [c.direction for c in CASES[:3]] == [cases.TRAIN_STEP, cases.OPTIMIZER_STEP, cases.GRADIENTS]
    assert [c.id for c in CASES[3:5]] == ["relu/forward/N1-...1/float32", "relu/forward_backward/N1-...1/float32"]
    assert all(cases.parse(c.id) == c for c in CASES)


# -------------------------------------------------------------------------------------------------------------- the sum


def test_known_parts_come_back(read):
    found = attribution.explain(read(records()), "torch", "tensorflow")
    for term in found.terms:
        if term.kind in ("forward", "backward"):
            k = 0 if term.kind == "forward" else 1
            first, second = (NET[t].get(term.name.split()[0], NET[t]["other"])[k] * term.count for t, _ in TARGETS)
        else:
            first, second = (
                {
                    "optimizer": OPTIMIZER[t],
                    "call": CALL[t][1],
                    "fusion": FUSION[t],
                    "sequence": SEQUENCE[t],
                    "residual": RESIDUAL[t],
                }[term.kind]
                for t, _ in TARGETS
            )
        assert term.first.value == pytest.approx(first, abs=2e-8), term
        assert term.second.value == pytest.approx(second, abs=2e-8), term
        assert term.gap.value == pytest.approx(second - first, abs=4e-8)
        assert term.gap.low <= term.gap.value <= term.gap.high
    assert (found.ratio.verdict, found.rounds, found.missing) == ("slower", 5, ())
    assert (dict(found.together), dict(found.apart)) == ({"torch": "sequence", "tensorflow": "fusion"}, {})
    assert [t.kind for t in found.terms[-5:]] == ["fusion", "sequence", "optimizer", "call", "residual"]
    assert found.residual_share == pytest.approx(3e-4 / found.step[1].value, rel=0.01)


def test_the_terms_add_up_to_the_gap_whatever_the_noise(read):
    found = attribution.explain(read(records(spread=0.2)), "torch", "tensorflow")
    assert sum(t.gap.value for t in found.terms) == pytest.approx(found.gap.value, rel=1e-9)
    assert sum(t.first.value for t in found.terms) == pytest.approx(found.step[0].value, rel=1e-9)


def test_the_order_of_the_two_turns_every_sign(read):
    run = read(records(spread=0.05))
    one, other = attribution.explain(run, "torch", "tensorflow"), attribution.explain(run, "tensorflow", "torch")
    assert [t.gap.value for t in one.terms] == pytest.approx([-t.gap.value for t in other.terms])
    assert [t.gap.low for t in one.terms] == pytest.approx([-t.gap.high for t in other.terms])
    assert (one.ratio.verdict, other.ratio.verdict) == ("slower", "faster")


def test_names_tell_layers_of_one_op_apart():
    names = attribution._names(list(dict.fromkeys(models.record(MODEL))))
    assert len(set(names.values())) == len(names)
    assert "softmax_cross_entropy" in names.values()
    assert "dense N128 I512 O10" in names.values()


def test_a_table_is_differentiated_as_the_step_does_it(read):
    wanted = attribution.wanted(models.load("imdb_fasttext", ngrams=1), 2)
    lookups = {(in_small(c), c.direction): c.id for c in wanted if c.op == "embedding_average"}
    assert len(lookups) == 4
    times = dict.fromkeys((c.id for c in wanted), 1e-6)
    for key, seconds in (
        ((False, "forward"), 5e-4),
        ((False, "forward_backward"), 9e-3),
        ((True, "forward"), 3e-4),
        ((True, "forward_backward"), 1e-3),
    ):
        times[lookups[key]] = seconds
    table = [[times[c.id]] * 2 for c in wanted]
    lines = list(example.records(TARGETS, [c.id for c in wanted], table, rounds=5, spread=1e-6))
    found = attribution.explain(read(lines), "torch", "tensorflow")  # from before it was recorded
    assert not found.missing
    assert not any("lays out" in sentence for sentence in explanation.sentences(found))
    for line in lines:
        if line["record"] == "build" and line["case"] == wanted[0].id:
            line["by_rows"] = line["target"] == "torch"
    found = attribution.explain(read(lines), "torch", "tensorflow")
    ((forward, backward),) = [[t for t in found.terms if t.name == "embedding_average"]]
    assert [t.value for t in (forward.first, forward.second)] == pytest.approx([5e-4, 5e-4], rel=0.01)
    assert [t.value for t in (backward.first, backward.second)] == pytest.approx([7e-4, 8.5e-3], rel=0.01)
    told = "torch differentiates tables by the rows that a batch looks up, tensorflow lays out all of their gradient."
    assert told in list(explanation.sentences(found))


# ------------------------------------------------------------------------------------------------------ what is missing


def test_a_part_without_times_goes_into_the_residual_and_is_named(read):
    optimizer = CASES[1].id
    run = read(
        [*records(leave_out={(optimizer, "tensorflow")})[:-1], example.failure("tensorflow", "graph", optimizer)]
    )
    found = attribution.explain(run, "torch", "tensorflow")
    assert found.missing == (f"{optimizer} on tensorflow: it broke",)
    assert found.residual.second.value == pytest.approx(RESIDUAL["tensorflow"] + OPTIMIZER["tensorflow"], abs=1e-7)
    assert "optimizer" not in {t.kind for t in found.terms}


def test_fusion_is_told_of_those_that_compile_across_ops_and_the_sequence_of_others(read):
    found = attribution.explain(read(records()), "torch", "tensorflow")
    (fusion,), (sequence,) = ([t for t in found.terms if t.kind == kind] for kind in ("fusion", "sequence"))
    assert [t.value for t in (fusion.first, fusion.second)] == pytest.approx([0, -1e-4], abs=1e-7)
    assert [t.value for t in (sequence.first, sequence.second)] == pytest.approx([2e-4, 0], abs=1e-7)
    assert fusion.gap.low <= fusion.gap.value <= fusion.gap.high < 0
    told = " ".join(explanation.sentences(found))
    assert "Fusion on tensorflow, its ops compiled as one program instead of apart: -100" in told
    assert "Sequence on torch, its ops called one after another instead of each alone: +200" in told
    assert "together" not in told
    assert [cells[1:3].count(words.DASH) for kind, _, cells in explanation._rows(found, explanation._unit(found))] == [
        kind in ("fusion", "sequence") for kind in [*(t.kind for t in found.terms), "whole"]
    ]


def test_what_all_ops_take_together_is_in_the_residual_where_it_was_not_timed(read):
    found = attribution.explain(read(without(TENSORFLOW)), "torch", "tensorflow")
    assert (dict(found.together), dict(found.apart)) == ({"torch": "sequence"}, {"tensorflow": REASON})
    assert f"All ops together were not timed on tensorflow: {REASON}." in list(explanation.sentences(found))
    assert found.residual.second.value == pytest.approx(RESIDUAL["tensorflow"] + FUSION["tensorflow"], abs=1e-7)
    neither = attribution.explain(read(without(TORCH, TENSORFLOW)), "torch", "tensorflow")
    assert not {"fusion", "sequence"} & {t.kind for t in neither.terms}
    assert neither.residual.first.value == pytest.approx(RESIDUAL["torch"] + SEQUENCE["torch"], abs=1e-7)


def test_runs_from_before_the_step_was_timed_without_its_optimizer_have_no_such_term(read):
    lines = [{key: value for key, value in line.items() if key != "fused"} for line in records()]
    found = attribution.explain(read(lines), "torch", "tensorflow")
    assert not {"fusion", "sequence"} & {t.kind for t in found.terms}
    assert set(found.apart.values()) == {"this run is from before that was recorded"}


def test_what_all_ops_take_together_is_not_told_where_an_op_is_missing(read):
    dense = next(c for c in CASES if c.op == "dense" and c.direction == "forward")
    found = attribution.explain(read(records(leave_out={(dense.id, "tensorflow")})), "torch", "tensorflow")
    assert not {"fusion", "sequence"} & {t.kind for t in found.terms}
    assert found.apart["tensorflow"] == "not all of its ops were timed on both"


@pytest.mark.parametrize(("spread", "faster"), [(1e-4, True), (0.5, False)])
def test_nobody_is_called_faster_where_the_gap_may_be_nothing(read, spread, faster):
    found = attribution.explain(read(records(spread=spread)), "torch", "tensorflow")
    assert (found.gap.low > 0) is faster
    (first, *rest) = explanation.sentences(found)
    assert ("faster than" in first) is faster
    assert first.startswith("The samples do not decide between torch and tensorflow") is not faster
    assert any("of the gap is" in sentence for sentence in rest) is faster


def test_a_clear_ratio_does_not_make_a_gap_clear(read):
    found = attribution.explain(read(records()), "torch", "tensorflow")
    unclear = dataclasses.replace(found, gap=statistics.Estimate(found.gap.value, -1e-9, 2e-3))
    assert (found.ratio.verdict, found.verdict, unclear.verdict) == ("slower", "slower", "unknown")
    assert next(explanation.sentences(unclear)).startswith("The samples do not decide")
    assert explanation.as_json(unclear)["ratio"]["verdict"] == "unknown"


def test_what_cannot_be_explained_is_refused(read):
    with pytest.raises(ValueError, match="'jax' is not in this run; its contestants are: torch, tensorflow"):
        attribution.explain(read(records()), "torch", "jax")
    with pytest.raises(ValueError, match=r"no time of mnist_mlp/train_step/N5/float32 on torch; it was not measured"):
        attribution.explain(read(records(leave_out={(CASES[0].id, "torch")})), "torch", "tensorflow")
    with pytest.raises(ValueError, match="an empty call was not timed"):
        attribution.explain(read(records(leave_out={(CASES[4].id, "torch")})), "torch", "tensorflow")
    with pytest.raises(ValueError, match="has 0 training steps, and one is needed"):
        attribution.explain(read(list(example.records())), "torch", "tensorflow")


def test_two_rounds_give_no_interval_and_no_verdict(read):
    found = attribution.explain(read(records(rounds=2)), "torch", "tensorflow")
    assert found.ratio.verdict == "unknown"
    assert np.isnan(found.gap.low)
    assert np.isnan(found.share(found.terms[0]))
    assert "do not decide" in next(explanation.sentences(found))


# ------------------------------------------------------------------------------------------------------------ intervals


def test_an_effect_alone_is_the_median_with_its_interval():
    rng = np.random.default_rng(0)
    samples = np.exp(0.1 * rng.standard_normal((10, 6)) + 0.1 * rng.standard_normal((10, 1))).tolist()
    effect, wanted = effects.median(samples, range(10)).estimate(), statistics.median_time(samples)
    assert (effect.value, effect.low, effect.high) == pytest.approx((wanted.value, wanted.low, wanted.high), rel=0.02)


def test_what_rounds_have_in_common_cancels_in_a_difference():
    rng = np.random.default_rng(0)
    common = np.exp(0.3 * rng.standard_normal((10, 1)))
    a, b = (common + 1e-3 * rng.standard_normal((10, 6)) + k for k in (0, 1))
    one, other = (effects.median(m.tolist(), range(10)) for m in (a, b))
    gap = (other - one).estimate()
    assert gap.value == pytest.approx(1, abs=0.01)
    assert gap.high - gap.low < 0.02 < one.estimate().high - one.estimate().low


def test_what_slows_a_sweep_cancels_in_the_parts_of_a_step(read):
    """Sweeps in which everything takes up to twice as long, other ones on each backend."""
    lines, rng = records(rounds=5), np.random.default_rng(0)
    slower = {}
    for line in lines:
        if line["record"] == "block":
            factor = slower.setdefault((line["target"], line["round"], line["sweep"]), 1 + rng.random())
            line["seconds"] = [factor * seconds for seconds in line["seconds"]]
    found = attribution.explain(read(lines), "torch", "tensorflow")
    for term in found.terms:
        for (target, _), step, part in zip(TARGETS, found.step, (term.first, term.second), strict=True):
            if term.kind in ("residual", "optimizer"):
                seconds = RESIDUAL if term.kind == "residual" else OPTIMIZER
                wanted = seconds[target] / seconds_of(CASES[0], target)
                assert part.value / step.value == pytest.approx(wanted, rel=1e-3), (target, term.name)
    assert sum(t.gap.value for t in found.terms) == pytest.approx(found.gap.value, rel=1e-9)


@pytest.mark.parametrize("rounds", [3, 10])
def test_intervals_of_sums_cover_the_truth(rounds):
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(300):
        parts = [
            1 + 0.05 * rng.standard_normal((rounds, 1)) + 0.02 * rng.standard_normal((rounds, 4)) for _ in range(3)
        ]
        one, other, third = (effects.median(p.tolist(), range(rounds)) for p in parts)
        found = (one * 2 - other + third).estimate()
        hits += found.low <= 2 <= found.high
    assert hits / 300 > 0.92


# ----------------------------------------------------------------------------------------------------------- the report


def test_the_words_name_the_largest_parts_and_the_residual(read):
    text = list(explanation.sentences(attribution.explain(read(records()), "torch", "tensorflow")))
    assert text[0].startswith("torch is 1.25x ")
    assert "faster than tensorflow on mnist_mlp: 3." in text[0]
    assert text[1] == (
        "103 % of the gap is the backward passes of 3 dense layers, 69 % the forward passes of 3 dense layers "
        "and 15 % the call itself."
    )
    assert any("Against the gap, torch takes longer in the optimizer (rmsprop)" in sentence for sentence in text)
    assert text[-1].endswith("% of the slower step.")


def test_the_page_and_the_json_hold_every_part(read):
    run = read(records())
    found = attribution.explain(run, "torch", "tensorflow")
    html = explanation.render(run, found)
    console = Console(file=io.StringIO(), width=100)
    explanation.print_explanation(found, console)
    plain = json.loads(json.dumps(explanation.as_json(found), allow_nan=False))
    assert len(plain["terms"]) == len(found.terms)
    for text in (html, console.file.getvalue()):
        assert "optimizer, rmsprop" in text
        assert "the whole step" in text
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_hostile_names_are_escaped_on_the_page(read):
    lines = json.loads(json.dumps(records()).replace('"tensorflow"', json.dumps(example.HOSTILE)))
    run = read(lines)
    html = explanation.render(run, attribution.explain(run, "torch", statistics.labels(run)[example.HOSTILE, "graph"]))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
