"""The page of a comparison: figures in Plotly's schema, and text that is escaped."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects
import pytest

from nasspace.reporting import distribution_picture, paper_style
from nasspace.reporting.comparison import comparison_html, distribution_figure, front_figure, write_comparison
from nasspace.studies.comparison import Comparison, Group, Network
from nasspace.studies.recipe import Recipe


def made(folder: Path, vary: str = "") -> Comparison:
    rng = np.random.default_rng(0)
    groups = []
    for i, name in enumerate(["a <b>", "c", "d"]):
        errors = 0.1 + 0.01 * i + 0.02 * rng.random(8)
        flops = rng.uniform(1e6, 2e6, 8)
        networks = tuple(
            Network(j, f"{i}{j:011x}", float(error), {"flops": float(count), "params": 9.0}, j if vary else None)
            for j, (error, count) in enumerate(zip(errors, flops, strict=True))
        )
        groups.append(Group(name, folder / str(i), networks, failed=i))
    settings = {
        "budget": {"flops": [1e6, 2e6]},
        "vary": vary,
        "recipe": Recipe().as_written(),
        "evaluator": None,
        "created": "2026-01-01T00:00:00+00:00",
        "machine": {"cores": 2},
        "versions": {"numpy": "2"},
    }
    return Comparison(folder, settings, tuple(groups))


def test_figures_are_in_plotlys_schema_and_show_every_network(tmp_path):
    found = made(tmp_path)
    figure = distribution_figure(found)
    plotly.graph_objects.Figure(figure)
    lines = [trace for trace in figure["data"] if trace.get("name")]
    assert [trace["name"] for trace in lines] == ["a <b>", "c", "d"]
    for trace, group in zip(lines, found.groups, strict=True):
        assert trace["y"][0] == 0
        assert trace["y"][-1] == 1
        assert trace["x"][1:-1] == pytest.approx(sorted(100 * group.errors))
    bands = [trace["y"] for trace in figure["data"] if not trace.get("name")]
    assert all(0 <= value <= 1 for band in bands for value in band)
    figure = front_figure(found, "flops")
    plotly.graph_objects.Figure(figure)
    assert sum(len(trace["x"]) for trace in figure["data"] if trace["mode"] == "markers") == 24


@pytest.mark.parametrize("vary", ["", "stages.*.kernel"])
def test_the_page_has_the_sentence_and_escapes_names(tmp_path, vary):
    found = made(tmp_path, vary)
    page = comparison_html(found)
    assert "a &lt;b&gt;" in page
    assert "<b>" not in page.partition("<section>")[2].partition("<script>")[0]
    assert found.name in page
    assert ("equal but for the choices" in page) == bool(vary)


def test_files_hold_every_network(tmp_path):
    found = made(tmp_path)
    assert write_comparison(found).name == "comparison.html"
    rows = list(csv.DictReader((tmp_path / "networks.csv").read_text().splitlines()))
    assert len(rows) == 24
    assert float(rows[0]["error"]) == found.groups[0].networks[0].error


def test_holm_adjusts_the_tests_of_three_groups(tmp_path):
    found = made(tmp_path)
    assert found.leader == "a <b>"
    for pair, p_value in found.p_values.items():
        assert p_value >= found.differences[pair].p_value
    other, difference = found.against_next()
    assert other == "c"
    assert difference.superiority.value > 0.5
    assert difference.error.value < 0
    assert difference.error.low <= difference.error.value <= difference.error.high


def test_the_sentence_is_about_the_nearest_of_groups_with_the_smallest_p_value(tmp_path):
    found = made(tmp_path)
    errors = {"best": np.linspace(0.1, 0.11, 20), "far": np.linspace(0.4, 0.5, 20), "near": np.linspace(0.105, 0.2, 20)}
    groups = [
        Group(name, tmp_path, tuple(Network(i, f"{name}{i}", float(one), {"flops": 2e6}) for i, one in enumerate(each)))
        for name, each in errors.items()
    ]
    apart = Comparison(tmp_path, found.settings, tuple(groups))
    assert apart.p_values["best", "far"] == apart.p_values["best", "near"]
    assert apart.against_next()[0] == "near"


def test_the_picture_draws_every_group_whatever_its_name(tmp_path):
    names = ["$a^$b", "_hidden", "\N{CJK UNIFIED IDEOGRAPH-540D}", "<b>&", "two\nlines", "f", "seventh", "eighth"]
    groups = [
        Group(name, tmp_path, tuple(Network(i, f"{at}{i}", error, {"flops": 2e6}) for i, error in enumerate(errors)))
        for at, name in enumerate(names)
        for errors in [(0.1, 0.1, 0.1) if at == 3 else (0.1, 0.2 + 0.01 * at, 0.3)]
    ]
    found = Comparison(tmp_path, made(tmp_path).settings, tuple(groups))
    pictures = distribution_picture.files_of(found)
    ElementTree.fromstring(pictures["distribution.svg"])
    with paper_style.style():
        figure = distribution_picture.draw(found)
        assert len(figure.axes[0].lines) == len(figure.legends[0].get_texts()) == len(names)


STORIES = Path(__file__).parents[2] / "reports" / "published" / "stories"


def test_the_readme_of_the_stories_has_their_figures():
    text = (STORIES / "README.md").read_text(encoding="utf-8")
    rows = {match[1]: match[0] for match in re.finditer(r"^\| `([\w-]+)` \|.*$", text, re.M)}
    assert rows.keys() == {path.parent.name for path in STORIES.glob("*/comparison.json")}
    for name, row in rows.items():
        found = json.loads((STORIES / name / "comparison.json").read_text(encoding="utf-8"))["differences"]
        for one in found if len(found) == 1 else ():
            value, low, high = (100 * one["error"][key] for key in ("value", "low", "high"))
            ways = ((value, low, high), (-value, -high, -low))
            assert any(re.search(rf"{v:.1f}( \w+)? \({a:.1f} to {b:.1f}\)", row) for v, a, b in ways), row
