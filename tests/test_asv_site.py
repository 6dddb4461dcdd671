"""asv for real: a scratch clone is measured with the small cases, published, and opened in a browser without network.

Takes about half a minute. Without Chromium the pages are not opened; in continuous integration that is a failure.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from site_runs import Address, served
from test_report_browser import BROWSERS, Visit

from benchmarks import common
from shim import environments
from shim.report import colours

ROOT = Path(__file__).parents[1]
SMALL = ("--bench", "dense/forward/N5-", "--bench", "Harness", "--bench", "timeraw_shim")
FLAGS = ("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--virtual-time-budget=8000")


def missing(what):
    """Skip for want of something; in continuous integration nothing may be wanting."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}, and CI is set")
    pytest.skip(what)


class Clone:
    """A repository with two commits of this working tree, and asv in it."""

    def __init__(self, path: Path) -> None:
        self.path = path / "clone"
        listed = subprocess.check_output(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, text=True)
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.path / name)
        (path / "home").mkdir()
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | {
            "HOME": str(path / "home"),  # where asv keeps what it knows of the machine
            "SHIM_HOME": str(environments.home()),
            "SHIM_BENCH_PROFILE": "fast",
        }
        self.call("git", "init", "--quiet")
        self.first = self.commit("first")

    def call(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.path, env=self.environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def asv(self, *arguments: str) -> str:
        return self.call(sys.executable, "-m", "asv", *arguments)

    def commit(self, message: str) -> str:
        author = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
        self.call("git", "add", "--all")
        self.call("git", *author, "commit", "--quiet", "--allow-empty", "--message", message)
        return self.call("git", "rev-parse", "HEAD").strip()


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone that has been measured at two commits and published."""
    if "numpy" not in environments.installed():
        missing("there is no environment for numpy; make one with: shim env numpy")
    found = Clone(tmp_path_factory.mktemp("asv"))
    found.asv("machine", "--yes")
    found.asv("run", "--record-samples", *SMALL)
    found.commit("second")
    found.asv("run", "--quick", "--bench", "numpy.*dense/forward/N5-")
    found.asv("publish")
    return found


@pytest.fixture(scope="module")
def visit(clone):
    """Open a page of the published site, with everything but this machine out of reach, and return its document."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        missing("no Chromium on PATH; install one, such as: apt-get install chromium")
    with served(clone.path / ".asv" / "html") as site:

        def visit(page):
            found = Visit(browser, Address(site + page), *FLAGS)
            assert found.console == []
            assert {request for request in found.requests if not request.startswith(site)} == set()
            return found.document

        yield visit


def test_the_suite_passes_asvs_own_check(clone):
    assert "No problems found" in clone.asv("check")


def test_every_backend_that_is_there_was_measured_and_its_samples_kept(clone):
    (path,) = (clone.path / ".asv/results").glob(f"*/{clone.first[:8]}-backends-py*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    results = {
        name: dict(zip(found["result_columns"], columns, strict=False)) for name, columns in found["results"].items()
    }
    dense = results["bench_ops.Dense.timeop_dense"]
    samples = dict(zip(itertools.product(*dense["params"]), dense["samples"], strict=False))
    measured = {backend.strip("'") for (backend, case), taken in samples.items() if taken and len(taken) >= 8}
    assert measured == set(environments.installed()) & set(common.TARGETS)
    assert {case for (_, case), taken in samples.items() if taken} == {
        "'dense/forward/N5-I7-O3-activation=relu/float32'"
    }
    assert all(1e-9 < seconds < 1e-4 for seconds in results["bench_overhead.Harness.timeop_null"]["result"])
    assert results["bench_import.Import.timeraw_shim"]["result"][0] < 0.05


def test_asv_shows_and_compares_commits(clone):
    assert "dense/forward/N5-I7-O3-activation=relu/float32" in clone.asv("show", clone.first)
    assert "timeop_dense('numpy', 'dense/forward/N5-" in clone.asv("compare", clone.first, "HEAD")


def test_the_grid_and_the_list_open_without_network(visit):
    grid = visit("index.html")
    assert grid.count('class="benchmark-container') + grid.count("benchmark-container") >= 10
    assert "training step" in grid
    listed = visit("index.html#summarylist")
    assert "('numpy', 'dense/forward/N5-I7-O3-activation=relu/float32')" in listed
    assert '<a href="backends.html">Backends</a>' in listed


def test_a_plot_opens_without_network(visit):
    plot = visit("index.html#bench_ops.Dense.timeop_dense")
    assert "flot-base" in plot  # the canvas that Flot draws on
    assert "backend-numpy" in plot
    legend = re.findall(r"border:5px solid (rgba?\([^)]*\)).*?backend-'?([a-z-]+)", plot)
    assert "numpy" in {backend for _, backend in legend}
    drawn = {backend: [int(n) for n in re.findall(r"\d+", colour)[:3]] for colour, backend in legend}
    assert drawn == {backend: list(bytes.fromhex(colours.BACKENDS[backend][0][1:])) for backend in drawn}


def test_the_backends_page_has_times_and_versions(visit):
    page = visit("backends.html")
    assert "dense/forward/N5-I7-O3-activation=relu/float32</a>" in page
    assert re.search(r"\d(\.\d+)? (ns|µs|ms)", page)
    assert "numpy 2." in page


def test_the_report_is_part_of_the_site_and_leads_back(visit):
    assert '<a href="shim/index.html">Report</a>' in visit("index.html")
    assert '<a href="../index.html">History</a>' in visit("shim/index.html")


def test_opened_as_a_file_the_site_says_what_to_do(clone, visit):
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    page = Visit(browser, clone.path / ".asv/html/index.html", *FLAGS).document
    assert "asv preview" in page.split('id="error-message"')[1][:200]
    assert "<h1>Backends beside each other</h1>" in Visit(browser, clone.path / ".asv/html/backends.html").document


def test_one_parameter_combination_is_profiled(clone):
    """The command of docs/profile.md; a name without parameters is not found."""
    case = "dense/forward/N5-I7-O3-activation=relu/float32"
    said = clone.asv("profile", rf"bench_ops.Dense.timeop_dense\('numpy', '{case}'\)")
    assert "cumtime" in said
    assert "(timeop_dense)" in said
    assert "_handwritten.py" in said
