"""The win map on made-up samples with known winners: verdicts, false discoveries, crossovers, where to look again."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import example_run as example
import fake_backends
import numpy as np
import pytest
from rich.console import Console
from scipy import special

from shim import cases
from shim.explain import prediction, published, winmap
from shim.measure import bench, runfile
from shim.report import winmap as report

TWO = (("numpy", "eager"), ("torch", "eager"))
GRID = winmap.Grid("dense", (("N", (1, 3)), ("I", (5, 7, 11)), ("O", (2, 4, 8, 16))))
CELLS = GRID.cells("forward")


@pytest.fixture
def made(tmp_path):
    """Return the map of a run in which a cell takes as long as told, ``seconds(point) -> one number a target``."""

    def make(seconds, targets=TWO, spread=0.01, rounds=5, seed=0, extra=(), grid=GRID, sweeps=3):
        points = grid.cells("forward")
        table = [seconds(point) for point in points]
        lines = example.records(targets, [c.id for c in points.values()], table, rounds, sweeps, spread, seed=seed)
        run = runfile.read(example.write(tmp_path / "run.jsonl", [*list(lines), *extra]))
        return winmap.read(run, grid)

    return make


def small_numpy_wins(point):
    """numpy is faster up to O 4, and twice as slow beyond."""
    return (1e-4, 2e-4) if point[2] <= 4 else (2e-4, 1e-4)


@pytest.mark.parametrize("op", winmap.GRIDS)
def test_every_map_has_sixty_cells_of_bounded_work(op):
    cells = winmap.GRIDS[op].cells()
    assert len(cells) >= 60
    assert len(set(cells.values())) == len(cells)
    assert all(cases.parse(case.id) == case for case in cells.values())
    assert max(case.work().flops for case in cells.values()) < 3e9
    assert max(case.work().bytes for case in cells.values()) < 3e8


def test_an_axis_may_set_several_of_the_ops():
    dims = dict(winmap.GRIDS["lstm"].cells()[8, 4, 16].dims)
    assert dims == {"N": 4, "T": 8, "I": 16, "H": 16}


def test_each_cell_has_its_winner_and_each_change_is_found(made):
    found = made(small_numpy_wins)
    assert {point: cell.fastest for point, cell in found.cells.items()} == {
        point: "numpy" if point[2] <= 4 else "torch" for point in CELLS
    }
    assert {cell.kind for cell in found.cells.values()} == {"winner"}
    assert all(cell.ratio == pytest.approx(2, rel=0.03) for cell in found.cells.values())
    assert [(c.axis, c.low, c.high, c.below, c.above) for c in found.crossovers] == [("O", 4, 8, "numpy", "torch")] * 6


def test_a_tie_may_lie_between_two_winners_but_nothing_undecided(made):
    def tie_at_four(point):
        return (1e-4, 1.001e-4) if point[2] == 4 else small_numpy_wins(point)

    found = made(tie_at_four, spread=0.002)
    assert {cell.kind for point, cell in found.cells.items() if point[2] == 4} == {"tie"}
    assert {(c.low, c.high) for c in found.crossovers} == {(2, 8)}
    unknown = dict(found.cells)
    unknown |= {
        p: winmap.Cell(p, c.case, "unknown", c.leaders, 1.0, 1.0, c.seconds, 5) for p, c in unknown.items() if p[2] == 4
    }
    assert list(winmap._crossovers(GRID, unknown)) == []


def test_noise_makes_unknowns_and_no_winners(made):
    found = made(lambda point: (1e-4, 1.02e-4), spread=0.3)
    assert {cell.kind for cell in found.cells.values()} == {"unknown"}
    assert all(set(cell.leaders) == {"numpy", "torch"} for cell in found.cells.values())


@pytest.mark.parametrize("rounds", [1, 2])
def test_few_rounds_decide_nothing(made, rounds):
    found = made(small_numpy_wins, spread=1e-4, rounds=rounds)
    assert {cell.kind for cell in found.cells.values()} == {"unknown"}


@pytest.mark.parametrize("contestants", [2, 4])
def test_false_winners_are_rare_on_maps_of_one_backend_against_itself(made, contestants):
    targets = (*TWO, ("jax", "jit"), ("cntk", "graph"))[:contestants]
    maps, wins = 8, 0
    for seed in range(maps):
        found = made(lambda point: (1e-4,) * contestants, targets=targets, spread=0.05, rounds=4, seed=seed, sweeps=2)
        wins += any(cell.kind == "winner" for cell in found.cells.values())
    assert wins <= 1  # expected of one map in 40


def test_the_level_holds_for_the_map_and_not_for_each_cell():
    """Of p-values spread evenly over 0 to 1, some are below 5 %, but none after the adjustment."""

    def cells(divisor):
        p = (np.arange(100) + 1) / 100 / divisor
        means = -special.stdtrit(4 + winmap.MOST_FREEDOM, p / 2) * 0.1 / 5**0.5  # of gaps with these p-values
        return {
            (k,): winmap._Judged((k,), str(k), {"a": 1.0, "b": 2.0}, {"b": winmap.Gap(mean, 0.01, 5)}, 5)
            for k, mean in enumerate(means)
        }

    prior = winmap.Prior(winmap.MOST_FREEDOM, 0.01)
    assert sum(cell.gaps["b"].test(prior)[0] < 0.045 for cell in cells(1).values()) == 4
    assert {cell.kind for cell in winmap._decide(cells(1)).values()} == {"unknown"}
    assert {cell.kind for cell in winmap._decide(cells(1000)).values()} == {"winner"}


def test_p_values_are_evenly_spread_without_a_difference():
    rng = np.random.default_rng(0)

    def draw():
        return np.exp(0.05 * rng.standard_normal((5, 1)) + 0.02 * rng.standard_normal((5, 3))).tolist()

    found = [winmap.Gap.between(draw(), draw()).test(winmap.Prior())[0] for _ in range(1000)]
    assert 0.03 < np.mean(np.array(found) < 0.05) < 0.07
    assert 0.45 < np.mean(found) < 0.55


@pytest.mark.parametrize("freedom", [3.0, 8.0])
def test_what_all_gaps_have_in_common_is_found_and_keeps_p_values_even(freedom):
    """Variances around 0.01 as a prior of so many degrees of freedom draws them, each seen in three rounds."""
    rng = np.random.default_rng(1)
    variances = 0.01 * freedom / rng.chisquare(freedom, 4000)
    logs = rng.standard_normal((4000, 3)) * np.sqrt(variances)[:, None]
    gaps = [winmap.Gap(float(x.mean()), float(x.var(ddof=1)), 3) for x in logs]
    prior = winmap.Prior.of(gaps)
    assert prior.freedom == pytest.approx(freedom, rel=0.3)
    assert prior.variance == pytest.approx(0.01, rel=0.1)
    p_values = np.array([gap.test(prior)[0] for gap in gaps])
    assert 0.04 < np.mean(p_values < 0.05) < 0.06
    assert np.mean(p_values < 0.005) < 0.0075
    alone = np.mean([gap.test(winmap.Prior())[0] < 0.05 for gap in gaps])
    assert 0.04 < alone < 0.06


def test_three_rounds_decide_where_a_map_tells_how_much_ratios_vary():
    """A gap of 30 % with a spread of 10 %: too few by themselves, and enough beside 23 like it."""

    def cells(count):
        return {(k,): winmap._Judged((k,), str(k), {"a": 1.0, "b": 1.3}, {"b": gap}, 3) for k in range(count)}

    gap = winmap.Gap(np.log(1.3), 0.01, 3)
    assert {cell.kind for cell in winmap._decide(cells(5)).values()} == {"unknown"}
    assert {cell.kind for cell in winmap._decide(cells(24)).values()} == {"winner"}


def test_equal_variances_are_one_variance():
    gaps = [winmap.Gap(0.1, 0.01, 4)] * 12
    assert winmap.Prior.of(gaps).freedom == winmap.MOST_FREEDOM
    assert winmap.Prior.of(gaps[:9]) == winmap.Prior.of([])
    assert winmap.Gap(float("nan"), float("nan"), 2).test(winmap.Prior.of(gaps))[0] == 1.0


def test_a_contestant_that_failed_is_left_out_of_its_cells_and_named(made):
    three = (*TWO, ("jax", "jit"))
    first = next(iter(CELLS.values())).id
    found = made(lambda point: (2e-4, 3e-4, 1e-4), targets=three, extra=[example.failure("jax", "jit", first)])
    assert found.failures == (f"jax, {first}: it broke",)
    lonely = winmap._Judged.of((1,), first, {"numpy": [[1e-4]] * 5})
    assert winmap._cell(lonely, {}, float("nan")).kind == "unknown"


def test_more_samples_go_where_the_leader_changes_or_nothing_is_decided(made):
    found = made(small_numpy_wins)
    doubtful = {cases.parse(id) for id in winmap.doubtful(found)}
    assert {dict(c.dims)["O"] for c in doubtful} == {4, 8}
    noisy = made(lambda point: (1e-4, 1.02e-4) if point[1] == 7 else (1e-4, 9e-4), spread=0.2)
    undecided = {cell.case for cell in noisy.cells.values() if cell.kind == "unknown"}
    assert undecided == {case.id for point, case in CELLS.items() if point[1] == 7}
    assert undecided <= set(winmap.doubtful(noisy)) < {case.id for case in CELLS.values()}
    assert winmap.doubtful(made(lambda point: (1e-4, 2e-4))) == []


def _run(rounds, found_cells):
    return SimpleNamespace(
        header={"config": {"cases": found_cells}}, rounds=[{"record": "round_end", "round": k} for k in range(rounds)]
    )


def test_the_whole_grid_comes_first_and_then_what_time_allows(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(winmap, "monotonic", lambda: now[0])
    monkeypatch.setattr(winmap, "read", lambda run, grid: None)
    monkeypatch.setattr(winmap, "doubtful", lambda found: ["a"])
    chooser, whole = winmap.Chooser(GRID, 50.0), ["a", "b", "c", "d"]
    chosen = []
    for rounds in range(1, 12):
        now[0] += 10.0 if rounds <= 3 else 6.0
        chosen.append(chooser(_run(rounds, whole)))
    assert chosen[:5] == [whole, whole, ["a"], ["a"], ["a"]]  # at 42 seconds one of 6 ends in time, at 48 none
    assert chosen[5] == []


def test_an_op_without_a_map_and_a_run_that_is_none_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="there is no map of 'relu'; there are maps of: dense, conv2d, lstm, embedding"
    ):
        winmap.grid_of("relu")
    run = runfile.read(example.write(tmp_path / "run.jsonl", list(example.records())))
    with pytest.raises(ValueError, match="is no map: these are not the cases of a map of dense"):
        winmap.read(run)


# ---------------------------------------------------------------------------------------------------------- the report


def test_the_map_is_shown_in_words_and_colours(made, tmp_path):
    found = made(lambda p: (1e-4, 1.001e-4) if p[2] == 4 else small_numpy_wins(p), spread=0.002)
    run = runfile.read(tmp_path / "run.jsonl")
    console = Console(file=io.StringIO(), width=120)
    report.print_map(found, console)
    html = report.render(run, found)
    for text in (console.file.getvalue(), html):
        assert "Of 24 shapes of dense, torch wins in 12, numpy wins 6 and 6 are ties." in text
        assert "at N 1, I 5: numpy up to O 2, torch from O 8" in text
        assert "= numpy, torch" in text or "= torch, numpy" in text
    assert html.count('<td class="winner"') == 18
    assert "#D55E00" in html
    assert "<script" not in html
    plain = json.loads(json.dumps(report.as_json(found), allow_nan=False))
    assert len(plain["cells"]) == 24
    assert plain["crossovers"][0]["below"] == "numpy"


def test_of_many_that_may_win_two_are_named():
    cell = winmap.Cell((1,), "case", "unknown", ("a", "b", "c", "d"), 1.0, 1.0, {}, 3)
    assert report.text_of(cell) == "? a, b +2"
    assert report.text_of(winmap.Cell((1,), "case", "unknown", (), 1.0, 1.0, {}, 0)) == "not measured"


def test_hostile_names_are_escaped_on_the_map(made, tmp_path):
    found = made(lambda point: (1e-4, 2e-4), targets=((example.HOSTILE, "eager"), ("torch", "eager")))
    html = report.render(runfile.read(tmp_path / "run.jsonl"), found)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


# ---------------------------------------------------------------------------------------------------- published shapes


@pytest.mark.parametrize("listed", published.LISTS.values(), ids=lambda listed: f"{listed.name}-{listed.op}")
def test_published_shapes_fit_a_cpu_and_each_figure_has_its_source(listed):
    cells = listed.cells()
    assert len(set(cells.values())) == len(cells) >= (6 if listed.name == "ptb" else 8)
    assert all(cases.parse(case.id) == case for case in cells.values())
    assert max(case.work().flops for case in cells.values()) < 9e10
    assert max(case.work().bytes for case in cells.values()) < 3e8
    figures = [figure for shape in listed.shapes for figure in shape.figures]
    assert len(figures) >= 3
    assert all(1e-5 < f.seconds < 1 and f.device and f.library and f.covers for f in figures)
    assert all(thing.source.startswith("https://") for thing in (listed, *figures))
    assert winmap.grid_of_cases([case.id for case in cells.values()]) is listed


def test_shapes_are_those_of_deepbench():
    """One row of each of its lists: m, n, k; w, h, c, n, k, s, r; hidden, batch, steps."""
    dense, conv, lstm = (published.LISTS["deepbench", op].cells() for op in ("dense", "conv2d", "lstm"))
    assert dense[9,].dims == (("N", 16), ("I", 1024), ("O", 3072))
    assert dict(conv[13,].dims) == {"N": 4, "H": 161, "W": 700, "C": 1, "R": 5, "S": 20, "O": 32}
    assert dict(conv[13,].options) == {"stride": 2}
    assert dict(lstm[8,].dims) == {"N": 64, "T": 150, "I": 256, "H": 256}


def test_published_times_stand_beside_ours_and_decide_nothing(tmp_path):
    listed = published.LISTS["deepbench", "lstm"]
    cells = listed.cells("forward")
    seconds = [(2e-3, 1e-3)] * len(cells)
    run = runfile.read(
        example.write(tmp_path / "run.jsonl", list(example.records(TWO, [c.id for c in cells.values()], seconds, 5)))
    )
    found = winmap.read(run)
    assert (found.grid, found.crossovers) == (listed, ())
    assert {cell.fastest for cell in found.cells.values()} == {"torch"}
    console = Console(file=io.StringIO(), width=200)
    report.print_map(found, console)
    html = report.render(run, found)
    for text in (console.file.getvalue(), html):
        assert "Of 9 shapes of DeepBench, LSTMs, torch wins in 9." in text
        assert "N16 T25 I512 H512" in text
        assert "figures are of other machines" in text
    assert "1.56 ms on Tesla V100, cuDNN 7.6.2: forward, without the product of the inputs" in console.file.getvalue()
    assert '<td class="n">1.56 ms</td><td>Tesla V100</td><td>cuDNN 7.6.2</td>' in html
    assert "gradients, without" not in html  # that is the other direction
    assert "Nothing was published" not in html
    plain = json.loads(json.dumps(report.as_json(found), allow_nan=False))
    assert plain["shapes"] == "deepbench"
    assert [len(cell["published"]) for cell in plain["cells"]] == [1, 0, 1, 1, 0, 1, 1, 0, 1]
    assert plain["cells"][0]["published"][0]["seconds"] == 1.095e-3


# -------------------------------------------------------------------------------------------------------- measuring it


def test_a_run_goes_on_with_the_cases_chosen_and_ends_without_any(tmp_path, monkeypatch):
    fake_backends.install(tmp_path, monkeypatch)
    chosen = [cases.case("dense", "forward", {"N": 2, "I": 3, "O": o}) for o in (4, 5)]
    both = [case.id for case in chosen]
    answers, seen = iter([both, both[1:], both[:1], []]), []

    def choose(run):
        seen.append(sum(record["record"] == "round_end" for record in run.rounds))
        return next(answers)

    brief = {"alone": 0, "rounds": 9, "sweeps": 1, "block_seconds": 0.002}
    run = bench.run(tmp_path / "run.jsonl", targets=["good", "slow"], cases=chosen, choose=choose, **brief)
    assert seen == [1, 2, 3, 4]
    assert run.complete
    played = [{block["case"] for block in run.blocks if block["round"] == k} for k in range(5)]
    assert played == [set(both), set(both), {both[1]}, {both[0]}, set()]
    assert {(c["round"], c["target"]) for c in run.ceilings} == {(k, name) for k in (0, 1) for name in ("good", "slow")}
    assert run.failures == []


# -------------------------------------------------------------------------------------------------------- predictions

WIDE = winmap.Grid("lstm", (("T", (2, 5, 11)), ("N", (1, 3, 7)), ("I", (4, 9, 31)), ("H", (5, 16))))
CONSTANTS = {
    "numpy": (1e-5, 3e-6, 2e-11, 1e-11, 5e-10, 1e-9, 3e-10),
    "torch": (3e-5, 0.0, 1e-11, 0.0, 1e-10, 2e-10, 0.0),
}


def by_the_model(point):
    case = WIDE.cells("forward")[point]
    return [float(np.dot(constants, prediction.amounts(case))) for constants in CONSTANTS.values()]


def test_a_model_of_the_work_finds_its_constants_and_predicts_what_was_left_out(made):
    for spread, most in ((0.0, 1e-6), (0.05, 0.05)):
        models = prediction.predict(made(by_the_model, spread=spread, grid=WIDE))
        assert [model.contestant for model in models] == list(CONSTANTS)
        assert all(model.error <= most for model in models)
        assert {len(model.seconds) for model in models} == {len(WIDE.cells())}
    exact = prediction.predict(made(by_the_model, spread=0.0, grid=WIDE))
    for model, constants in zip(exact, CONSTANTS.values(), strict=True):
        assert tuple(model.constants.values()) == pytest.approx(constants, rel=1e-3, abs=1e-15)


def test_a_few_shapes_with_another_algorithm_do_not_move_the_model():
    amount = np.array([prediction.amounts(case) for case in WIDE.cells("forward").values()])
    seconds = amount @ CONSTANTS["numpy"]
    seconds[::9] *= 5
    np.testing.assert_allclose(prediction.fit(amount, seconds), CONSTANTS["numpy"], rtol=1e-6)


def test_channels_count_as_whole_vectors_and_nothing_else_does():
    conv = {"N": 3, "H": 7, "W": 5, "C": 3, "R": 3, "S": 3, "O": 17}
    for op, dims, factor in (
        ("conv2d", conv, 16 / 3 * 32 / 17),
        ("embedding_average", {"N": 3, "V": 7, "T": 5, "D": 3}, 1),
    ):
        found = dict(zip(prediction.TERMS, prediction.amounts(cases.case(op, "forward", dims)), strict=True))
        assert found["vector_operations"] == pytest.approx(factor * found["operations"], rel=0.02)  # a bias, not filled


def test_times_that_have_nothing_to_do_with_the_work_are_predicted_badly(made):
    rng = np.random.default_rng(3)
    (model, _) = prediction.predict(made(lambda point: 1e-4 * 10 ** rng.uniform(0, 3, 2), grid=WIDE))
    assert model.error > 0.3


def test_a_map_tells_how_well_its_times_are_predicted_if_it_has_enough_shapes(made):
    told = " ".join(report.sentences(made(by_the_model, grid=WIDE)))
    assert "predicts the times of the other half with these median errors: numpy" in told
    few = winmap.Grid("dense", (("N", (1,)), ("I", (5, 7, 11)), ("O", (2, 4, 8, 16))))
    found = made(lambda point: (1e-4, 2e-4), grid=few)
    assert prediction.predict(found) == []
    assert "predicts" not in " ".join(report.sentences(found))
