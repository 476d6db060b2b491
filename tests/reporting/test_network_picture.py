"""Pictures of networks: to scale, with a text alternative, and with names as text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from nasspace.reporting.network_picture import MOST_LINES, Drawn, described, drawn, picture

LAYERS = [
    Drawn("conv", (24, 32, 32), 3, 1),
    Drawn("shuffle_v1", (48, 16, 16), 5, 4),
    Drawn("shuffle_v1", (48, 16, 16), 5, 4),
    Drawn("global_pool", (48, 1, 1)),
    Drawn("linear", (10,)),
]


def elements(svg: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(tag))


def test_blocks_are_to_scale():
    boxes = elements(picture(LAYERS, "n"), "rect")
    widths, heights = ([float(box.get(name)) for box in boxes] for name in ("width", "height"))
    assert widths[1] / widths[0] == pytest.approx(2, rel=0.01)
    assert heights[0] / heights[1] == pytest.approx(2, rel=0.01)
    assert heights[3] == heights[4] == pytest.approx(heights[0] / 32, rel=0.1)
    bottoms = [float(box.get("y")) + float(box.get("height")) for box in boxes]
    assert bottoms == pytest.approx([bottoms[0]] * 5, abs=0.11)


def test_blocks_do_not_overlap_and_are_inside():
    svg = picture([Drawn("conv", (width, 8, 8), 1) for width in (1, 1000, 3, 500, 1)], "n")
    root, end = ElementTree.fromstring(svg), 0.0
    for box in elements(svg, "rect"):
        assert float(box.get("x")) >= end
        end = float(box.get("x")) + float(box.get("width"))
    assert end <= float(root.get("width"))


def test_borders_of_groups_are_drawn():
    lines = [path.get("d").count("M") for path in elements(picture(LAYERS, "n"), "path")]
    assert lines == [3, 3]
    assert elements(picture([Drawn("conv", (64, 8, 8), 3, MOST_LINES + 1)], "n"), "path") == []


def test_text_alternative_and_labels():
    svg = picture(LAYERS, "Network 3")
    label = ElementTree.fromstring(svg).get("aria-label")
    assert label.startswith("Network 3: conv 3×3, 24 channels at 32×32; 2 of shuffle_v1 5×5 g4, 48 channels at 16×16")
    assert described(LAYERS[-1:]) == "linear, 10 channels at 1"
    texts = [text.text for text in elements(svg, "text")]
    assert texts.count("16×16") == 1
    assert "shuffle_v1 5×5 g4 · 48" in texts


def test_names_stay_text():
    svg = picture([Drawn('</svg><script>"', (1, 2, 2))], '"><script>')
    assert "<script" not in svg
    assert not re.search(r"\n", svg)
    assert elements(svg, "rect")


def test_options_that_are_no_numbers_are_not_drawn():
    assert drawn("conv", [3, 4, 4], {"kernel": "x", "groups": 2, "bias": True}) == Drawn("conv", (3, 4, 4), None, 2)
