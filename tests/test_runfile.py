"""A run file keeps what was written, through kills, full disks and damage, and says plainly what is wrong."""

from __future__ import annotations

import json
import math
import multiprocessing
import resource
from pathlib import Path

import example_run
import numpy as np
import pytest

from shim.measure import runfile

HEADER = {"record": "run", "schema": 1, "config": {"rounds": 2}}


def block(round=0, sweep=0, **changes):
    return example_run.block("numpy", "eager", "dense/forward/N2-I3-O4/float32", round, sweep, [1e-3]) | changes


def write(path, records, tail=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "run.jsonl"


def test_what_is_written_is_read(path):
    records = [
        HEADER,
        {"record": "worker", "target": "numpy"},
        block(),
        block(sweep=1),
        {"record": "end", "reason": "x"},
    ]
    with runfile.Writer(path) as writer:
        for record in records:
            writer.write(record)
            assert path.read_text().endswith(json.dumps(record, ensure_ascii=False) + "\n")  # at once
    run = runfile.read(path)
    assert run.header == HEADER
    assert (run.workers, run.blocks, run.end) == (records[1:2], records[2:4], records[4])
    assert not run.complete


def test_values_become_plain_json(path):
    with runfile.Writer(path) as writer:
        writer.write(
            HEADER
            | {"floats": [math.nan, math.inf, -math.inf, np.float32(0.5), np.float64("nan")], "array": np.arange(3)}
            | {"int": np.int64(7), "path": Path("a/b"), "pair": (1, None), "text": "µs", 5: True}
        )
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    header = runfile.read(path).header
    assert header["floats"] == [None, None, None, 0.5, None]
    assert (header["array"], header["int"], header["path"]) == ([0, 1, 2], 7, "a/b")
    assert (header["pair"], header["text"], header["5"]) == ([1, None], "µs", True)


STATE = {"calls": 9, "kernel_seconds": [1e-6, 2e-6], "span_seconds": [3e-6, 3e-6], "kernels": 2.5, "longest": []}
DEVICE = {key: block()[key] for key in ("round", "target", "mode", "case")} | {"record": "device", "hot": STATE}


def test_times_on_the_device_and_warnings_are_read_with_their_round(path):
    warning = {"record": "warning", "round": 0, "target": "numpy", "stage": "device", "reason": "x"}
    with runfile.Writer(path) as writer:
        for record in (HEADER, DEVICE | {"cold": STATE}, warning):
            writer.write(record)
    run = runfile.read(path)
    assert (run.devices, run.warnings) == ([DEVICE | {"cold": STATE}], [warning])
    with runfile.Writer(path) as writer:
        writer.write({"record": "round", "round": 0})  # it is played again
    run = runfile.read(path)
    assert (run.devices, run.warnings) == ([], [])


@pytest.mark.parametrize(
    ("cold", "problem"),
    [
        (None, "'cold' of its 'device' record is null"),
        ({}, "'kernel_seconds' of its 'device' record holds something else than durations"),
        (STATE | {"kernel_seconds": []}, "'kernel_seconds' of its 'device' record holds something else"),
        (STATE | {"span_seconds": [1e-6, "x"]}, "'span_seconds' of its 'device' record holds something else"),
        (STATE | {"span_seconds": [-1e-6]}, "'span_seconds' of its 'device' record holds something else"),
        (STATE | {"kernels": None}, "its 'device' record has no number of kernels"),
    ],
)
def test_times_on_the_device_that_are_none_are_damage(tmp_path, cold, problem):
    path = write(tmp_path / "run.jsonl", [HEADER, DEVICE | {"cold": cold}, block()])
    with pytest.raises(ValueError, match=problem):
        runfile.read(path)


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_a_half_written_last_line_is_left_out_and_cut_off(tmp_path, cut):
    path = write(tmp_path / "run.jsonl", [HEADER, block()], json.dumps(block(sweep=1))[:cut])
    assert len(runfile.read(path).blocks) == 1
    with runfile.Writer(path) as writer:
        assert writer.records == 2
        writer.write(block(sweep=2))
    assert [record["sweep"] for record in runfile.read(path).blocks] == [0, 2]


def test_a_last_line_without_its_end_is_kept(tmp_path):
    path = write(tmp_path / "run.jsonl", [HEADER], json.dumps(block()))
    with runfile.Writer(path) as writer:
        writer.write(block(sweep=1))
    assert [record["sweep"] for record in runfile.read(path).blocks] == [0, 1]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"record": "block", "round": 0', "Expecting ',' delimiter"),
        ("[1, 2]", "it is not a JSON object"),
        ('{"record": "end", "wall_seconds": NaN}', "NaN is not a JSON value"),
        (json.dumps(block(seconds=["fast"])), "something else than durations"),
        (json.dumps(block(round="first")), "'round' of its 'block' record is \"first\""),
        ('{"record": "block"}', "its 'block' record has no 'round'"),
        ("\0\0\0\0", "Expecting value"),
    ],
)
def test_damage_names_the_file_and_the_line(tmp_path, line, problem):
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join([json.dumps(HEADER), json.dumps(block()), line, json.dumps(block()), ""]))
    with pytest.raises(ValueError, match=r"run\.jsonl is damaged in line 3: ") as caught:
        runfile.read(path)
    assert problem in str(caught.value)


def test_bytes_that_are_no_text_are_damage(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_bytes(json.dumps(HEADER).encode() + b"\n\xff\xfe\n")
    with pytest.raises(ValueError, match="damaged in line 2"):
        runfile.read(path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no run: it is empty"),
        (json.dumps(block()) + "\n", "is not a run file: its first line is no run record"),
        (json.dumps(HEADER | {"schema": 2}) + "\n", "is written in schema 2, this version of shim reads schema 1"),
    ],
)
def test_other_files_are_refused(tmp_path, text, problem):
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=problem):
        runfile.read(path)


def test_unknown_kinds_and_blank_lines_are_passed_over(tmp_path):
    path = write(tmp_path / "run.jsonl", [HEADER, {"record": "moon"}], "\n" + json.dumps(block()) + "\n")
    assert len(runfile.read(path).blocks) == 1


def test_a_round_that_was_started_again_counts_once(tmp_path):
    start, end = {"record": "round", "round": 1}, {"record": "end", "reason": "interrupted"}
    first = [block(0), start, block(1), block(1, 1), {"record": "failure", "round": 1, "target": "x", "reason": "y"}]
    path = write(tmp_path / "run.jsonl", [HEADER, *first, end, start, block(1, 5)])
    run = runfile.read(path)
    assert [(record["round"], record["sweep"]) for record in run.blocks] == [(0, 0), (1, 5)]
    assert run.failures == []
    assert run.end is None  # it goes on


def test_one_process_writes_at_a_time(path):
    with runfile.Writer(path), pytest.raises(runfile.RunFileError, match="another process is writing to it"):
        runfile.Writer(path)
    runfile.Writer(path).close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(runfile.RunFileError, match=r"cannot open .*file/run\.jsonl for writing"):
        runfile.Writer(tmp_path / "file" / "run.jsonl")


def test_a_full_disk_is_reported():
    writer = runfile.Writer("/dev/full")
    with pytest.raises(runfile.RunFileError, match="No space left on device; the 0 records before this one are safe"):
        writer.write(HEADER)
    writer.close()


def _fill(path, limit, results):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    writer = runfile.Writer(path)
    writer.write(HEADER)
    try:
        while True:
            writer.write(block())
    except runfile.RunFileError as error:
        results.put((str(error), writer.records))


def test_a_record_that_does_not_fit_leaves_the_file_whole(tmp_path):
    path, results = tmp_path / "run.jsonl", multiprocessing.Queue()
    process = multiprocessing.Process(target=_fill, args=(path, 2000, results))
    process.start()
    message, records = results.get(timeout=20)
    process.join()
    assert "File too large" in message
    assert f"the {records} records before this one are safe" in message
    assert path.read_bytes().endswith(b"}\n")
    assert len(runfile.read(path).blocks) == records - 1 > 3
