"""The page: whole, accessible, loads nothing, shows hostile text as text; plots put dots where the values are."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import example_run as example
import matplotlib
import pytest

from shim.measure import runfile
from shim.report import colours, page, plots

SHOWN = example.HOSTILE.replace("\x1b", "\N{REPLACEMENT CHARACTER}")


@pytest.fixture
def read(tmp_path):
    def read(records):
        return runfile.read(example.write(tmp_path / "run.jsonl", list(records)))

    return read


class Page(HTMLParser):
    """What a page consists of: its elements with attributes, its text, and the text of each element kind."""

    VOID = ("meta", "link", "input", "br", "img", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self):
        return "".join(data for tag, data in self.texts if tag not in ("style", "script"))


RUNS = {
    "complete": lambda: example.records(),
    "training": lambda: example.epochs(),
    "unfinished": lambda: list(example.records())[:40],
    "empty": lambda: [example.header()],
    "no targets": lambda: [example.header((), ())],
    "bare": lambda: [{"record": "run", "schema": 1, "config": {}}],
    "one round": lambda: example.records(rounds=1),
    "failed": lambda: [example.header(), example.failure("torch", "eager", example.CASES[0], "a\nb")],
    "hostile": lambda: example.hostile(),
    "hostile training": lambda: example.hostile(training=True),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_page_is_whole_accessible_and_loads_nothing(read, kind):
    assert_whole(page.render(read(RUNS[kind]())), scripts=1)


def assert_whole(text, scripts, alone=True):
    """Check a page; one that does not stand alone may link to others, but not load them."""
    found = Page(text)
    ids = Counter(attributes["id"] for _, attributes in found.elements if "id" in attributes)
    assert not [name for name, times in ids.items() if times > 1]
    for tag, attributes in found.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(key, next(iter(ids))) in ids
        for key in ("src", "href", "xlink:href", "srcset", "action", "data"):
            if alone or (tag, key) != ("a", "href"):
                assert (attributes.get(key) or "#").startswith(("#", "data:,")), attributes
    assert len(found.all("caption")) == len(found.all("table"))
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for attributes in found.all("th"))
    for svg in found.all("svg"):
        assert svg.get("role") == "img" or svg.get("aria-hidden") == "true"
    pictures = [svg for svg in found.all("svg") if svg.get("role") == "img"]
    assert len(found.all("desc")) == len(pictures) == len(found.all("title")) - 1
    assert len(found.all("script")) == scripts
    assert not re.search(r"@import|url\((?!#)|https?://", text)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in found.all("meta")


def test_the_page_says_what_the_table_says(read):
    text = " ".join(Page(page.render(read(example.records()))).text().split())
    for expected in (
        "Of 4 cases, torch is fastest in 4.",
        "Example CPU @ 2.00 GHz",
        "x faster",
        "oneDNN LSTM",
        "0.043",
        "shim bench --set article --model mnist_mlp",
        "run.jsonl",
        "0123abc",
        "OMP_NUM_THREADS",
        "1 January 2026, 12:00 UTC",
        "All 400 samples",
    ):
        assert expected in text
    assert "unfinished" not in text


def test_failures_and_unfinished_runs_stand_above_everything_else(read):
    text = page.render(read(RUNS["failed"]()))
    assert text.index("Read this first") < text.index("Overview</h2>")
    assert "This run is unfinished." in text
    assert "failed: a" in text
    assert "<pre>a\nb</pre>" in text


def test_training_has_plots_and_the_last_epochs_numbers(read):
    found = Page(page.render(read(example.epochs(targets=example.TARGETS[:2]))))
    text = " ".join(found.text().split())
    assert len([svg for svg in found.all("svg") if svg.get("role") == "img"]) == 3
    for expected in ("Training mnist_mlp", "97.00 %", "96.90 %", "from 96.90 % to 97.00 %", "2.00 s", "5.00 s"):
        assert expected in text


@pytest.mark.parametrize("training", [False, True])
def test_hostile_text_is_shown_as_text_everywhere(read, training):
    found = Page(page.render(read(example.hostile(training))))
    assert "pwned" not in "".join(data for tag, data in found.texts if tag in ("script", "style"))
    assert not found.all("b")
    shown = [tag for tag, data in found.texts if SHOWN[:20] in data]
    assert {"h1" if training else "h2", "text", "title", "desc", "th", "dd", "code"} <= set(shown)
    assert not any(key.startswith("on") for _, attributes in found.elements for key in attributes)
    assert "49" not in {data.strip() for _, data in found.texts}  # no template inside the text


def test_a_cut_label_in_a_plot_still_shows_dollar_signs_as_they_are():
    strips = [plots.Strip("$x^2$ & <b>", [plots.Dot("$a_1$", 1e-3, 0.9e-3, 1.1e-3)])]
    svg = plots.times(strips, colours.styles(["$a_1$"]), "t", "i")
    assert ">$x^2$ &amp; &lt;b&gt;<" in svg
    assert ">$a_1$<" in svg


# ------------------------------------------------------------------------------------------------------------ plots


def positions(svg):
    """Return where the markers of a plot lie from left to right, by its contestants in order of drawing."""
    return [float(x) for x in re.findall(r'<use href="#[^"]*" x="([\d.]+)"[^>]*fill: #', svg)]


def test_dots_lie_where_their_values_are():
    values = [1e-3, 2e-3, 4e-3]
    names = ["torch", "jax", "numpy"]
    dots = [plots.Dot(name, v, v / 1.1, v * 1.1) for name, v in zip(names, values, strict=True)]
    svg = plots.times([plots.Strip("a case", dots)], colours.styles(names), "title", "i")
    x = positions(svg)
    assert len(x) == 3
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.01)  # equal factors are equal steps
    assert x[1] > x[0]


def test_a_plot_takes_its_colours_from_the_page_and_keeps_text_as_text():
    dots = [plots.Dot("torch", 1.5, 1.4, 1.6), plots.Dot("tensorflow:xla", 0.5, 0.4, 0.6)]
    svg = plots.ratios([plots.Strip("a case", dots)], colours.styles(["torch", "tensorflow:xla"]), "jax", "t", "i")
    assert "currentColor" in svg
    assert "DejaVu" not in svg
    assert "#010203" not in svg
    assert "#030201" not in svg
    assert ">tensorflow:xla<" in svg
    assert colours.BACKENDS["torch"][0].lower() in svg.lower()
    assert "time / time of jax" in svg


def test_plots_leave_matplotlib_as_they_found_it(read):
    before = dict(matplotlib.rcParams)
    page.render(read(example.records()))
    assert dict(matplotlib.rcParams) == before


# -------------------------------------------------------------------------------------------------------------- size


def test_a_hundred_thousand_samples_take_less_than_two_seconds(read):
    cases = [f"dense/forward/N{n}-I7-O3/float32" for n in range(1, 21)]
    seconds = [(1e-3, 1.1e-3, 1.01e-3, 2e-3, 0.5e-3)] * len(cases)
    run = read(example.records(cases=cases, seconds=seconds, rounds=10, sweeps=20, samples=5))
    assert sum(len(block["seconds"]) for block in run.blocks) == 100_000
    start = time.process_time()
    text = page.render(run)
    assert time.process_time() - start < 2
    assert "too many to repeat here" in text
    assert len(text) < 3_000_000


# --------------------------------------------------------------------------------------------------- documentation


DOCUMENTATION = Path(__file__).parent.parent / "docs" / "run-file.md"


def documented(language):
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENTATION.read_text(encoding="utf-8"), re.DOTALL)


def test_the_documented_records_make_a_run_file(read):
    records = [json.loads(block) for block in documented("json")]
    kinds = [record["record"] for record in records]
    headings = re.findall(r"^### (.*)$", DOCUMENTATION.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(kinds) == {kind for heading in headings for kind in re.findall(r"`(\w+)`", heading)}
    run = read(records)
    assert run.complete
    assert len(run.blocks) == len(run.builds) == len(run.workers) == len(run.failures) == len(run.epochs) == 1
    assert records[kinds.index("failure")]["reason"] in page.render(run)


def test_the_documented_program_reads_a_run_file(read, tmp_path, monkeypatch, capsys):
    read(example.records())
    monkeypatch.chdir(tmp_path)
    (program,) = documented("python")
    exec(program, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(example.CASES) * len(example.TARGETS)
    assert re.fullmatch(r"dense/forward/N128\S* numpy eager 0\.000\d+ s, 20 samples", lines[0])
