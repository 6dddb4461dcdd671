"""The project's colours in asv's own plots, which otherwise number their lines: each backend has one colour everywhere.

asv draws with Flot's ``$.plot``. A script at the end of its index page stands in front of that function and colours
each line by the backend in its label, or by the only backend that the address asks for. Lines of one backend for
several cases have its colour, from one to the next more transparent.
"""

from __future__ import annotations

import json
from pathlib import Path

from asv.console import log
from asv.publishing import OutputPublisher

from shim.report import colours
from tools.asv_comparison import backend_order, insert

SCRIPT = """<script>
$(function () {
  var colours = COLOURS, plot = $.plot;
  function asked() {
    var found = decodeURIComponent(location.hash).match(/p-backend='?[^&']+/g) || [];
    return found.length === 1 ? found[0].replace(/p-backend='?/, "") : null;
  }
  $.plot = function (place, data, options) {
    var drawn = {};
    data.forEach(function (series) {
      var named = /backend-'?([^;']+)/.exec(series.label || ""), backend = named ? named[1] : asked();
      if (!Object.hasOwn(colours, backend)) return;
      drawn[backend] = (drawn[backend] || 0) + 1;
      series.color = $.color.parse(colours[backend]).scale("a", Math.pow(0.7, drawn[backend] - 1)).toString();
    });
    return plot.call(this, place, data, options);
  };
  $.extend($.plot, plot);
});
</script>
"""


class Colours(OutputPublisher):
    """Adds the script."""

    name = "colours"
    button_label = "Colours"
    description = "One colour for each backend"
    order = 70

    @classmethod
    def publish(cls, conf, repo, benchmarks, graphs, revisions):
        backends = backend_order(benchmarks)
        insert(Path(conf.html_dir) / "index.html", script(backends), "</body>")
        log.info(f"{len(backends)} backends")


def script(backends: list[str]) -> str:
    """Return the script for these backends."""
    found = {label: style.colour for label, style in colours.styles(backends).items()}
    return SCRIPT.replace("COLOURS", json.dumps(found).replace("<", "\\u003c"))
