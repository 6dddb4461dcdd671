"""The report in a real browser: it renders, loads nothing, runs nothing that the run file brought along, fits a phone.

Needs Chromium; without one the tests are skipped, in continuous integration they fail.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import example_run as example
import pytest

from shim.measure import runfile
from shim.report import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.environ.get("CI"):
        pytest.fail("no Chromium on PATH, and CI is set; install one, such as: apt-get install chromium")
    if found is None:
        pytest.skip("no Chromium on PATH; install one, such as: apt-get install chromium")
    return found


class Visit:
    """What a browser did with a page: the document afterwards, what its console said, what it asked the network for."""

    def __init__(self, browser: str, path: Path, *flags: str) -> None:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            log = Path(folder) / "net.json"
            own = (f"--user-data-dir={folder}/user", f"--log-net-log={log}", "--dump-dom", path.as_uri())
            done = subprocess.run([browser, *FLAGS, *flags, *own], capture_output=True, timeout=90, check=True)
            self.document = done.stdout.decode()
            self.console = re.findall(r"CONSOLE.*", done.stderr.decode(errors="replace"))
            events = json.loads(log.read_text())["events"]
        asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
        # what the browser wants for itself has no origin
        self.requests = {request["url"] for request in asked if request["initiator"] != "not an origin"}


@pytest.fixture
def visit(browser, tmp_path):
    """Render records, let a script look at the page where one is given, and visit it."""

    def visit(records, *flags, script=None):
        path = page.write(runfile.read(example.write(tmp_path / "run.jsonl", list(records))), tmp_path / "run.html")
        if script:
            text = POLICY.sub("", path.read_text(encoding="utf-8"))
            path.write_text(text + f"<script>document.documentElement.dataset.seen = {script}</script>", "utf-8")
        found = Visit(browser, path, *flags)
        if script:
            found.seen = re.search(r'<html[^>]* data-seen="([^"]*)"', found.document)[1]
        return found

    return visit


def test_the_page_renders_its_rows_quietly_and_loads_nothing(visit):
    found = visit(example.records())
    rows = re.findall(r'<tr data-contestant="([^"]*)"', found.document)
    assert rows.count("torch") == 2 * len(example.CASES)  # results, and what comes before the first result
    assert found.document.count('<svg viewBox="0 0 302') == 4
    assert 'id="filter" aria-label' in found.document  # the script has run and shown its form
    assert found.console == []
    assert found.requests == set()


def test_the_checks_can_fail(browser, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text('<img src="http://shim.invalid/x.png"><script>console.error("heard"); nothing()</script>', "utf-8")
    found = Visit(browser, path)
    assert "http://shim.invalid/x.png" in found.requests
    assert any("heard" in line for line in found.console)
    assert any("nothing is not defined" in line for line in found.console)


def test_the_policy_stops_scripts_and_pictures_that_should_ever_get_in(visit, browser, tmp_path):
    visit(example.epochs())
    path = tmp_path / "run.html"
    bad = '<img src="http://shim.invalid/x.png" onerror="document.title = 1"><script>document.title = 2</script></main>'
    path.write_text(path.read_text(encoding="utf-8").replace("</main>", bad), "utf-8")
    found = Visit(browser, path)
    assert found.requests == set()
    assert "<title>Training mnist_mlp" in found.document
    assert len(found.console) >= 2


def test_hostile_text_appears_as_text_and_does_nothing(visit):
    looked = """JSON.stringify([
      window.pwned ?? null,
      document.scripts.length,
      document.querySelectorAll("b").length,
      ["h2", "td", "th", "dd", "svg text", "svg desc"].filter((kind) =>
        [...document.querySelectorAll(kind)].some((element) => element.textContent.includes("</title><\\/script>"))),
    ])"""
    found = visit(example.hostile(), script=looked)
    own_and_looking = 2
    kinds = ["h2", "td", "th", "dd", "svg text", "svg desc"]
    assert json.loads(html.unescape(found.seen)) == [None, own_and_looking, 0, kinds]
    assert visit(example.hostile()).console == []


def test_the_page_is_complete_without_scripts(visit, browser, tmp_path):
    visit(example.records())
    path = tmp_path / "run.html"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"<script>.*</script>", "", text, flags=re.DOTALL), "utf-8")
    document = Visit(browser, path).document
    assert 'id="filter" hidden' in document
    assert document.count("x faster") > 3


@pytest.mark.parametrize("records", [example.records, example.epochs, example.hostile])
def test_a_phone_shows_the_page_without_scrolling_sideways(visit, browser, tmp_path, records):
    # a window is never as narrow as a phone, a frame is
    send = "parent.postMessage([innerWidth, document.documentElement.scrollWidth].join(), '*')"
    visit(records(), script=f"({send}, 1)")
    path = tmp_path / "phone.html"
    keep = "document.documentElement.dataset.seen = event.data"
    path.write_text(f"""<script>addEventListener("message", (event) => {{ {keep} }})</script>
        <iframe src="run.html" width="390" height="844" style="border: 0"></iframe>""")
    inner, scroll = re.search(r'data-seen="(\d+),(\d+)"', Visit(browser, path).document).groups()
    assert int(scroll) <= int(inner) == 390


def test_dark_and_light_follow_the_reader(visit):
    looked = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
    )
    light = visit(example.records(), script=f"{looked}.join(';')").seen.split(";")
    dark = visit(example.records(), "--blink-settings=preferredColorScheme=0", script=f"{looked}.join(';')").seen.split(
        ";"
    )
    brightness = [[sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in pair] for pair in (light, dark)]
    (light_paper, light_text), (dark_paper, dark_text) = brightness
    assert light_paper - light_text > 500
    assert dark_text - dark_paper > 500


def test_the_filter_leaves_the_cases_and_contestants_asked_for(visit):
    looked = """(() => {
      const form = document.getElementById("filter");
      form.elements.namedItem("case").value = "BILSTM backward";
      form.querySelector("input[value=torch]").checked = false;
      form.dispatchEvent(new Event("input"));
      const rows = [...document.querySelectorAll("section.group tr[data-contestant]")];
      const shown = rows.filter((row) => row.checkVisibility());
      const names = shown.map((row) => row.dataset.contestant).sort().join();
      return names + ";" + document.getElementById("filter-result").textContent;
    })()"""
    assert visit(example.records(), script=looked).seen == "jax,numpy,tensorflow,tensorflow:xla;1 case shown"
