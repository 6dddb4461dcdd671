"""Make the site of ``asv publish`` open without the network: local copies of the files that it loads from elsewhere.

asv calls every ``OutputPublisher`` once its pages are written. This one puts the files of ``tools/vendor`` beside them
and points ``index.html`` there.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from asv import util
from asv.console import log
from asv.publishing import OutputPublisher

VENDOR = Path(__file__).parent / "vendor"

#: end of the address in asv's index.html -> file in VENDOR
COPIES = {
    "/jquery-3.3.1.min.js": "jquery-3.3.1.min.js",
    "/flot/0.8.3/jquery.flot.min.js": "jquery.flot-0.8.3.js",
    "/flot/0.8.3/jquery.flot.time.min.js": "jquery.flot.time-0.8.3.js",
    "/flot/0.8.3/jquery.flot.selection.min.js": "jquery.flot.selection-0.8.3.js",
    "/flot/0.8.3/jquery.flot.categories.min.js": "jquery.flot.categories-0.8.3.js",
    "/flot-orderbars@1.0.0/js/jquery.flot.orderBars.js": "jquery.flot.orderBars-1.0.0.js",
    "/stupidtable/1.0.1/stupidtable.min.js": "stupidtable-1.1.3.js",
    "/blueimp-md5/2.19.0/js/md5.min.js": "md5-2.19.0.min.js",
    "/bootstrap@3.1.1/dist/js/bootstrap.min.js": "bootstrap-3.1.1.min.js",
    "/bootstrap@3.1.1/dist/css/bootstrap.min.css": "bootstrap-3.1.1.min.css",
}
#: what asv's "Perhaps web server has gone down" means where there was none
OPENED_AS_FILE = """<script>
if (location.protocol === "file:") $(function () {
  $("#error").on("show.bs.modal", function () {
    $("#error-message").html('Opened as files, these pages may not load their data: show them with <b>asv preview</b>. '
      + 'Only <a href="backends.html">Backends</a> and <a href="shim/index.html">Report</a> open as they are.');
  });
});
</script>
"""
_LOADED = re.compile(r'<(?:script|link)\b[^>]*?\b(?:src|href)="((?:https?:)?//[^"]+)"[^>]*>')
_ONLY_FOR_OTHER_SITES = re.compile(r'\s(?:integrity|crossorigin|referrerpolicy)="[^"]*"')


class Offline(OutputPublisher):
    """Copies in place of the content delivery networks."""

    name = "offline"
    button_label = "Offline"
    description = "Local copies of what the pages load"
    order = 100

    @classmethod
    def publish(cls, conf, repo, benchmarks, graphs, revisions):
        folder = Path(conf.html_dir)
        index = folder / "index.html"
        index.write_text(localise(index.read_text(encoding="utf-8")), encoding="utf-8")
        shutil.copytree(VENDOR, folder / "vendor", dirs_exist_ok=True)
        log.info(f"{len(COPIES)} files copied to {folder / 'vendor'}")


def localise(page: str) -> str:
    """Return asv's index page with local addresses; raise ``UserError`` if there is no copy of a file."""

    def local(found: re.Match[str]) -> str:
        address = found[1]
        copy = next((copy for end, copy in COPIES.items() if address.endswith(end)), None)
        if copy is None:
            raise util.UserError(f"tools/vendor has no copy of {address}, which this version of asv loads")
        return _ONLY_FOR_OTHER_SITES.sub("", found[0].replace(address, f"vendor/{copy}"))

    return _LOADED.sub(local, page).replace("</body>", f"{OPENED_AS_FILE}</body>")
