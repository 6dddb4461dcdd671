"""The newest runs of ``shim bench`` and its siblings in the site of ``asv publish``: see ``shim site``.

asv empties its folder before it publishes, so the pages are written anew each time, and its index gets a link to them.
"""

from __future__ import annotations

from pathlib import Path

from asv.console import log
from asv.publishing import OutputPublisher

from shim import environments
from shim.report import history, shown, site
from tools.asv_comparison import link_from


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
        link_from(folder / "index.html", cls, f"{history.FOLDER}/{site.INDEX}")
        log.info(f"{len(found)} runs" + "".join(f"; left out: {problem}" for problem in problems))
