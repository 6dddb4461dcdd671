"""asv for real: a scratch clone is measured with the small cases, published, and opened in a browser without network.

Takes about half a minute. Without Chromium the pages are not opened; in continuous integration that is a failure.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_report_browser import BROWSERS, FLAGS

from shim import environments

ROOT = Path(__file__).parents[1]
SMALL = ("--bench", "dense/forward/N5-", "--bench", "Harness", "--bench", "timeraw_shim")
OPENS_NOTHING_ELSE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


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
        self.commit("first")

    def call(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.path, env=self.environ, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def asv(self, *arguments: str) -> str:
        return self.call(sys.executable, "-m", "asv", *arguments)

    def commit(self, message: str) -> None:
        author = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
        self.call("git", "add", "--all")
        self.call("git", *author, "commit", "--quiet", "--allow-empty", "--message", message)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone that has been measured at two commits and published."""
    if "numpy" not in environments.installed():
        missing("there is no environment for numpy; make one with: shim env numpy")
    found = Clone(tmp_path_factory.mktemp("asv"))
    found.asv("machine", "--yes")
    found.asv("run", "--record-samples", *SMALL)
    found.commit("second")
    found.quick = found.asv("run", "--quick", *SMALL)
    found.asv("publish")
    return found


@pytest.fixture(scope="module")
def visit(clone):
    """Open a page of the published site; return its document. Fails where the console speaks or the network is used."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        missing("no Chromium on PATH; install one, such as: apt-get install chromium")
    handler = functools.partial(Quiet, directory=clone.path / ".asv" / "html")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield functools.partial(look, browser, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def look(browser, site, page):
    log = Path(os.environ.get("TMPDIR", "/tmp"))
    command = [browser, *FLAGS, OPENS_NOTHING_ELSE, "--virtual-time-budget=8000", "--dump-dom"]
    done = subprocess.run([*command, f"{site}/{page}"], capture_output=True, text=True, timeout=120, check=True)
    assert re.findall(r"CONSOLE.*", done.stderr) == []
    return done.stdout


def test_the_suite_passes_asvs_own_check(clone):
    assert "No problems found" in clone.asv("check")


def test_every_environment_that_is_there_was_measured(clone):
    (path,) = (clone.path / ".asv/results").glob("*/*-backends-py*.json")[:1]
    results = json.loads(path.read_text())
