"""Comparisons with made-up backends: failures are survived and recorded, interrupted runs go on, nothing is left."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fake_backends
import numpy as np
import pytest
import threadpoolctl

from shim import cases, environments, statistics
from shim.measure import bench, clock, machine, pace, process, rounds, runfile, schedule

FORWARD = cases.parse("dense/forward/N5-I7-O3-activation=relu/float32")
BACKWARD = cases.parse("dense/forward_backward/N2-I3-O2/float32")
BRIEF = {"rounds": 2, "sweeps": 2, "block_seconds": 0.005}


class Progress:
    """Count the steps that are announced and those that are made."""

    def __init__(self):
        self.total, self.done, self.texts = 0, 0, []

    def start(self, total, description=""):
        self.total, self.done = total, 0

    def advance(self, text=None, steps=1):
        self.done += steps
        self.texts.append(text)

    def stop(self):
        pass


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    fake_backends.install(tmp_path, monkeypatch)
    monkeypatch.setattr(rounds, "CEILINGS", 0)  # a second of each worker, and nothing here is about them
    return tmp_path


@pytest.fixture(scope="module")
def broken_run(tmp_path_factory):
    """One comparison with every fault there is; it hangs no longer than the timeout."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("broken")
        fake_backends.install(folder, patch)
        patch.setitem(process.TIMEOUTS, "load", 4.0)
        progress = Progress()
        targets = ["good", "slow:other", "noisy", "wrong", "raises", "missing", "hangs", "crashes", "dies"]
        path = folder / "run.jsonl"
        found = bench.run(path, targets=targets, cases=[FORWARD, BACKWARD], progress=progress, seed=3, **BRIEF)
        return found, progress


def alive(pid):
    """Say whether a process runs or is stopped; a zombie does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------------- failures


def test_every_failure_is_recorded_with_its_reason(broken_run):
    run, _ = broken_run
    reasons = {(f["target"], f["stage"]): f["reason"] for f in run.failures}
    assert reasons["missing", "import"].startswith("ImportError: libfast.so.3")
    assert reasons["hangs", "load"] == "the worker gave no answer to 'load' within 4 s"
    assert reasons["crashes", "load"] == "the worker was killed by SIGSEGV"
    assert reasons["raises", "build"] == "NotImplementedError: no kernel for this"
    assert reasons["wrong", "parity"].startswith("the result differs from the contract by 1; ")
    assert reasons["dies", "calibrate"] == "the worker was killed by SIGKILL (out of memory?)"
    assert {f["target"] for f in run.failures} == {"missing", "hangs", "crashes", "raises", "wrong", "dies"}


def test_the_others_go_on(broken_run):
    run, _ = broken_run
    rows = {(row.contestant, row.case): row for row in statistics.rows(run)}
    whole = [(name, case.id) for name in ("good", "slow:other", "noisy") for case in (FORWARD, BACKWARD)]
    assert rows.keys() >= {*whole, ("raises", BACKWARD.id)}
    assert not {name for name, _ in rows} & {"wrong", "missing", "hangs", "crashes"}
    assert all(None not in samples for key in whole for samples in rows[key].samples)
    assert run.complete


def test_no_time_without_parity(broken_run):
    run, _ = broken_run
    checked = {(b["round"], b["target"], b["mode"], b["case"]) for b in run.builds if b["parity"]["passed"]}
    timed = {(b["round"], b["target"], b["mode"], b["case"]) for b in run.blocks}
    assert timed == {key for key in checked if key[1] != "dies"}
    assert all(b["parity"]["id"] for b in run.builds)


def test_what_fails_for_good_is_not_tried_again(broken_run):
    run, _ = broken_run
    counts = [f["target"] for f in run.failures]
    assert {name: counts.count(name) for name in ("missing", "hangs", "crashes", "raises")} == {
        "missing": 1,
        "hangs": 1,
        "crashes": 1,
        "raises": 1,
    }
    workers = [w for w in run.workers if w["target"] == "dies"]
    assert [(w["round"], w["replacement"]) for w in workers] == [(0, False), (0, True), (1, False), (1, True)]


def test_every_series_is_kept_apart(broken_run):
    run, _ = broken_run
    worker = next(w for w in run.workers if w["target"] == "good")
    build = next(b for b in run.builds if b["target"] == "slow")
    assert worker["import_seconds"] > 0
    assert worker["setup_seconds"] > 0
    assert worker["cpus"] == run.header["config"]["cpus"]
    assert worker["variables"]["OMP_NUM_THREADS"] == str(run.header["config"]["threads"])
    assert worker["describe"]["versions"].keys() == {"numpy"}
    assert build["first_call_seconds"] >= 0.0004
    assert build["warm_seconds"] > 0
    for block in run.blocks:
        assert block["wall_seconds"] == pytest.approx(block["loops"] * sum(block["seconds"]))
        assert 1 <= len(block["seconds"]) <= 5


def test_blocks_are_played_in_the_order_of_the_seed(broken_run):
    run, _ = broken_run
    config = run.header["config"]
    labels = [entry["label"] for entry in config["targets"]]
    assert labels == ["good", "slow:other", "noisy", "wrong", "raises", "missing", "hangs", "crashes", "dies"]
    names = statistics.labels(run)
    for number in range(2):
        planned = schedule.blocks(3, number, config["sweeps"], config["cases"], labels)
        played = [
            (b["sweep"], b["case"], names[b["target"], b["mode"]])
            for b in run.blocks
            if b["round"] == number and b["target"] != "dies"
        ]
        assert played == [tuple(block) for block in planned if tuple(block) in set(played)]


def test_a_slower_backend_is_measured_as_slower(broken_run):
    run, _ = broken_run
    row = next(r for r in statistics.rows(run, "good") if (r.contestant, r.case) == ("slow:other", FORWARD.id))
    assert row.time.value >= 0.0004
    assert row.ratio.value > 5


def test_progress_ends_where_it_was_announced(broken_run):
    _, progress = broken_run
    assert progress.done == progress.total
    assert "round 2 of 2, dense slow:other" in progress.texts


def test_no_worker_is_left_over(broken_run):
    run, _ = broken_run
    assert len(run.workers) >= 10
    assert not any(alive(worker["pid"]) for worker in run.workers)


def test_no_working_backend_is_an_error(fakes):
    with pytest.raises(RuntimeError, match=r"no backend could be loaded:\n  missing: ImportError: libfast"):
        bench.run(fakes / "run.jsonl", targets=["missing"], cases=[FORWARD], **BRIEF)
    run = runfile.read(fakes / "run.jsonl")
    assert run.end["reason"] == "failed: RuntimeError"
    assert len(run.failures) == 1


# --------------------------------------------------------------------------------------------------------- processes


@pytest.fixture
def worker(fakes):
    found = process.Worker(Path(sys.executable), environments.variables(), [min(os.sched_getaffinity(0))])
    yield found
    found.kill()


def ready(worker, case=FORWARD.id, block_seconds=0.005):
    """Prepare and calibrate a case; return whether both went well."""
    named = {"case": case, "mode": "eager"}
    return worker.ask("prepare", **named)["ok"] and worker.ask("calibrate", **named, block_seconds=block_seconds)["ok"]


def test_a_worker_is_stopped_whenever_it_is_not_asked(worker):
    pid = worker.ask("load", backend="good")["pid"]
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert ready(worker)
    assert worker.ask("block", case=FORWARD.id, mode="eager")["loops"] > 1


def test_posted_requests_are_worked_on_at_once_and_answered_in_order(worker):
    worker.post("load", backend="good")
    for case in (FORWARD.id, "dense", BACKWARD.id):
        worker.post("prepare", case=case, mode="eager")
    pid = worker.ask("load", backend="good")["pid"]
    answers = [worker.ask("prepare", case=case, mode="eager")["ok"] for case in (FORWARD.id, "dense", BACKWARD.id)]
    assert answers == [True, False, True]
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert ready(worker)


def test_replies_collected_ahead_are_those_that_are_asked_for(worker):
    worker.post("load", backend="good")
    worker.post("prepare", case=FORWARD.id, mode="eager")
    worker.collect()
    pid = worker.ask("load", backend="good")["pid"]
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert worker.ask("prepare", case=FORWARD.id, mode="eager")["ok"]
    assert ready(worker)


def test_a_worker_that_dies_ahead_is_found_out_when_asked(worker):
    worker.post("load", backend="good")
    worker.post("prepare", case=FORWARD.id, mode="eager")
    pid = worker._process.pid
    os.kill(pid, signal.SIGKILL)
    worker.collect()
    with pytest.raises(process.WorkerDied, match="SIGKILL"):
        worker.ask("load", backend="good")


def test_workers_build_side_by_side_after_the_first_rounds(fakes, monkeypatch):
    """The third round has workers that build together where that takes long; every case is timed alone."""
    monkeypatch.setattr(rounds, "LONG_SECONDS", 0.3)
    path = fakes / "run.jsonl"
    targets = ["good", "late", "noisy", "dies"]
    run = bench.run(path, targets=targets, cases=[FORWARD, BACKWARD], **BRIEF | {"rounds": 3})
    assert run.complete
    assert {(w["round"], w["alone"]) for w in run.workers if w["target"] == "good"} == {
        (0, True),
        (1, True),
        (2, False),
    }
    built = {(b["target"], b["round"], b["alone"]) for b in run.builds}
    assert built >= {("late", 1, True), ("late", 2, False), ("good", 1, True), ("good", 2, True)}
    assert all(
        None not in samples for row in statistics.rows(run) if row.contestant == "good" for samples in row.samples
    )
    row = next(row for row in statistics.rows(run) if (row.contestant, row.case) == ("good", FORWARD.id))
    alone = [b for b in run.builds if (b["target"], b["case"], b["alone"]) == ("good", FORWARD.id, True)]
    assert row.first_call_seconds == np.median([b["first_call_seconds"] for b in alone])


def test_a_run_that_is_out_of_time_keeps_whole_rounds_and_goes_on_when_resumed(fakes):
    path = fakes / "run.jsonl"
    run = bench.run(path, targets=["good"], cases=[FORWARD], **BRIEF | {"rounds": 3}, minutes=1e-6)
    for played in (1, 2):
        assert run.end["reason"] == "out of time"
        ended = [record["round"] for record in run.rounds if record["record"] == "round_end"]
        assert ended == list(range(played))
        run = bench.resume(path)
    assert run.complete
    assert {block["round"] for block in run.blocks} == {0, 1, 2}
    assert [worker["alone"] for worker in run.workers] == [True, False, False]
    assert bench.resume(path).rounds == run.rounds


def test_a_run_with_time_left_plays_spare_rounds(fakes):
    run = bench.run(fakes / "run.jsonl", targets=["good"], cases=[FORWARD], **BRIEF, minutes=5)
    assert run.complete
    assert len({block["round"] for block in run.blocks}) == BRIEF["rounds"] + bench.DEFAULTS["spare_rounds"]


def test_blocks_have_a_pace_and_rounds_say_how_long_they_waited(fakes):
    run = bench.run(fakes / "run.jsonl", targets=["good"], cases=[FORWARD], **BRIEF)
    assert all(statistics.pace_of(run)(block) >= 1 for block in run.blocks)
    assert all(0 < block["product_seconds"] < 1 for block in run.blocks)
    ends = [record for record in run.rounds if record["record"] == "round_end"]
    assert all(0 <= end["waited_seconds"] < 60 for end in ends)
    assert ends[-1]["product_seconds"] <= min(block["product_seconds"] for block in run.blocks)


def test_the_setting_that_lets_cpus_sleep_is_of_use_only_where_they_can_be_kept_awake(fakes):
    run = bench.run(fakes / "run.jsonl", targets=["good", "good/cpus-sleep"], cases=[FORWARD], **BRIEF)
    awake = {worker["target"]: worker["awake"] for worker in run.workers}
    if os.access(clock.CPU_LATENCY, os.W_OK):
        assert awake == {"good": True, "good/cpus-sleep": None}
    else:
        assert awake == {"good": False}
        assert "CPUs sleep here anyway" in run.failures[0]["reason"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked to keep a thread on a CPU")
def test_threads_are_placed_unless_a_setting_lets_them_move(fakes):
    run = bench.run(fakes / "run.jsonl", targets=["good", "good/threads-move"], cases=[FORWARD], **BRIEF)
    placements = {build["target"]: build["placement"] for build in run.builds}
    assert placements["good"] in ("free", "apart", "alone")
    assert placements["good/threads-move"] == "free"


def test_late_rounds_have_the_more_sweeps_the_fewer_rows_are_left():
    cases = [f"case {k}" for k in range(6)]
    targets = [{"target": name, "mode": "eager", "label": name} for name in ("good", "slow", "noisy")]
    played = rounds.Rounds({"targets": targets, "cases": cases, "sweeps": 4}, rounds.Silent())
    assert played._sweeps(rounds.WHOLE - 1) == played._sweeps(rounds.WHOLE) == 4
    played._cases, played._only = cases[:3], {case: ["good", "slow"] for case in cases[:3]}
    assert played._sweeps(rounds.WHOLE) == 12  # 18 rows in a whole round, 6 in this one
    played._cases, played._only = cases[:1], {cases[0]: ["good", "slow"]}
    assert played._sweeps(rounds.WHOLE) == 4 * rounds.MORE


def test_after_eight_rounds_only_cases_with_wide_intervals_go_on(fakes, monkeypatch):
    path = fakes / "run.jsonl"
    asked = {"rounds": 10, "sweeps": 1, "block_seconds": 0.002}
    monkeypatch.setattr(rounds, "NARROW", 0.0)  # narrower than any interval of real samples
    run = bench.run(path, targets=["good", "slow"], cases=[FORWARD, BACKWARD], **asked)
    assert cases_of_rounds(run) == [[FORWARD.id, BACKWARD.id]] * 10
    monkeypatch.setattr(rounds, "NARROW", math.inf)
    run = bench.run(fakes / "other.jsonl", targets=["good", "slow"], cases=[FORWARD, BACKWARD], **asked)
    assert cases_of_rounds(run) == [[FORWARD.id, BACKWARD.id]] * 8
    assert run.complete


@pytest.mark.parametrize(("waiting", "played"), [(0, 2), (10_000, 4)])
def test_time_for_waiting_that_was_not_needed_goes_into_spare_rounds(fakes, monkeypatch, waiting, played):
    monkeypatch.setattr(bench, "DEFAULTS", BRIEF | {"rounds": 2, "spare_rounds": 2})
    monkeypatch.setattr(rounds, "WAITING", waiting)  # seconds for each of the 0.06 that are timed
    monkeypatch.setattr(pace, "SLOWER", math.inf)  # nobody waits, however slow the machine is
    run = bench.run(fakes / "run.jsonl", targets=["good", "slow", "noisy"], cases=[FORWARD])
    assert cases_of_rounds(run) == [[FORWARD.id]] * played
    assert run.complete
    assert bench.resume(run.path).rounds == run.rounds
    run = bench.run(fakes / "asked.jsonl", targets=["good", "slow"], cases=[FORWARD], **BRIEF)
    assert cases_of_rounds(run) == [[FORWARD.id]] * 2


def test_a_contestant_whose_ratio_is_known_sits_out(fakes, monkeypatch):
    known = []

    def rows(run, baseline):
        known.append(len(run.rounds))
        narrow, wide = statistics.Ratio(2, 1.99, 2.01), statistics.Ratio(2, 1.5, 2.5)
        goes_on = {(BACKWARD.id, "slow")}
        return [
            replace(row, ratio=row.ratio and (wide if (row.case, row.contestant) in goes_on else narrow))
            for row in real(run, baseline)
        ]

    real = statistics.rows
    monkeypatch.setattr(statistics, "rows", rows)
    asked = {"rounds": 9, "sweeps": 1, "block_seconds": 0.002}
    run = bench.run(fakes / "run.jsonl", targets=["good", "slow", "noisy"], cases=[FORWARD, BACKWARD], **asked)
    assert cases_of_rounds(run)[8:] == [[BACKWARD.id]]
    late = [block for block in run.blocks if block["round"] == 8]
    assert {(block["case"], block["target"]) for block in late} == {(BACKWARD.id, "good"), (BACKWARD.id, "slow")}
    assert {worker["target"] for worker in run.workers if worker["round"] == 8} == {"good", "slow"}
    assert known == [16]  # asked once, when eight rounds had begun and ended


def cases_of_rounds(run):
    return [record["cases"] for record in run.rounds if record["record"] == "round"]


def test_a_worker_keeps_to_its_cpus_and_survives_bad_requests(worker):
    assert worker.ask("load", backend="noisy")["cpus"] == [min(os.sched_getaffinity(0))]
    reply = worker.ask("prepare", case="dense", mode="eager")
    assert reply == {"ok": False, "stage": "prepare", "reason": "ValueError: case 'dense' is not of the form "
                     "op/direction/shape/dtype"}  # fmt: skip
    assert ready(worker)


def test_a_worker_that_is_killed_is_noticed(worker):
    pid = worker.ask("load", backend="good")["pid"]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(process.WorkerDied, match=r"was killed by SIGKILL \(out of memory\?\)"):
        worker.ask("block", case=FORWARD.id, mode="eager")


def test_an_interpreter_that_does_not_start_says_why(fakes):
    (fakes / "empty" / "shim").mkdir(parents=True)
    (fakes / "empty" / "shim" / "__init__.py").touch()  # hides the installed package
    worker = process.Worker(Path(sys.executable), {"PYTHONPATH": str(fakes / "empty")}, [0])
    with pytest.raises(process.WorkerDied, match=r"exited with status 1: .*ModuleNotFoundError.*'shim"):
        worker.ask("load", backend="good")


# ------------------------------------------------------------------------------------ interruption, resume, full disk

SCRIPT = """
import resource, sys
from pathlib import Path
import pytest
import threadpoolctl
import fake_backends
import numpy as np
from shim import cases
from shim.measure import bench
folder, size = Path(sys.argv[1]), int(sys.argv[2])
fake_backends.install(folder, pytest.MonkeyPatch())
if size:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
case = cases.parse("dense/forward/N5-I7-O3-activation=relu/float32")
try:
    bench.run(folder / "run.jsonl", targets=["good", "slow"], cases=[case], rounds=3, sweeps=6, block_seconds=0.03)
except RuntimeError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def start(tmp_path):
    """Start a comparison of three rounds in another process."""
    started = []

    def run(size=0):
        tests = Path(__file__).parent
        environ = os.environ | {"PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(size)]
        started.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True))
        return started[-1], tmp_path / "run.jsonl"

    yield run
    for found in started:
        found.kill()
        found.communicate()


def lines(path):
    return path.read_text().count('"record": "block", "round": 1') if path.exists() else 0


def test_ctrl_c_keeps_what_was_measured_and_the_run_goes_on(start, tmp_path, monkeypatch):
    interrupted, path = start()
    wait_until(lambda: lines(path) >= 3)
    interrupted.send_signal(signal.SIGINT)
    _, message = interrupted.communicate(timeout=20)
    assert interrupted.returncode == 1
    assert message.strip() == (
        f"RunInterrupted: interrupted; what was measured is kept in {path}; go on with: shim bench --resume {path}"
    )
    before = runfile.read(path)
    assert before.end["reason"] == "interrupted"
    assert not any(alive(worker["pid"]) for worker in before.workers)

    fake_backends.install(tmp_path / "again", monkeypatch)
    progress = Progress()
    after = bench.resume(path, progress)
    assert after.complete
    assert after.blocks[:12] == before.blocks[:12]  # the whole round is kept,
    assert len(after.blocks) == 3 * 2 * 6  # the other one played again
    assert sorted({b["round"] for b in before.blocks}) == [0, 1]
    assert not {w["pid"] for w in after.workers if w["round"] == 1} & {w["pid"] for w in before.workers}
    assert progress.done == progress.total
    assert bench.resume(path).blocks == after.blocks  # nothing left to do


def test_workers_end_with_a_parent_that_is_killed(start):
    killed, path = start()
    wait_until(lambda: lines(path) >= 1)
    killed.kill()
    killed.wait()
    pids = [worker["pid"] for worker in runfile.read(path).workers]
    assert len(pids) == 4
    wait_until(lambda: not any(alive(pid) for pid in pids), 5)


def test_a_full_disk_ends_the_run_and_keeps_its_samples(start):
    full, path = start(size=8000)
    _, message = full.communicate(timeout=30)
    assert full.returncode == 1
    assert message.startswith(f"RunFileError: cannot write to {path}: File too large; the ")
    assert message.strip().endswith(f"records before this one are safe; go on with: shim bench --resume {path}")
    run = runfile.read(path)
    assert run.blocks
    assert not any(alive(worker["pid"]) for worker in run.workers)


def test_only_the_same_machine_goes_on(fakes):
    path = fakes / "run.jsonl"
    bench.run(path, targets=["good"], cases=[FORWARD], rounds=1, sweeps=1, block_seconds=0.005)
    header, *rest = path.read_text().splitlines()
    other = json.loads(header)
    other["environment"]["cpu"] = "Another CPU"
    path.write_text("\n".join([json.dumps(other), *rest[:-1], ""]))
    with pytest.raises(ValueError, match=r"was begun with cpu 'Another CPU', here it is .*; start anew"):
        bench.resume(path)


def test_other_versions_do_not_mix_with_those_before(fakes):
    path = fakes / "run.jsonl"
    bench.run(path, targets=["good", "slow"], cases=[FORWARD], rounds=2, sweeps=1, block_seconds=0.005)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    second = next(k for k, r in enumerate(records) if r["record"] == "round" and r["round"] == 1)
    for record in records[:second]:
        if record["record"] == "worker" and record["target"] == "slow":
            record["describe"]["versions"] = {"numpy": "0.1"}
    path.write_text("".join(json.dumps(record) + "\n" for record in records[:second]))
    run = bench.resume(path)
    assert [(f["target"], f["stage"], f["round"]) for f in run.failures] == [("slow", "setup", 1)]
    assert "in the rounds before they were {'numpy': '0.1'}" in run.failures[0]["reason"]
    assert [b["round"] for b in run.blocks if b["target"] == "good"] == [0, 1]


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"targets": ["nowhere"]}, "unknown backend 'nowhere'; the backends are: numpy, "),
        ({"targets": []}, "no backend was chosen"),
        ({"cases": []}, "no case was chosen"),
        ({"modes": "some"}, "unknown modes 'some'; choose default or all"),
        ({"baseline": "slow"}, "baseline 'slow' does not take part; choose from: good"),
        ({"baseline": "good:other"}, "baseline 'good:other' is not in this run; its contestants are: good"),
        ({"targets": ["good:fast"]}, "good has no mode 'fast'; it has: eager, other"),
        ({"threads": 10_000}, "10000 threads were asked for, but this process may use only"),
    ],
)
def test_bad_input_is_refused_and_leaves_no_file(fakes, changes, problem):
    path = fakes / "run.jsonl"
    with pytest.raises(ValueError, match=problem):
        bench.run(path, **({"targets": ["good"], "cases": [FORWARD]} | BRIEF | changes))
    assert not path.exists()


def test_a_run_file_is_never_overwritten(fakes):
    path = fakes / "run.jsonl"
    path.touch()
    with pytest.raises(ValueError, match="exists already; choose another file, or go on with: shim bench --resume"):
        bench.run(path, targets=["good"], cases=[FORWARD])


# ------------------------------------------------------------------------------------------------ environment record


def test_every_field_of_the_environment_is_known_or_said_to_be_unknown():
    found = machine.environment()
    empty = {name for name, value in found.items() if value in (None, "", [], {})}
    assert empty <= {"variables", "caches", "blas"}
    assert {"cpu", "cores", "affinity", "governor", "turbo", "numa_nodes", "memory_bytes", "kernel"} <= found.keys()
    assert {"virtualised", "python", "load_average", "shim", "git", "blas", "variables"} <= found.keys()
    assert found["git"].keys() == {"commit", "dirty"}
    assert os.uname().nodename not in json.dumps(found["system"])
    json.dumps(found, allow_nan=False)


def test_a_system_that_says_nothing_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_SYSTEM", tmp_path)
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda logical: None)
    monkeypatch.setattr(machine.psutil, "cpu_freq", lambda: None)
    found = machine.environment()
    unknown = {name for name, value in found.items() if value == "unknown"}
    assert unknown >= {"governor", "turbo", "numa_nodes", "cores", "cores_physical", "frequency_mhz"}
    assert machine.git(tmp_path) == {"commit": "unknown", "dirty": "unknown"}


def test_variables_are_kept_where_they_matter_and_nowhere_else():
    given = {
        "OMP_NUM_THREADS": "2",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "MALLOC_ARENA_MAX": "1",
        "XLA_FLAGS": "",
        "TF_VAR_password": "secret",
        "JAX_TOKEN": "secret",
        "TORCH_HOME": "/home/somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    assert machine.relevant(given).keys() == {
        "MALLOC_ARENA_MAX",
        "OMP_NUM_THREADS",
        "TF_ENABLE_ONEDNN_OPTS",
        "XLA_FLAGS",
    }


# ---------------------------------------------------------------------------------------------------- real backends


def environment_or_skip(target):
    """Return a target's interpreter; without one skip, except where every environment has to be there."""
    try:
        return environments.python(target)
    except environments.EnvironmentMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def test_a_block_is_not_disturbed_by_the_one_before():
    """Torch right after NumPy, whose OpenBLAS threads spin on after a call, takes as long as torch after a pause."""
    pythons = {target: environment_or_skip(target) for target in ("numpy", "torch")}
    cpus = sorted(os.sched_getaffinity(0))
    environ = environments.variables() | process.variables(len(cpus), "cpu")
    asked = {
        "numpy": {"case": "dense/forward_backward/N128-I512-O512/float32", "mode": "eager"},
        "torch": {"case": "lstm/forward/N32-T50-I64-H64/float32", "mode": "eager"},
    }
    workers = {}
    try:
        for target, python in pythons.items():
            workers[target] = process.Worker(python, environ, cpus)
            assert workers[target].ask("load", backend=target)["ok"]
            assert ready(workers[target], asked[target]["case"], 0.03)
        times = {"alone": [], "interleaved": []}
        for sweep in range(24):
            way = ("alone", "interleaved")[sweep % 2]
            if way == "interleaved":
                workers["numpy"].ask("block", **asked["numpy"])
            else:
                time.sleep(0.05)
            times[way].append(workers["torch"].ask("block", **asked["torch"])["seconds"])
    finally:
        for worker in workers.values():
            worker.kill()
    medians = {way: np.median([np.median(seconds) for seconds in found]) for way, found in times.items()}
    assert medians["interleaved"] / medians["alone"] < 1.3, medians  # 1.9 where workers are not stopped


def test_the_speedup_of_threads_is_measured(monkeypatch):
    ticks = itertools.count()

    def clock():
        pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
        return next(ticks) / max(pool["num_threads"] for pool in pools)

    monkeypatch.setattr(machine, "perf_counter", clock)
    assert machine.parallel_speedup(1) == "unknown"
    assert machine.parallel_speedup(2) == pytest.approx(2)
