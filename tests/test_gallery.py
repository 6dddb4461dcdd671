"""The pictures of the gallery can be drawn, are those that its page shows, and are small and load nothing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tools import gallery

DOCS = Path(__file__).parents[1] / "docs"


def test_the_gallery_shows_just_the_pictures_that_are_drawn(tmp_path):
    gallery.main(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert set(re.findall(r"\(images/([\w-]+\.svg)\)", (DOCS / "gallery.md").read_text())) == drawn
    for path in (*tmp_path.iterdir(), *(DOCS / "images").glob("*.svg")):
        text = path.read_text("utf-8")
        assert len(text) < 150_000
        assert "http" not in text.replace("http://www.w3.org/", "")
        assert len(ET.fromstring(text).findall(".//{http://www.w3.org/2000/svg}text")) > 5


def test_a_missing_figure_is_an_error():
    page = "<figcaption>Time</figcaption><svg x='1'></svg>"
    assert gallery.plot(page, "Time").startswith("<svg xmlns=")
    with pytest.raises(LookupError, match="no figure with 'Ratio'"):
        gallery.plot(page, "Ratio")
