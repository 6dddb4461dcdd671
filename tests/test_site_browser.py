"""The site in a real browser: each page on a phone, by keyboard and in the dark, its filters, a large run."""

from __future__ import annotations

import html
import json
import re
import subprocess

import example_run as example
import pytest
import site_runs
from test_report_browser import FLAGS, Visit, browser  # noqa: F401 - a fixture
from test_site import home, made  # noqa: F401 - fixtures

from shim.report import shown, site

LOCAL = ("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--virtual-time-budget=60000")
DARK = "--blink-settings=preferredColorScheme=0"
#: opens pages in a frame as wide as a phone, one after the other, and keeps what ``look(window, document)`` returns
HARNESS = """<!doctype html><meta charset="utf-8">
<iframe width="%(width)d" height="740" style="border: 0"></iframe>
<script>
const frame = document.querySelector("iframe");
const look = (window, document) => { %(look)s };
(async () => {
  const seen = {};
  for (const page of %(pages)s) {
    await new Promise((done) => { frame.onload = done; frame.src = page; });
    seen[page] = look(frame.contentWindow, frame.contentDocument);
  }
  document.documentElement.dataset.seen = JSON.stringify(seen);
})();
</script>"""


@pytest.fixture(scope="module")
def look(browser):  # noqa: F811
    """Open pages of a site one by one, and return what a script sees on each; there must be no word on the console."""

    def look(folder, pages, script, *flags, width=360):
        path = folder / "harness.html"
        path.write_text(HARNESS % {"width": width, "look": script, "pages": json.dumps(pages)}, "utf-8")
        try:
            with site_runs.served(folder) as address:
                found = Visit(browser, site_runs.Address(f"{address}harness.html"), *LOCAL, *flags)
        finally:
            path.unlink()
        assert found.console == []
        assert {url for url in found.requests if not url.startswith(address)} == set()
        return json.loads(html.unescape(re.search(r'<html[^>]* data-seen="([^"]*)"', found.document)[1]))

    return look


def all_pages(folder):
    """Return the pages of a site, and of the samples of each run the first."""
    top = sorted(path.name for path in folder.glob("*.html"))
    return top + [f"samples/{name[:-5]}-1.html" for name in top if (folder / f"samples/{name[:-5]}-1.html").exists()]


SEEN = """
  const tables = [...document.querySelectorAll("table")];
  const controls = [...document.querySelectorAll("input, select, button, summary, a")];
  const first = [...document.querySelectorAll("a, button, input, select, summary, [tabindex]")][0];
  first.focus();
  const visible = first.getBoundingClientRect();
  const outlined = controls.filter((c) => c.checkVisibility() && c.tagName !== "INPUT").slice(0, 12).map((c) => {
    c.focus({ focusVisible: true });
    return window.getComputedStyle(c).outlineStyle;
  });
  return {
    inner: window.innerWidth,
    scroll: document.documentElement.scrollWidth,
    headings: [...document.querySelectorAll("h1, h2, h3, h4")].map((h) => Number(h.tagName[1])),
    landmarks: ["nav", "header", "main", "footer"].map((name) => document.querySelectorAll(name).length),
    skip: first.className + visible.left,
    bare: tables.filter((t) => !t.caption || [...t.tHead.rows[0].cells].some((c) => c.innerText && !c.scope)).length,
    unscrolled: tables.filter((t) => !t.closest(".scroll[tabindex='0'][role=region][aria-label]")).length,
    nameless: controls.filter((c) => !(c.ariaLabel || c.textContent.trim() || c.closest("label"))).length,
    current: document.querySelectorAll("nav.site [aria-current]").length,
    outlined: [...new Set(outlined)].join(),
  };"""


def test_every_page_fits_a_phone_and_serves_keyboard_and_screen_reader(look, made):  # noqa: F811
    pages = all_pages(made)
    assert len(pages) >= 12
    for name, seen in look(made, pages, SEEN).items():
        assert seen["scroll"] <= seen["inner"] == 360, name
        assert seen["headings"].count(1) == 1, name
        assert all(b - a <= 1 for a, b in zip([0, *seen["headings"]], seen["headings"], strict=False)), name
        assert seen["landmarks"][0] >= 1, name
        assert seen["landmarks"][1:] == [1, 1, 1], name
        assert seen["skip"] == "skip16", name
        assert (seen["bare"], seen["unscrolled"], seen["nameless"]) == (0, 0, 0), name
        assert seen["current"] >= 1, name
        assert seen["outlined"] == "solid", name


def test_pages_follow_a_dark_scheme(look, made):  # noqa: F811
    colours = "const style = window.getComputedStyle(document.body); return [style.backgroundColor, style.color];"
    pages = [name for name in all_pages(made) if "/" not in name]
    light, dark = look(made, pages, colours), look(made, pages, colours, DARK)
    for name in pages:
        (light_paper, light_ink), (dark_paper, dark_ink) = (
            [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in found[name]] for found in (light, dark)
        )
        assert light_paper - light_ink > 500, name
        assert dark_ink - dark_paper > 500, name


FILTERED = """
  const form = document.getElementById("filter");
  const set = (name, value) => { form.elements.namedItem(name).value = value; };
  const seen = () => {
    form.dispatchEvent(new window.Event("input"));
    const rows = [...document.querySelectorAll(".glance tbody tr")].filter((row) => row.checkVisibility());
    const heads = [...document.querySelectorAll(".glance thead th")].filter((cell) => cell.checkVisibility());
    const groups = [...document.querySelectorAll("section.group")].filter((group) => group.checkVisibility());
    return [rows.length, heads.length, groups.length, document.getElementById("filter-result").textContent];
  };
  const found = [seen()];
  set("op", "dense"); found.push(seen());
  set("direction", "forward"); found.push(seen());
  form.querySelector("input[value=torch]").checked = false; found.push(seen());
  set("case", "no such case"); found.push(seen());
  form.reset();
  const column = [...document.querySelectorAll(".glance thead th")].findIndex((c) => c.innerText.includes("numpy"));
  const head = () => document.querySelectorAll(".glance thead th")[column];
  const cells = () => [...document.querySelectorAll(".glance tbody tr")].map((row) => row.cells[column]);
  const values = () => cells().map((cell) => Number(cell.dataset.value));
  head().querySelector("button").click(); found.push([head().ariaSort, ...values()]);
  head().querySelector("button").click(); found.push([head().ariaSort, ...values()]);
  return found;"""


def test_ratios_are_filtered_by_op_direction_and_backend_and_sorted(look, made):  # noqa: F811
    whole, dense, forward, without, nothing, up, down = look(made, ["ratios.html"], FILTERED)["ratios.html"]
    assert whole == [4, 6, 2, "4 cases shown"]
    assert dense == [2, 6, 1, "2 cases shown"]
    assert forward == [1, 6, 1, "1 case shown"]
    assert without == [1, 5, 1, "1 case shown"]
    assert nothing[2:] == [0, "0 cases shown"]
    assert (up[0], down[0]) == ("ascending", "descending")
    assert up[1:] == sorted(up[1:]) == down[:0:-1]


def test_hostile_text_does_nothing(look, tmp_path):
    runs = [
        shown.show(example.write(tmp_path / name, example.hostile(training)))
        for name, training in (("<script>1.jsonl", False), ('"><img src=x onerror=pwned=1>.jsonl', True))
    ]
    made = site.write(tmp_path / "site", runs, problems=[example.HOSTILE]).parent  # noqa: F811
    script = """return [window.pwned ?? null, document.querySelectorAll("b, img").length, document.scripts.length,
      document.body.textContent.includes("<script>window.pwned"), document.documentElement.scrollWidth]"""
    seen = look(made, all_pages(made), script)
    assert len(seen) >= 5
    for name, (pwned, elements, scripts, shown_as_text, width) in seen.items():
        assert (pwned, elements, shown_as_text) == (None, 0, True), name
        assert scripts <= 1, name
        assert width <= 360, name


def test_opened_as_files_the_pages_ask_for_nothing(browser, made):  # noqa: F811
    for name in ("index.html", "maps.html"):
        found = Visit(browser, made / name)
        assert (found.console, found.requests) == ([], set())


def in_real_time(browser, path, folder):  # noqa: F811
    """Return the document after it was loaded on the clock, not on the virtual time of the other tests."""
    flags = [flag for flag in FLAGS if "budget" not in flag]
    command = [browser, *flags, f"--user-data-dir={folder}/user", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout.decode()


def test_a_run_of_many_samples_makes_pages_of_common_size(browser, tmp_path):  # noqa: F811
    run = shown.show(example.write(tmp_path / "large.jsonl", list(site_runs.large())))
    assert sum(len(block["seconds"]) for block in run.summary.run.blocks) == 100_000
    made = site.write(tmp_path / "site", [run]).parent  # noqa: F811
    for name in ("index.html", "ratios.html", "samples/ratios-1.html"):
        text = (made / name).read_text("utf-8")
        assert len(text) < 600_000
        (made / name).write_text(
            re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
            + """<script>addEventListener("load", () => {
              document.documentElement.dataset.seen = [performance.now(), document.body.offsetHeight]
            })</script>""",
            "utf-8",
        )
        seen = re.search(r'data-seen="([\d.]+),(\d+)"', in_real_time(browser, made / name, tmp_path))
        print(f"{name}: {len(text) / 1e3:.0f} kB, laid out {float(seen[1]):.0f} ms after the navigation began")
        assert int(seen[2]) > 1000
