"""The page of a training loads nothing, escapes every text, and shows what was recorded."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from pathlib import Path

import plotly.graph_objects as go
import pytest
import torch
from scipy.stats import binomtest

from nasspace.reporting.training_page import class_rows, epoch_rows, page_html, read_confusion
from nasspace.reporting.training_plots import classes_figure, confusion_figure, curves_figure
from nasspace.training import metrics

sys.path.insert(0, str(Path(__file__).parent))
from test_report import EVIL, Text

CLASSES = ["cat", f"dog {EVIL}", "cow"]
CONFUSION = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]
RECORD = {
    "nasspace_training": 1,
    "network": f"mobile {EVIL}",
    "digest": "0123456789ab",
    "folder": "trainings/mobile",
    "resolution": 64,
    "epochs": 3,
    "seconds": 700.0,
    "validation": {"accuracy": 0.875},
    "test": {"accuracy": 0.85, "low": 0.64, "high": 0.95, "balanced_accuracy": 0.84, "macro_f1": 0.83},
    "confusion_is_of": "test",
    "settings": "shufflenet",
    "not_applied": f"ten crops {EVIL}",
    "training": {"learning_rate": 0.1, "schedule": EVIL},
    "losses": [2.0, 1.5, 1.25],
    "rates": [0.1, 0.05, 0.001],
    "validation_by_epoch": [None, 0.5, 0.8],
    "starts_from": [f"{EVIL}: images are normalized as for these weights", "starts from w.pth"],
    "normalization": {"mean": [0.5], "std": [0.2]},
    "teacher": f"teachers/{EVIL}",
    "seed": 4,
    "device": "cpu",
    "data": {
        "name": f"imagefolder:{EVIL}",
        "seed": 0,
        "held_out": 0.2,
        "classes": CLASSES,
        "train": 3068,
        "validation": 40,
        "test": 20,
        "fingerprint": "fedcba987654",
    },
    "identity": {},
    "logs": {},
    "machine": {"processor": f"CPU {EVIL}"},
    "versions": {"torch": "2.13.0"},
    "finished": "2026-11-29T01:35:04+00:00",
}
FIRST_VERSION = (
    *("nasspace_training", "digest", "folder", "resolution", "epochs", "seconds", "validation", "test", "losses"),
    *("confusion_is_of", "settings", "not_applied", "training", "seed", "device", "data", "identity", "machine"),
    "versions",
)


@pytest.fixture(scope="module")
def page() -> str:
    return page_html(RECORD, CONFUSION)


def test_page_loads_nothing_and_forbids_it(page):
    assert Text(page).loads == []
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page
    assert '"showSendToCloud": false' in page


def test_every_text_is_escaped(page):
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(") >= 8
    assert Text(page).scripts == page.count("</script>")


def test_page_shows_result_settings_and_provenance(page):
    text = Text(page).text
    for part in (
        "64x64, finished 2026-11-29 01:35:04 UTC",
        "classifies 85.00% of the 20 test images correctly (95 % interval 64.00% to 95.00%), and 87.50% of the 40",
        "84.00% balanced accuracy",
        "12 min for 3 epochs on cpu",
        "Confusion matrix of the test images",
        "cat 8 2 0",  # the table
        "cat 10 8 80.0% 49.0% to 94.3%",
        "starts from w.pth",
        "normalized as for these weights",
        "Not applied, of the published training: ten crops",
        "learning rate 0.1",
        "fingerprint fedcba987654",
        "3,068 train, 40 validation, 20 test",
        "torch 2.13.0",
        "2 1.5000 50.00% 0.05",  # the table of epochs
        "classified once, at the end",
    ):
        assert part in text, part
    assert "Most frequent confusions" not in text


def test_without_a_test_split_the_result_is_that_of_validation():
    text = Text(page_html({**RECORD, "test": None, "confusion_is_of": "validation"}, CONFUSION)).text
    low, high = metrics.wilson(35, 40)
    assert f"87.50% of the 40 validation images correctly (95 % interval {low:.2%} to {high:.2%})" in text
    assert "The data has no test split." in text
    assert "Accuracy per class of the validation images" in text
    assert "classified once" not in text


def test_a_record_of_the_first_version_has_a_page():
    text = Text(page_html({key: RECORD[key] for key in FIRST_VERSION}, CONFUSION)).text
    assert text.startswith("mobile: training of nasspace")  # the folder's name
    assert "initial weights of seed 4" in text
    assert "3 1.2500" in text
    assert "learning rate is that of" not in text


@pytest.mark.parametrize("confusion", [None, [[0] * 3] * 3])
def test_without_a_confusion_matrix_the_page_has_the_rest(confusion):
    page = page_html(RECORD, confusion)
    assert "Accuracy per class of" not in Text(page).text
    assert 'Plotly.newPlot("curves"' in page
    assert 'Plotly.newPlot("classes"' not in page


def test_many_classes_have_the_most_frequent_confusions_and_the_lowest_accuracies():
    confusion = [[0] * 250 for _ in range(250)]
    for i, row in enumerate(confusion):
        row[i] = i
    confusion[240][7] = 60
    names = [f"class {i}" for i in range(250)]
    record = {**RECORD, "data": {**RECORD["data"], "classes": names}}
    page = page_html(record, confusion)
    assert "Most frequent confusions true class predicted images of the class class 240 class 7 60 20.0%" in (
        Text(page).text
    )
    assert "The 30 classes with the lowest accuracy." in page
    assert 'Plotly.newPlot("confusion"' not in page  # too many cells
    assert 'newPlot("confusion", ' in page_html(
        {**RECORD, "data": {**RECORD["data"], "classes": names[:200]}}, [row[:200] for row in confusion[:200]]
    )


def test_rows_of_classes_have_wilsons_intervals():
    rows = class_rows(CONFUSION, CLASSES)
    assert [(row["images"], row["correct"], row["mistaken_for"]) for row in rows] == [
        (10, 8, f"{CLASSES[1]} (2)"),
        (10, 9, "cat (1)"),
        (0, 0, ""),
    ]
    for row in rows[:2]:
        expected = binomtest(row["correct"], row["images"]).proportion_ci(0.95, "wilson")
        assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert all(math.isnan(rows[2][name]) for name in ("accuracy", "low", "high"))


def test_the_confusion_matrix_is_read_from_its_file(tmp_path):
    predicted, labels = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    found = metrics.scores(predicted, labels, 2).confusion
    path = tmp_path / "confusion.csv"
    path.write_text(metrics.confusion_csv(found, ['with "quotes", commas', "and\nlines"]))
    assert read_confusion(path, 2) == [list(row) for row in found] == [[1, 0], [1, 2]]
    assert read_confusion(path, 3) is None
    path.write_text("true,a\na,many")
    assert read_confusion(path, 1) is None
    assert read_confusion(tmp_path / "none.csv", 1) is None


def test_curves_show_what_was_recorded():
    figure = curves_figure(epoch_rows(RECORD), 0.875)
    go.Figure(figure)  # valid in Plotly's schema
    drawn = {trace["name"]: (trace["x"], trace["y"]) for trace in figure["data"]}
    assert drawn == {
        "training loss": ([1, 2, 3], [2.0, 1.5, 1.25]),
        "validation accuracy": ([1, 2, 3], [None, 0.5, 0.8]),
        "finished network": ([3], [0.875]),
        "learning rate": ([1, 2, 3], [0.1, 0.05, 0.001]),
    }
    domains = [figure["layout"][f"yaxis{number}"]["domain"] for number in ("", 2, 3)]
    assert all(upper[0] > lower[1] for upper, lower in itertools.pairwise(domains))
    old = curves_figure(epoch_rows({"losses": [1.0]}), 0.5)
    go.Figure(old)
    assert [trace["name"] for trace in old["data"]] == ["training loss"]


def test_cells_are_colored_by_the_square_root_of_their_share():
    figure = confusion_figure(CONFUSION, CLASSES)
    go.Figure(figure)
    cells, counts = figure["data"]
    assert cells["z"][0] == pytest.approx([math.sqrt(0.8), -math.sqrt(0.2), 0], abs=1e-3)
    assert cells["z"][2] == [0, 0, 0]
    assert cells["x"][1] == "dog &lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"
    assert counts["text"] == ["8", "2", "1", "9"]
    many = confusion_figure([[1] * 70] * 70, [str(i) for i in range(70)])
    go.Figure(many)
    assert len(many["data"]) == 1


def test_accuracies_of_classes_are_drawn_with_their_intervals():
    rows = class_rows(CONFUSION, CLASSES)[:2]
    figure = classes_figure(rows, 0.85)
    go.Figure(figure)
    (points,) = figure["data"]
    assert points["x"] == [0.8, 0.9]
    assert points["error_x"]["arrayminus"][0] == pytest.approx(0.8 - rows[0]["low"])
    assert figure["layout"]["shapes"][0]["x0"] == 0.85


def test_figures_are_the_drawn_ones(page):
    data = json.loads(re.search(r'newPlot\("curves", (\[.*?\]), \{"font"', page)[1])
    assert data == json.loads(json.dumps(curves_figure(epoch_rows(RECORD), 0.875)["data"]))
