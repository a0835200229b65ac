"""A sheet's titles can be read whatever the labels are written in."""

from __future__ import annotations

from PIL import Image

from gft_edge.reporting.pictures import sheet


def test_a_title_loses_its_accents_and_nothing_else() -> None:
    picture = Image.new("RGB", (96, 32))
    drawn = {title: sheet([(title, [picture])], ()).tobytes() for title in ("café", "cafe", "caf")}
    assert drawn["café"] == drawn["cafe"] != drawn["caf"]
    assert sheet([("苹果", [picture])], ()).tobytes() == sheet([("??", [picture])], ()).tobytes()
