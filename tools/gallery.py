"""Draw the pictures of ``docs/gallery.md`` from the made-up runs of the tests: ``.venv/bin/python -m tools.gallery``.

A plot is taken from its page; the tables of a map, of a gap and of causes are those of the terminal. All are SVG.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

from shim.explain import attribution, causes, hypotheses, winmap
from shim.measure import runfile
from shim.report import causes as tested
from shim.report import explanation, shown, site
from shim.report import winmap as maps

ROOT = Path(__file__).parents[1]
#: picture -> page of the site, and words in the caption of its figure there
PLOTS = {
    "times": ("ratios.html", "Median time"),
    "ratios": ("ratios.html", "Ratio to"),
    "rounds": ("samples/ratios-1.html", "Median of each round"),
    "accuracy": ("training.html", "Test accuracy"),
    "then-and-now": ("article.html", "now and in 2017"),
    "accuracy-by-seconds": ("article.html", "Test accuracy by seconds"),
}
TERMINAL = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<style>.{unique_id}-matrix {{ font: {char_height}px "DejaVu Sans Mono", monospace; }} {styles}</style>
<rect width="{width}" height="{height}" fill="#ffffff"/>
<g transform="translate(8, 8)" class="{unique_id}-matrix">{matrix}</g></svg>
"""


def plot(page: str, words: str) -> str:
    """Return the first figure of a page with these words in its caption, as an SVG that stands alone."""
    for caption, svg in re.findall(r"<figcaption>(.*?)</figcaption>(<svg.*?</svg>)", page, re.DOTALL):
        if words in caption:
            alone = '<svg xmlns="http://www.w3.org/2000/svg" font-family="DejaVu Sans, sans-serif" '
            svg = svg.replace("<svg ", f'{alone}style="background: #ffffff; color: #222222" ', 1)
            return svg.replace("var(--paper)", "#ffffff").replace("inherit", "'DejaVu Sans', sans-serif")
    raise LookupError(f"no figure with {words!r} in its caption")


def main(images: Path = ROOT / "docs" / "images") -> None:
    """Write all pictures."""
    sys.path.insert(0, str(ROOT / "tests"))
    import site_runs

    grid, winmap.GRIDS["dense"] = winmap.GRIDS["dense"], site_runs.GRID
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        site_runs.write_all(folder / "runs")
        pages = site.write(folder / "site", shown.newest(folder / "runs")[0]).parent
        drawn = {name: plot((pages / page).read_text("utf-8"), words) for name, (page, words) in PLOTS.items()}
        runs = {path.stem[16:]: runfile.read(path) for path in sorted((folder / "runs").glob("*-120000-*.jsonl"))}
    tables = {name: Console(record=True, width=100, file=io.StringIO()) for name in ("map", "gap", "causes")}
    maps.print_map(winmap.read(runs["map-dense"]), tables["map"])
    winmap.GRIDS["dense"] = grid
    explanation.print_explanation(attribution.explain(runs["mnist_mlp"], "torch", "tensorflow"), tables["gap"])
    tested.print_findings(causes.judge_all(runs["causes"], hypotheses.CAUSES), tables["causes"])
    for name, console in tables.items():
        svg = console.export_svg(title="", code_format=TERMINAL, theme=DEFAULT_TERMINAL_THEME, unique_id=name)
        drawn[name] = re.sub(r' clip-path="[^"]*"', "", svg)
    for name, svg in drawn.items():
        (images / f"{name}.svg").write_text(svg, "utf-8")
        print(images / f"{name}.svg")


if __name__ == "__main__":
    main()
