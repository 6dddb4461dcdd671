"""The site: every kind of run has its pages, every link leads somewhere, every claim to its samples."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from urllib.parse import urldefrag

import example_run as example
import pytest
import site_runs
from click.testing import CliRunner
from test_report_page import SHOWN, Page, assert_whole

from shim import cli
from shim.explain import hypotheses, winmap
from shim.report import history, shown, site
from tools import asv_comparison, asv_site


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home of the tool with runs of every kind, where the map of dense is a small one."""
    folder = tmp_path_factory.mktemp("checkout") / ".shim"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIM_HOME", str(folder))
        patch.setitem(winmap.GRIDS, "dense", site_runs.GRID)
        site_runs.write_all(folder / "runs")
        yield folder


@pytest.fixture(scope="module")
def made(home):
    """The folder of the site of all runs."""
    found, problems = shown.newest(home / "runs")
    assert problems == []
    return site.write(home / "all", found).parent


def pages(folder):
    return {path.relative_to(folder).as_posix(): Page(path.read_text("utf-8")) for path in folder.rglob("*.html")}


def broken_links(folder, found):
    """Yield the links that lead nowhere."""
    for name, one in found.items():
        for link in one.all("a"):
            address, part = urldefrag(link["href"])
            target = (folder / name).parent.joinpath(address).resolve() if address else folder / name
            if not target.is_file():
                yield name, link["href"]
            elif part:
                other = found[target.relative_to(folder.resolve()).as_posix()] if address else one
                if part not in {attributes.get("id") for _, attributes in other.elements}:
                    yield name, link["href"]


def test_there_is_a_page_of_every_kind_and_of_the_samples_of_every_case(made):
    top = sorted(path.name for path in made.glob("*.html"))
    sections = ["index", "ratios", "maps", "why", "causes", "article", "training", "environment"]
    assert top == sorted(f"{name}.html" for name in [*sections, "ratios-2"])
    found = pages(made)
    assert [link["href"] for link in found["why.html"].all("a")[1:9]] == [f"{name}.html" for name in sections]
    assert len(list(made.glob("samples/maps-*.html"))) == 6
    assert len([name for name in found if name.startswith("samples/ratios")]) == len(example.CASES) + 1


def test_pages_are_whole_and_load_nothing(made):
    for path in made.rglob("*.html"):
        text = path.read_text("utf-8")
        assert_whole(text, scripts=text.count("<script>"), alone=False)


def test_no_link_is_broken(made):
    found = pages(made)
    assert list(broken_links(made, found)) == []
    assert sum(len(one.all("a")) for one in found.values()) > 300
    assert list(broken_links(made, {"index.html": Page('<a href="none.html">x</a><a href="#none">y</a>')})) == [
        ("index.html", "none.html"),
        ("index.html", "#none"),
    ]


@pytest.mark.parametrize("name", ["index.html", "ratios.html", "ratios-2.html"])
def test_every_ratio_leads_to_its_samples(made, name):
    (table,) = re.findall(r'<table class="glance".*?</table>', (made / name).read_text("utf-8"), re.DOTALL)
    cells = re.findall(r'<td class="n" .*?</td>', table)
    assert len(cells) >= 2
    assert all('<a href="samples/ratios' in cell for cell in cells)


def test_every_row_that_a_cause_rests_on_leads_to_its_samples(made):
    links = [link["href"] for link in pages(made)["causes.html"].all("a") if link["href"].startswith("samples/")]
    assert len(links) == len(hypotheses.CAUSES["numpy-threads"].rows)


def test_every_cell_of_a_map_and_every_part_of_a_gap_leads_to_its_samples(made):
    cells = re.findall(r'<td class="winner".*?</td>', (made / "maps.html").read_text("utf-8"))
    assert len(cells) == 6
    assert all('href="samples/maps-' in cell for cell in cells)
    parts = re.findall(r'<tr class="\w+"><th scope="row">.*?</tr>', (made / "why.html").read_text("utf-8"), re.DOTALL)
    assert len(parts) > 5
    links = {part: part.count('href="samples/why-') for part in parts}
    kinds = {part: re.match(r'<tr class="(\w+)"', part)[1] for part in parts}
    assert {links[part] for part, kind in kinds.items() if kind not in ("fusion", "sequence")} == {2}
    one = {kind: links[part] for part, kind in kinds.items() if kind in ("fusion", "sequence")}
    assert one == {"fusion": 1, "sequence": 1}  # each on one of the two


def test_samples_are_those_of_the_run_and_come_with_the_command(made, home):
    page = Page((made / "samples/ratios-1.html").read_text("utf-8"))
    case = example.CASES[0]
    assert f"shim bench --case {case} --backends torch,jax,numpy,tensorflow,tensorflow:xla --threads 2" in page.text()
    lines = [json.loads(line) for line in (made / "samples/ratios-1.jsonl").read_text().splitlines()]
    original = home / "runs/20260101-120000-article.jsonl"
    whole = [json.loads(line) for line in original.read_text().splitlines()]
    assert lines == [record for record in whole if record["record"] == "block" and record["case"] == case]
    assert (made / "runs/ratios/1.jsonl").read_bytes() == original.read_bytes()


def test_a_training_leads_to_its_epochs_and_its_files(made):
    text = (made / "article.html").read_text("utf-8")
    assert text.count('href="#model-0-epochs"') == 2
    assert [(made / address).is_file() for address in re.findall(r'href="(runs/[^"]*)"', text)] == [True] * 4


def test_hostile_text_is_text_on_every_page(tmp_path):
    found = [
        shown.show(example.write(tmp_path / name, example.hostile(training)))
        for name, training in (("<script>x.jsonl", False), ('"><img onerror=x>.jsonl', True))
    ]
    targets = ((example.HOSTILE, example.HOSTILE), ("torch", "eager"))
    found.append(shown.show(site_runs.write_article(tmp_path / "<b>article", targets=targets)))
    made = site.write(tmp_path / "site", found, problems=[example.HOSTILE], history="../index.html").parent
    for name, one in pages(made).items():
        kinds = {kind for kind, _ in one.elements}
        assert not kinds & {"b", "img", "iframe"}, name
        assert len(one.all("script")) <= 1
        assert not any(key.startswith("on") for _, attributes in one.elements for key in attributes)
        assert SHOWN.split()[0] in one.text(), name
    links = list(broken_links(made, pages(made)))
    assert {link for _, link in links} <= {"../index.html", "../../index.html"}


def test_the_newest_run_of_each_name_is_taken_and_damage_is_told(home, tmp_path):
    runs = tmp_path / "runs"
    site_runs.write_all(runs)
    (later := example.header(site_runs.TWO, example.CASES[:1]))["started"] = "2026-02-01T12:00:00+00:00"
    example.write(runs / "20260201-120000-case.jsonl", [later, {"record": "end", "reason": "complete"}])
    (runs / "20260301-120000-x.jsonl").write_text("[]\n[]\n")
    example.write(runs / "20260301-120000-y.jsonl", [example.header(cases=(5,))])
    found, problems = shown.newest(runs)
    assert [one.files[0].name for one in found if one.name == "case"] == ["20260201-120000-case.jsonl"]
    assert found[0].name == "case"
    assert {one.kind for one in found} == set(site.SECTIONS)
    assert [problem.partition(":")[0] for problem in problems] == [f"20260301-120000-{n}.jsonl" for n in "yx"]
    index = site.write(tmp_path / "site", [], problems=problems)
    assert "damaged in line 1" in index.read_text("utf-8")
    assert "shim map dense" in index.read_text("utf-8")


def test_a_site_is_written_anew_and_nothing_else_is_overwritten(tmp_path):
    run = shown.show(example.write(tmp_path / "run.jsonl", list(example.records(rounds=1, sweeps=1))))
    site.write(tmp_path / "site", [run])
    site.write(tmp_path / "site", [])
    assert {path.name for path in (tmp_path / "site").iterdir()} == {"index.html", "environment.html"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    with pytest.raises(ValueError, match="something else than a site"):
        site.write(tmp_path / "mine", [run])
    assert (tmp_path / "mine" / "index.html").read_text() == "mine"
    assert not list(tmp_path.glob(".shim-site-*"))


INDEX = f'<ul>{asv_comparison.NAVIGATION}<a href="#regressions">Regressions</a></li></ul>'


def shim(*arguments):
    result = CliRunner().invoke(cli.main, ["site", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_asv_and_the_site_lead_to_each_other(home, tmp_path):
    assert shim(home / "runs/20260101-110000-case.jsonl") == f"site      {home / 'site/index.html'}\n"
    html = history.published()
    html.mkdir(parents=True)
    (html / "index.html").write_text(INDEX)
    asv_site.Site.publish(SimpleNamespace(html_dir=str(html)), None, None, None, None)
    assert '<a href="shim/index.html">Report</a>' in (html / "index.html").read_text()
    assert list(broken_links(html, {name: one for name, one in pages(html).items() if name != "index.html"})) == []
    assert 'href="../index.html"' in (html / "shim/ratios.html").read_text("utf-8")
    # once there are asv's pages the command writes where they lead to, and takes them along elsewhere
    assert shim(home / "runs/20260101-110000-case.jsonl") == f"site      {html / 'shim/index.html'}\n"
    away = tmp_path / "away"
    found = json.loads(shim(home / "runs/20260101-110000-case.jsonl", "--output", away, "--json"))
    assert found["pages"] == [str(away / name) for name in ("environment.html", "index.html", "ratios.html")]
    assert '<a href="../index.html">Report</a>' in (away / "history/index.html").read_text()
    assert not (away / "history/shim").exists()
    assert 'href="history/index.html"' in (away / "ratios.html").read_text("utf-8")
