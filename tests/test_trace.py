"""Profiles without any framework: self times, sums, the trace file, and what a user may do wrong."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from rich.console import Console

import shim
from shim import cases, cli, contract, environments
from shim.measure import clock
from shim.measure.activities import Activity
from shim.trace import cupy, naming, session, show
from shim.trace import events as tracing
from shim.trace.events import STEP, Event

CASE = "dense/forward_backward/N3-I7-O5/float32"
HOSTILE = "<script>alert(1)</script>[bold red]\x1b[31m\n\ud800"


def _events():
    """Two steps of 100 µs: a kernel in a call on the calling thread, and a pool's kernel beside it."""
    return [
        Event(STEP, 0, 100, "main"),
        Event("call", 10, 60, "main", "dense 1"),
        Event("kernel", 20, 30, "main"),
        Event("kernel", 40, 80, "pool/99", "dense 2"),
        Event(STEP, 200, 100, "main"),
        Event("call", 210, 40, "main", "dense 1"),
        Event("before", 150, 20, "main"),
        Event("after", 301, 20, "pool/99"),
    ]


def _nested():
    return tracing.nest(tracing.within_steps(_events()))


def test_self_times_are_durations_without_what_is_inside():
    own = {(e.name, e.start): e.self_time for e in _nested()}
    assert own == {
        (STEP, 0): 40,
        ("call", 10): 30,
        ("kernel", 20): 30,
        ("kernel", 40): 60,  # cut at the end of the step
        (STEP, 200): 60,
        ("call", 210): 40,
    }


def test_an_event_belongs_to_the_op_around_it():
    assert {(r["op"], r["name"]): r["calls"] for r in tracing.rows(_nested(), 2)} == {
        ("dense 1", "call"): 1,
        ("dense 1", "kernel"): 0.5,
        ("dense 2", "kernel"): 0.5,
    }


def test_what_sticks_out_of_its_event_is_cut():
    inner = Event("inner", 8, 5, "t")
    tracing.nest([Event("outer", 0, 10, "t"), inner])
    assert (inner.duration, inner.self_time) == (2, 2)


def test_the_sums_say_what_is_missing_and_what_is_doubled():
    found = tracing.totals(_nested())
    assert found["wall"] == pytest.approx(100e-6)
    assert found["threads"] == pytest.approx({"main": 50e-6, "pool/99": 30e-6})
    assert found["self"] == pytest.approx(80e-6)
    assert found["uncovered"] == pytest.approx((10 + 60) / 2 * 1e-6)
    assert found["overlap"] == pytest.approx(30 / 2 * 1e-6)
    assert found["self"] == pytest.approx(found["wall"] - found["uncovered"] + found["overlap"])


def test_threads_of_a_pool_are_numbered():
    events = [Event("a", 0, 1, name) for name in ("python", "pool/-7", "pool/12", "pool/-7", "other/3")]
    tracing.short_threads(events)
    assert [e.thread for e in events] == ["python", "pool 1", "pool 2", "pool 1", "other 1"]


def test_the_trace_file_holds_names_as_text():
    events = [Event(STEP, 5, 10, HOSTILE), Event(HOSTILE, 6, 2, HOSTILE, HOSTILE, HOSTILE)]
    written = json.dumps(tracing.chrome_trace(tracing.nest(events), {"case": HOSTILE, "target": "torch"}))
    assert written.isascii()
    step, event = (e for e in json.loads(written)["traceEvents"] if e["ph"] == "X")
    assert (step["ts"], step["dur"], event["ts"], event["dur"]) == (0, 10, 1, 2)
    assert event["name"] == event["args"]["op"] == HOSTILE


def test_the_table_shows_names_as_text():
    row = {"op": HOSTILE, "name": HOSTILE, "calls": 1.5, "self_seconds": 2e-3, "share": 0.5}
    sums = {"wall": 2e-3, "self": 4e-3, "threads": {HOSTILE: 4e-3}, "uncovered": 0.0, "overlap": 2e-3}
    about = {"case": HOSTILE, "target": "torch", "mode": HOSTILE, "profiler": "p", "steps": 2, "measured": [1e-3] * 3}
    console = Console(file=io.StringIO(), width=200)
    show.print_profile(about | {"rows": [row] * (show.ROWS + 3)} | sums, console)
    said = console.file.getvalue()
    assert "<script>alert(1)</script>[bold red]" in said
    assert "\x1b" not in said
    assert "3 more" in said
    assert "2.00 times as long" in said


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("gradient_tape/shim.max_pool2d.2/MatMul_1", "max_pool2d 2"),
        ("jit(step)/transpose(jvp(shim.dense.12))/dot_general", "dense 12"),
        ("shim.optimizer.1_3/ResourceApplyAdam", "optimizer"),
        ("shim.bilstm.1/shim.lstm.1/add", "lstm 1"),
        ("aten::addmm", None),
        (STEP, None),
    ],
)
def test_names_carry_their_op(name, label):
    assert naming.label(name) == label


def test_a_fusion_belongs_to_all_that_it_fuses():
    program = [
        ("inner", "a", "jit/shim.dense.1/add", None),
        ("inner", "b", "jit/shim.optimizer.1/mul", None),
        ("main", "fusion.1", "jit/shim.optimizer.1/mul", "inner"),
        ("main", "copy.1", "", None),
        ("main", "dot.1", "jit/shim.dense.2/dot", None),
    ]
    found = naming.fused(program)
    assert found["fusion.1"] == "dense 1 + optimizer"
    assert found["dot.1"] == "dense 2"
    assert "copy.1" not in found


def test_a_profiler_that_loses_a_step_is_told(tmp_path, monkeypatch):
    adapter = SimpleNamespace(PROFILER="made up", record=lambda *args: _events())
    monkeypatch.setitem(sys.modules, "shim.trace.made_up", adapter)
    prepared = clock.Prepared(lambda: None, lambda: None, lambda outputs: None, 0.0, 0.0, None)
    arguments = "made_up", None, prepared, cases.parse(CASE), "eager", "numpy"
    with pytest.raises(tracing.ProfileIncomplete, match="made up recorded 2 of 3 steps; ask for fewer with --steps"):
        session.profile(*arguments, 3, tmp_path / "trace.json")
    assert not (tmp_path / "trace.json").exists()
    assert {row["op"] for row in session.profile(*arguments, 2, tmp_path / "trace.json")["rows"]} == {"dense"}


# ------------------------------------------------------------------------------------------- kernels on a GPU


ZERO = 10**18


def _launched(number, at, kind, name, start, end, stream=7):
    """Return the launch and what was launched, times in microseconds from ZERO."""
    at, start, end = (ZERO + round(1000 * t) for t in (at, start, end))
    return [
        Activity("launch", "launch", at, at + 500, 0, number),
        Activity(kind, name, start, end, 0, number, stream),
    ]


def test_a_kernel_belongs_to_the_op_that_launched_it():
    calls = [
        Event("dense", 5, 10, "python", "dense 1"),
        Event("dense gradient", 20, 10, "python", "dense 1"),
        Event("update", 40, 10, "python", "optimizer"),
        Event(STEP, 0, 100, "python"),
    ]
    found = [
        *_launched(3, 60, "memcpy", "memcpy", 80, 81),  # outside of all ops
        *_launched(1, 6, "kernel", "sm80_xmma_gemm" + "x" * 200, 12, 30),  # it ends after its call does
        *_launched(2, 22, "kernel", "reduce", 29.5, 40),  # and the next one of its stream starts before that
        *_launched(4, 41, "kernel", "adam", 25, 45, stream=8),
    ]
    events = cupy.events(calls, found, ZERO)
    assert [(e.op, e.name[:8], e.start, e.duration, e.thread) for e in events if e.name != STEP] == [
        ("dense 1", "sm80_xmm", 12, 18, "stream/7"),
        ("optimizer", "adam", 25, 20, "stream/8"),
        ("dense 1", "reduce", 30, 10, "stream/7"),
        (None, "memcpy", 80, 1, "stream/7"),
    ]
    assert max(len(e.name) for e in events) == cupy.LONGEST
    nested = tracing.nest(tracing.within_steps(events))
    tracing.short_threads(nested)
    found = tracing.totals(nested)
    assert found["threads"] == pytest.approx({"stream 1": 29e-6, "stream 2": 20e-6})
    assert found["uncovered"] == pytest.approx((100 - 34) * 1e-6)  # the device waits


def test_of_a_graph_only_kernels_of_our_own_say_whose_they_are():
    launch, *_ = _launched(1, 5, "kernel", "", 0, 0)
    names = ["lstm_forward", "adam_rows", "average_2", "sm80_xmma_gemm", "adamant"]
    kernels = [Activity("kernel", n, ZERO + 9000 + 10 * k, ZERO + 9008 + 10 * k, 0, 1) for k, n in enumerate(names)]
    events = cupy.events([Event(STEP, 0, 100, "python")], [launch, *kernels], ZERO)
    assert [e.op for e in events[1:]] == ["lstm", "optimizer", "embedding_average", None, None]


def test_every_kernel_of_our_own_has_an_op():
    files = (Path(shim.__file__).parent / "backends" / "kernels").glob("*.cu")
    names = {name for file in files for name in re.findall(r"^EMULATE\((\w+)\)", file.read_text(), re.MULTILINE)}
    calls = [Event(STEP, 0, 100, "python")]
    found = cupy.events(calls, [Activity("kernel", name, ZERO, ZERO + 1) for name in sorted(names)], ZERO)
    assert len(found) > 10
    assert {e.name for e in found if e.op is None} == {STEP}
    assert {e.op for e in found} <= {*contract.OPS, "optimizer", None}


# ------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """NumPy's environment is this very one."""
    monkeypatch.setenv("SHIM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    return tmp_path


def _shim(*arguments):
    return CliRunner().invoke(cli.main, ["profile", *map(str, arguments)])


def test_a_profile_from_the_command_line(here):
    path = here / "trace.json"
    result = _shim(CASE, "--backend", "numpy", "--threads", 1, "--steps", 3, "--trace", path, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["case"], found["target"], found["mode"], found["steps"]) == (CASE, "numpy", "eager", 3)
    assert {row["op"] for row in found["rows"]} == {"dense"}
    assert {"numpy.matmul", "dense gradient"} <= {row["name"] for row in found["rows"]}
    assert json.loads(path.read_text())["otherData"]["case"] == CASE
    shown = _shim(CASE, "--backend", "numpy", "--threads", 1, "--trace", path).stdout
    assert "step without the profiler" in shown
    assert f"trace  {path}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet", "-b", "numpy"], "unknown model 'resnet'; the models are: cifar10_cnn"),
        (["gru/forward/N1/float32", "-b", "numpy"], "unknown op 'gru'; the ops are: dense"),
        ([CASE, "-b", "theano"], "unknown backend 'theano'; the backends are: numpy, tensorflow"),
        ([CASE, "-b", "null"], "'null' cannot be profiled: it computes nothing; choose from: numpy, tensorflow"),
        ([CASE, "-b", "numpy", "--mode", "jit"], "unknown mode 'jit'; the modes of numpy are: eager"),
        ([CASE, "-b", "numpy", "--trace", "/nowhere/at/all.json"], "No such file or directory: '/nowhere/at/all.json'"),
        ([CASE, "-b", "numpy", "--trace", "/"], "Is a directory: '/'"),
        ([CASE, "-b", "numpy", "--threads", "9999"], "9999 threads were asked for, but this process may use only"),
        ([CASE, "-b", "numpy", "--steps", "0"], "Invalid value for '--steps'"),
        ([CASE], "Missing option '--backend'"),
    ],
)
def test_bad_input_is_told(here, arguments, message):
    result = _shim(*arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_trace_that_cannot_be_made_leaves_the_file_of_before(here):
    path = here / "trace.json"
    path.write_text("precious")
    assert _shim(CASE, "-b", "numpy", "--mode", "jit", "--trace", path).exit_code == 1
    assert path.read_text() == "precious"
    other = here / "other.json"
    assert _shim(CASE, "-b", "numpy", "--mode", "jit", "--trace", other).exit_code == 1
    assert not other.exists()


def test_a_backend_that_breaks_is_told(here, monkeypatch):
    monkeypatch.setattr("shim.backends.BACKENDS", {"numpy": "numpy", "torch": "torch"})
    result = _shim(CASE, "-b", "torch")
    assert result.exit_code == 1
    assert "torch at 'import': backend 'torch' needs the package 'torch'" in result.output
