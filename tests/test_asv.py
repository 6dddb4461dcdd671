"""The asv suite and its plugins, piece by piece; test_asv_site.py runs asv itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from asv import config, util
from asv_runner.benchmarks import benchmark_types

from benchmarks import bench_import, bench_models, bench_ops, bench_overhead, common
from benchmarks._optime import OpTimeBenchmark
from shim import backends, cases, environments, listing, models, parity
from shim.measure import clock
from tools import asv_backends

ROOT = Path(__file__).parents[1]
SUITE = [
    *(v for v in vars(bench_ops).values() if isinstance(v, type) and v.__module__ == bench_ops.__name__),
    bench_models.TrainStep,
    bench_models.Predict,
    bench_models.Memory,
    bench_models.Accuracy,
    bench_overhead.Overhead,
    bench_overhead.Harness,
]


# ------------------------------------------------------------------------------------------------------- the suite


@pytest.mark.parametrize("benchmark", SUITE)
def test_cases_are_written_as_shim_writes_them_and_once_each(benchmark):
    _, ids = benchmark.params
    assert [cases.parse(id).id for id in ids] == ids
    assert len(set(ids)) == len(ids)


def test_every_op_that_is_measured_has_a_class():
    assert {ids[0].split("/")[0] for ids in (b.params[1] for b in SUITE[:6])} == {op for op, _, _ in common.SHAPES}
    assert len(SUITE) == 6 + 6


def test_the_layers_of_the_two_models_are_measured_unless_the_profile_is_fast():
    layers = {case.id for case in cases.case_set("article", ["mnist_mlp", "imdb_bidirectional_lstm"])}
    measured = {id for b in SUITE[:6] for id in b.params[1] if id not in b.left_out}
    assert common.PROFILE == "regular"
    assert layers <= measured


@pytest.mark.parametrize("benchmark", [bench_models.TrainStep, bench_models.Predict, bench_models.Accuracy])
def test_all_models_are_measured_unless_the_profile_is_fast(benchmark):
    assert {id.split("/")[0] for id in benchmark.params[1] if id not in benchmark.left_out} == set(models.names())
    (largest,) = benchmark.left_out
    assert largest.startswith("imdb_fasttext/")
    few = common.models_outside_profile("train_step", "fast")
    assert len(bench_models.TrainStep.params[1]) - len(few) == 3


def _prepared(kind, case_id):
    found = kind()
    found.setup("numpy", case_id)
    return found


def test_accuracy_is_that_of_a_trained_model_and_the_same_again(monkeypatch, tmp_path):
    monkeypatch.setenv("SHIM_HOME", str(tmp_path))
    monkeypatch.setenv("SHIM_DATA", str(tmp_path))
    arguments = "numpy", "mnist_mlp/train_step/N128/float32"
    first, second = (_prepared(bench_models.Accuracy, arguments[1]).track_accuracy(*arguments) for _ in range(2))
    assert 0.5 < first == second < 1


def test_the_process_whose_memory_is_measured_compares_nothing(monkeypatch):
    monkeypatch.setattr(parity, "verify", None)
    arguments = "numpy", "mnist_mlp/train_step/N128/float32"
    _prepared(bench_models.Memory, arguments[1]).peakmem_training(*arguments)
    with pytest.raises(NotImplementedError, match="not in the profile regular"):
        _prepared(bench_models.Memory, "imdb_fasttext/train_step/N32/float32")


@pytest.mark.parametrize("target", [*common.TARGETS, *bench_overhead.Harness.params[0]])
def test_targets_are_targets(target):
    environments.parse(target.partition(":")[0])
    assert bench_ops.Dense.params[0] == bench_import.Load.params[0] == common.TARGETS


def test_no_backend_is_forgotten():
    """Keras is for comparisons: its history would be that of five more engines. And asv runs on CPUs."""
    measured = {environments.parse(target.partition(":")[0])[0] for target in common.TARGETS}
    assert measured == {
        name
        for name in backends.names()
        if "cpu" in listing.devices(name) and name != "null" and not name.startswith("keras-")
    }


def test_profiles_grow():
    left_out = {p: {id for op, _, _ in common.SHAPES for id in common.outside_profile(op, p)} for p in common.PROFILES}
    assert left_out["fast"] > left_out["regular"] > left_out["thorough"] == set()
    assert all(profile["repeat"][0] >= 8 for profile in common.PROFILES.values())


def test_an_unknown_profile_is_refused(monkeypatch):
    monkeypatch.setenv("SHIM_BENCH_PROFILE", "quick")
    with pytest.raises(ValueError, match="'quick' is unknown; the profiles are: fast, regular, thorough"):
        common.chosen_profile()


def test_what_is_not_there_is_skipped(monkeypatch):
    with pytest.raises(NotImplementedError, match="unknown backend 'theano'"):
        common.load("theano")
    with pytest.raises(NotImplementedError, match="unknown op 'gru'"):
        common.parse("gru/forward/N1/float32")
    left_out = common.Timed()
    left_out.left_out = ["dense/forward/N2-I3-O4/float32"]
    with pytest.raises(NotImplementedError, match="not in the profile"):
        left_out.setup("null", "dense/forward/N2-I3-O4/float32")


def test_a_wrong_backend_is_not_timed(tmp_path, monkeypatch):
    from shim.parity import ParityError

    monkeypatch.setenv("SHIM_HOME", str(tmp_path))
    with pytest.raises(ParityError):  # the null backend computes nothing
        common.Timed().setup("null", "dense/forward/N2-I3-O4/float32")


class Counted(common.Timed):
    """A benchmark whose case takes no time, and which counts."""

    params = common.grid(["case"])
    sets, calls, synchronisations = 0, 0, 0

    def setup(self, target, case_id):
        Counted.sets += 1
        self.prepared = clock.Prepared(self.once, lambda: self.once, self.synchronize, 0.0, 0.0, None)

    def once(self):
        Counted.calls += 1

    def synchronize(self, outputs):
        Counted.synchronisations += 1

    def timeop_counted(self, target, case_id):
        self.call()


def run(**attributes):
    instance = Counted()
    for name, value in attributes.items():
        setattr(instance, name, value)
    benchmark = OpTimeBenchmark("counted", instance.timeop_counted, [instance.timeop_counted, instance])
    benchmark.set_param_idx(0)
    Counted.calls = Counted.synchronisations = Counted.sets = 0
    benchmark.do_setup()
    return benchmark.do_run()


def test_a_quick_run_is_one_call():
    result = run(number=1, repeat=1, warmup_time=0, rounds=1)
    assert (len(result["samples"]), result["number"]) == (1, 1)
    assert (Counted.calls, Counted.synchronisations, Counted.sets) == (1, 1, 1)


def test_samples_synchronise_once_and_never_set_up_again():
    result = run(number=7, repeat=5, warmup_time=0)
    assert (len(result["samples"]), result["number"]) == (5, 7)
    assert (Counted.calls, Counted.synchronisations, Counted.sets) == (35, 5, 1)


def test_the_number_of_calls_is_calibrated_and_the_repeats_are_bounded():
    result = run(number=0, repeat=(4, 6, 0.0), sample_time=0.001, warmup_time=0)
    assert len(result["samples"]) == 4
    assert result["number"] > 10
    assert len(run(number=1, repeat=(2, 6, 60.0), warmup_time=0)["samples"]) == 6


def test_the_kind_reports_seconds_and_what_its_profile_leaves_out():
    benchmark = OpTimeBenchmark("dense", bench_ops.Dense().timeop_dense, [bench_ops.Dense()])
    assert (benchmark.type, benchmark.unit, benchmark.version) == ("time", "seconds", "2")
    assert benchmark.left_out == bench_ops.Dense.left_out != []
    assert OpTimeBenchmark.name_regex.match("timeop_x")
    assert not OpTimeBenchmark.name_regex.match("time_x")


# ----------------------------------------------------------------------------------------------- what the shim costs


@pytest.mark.parametrize(
    ("benchmark", "method", "kind"),
    [(bench_models.Memory, "peakmem_training", "peakmemory"), (bench_models.Accuracy, "track_accuracy", "track")],
)
def test_asvs_own_kinds_say_too_what_the_profile_leaves_out(benchmark, method, kind):
    (found,) = {b for b in benchmark_types if b.name_regex.match(method) and b.__module__ == "benchmarks._optime"}
    made = found(f"bench_models.{method}", getattr(benchmark, method), [benchmark])
    assert (made.type, made.left_out) == (kind, benchmark.left_out)
    assert next(b for b in benchmark_types if b.name_regex.match(method)) is found


def test_the_interval_of_a_median_is_one_of_order_statistics():
    value, low, high = bench_overhead.median_interval([float(k) for k in range(1, 102)])
    assert (value, low, high) == (51.0, 41.0, 62.0)
    assert bench_overhead.median_interval([2.0]) == (2.0, 2.0, 2.0)


def test_pairs_hold_program_then_hand_written_call(monkeypatch):
    null = backends.load("null")
    blocks, now = [], [0.0]

    def block(call, synchronize, loops):
        now.append(now[-1] + 0.1)
        blocks.append(call)
        return (3.0 if call is by_hand else 2.0), 0.0, 0.0

    def by_hand():
        pass

    monkeypatch.setattr(clock, "warm_up", lambda call, synchronize: None)
    monkeypatch.setattr(clock, "calibrate", lambda call, synchronize, seconds: 1)
    monkeypatch.setattr(clock, "block", block)
    monkeypatch.setattr(clock, "perf_counter", lambda: now[-1])
    case = cases.parse("dense/forward/N2-I3-O4/float32")
    assert bench_overhead.compare(null, case, "null", by_hand, pairs=9) == [(2.0, 3.0)] * 9
    assert all(a is b for a, b in zip(blocks[::2], blocks[1::2], strict=True))  # untimed, then timed
    orders = {blocks[k] is by_hand for k in range(0, 36, 4)}
    assert orders == {True, False}


# -------------------------------------------------------------------------------------- the environments of the plugin


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """The plugin's environment with one case, for backends numpy and torch, and what it starts in ``started``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHIM_HOME", str(tmp_path / "home"))
    conf = config.Config.from_json(json.loads((ROOT / "asv.conf.json").read_text(encoding="utf-8")))
    found = asv_backends.Backends(conf, conf.pythons[0], {}, {})
    found.started = []
    params = [["'numpy'", "'torch'"], ["'dense/forward/N2-I3-O4/float32'", "'dense/forward/N5-I3-O4/float32'"]]
    left_out = ["dense/forward/N5-I3-O4/float32"]
    timed = {"name": "b.f", "param_names": ["backend", "case"], "params": params, "left_out": left_out}
    benchmarks = {"b.f": timed, "b.g": {"name": "b.g", "param_names": [], "params": []}}
    monkeypatch.setattr(asv_backends.Backends, "benchmarks", benchmarks)
    monkeypatch.setattr(environments, "installed", lambda: ["numpy"])
    monkeypatch.setattr(environments, "python", interpreter)
    monkeypatch.setattr(util, "check_output", lambda command, **kwargs: found.started.append((command, kwargs)))
    return found


def interpreter(target):
    if target != "numpy":
        raise environments.EnvironmentMissing(f"no environment for {target}; make it with: shim env {target}")
    return Path("/environments/numpy/bin/python")


def measure(environment, name, tmp_path):
    result = tmp_path / "result.json"
    environment.run(["script", "run", "folder", name, "{}", "None", str(result)], env={"KEPT": "1"})
    return result.read_text() if result.exists() else None


def test_a_benchmark_runs_in_the_environment_of_its_backend_with_the_commits_shim(environment, tmp_path):
    assert measure(environment, "b.f-0", tmp_path) is None
    (command, kwargs), *others = environment.started
    assert others == []
    assert command[:2] == ["/environments/numpy/bin/python", "script"]
    variables = kwargs["env"]
    assert variables["PYTHONPATH"] == variables["ASV_PYTHONPATH"] == f"{environment._path}/path"
    assert variables["OMP_NUM_THREADS"].isdigit()
    assert (variables["KEPT"], variables["SHIM_HOME"]) == ("1", str(tmp_path / "home"))
    assert json.loads((tmp_path / ".asv/results/targets.jsonl").read_text())["target"] == "numpy"


def test_a_missing_backend_is_n_a_without_a_process_and_says_so_once(environment, tmp_path, caplog):
    assert measure(environment, "b.f-2", tmp_path) == "NaN"
    assert measure(environment, "b.f-2", tmp_path) == "NaN"
    assert environment.started == []
    notices = [message for message in caplog.messages if "torch" in message]
    assert notices == ["torch is n/a: no environment for torch; make it with: shim env torch"]


def test_a_case_outside_the_profile_is_n_a_without_a_process(environment, tmp_path):
    assert measure(environment, "b.f-1", tmp_path) == "NaN"
    assert environment.started == []


def test_a_benchmark_without_backend_runs_in_any_environment(environment, tmp_path, monkeypatch):
    measure(environment, "b.g", tmp_path)
    assert environment.started[0][0][0] == "/environments/numpy/bin/python"
    monkeypatch.setattr(environments, "installed", list)
    with pytest.raises(util.UserError, match="shim env numpy"):
        measure(environment, "b.g", tmp_path)


def test_the_null_backend_needs_no_environment_of_its_own(environment):
    assert environment._interpreter("null") == Path("/environments/numpy/bin/python")


def test_the_fork_server_is_refused(environment):
    with pytest.raises(util.UserError, match="spawn"):
        environment.run(["script", "run_server", "folder", "socket"])
