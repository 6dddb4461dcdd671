"""The pages that the plugins add to the site of ``asv publish``; test_asv_site.py opens them in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import asv
import numpy as np
import pytest
from asv import util

from shim.report import colours
from tools import asv_colours, asv_comparison, asv_offline

INDEX = (Path(asv.__file__).parent / "www" / "index.html").read_text(encoding="utf-8")


def test_the_index_loads_nothing_from_elsewhere():
    page = asv_offline.localise(INDEX)
    assert not asv_offline._LOADED.findall(page)
    assert "integrity" not in page
    copied = re.findall(r'"vendor/([^"]+)"', page)
    assert sorted(copied) == sorted(asv_offline.COPIES.values())
    assert all((asv_offline.VENDOR / name).is_file() for name in copied)


def test_a_file_without_a_copy_is_an_error():
    with pytest.raises(util.UserError, match=r"no copy of https://cdn\.example/new\.js"):
        asv_offline.localise('<script src="https://cdn.example/new.js"></script>')


def test_the_copies_are_what_they_claim_to_be():
    sums = (asv_offline.VENDOR / "SHA256SUMS").read_text().splitlines()
    assert {line.split()[1] for line in sums} == set(asv_offline.COPIES.values())
    for line in sums:
        digest, name = line.split()
        assert hashlib.sha256((asv_offline.VENDOR / name).read_bytes()).hexdigest() == digest
    listed = re.findall(r"^\| `([^`]+)` .* the same bytes \|$", (asv_offline.VENDOR / "README.md").read_text(), re.M)
    same = {name for name in asv_offline.COPIES.values() if any(sri(name, algorithm) in INDEX for algorithm in SRI)}
    assert set(listed) == same
    assert len(same) == 5


SRI = ("sha256", "sha512")


def sri(name, algorithm):
    digest = hashlib.new(algorithm, (asv_offline.VENDOR / name).read_bytes()).digest()
    return f"{algorithm}-{base64.b64encode(digest).decode()}"


def point(values, revision=1, commit="a" * 40):
    return asv_comparison.Point(commit, revision, float(np.median(values)), tuple(values))


def test_a_ratio_has_an_interval_from_the_samples():
    rng = np.random.default_rng(1)
    slow, fast = point(2 * rng.normal(1, 0.02, 30)), point(rng.normal(1, 0.02, 30))
    found = asv_comparison.ratio(slow, fast)
    assert found.low < found.value < found.high
    assert (round(found.value, 1), found.verdict) == (2.0, "slower")
    assert found.high / found.low < 1.1
    assert asv_comparison.ratio(fast, slow).verdict == "faster"
    assert asv_comparison.ratio(fast, fast).verdict == "tie"


def test_a_ratio_of_few_samples_claims_nothing():
    found = asv_comparison.ratio(point([2.0, 2.0]), point([1.0] * 20))
    assert (found.value, found.verdict, math.isnan(found.low)) == (2.0, "unknown", True)


HOSTILE = "<script>alert('x')</script>"
PARAMS = [["'tensorflow'", "'torch'", "'numpy'"], ["'dense'", repr(HOSTILE)]]
BENCHMARK = {"name": "b.f", "unit": "seconds", "param_names": ["backend", "case"], "params": PARAMS}


def collect(monkeypatch, *results):
    monkeypatch.setattr(asv_comparison, "iter_results", lambda folder: results)
    return asv_comparison.collect("nowhere", {"b.f": BENCHMARK}, {"a" * 40: 1, "b" * 40: 2})


def result(commit, values, machine="m"):
    samples = [None if value is None else [value] * 9 for value in values]
    return SimpleNamespace(
        commit_hash=commit * 40,
        params={"machine": machine},
        get_result_keys=lambda benchmarks: {"b.f"},
        get_result_value=lambda name, params: values,
        get_result_samples=lambda name, params: samples,
    )


def test_a_row_shows_its_newest_commit_only(monkeypatch):
    old = result("a", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    new = result("b", [1.5, None, 3.0, None, math.nan, None])
    unknown = result("c", [9.0] * 6)
    (machine,) = collect(monkeypatch, new, old, unknown)
    assert (machine.commit, machine.backends, machine.baseline) == (
        "b" * 40,
        ["tensorflow", "torch", "numpy"],
        "torch",
    )
    second, first = sorted(machine.groups[0].rows, key=lambda row: row.commit)
    assert {name: point.value for name, point in first.points.items()} == {"tensorflow": 1.5, "torch": 3.0}
    assert first.ratios["tensorflow"].value == 0.5
    assert {name: point.value for name, point in second.points.items()} == {
        "tensorflow": 2.0,
        "torch": 4.0,
        "numpy": 6.0,
    }


def test_everything_on_the_page_is_escaped(monkeypatch):
    machines = collect(monkeypatch, result("a", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], machine=HOSTILE))
    page = asv_comparison.render(HOSTILE, machines)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3  # project, machine, case
    assert 'href="index.html#b.f?p-case=%27dense%27"' in page


def test_the_colours_of_asvs_plots_are_those_of_the_report():
    script = asv_colours.script(["numpy", "keras-jax", HOSTILE])
    (found,) = re.findall(r"colours = (\{.*?\}),", script)
    assert {name: json.loads(found)[name] for name in ("numpy", "keras-jax")} == {
        "numpy": colours.BACKENDS["numpy"][0],
        "keras-jax": colours.BACKENDS["jax"][0],
    }
    assert script.count("<script") == script.count("</script") == 1


def test_a_page_without_results_says_how_to_get_some():
    assert "asv run --record-samples" in asv_comparison.render("shim", [])


def test_a_damaged_note_of_versions_costs_one_version(tmp_path):
    path = tmp_path / "targets.jsonl"
    assert asv_comparison.read_versions(path) == {}
    path.write_text('{"commit": "a", "target": "numpy", "version": "2.4.6"}\n[]\n{"commit": "a", "tar')
    assert asv_comparison.read_versions(path) == {("a", "numpy"): "2.4.6"}
