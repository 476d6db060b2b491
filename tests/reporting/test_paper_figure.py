"""The figures for papers and notebooks: what they show, for which study, and that every text stays text."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

import nasspace
from nasspace.engine.searched import SearchedStudy
from nasspace.reporting import paper_figure, paper_style, plot_data, publication
from nasspace.reporting.notebook import front_figure, front_html
from nasspace.space.space import Space
from nasspace.studies.front import Front
from nasspace.studies.trial_table import has_value

RECORDED = Path(__file__).parents[1] / "recorded" / "study"
EVIL = "$x</script><script>alert(1)</script>"  # `$` begins a formula in Matplotlib


@pytest.fixture(scope="module")
def study(restore_study, tmp_path_factory) -> SearchedStudy:
    """A finished search on digits."""
    return nasspace.load_study(restore_study(tmp_path_factory.mktemp("figures")))


@pytest.fixture(scope="module")
def front(study) -> Front:
    """Its front with a rejected candidate, an interval of accuracy, and a limit near the values and one far away."""
    front = study.snapshot()
    rows = [dict(row) for row in front.trials]
    rows.append({**rows[1], "id": 2, "state": "rejected", "accuracy": None, "accuracy_expected": None})
    rows.append({**rows[1], "id": 3, "latency_ms": 1.5 * rows[1]["latency_ms"], "accuracy": 0.1})
    rows[0] |= {"accuracy_low": 0.2, "accuracy_high": 0.4, "accuracy_expected": 0.3}
    members = tuple(replace(member, row=rows[member.id]) for member in front.members)
    limits = {"latency": 1.2 * rows[0]["latency_ms"], "flops": 1e12}
    return replace(front, trials=tuple(rows), members=members, settings={**front.settings, "limits": limits})


def test_a_panel_shows_the_candidates_the_intervals_and_the_limit(front):
    with paper_style.style():
        figure = paper_figure.draw(front)
        latency, flops = figure.axes
        assert [text.get_text() for text in figure.legends[0].get_texts()] == list(paper_figure.WORDS.values())
        bars = latency.containers[0]
        (x, y), (x_bars, y_bars) = bars[0].get_data(), (bars[2][i].get_segments()[0] for i in (0, 1))
        (row,) = (member.row for member in front.members)
        assert (x[0], y[0]) == (row["latency_ms"], 0.3)
        assert x_bars[:, 0] == pytest.approx([row["latency_low_ms"], row["latency_high_ms"]])
        assert y_bars[:, 1] == pytest.approx([0.2, 0.4])
        lines = {line.get_label(): line.get_xdata() for line in latency.lines if not line.get_label().startswith("_")}
        assert list(lines["over a limit"]) == [front.trials[1]["latency_ms"]]
        assert list(lines["evaluated"]) == [front.trials[i]["latency_ms"] for i in (1, 3)]
        texts = [text.get_text() for axes in (latency, flops) for text in axes.texts]
        assert "limit 1,000,000 M →" in texts
        assert "0" in texts
        assert latency.get_ylabel() == "accuracy after full training"
        assert latency.get_xlabel() == "latency, ms (onnxruntime, 1 thread, batch 1)"


def test_the_files_are_the_same_each_time_and_fit_a_column(front):
    files = paper_figure.files_of(front)
    matplotlib.rcParams["font.size"] = 30  # a user's own style
    try:
        assert paper_figure.files_of(front) == files
        assert matplotlib.rcParams["font.size"] == 30
    finally:
        matplotlib.rcdefaults()
    picture = Image.open(io.BytesIO(files["front.png"]))
    assert picture.width == round(3.35 * 300)
    assert ElementTree.fromstring(files["front.svg"]).get("width") == "241.2pt"
    assert all(len(content) < 500_000 for content in files.values())
    for content in files.values():
        assert publication.source(front).encode() in content


def test_every_front_can_be_drawn(front):
    """Without members, without trials, with one objective, with values over several orders of magnitude."""
    rows = [{**row, "latency_ms": 10.0 ** (3 * i)} for i, row in enumerate(front.trials)]
    alone = {**front.settings, "recipe": {**front.recipe, "objectives": ["flops"]}}
    others = [
        replace(front, members=()),
        replace(front, members=(), trials=()),
        replace(front, settings=alone),
        replace(front, trials=tuple(rows), members=tuple(replace(m, row=rows[m.id]) for m in front.members)),
    ]
    for other in others:
        assert all(paper_figure.files_of(other).values())
        front_figure(other)
        assert front_html(other).startswith("<div>")


def test_names_stay_text(front):
    evil = replace(front, name=EVIL, settings={**front.settings, "recipe": {**front.recipe, "runtime": EVIL}})
    members = tuple(replace(member, row={**member.row, "digest": EVIL}) for member in front.members)
    evil = replace(evil, members=members)
    assert "<script" not in front_html(evil)
    assert "<script" not in front_figure(evil).to_json()
    root = ElementTree.fromstring(paper_figure.files_of(evil)["front.svg"])
    assert not [part for part in root.iter() if part.tag.endswith("script")]


def test_a_study_is_shown_in_a_notebook(study):
    figure, page = study.plot(), study._repr_html_()
    assert type(figure).__module__ == "plotly.graph_objs._figure"
    drawn = [trace for trace in figure.data if trace.name == plot_data.WORDS[plot_data.FRONT] and trace.mode != "lines"]
    assert len(drawn[0].x) == len(study.front())
    assert study.front()["digest"][0] in page
    image = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])))
    assert image.format == "PNG"


def test_a_search_returns_a_study_with_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = nasspace.search(
        Space.load("shuffle", classes=10, resolution=32),
        trials=4,
        objectives=["accuracy", "flops"],
        evaluator=lambda architecture: {"accuracy": int(architecture.digest, 16) / 16**12},
        known={"flops": lambda architecture: nasspace.cost(architecture).flops},
        study="s",
    )
    assert isinstance(found, SearchedStudy)
    assert len(found.plot().data[2].x) == len(found.front())
    assert "4 evaluated" in found._repr_html_()
    again = nasspace.load_study("s")
    assert again.front().equals(found.front())
    assert [row["id"] for row in again.snapshot().trials if has_value(row["flops"])] == [0, 1, 2, 3]
