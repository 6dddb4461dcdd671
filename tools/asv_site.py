"""The newest runs of ``shim bench`` and its siblings in the site of ``asv publish``: see ``shim site``.

asv empties its folder before it publishes, so the pages are written anew each time, and its index gets a link to them.
"""

from __future__ import annotations

from pathlib import Path

from asv.console import log
from asv.publishing import OutputPublisher

from shim import environments
from shim.report import history, shown, site
from tools.asv_comparison import NAVIGATION


class Site(OutputPublisher):
    """Writes the pages and the link to them."""

    name = "shim"
    button_label = "Report"
    description = "Ratios, win maps and explanations"
    order = 60

    @classmethod
    def publish(cls, conf, repo, benchmarks, graphs, revisions):
        found, problems = shown.newest(environments.home() / "runs")
        folder = Path(conf.html_dir)
        site.write(folder / history.FOLDER, found, problems=problems, history="../index.html")
        index = folder / "index.html"
        entry = f'<li id="nav-li-shim"><a href="{history.FOLDER}/{site.INDEX}">{cls.button_label}</a></li>'
        text = index.read_text(encoding="utf-8")
        index.write_text(text.replace(NAVIGATION, f"{entry}\n\t{NAVIGATION}"), encoding="utf-8")
        log.info(f"{len(found)} runs" + "".join(f"; left out: {problem}" for problem in problems))
