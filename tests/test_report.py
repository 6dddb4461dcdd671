"""What the report says: verdicts in words, widths, JSON, and the numbers as they were."""

from __future__ import annotations

import io
import json
import re

import example_run as example
import numpy as np
import pytest
from rich.console import Console

from shim import statistics
from shim.measure import runfile
from shim.report import colours, table, words
from shim.report.summary import summarise


@pytest.fixture
def read(tmp_path):
    def read(records):
        return runfile.read(example.write(tmp_path / "run.jsonl", list(records)))

    return read


def printed(run, width=80, baseline=None):
    console = Console(file=io.StringIO(), width=width)
    table.print_run(run, console, baseline)
    return console.file.getvalue()


def two(seconds, rounds=5, spread=0.005, targets=(("tensorflow", "graph"), ("torch", "eager")), **options):
    """Yield the records of one case with these times of each target."""
    return example.records(targets, example.CASES[:1], [seconds], rounds=rounds, spread=spread, **options)


# ------------------------------------------------------------------------------------------------ words and colours


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.2345, "1.23 s"),
        (0.99996, "1.00 s"),
        (0.0183, "18.3 ms"),
        (0.5e-3, "500 µs"),
        (1.5e-6, "1.50 µs"),
        (2e-9, "2.00 ns"),
        (3e-12, "0.003 ns"),
        (0.0, "0.00 s"),
        (None, words.DASH),
        (float("nan"), words.DASH),
        ("text", words.DASH),
    ],
)
def test_a_duration_has_three_digits_and_a_unit(seconds, text):
    assert words.duration(seconds) == text


def test_all_numbers_of_a_block_share_a_unit_that_fits_the_smallest():
    unit = words.unit([0.00087, 0.0021, 0.0455])
    assert [unit.write(s) for s in (0.00087, 0.0021, 0.0455)] == ["870", "2,100", "45,500"]
    assert unit.name == "µs"
    assert words.unit([1e-6, 1.0]).name == "ms"


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (statistics.Ratio(0.5464, 0.53, 0.56, "faster"), "1.83x faster"),
        (statistics.Ratio(2.1, 2.0, 2.2, "slower"), "2.10x slower"),
        (statistics.Ratio(0.05, 0.04, 0.06, "faster"), "20.0x faster"),
        (statistics.Ratio(1.01, 0.99, 1.02, "tie"), "tie"),
        (statistics.Ratio(0.5, 0.2, 1.2, "unknown"), "unknown"),
    ],
)
def test_a_verdict_is_said_in_words(ratio, text):
    assert words.verdict(ratio) == text


def test_a_case_id_is_taken_apart_and_another_text_is_left_alone():
    assert str(words.case_name("lstm/forward_backward/N2-T3-I4-H5/float32")) == (
        "lstm forward + backward, N2 T3 I4 H5, float32"
    )
    assert words.case_name("mnist_mlp/train_step/N128/float32").group == "training step"
    assert str(words.case_name("something else")) == "something else"


def test_text_loses_what_a_terminal_or_a_file_cannot_hold():
    assert words.clean("a\x1b[2J\x00\ud800\u202eb\ncé") == "a�[2J���b\ncé"
    assert words.line("a \n b" + "c" * 9, 5) == "a bc…"
    assert words.reason("Traceback (most recent call last):\n  File\nValueError: no\n") == "ValueError: no"
    assert words.reason("first\nsecond") == "first"


def test_each_backend_has_its_own_colour_and_keeps_it_in_every_mode():
    assert len({colour for colour, _ in colours.BACKENDS.values()}) == len(colours.BACKENDS)
    assert len({marker for _, marker in colours.BACKENDS.values()}) >= len(colours.BACKENDS) - 1
    styles = colours.styles(["torch:compile", "torch", "torch@2.6.0", "jax", "unheard-of"])
    assert {styles[name].colour for name in ("torch", "torch:compile", "torch@2.6.0")} == {"#D55E00"}
    assert len({styles[name].fill for name in ("torch", "torch:compile", "torch@2.6.0")}) == 3
    assert styles["torch"].fill == "full"
    assert len(set(styles.values())) == len(styles)


# ---------------------------------------------------------------------------------------------------------- outcome


def outcome(run, baseline=None):
    found = summarise(run, baseline).cases[0].outcome
    return found.kind, found.contestants


def test_the_fastest_must_beat_every_other_contestant(read):
    three = (("tensorflow", "graph"), ("torch", "eager"), ("jax", "jit"))
    assert outcome(read(two((3e-3, 1e-3, 2e-3), targets=three))) == ("fastest", ("torch",))
    kind, contestants = outcome(read(two((3e-3, 1e-3, 1.001e-3), targets=three, spread=0.001)))
    assert (kind, set(contestants)) == ("tie", {"torch", "jax"})
    kind, contestants = outcome(read(two((3e-3, 1e-3, 1.001e-3), targets=three, spread=0.3)))
    assert (kind, set(contestants)) == ("unknown", {"torch", "jax"})


def test_who_is_fastest_does_not_depend_on_the_baseline(read):
    run = read(two((3e-3, 1e-3), spread=0.01))
    assert outcome(run, "tensorflow") == outcome(run, "torch") == ("fastest", ("torch",))


def test_the_null_backend_never_wins(read):
    run = read(two((3e-3, 1e-3, 1e-6), targets=(("tensorflow", "graph"), ("torch", "eager"), ("null", "null"))))
    assert outcome(run) == ("fastest", ("torch",))
    assert outcome(read(two((3e-3, 1e-6), targets=(("tensorflow", "graph"), ("null", "null"))))) == ("none", ())


def test_equal_contestants_are_never_called_faster(read):
    for seed in range(5):
        text = printed(read(two((1e-3, 1e-3), spread=0.2, seed=seed)))
        assert not re.search(r"\dx (faster|slower)", text)


def test_two_rounds_support_no_verdict_and_the_report_says_so(read):
    text = printed(read(two((3e-3, 1e-3), rounds=2)))
    assert "Only 2 rounds measured: a verdict needs at least 3" in text
    assert "unknown" in text
    assert "x faster" not in text


# --------------------------------------------------------------------------------------------------------- terminal


def test_the_table_names_time_ratio_verdict_and_implementation(read):
    text = printed(read(example.records()), width=120)
    row = next(line for line in text.splitlines() if line.startswith("torch"))
    assert re.search(r"torch +5\d\d +\[\d+, \d+\] +0\.5\d+ +\[0\.\d+, 0\.\d+\] +1\.\d\dx faster +oneDNN LSTM", row)
    assert "time, µs" in text
    assert "dense forward, N128 I784 O512 activation=relu, float32  fastest: torch" in text
    assert re.search(r"tensorflow .*baseline", text)
    assert "Of 4 cases, torch is fastest in 4." in text
    assert "0.5 is half its time" in text


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_terminal(read, width):
    records = [*example.records(), example.failure("jax", "jit", example.CASES[0], "x" * 300)]
    text = printed(read(records), width)
    assert max(map(len, text.splitlines())) <= width
    for line in text.splitlines():  # every row of a contestant on one line, verdict included
        if line.startswith(("torch ", "tensorflow:xla ")):
            assert re.search(r"faster|slower", line)


def test_a_failure_is_listed_with_its_reason_and_its_row(read):
    case = example.CASES[1]
    records = [r for r in example.records() if not (r.get("target") == "jax" and r.get("case") == case)]
    text = printed(read([*records, example.failure("jax", "jit", case, "the gradient of w is 3 off")]), 200)
    assert text.count("the gradient of w is 3 off") == 2
    assert "WARNING: 1 failure recorded; 1 row of the results affected." in text


def test_a_backend_that_did_not_start_fails_in_each_of_its_rows(read):
    records = [r for r in example.records() if r.get("target") != "tensorflow"]
    run = read([*records, example.failure("tensorflow", reason="no module named tensorflow")])
    notes = [e.note for c in summarise(run).cases for e in c.entries if e.contestant.startswith("tensorflow")]
    assert notes == ["failed in all cases, see the failures"] * 2 * len(example.CASES)
    assert "no baseline" in printed(run)
    assert printed(run).count("no module named tensorflow") == 1


def test_an_unfinished_run_says_so_first(read):
    run = read(list(example.records())[:40])
    text = printed(run, 200)
    assert text.startswith("WARNING: This run is unfinished.")
    assert "not measured" in text
    assert re.search(r"\d+ rows? with fewer rounds than planned", text)
    assert table.as_json(run)["complete"] is False


def test_cpus_that_share_a_core_at_times_are_told(read):
    def rounds(*speedups):
        found = list(two((3e-3, 1e-3)))
        states = [{"record": "round", "round": r, "parallel_speedup": s} for r, s in enumerate(speedups)]
        return printed(read([found[0], *states, *found[1:]]))

    assert "In some rounds the CPUs together were worth 1.1 of one, in others 1.9" in rounds(
        1.9, 1.12, "unknown", 1.9, 1.9
    )
    assert "CPUs together" not in rounds(1.9, 1.8, 1.92, 1.85, 1.9)
    assert "CPUs together" not in rounds(*["unknown"] * 5)


def test_blocks_of_slow_times_and_cpus_that_may_sleep_are_told(read):
    def changed(pace, awake):
        found = []
        for record in two((3e-3, 1e-3)):
            more = {"block": {"product_seconds": 1e-3 * pace}, "worker": {"awake": awake}}.get(record["record"], {})
            found.append(record | more)
        worker = {"record": "worker", "round": 0, "target": "numpy", "awake": awake}
        ended = {"record": "round_end", "round": 0, "waited_seconds": 7.2, "product_seconds": 1e-3}
        return printed(read([found[0], worker, *found[1:], ended]))

    text = " ".join(changed(1.4, False).split())
    assert "100% of the blocks were timed while the machine was slower than at its best by more than 20%" in text
    assert "waited for 7 s in all. A row is of one pace, that of which it has more rounds: 2 rows of 2" in text
    assert "sudo chmod o+w /dev/cpu_dma_latency" in text
    for awake in (True, None):
        calm = changed(1.1, awake)
        assert "of the blocks were timed" not in calm
        assert "go to sleep" not in calm


def on_device():
    """Yield the records of a run on a GPU: one row has no times on the device, and there is a reason."""
    three = (("torch", "eager"), ("cupy", "eager"), ("jax", "jit"))
    found = list(two((30e-6, 20e-6, 90e-6), targets=three))
    told = {"stage": "device", "reason": "cupti-python is not installed"}
    warnings = [{"record": "warning", "round": 0, "target": "jax"} | told] * 2
    times = [
        example.device("torch", "eager", example.CASES[0], 8e-6, 28e-6),
        example.device("cupy", "eager", example.CASES[0], 4e-6, 19e-6, "sm80_xmma_gemm"),
    ]
    return [*found[:-1], *times, *warnings, found[-1]]


def test_times_on_the_device_stand_beside_the_others(read):
    run = read(on_device())
    wide = printed(run, 140)
    assert "kernel time" in wide.partition("torch")[0]
    assert re.search(r"^cupy .* 4\.00 µs", wide, re.MULTILINE)
    assert re.search(rf"^jax .* {words.DASH} ", wide, re.MULTILINE)
    narrow = printed(run, 80)
    assert "kernel time  cupy 4.00 µs in 3 kernels, torch 8.00 µs in 3 kernels" in " ".join(narrow.split("\n"))
    assert max(map(len, narrow.splitlines())) <= 80
    assert wide.count("Not all times on the device of jax were measured: cupti-python is not installed.") == 1
    rows = {row["contestant"]: row for row in table.as_json(run)["cases"][0]["rows"]}
    assert rows["cupy"]["device"]["cold_kernel"] == pytest.approx(8e-6)
    assert rows["cupy"]["device"]["span"] == pytest.approx(19e-6)
    assert rows["jax"]["device"] is None
    assert "kernel time" not in printed(read(example.records()), 140)


def test_kernel_times_have_ratios_of_their_own(read):
    case = summarise(read(on_device()), "torch").cases[0]
    assert case.kernel_ratio("cupy", "torch") == pytest.approx(0.5)
    assert case.kernel_ratio("jax", "torch") is None
    assert case.kernel_ratio("torch", "jax") is None


def test_another_baseline_turns_the_ratios_around(read):
    run = read(example.records())
    torch = next(row for row in table.as_json(run, "torch")["cases"][0]["rows"] if row["contestant"] == "tensorflow")
    assert torch["ratio"]["value"] == pytest.approx(0.93 / 0.51, rel=0.02)
    with pytest.raises(ValueError, match="numpy, tensorflow, tensorflow:xla, jax, torch"):
        printed(run, baseline="theano")


def test_hostile_text_is_neither_markup_nor_an_escape_sequence(read):
    text = printed(read(example.hostile()), 400)
    assert "\x1b" not in text
    assert "[bold]&amp;" in text


# ------------------------------------------------------------------------------------------------------------- JSON


def test_json_holds_every_number_of_the_table_and_the_samples(read):
    run = read(example.records())
    found = json.loads(json.dumps(table.as_json(run), allow_nan=False))
    assert [case["case"] for case in found["cases"]] == list(example.CASES)
    for case, seconds in zip(found["cases"], example.SECONDS, strict=True):
        rows = {row["contestant"]: row for row in case["rows"]}
        for name, expected in zip(("numpy", "tensorflow", "tensorflow:xla", "jax", "torch"), seconds, strict=True):
            assert rows[name]["seconds"]["median"] == pytest.approx(expected, rel=0.02)
            assert np.shape(rows[name]["samples"]) == (5, 4)
        assert rows["torch"]["parity"] == 0.043
        assert rows["tensorflow"]["ratio"] is None
    assert found["baseline"] == "tensorflow"


def test_json_has_no_nan(read):
    json.dumps(table.as_json(read(two((1e-3, 2e-3), rounds=1))), allow_nan=False)
