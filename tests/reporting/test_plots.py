"""Figures: their rows, and the traces that Plotly draws."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import pandas
import pytest

from nasspace.reporting.plot_data import panels, pareto_rows, staircase
from nasspace.reporting.plots import pareto_figure, progress_figure, to_html
from nasspace.studies.objectives import OBJECTIVES

NAMES = ["accuracy", "latency", "flops"]
COLUMNS = [
    "id", "digest", "state", "accuracy", "latency_ms", "latency_low_ms", "latency_high_ms", "latency_contended",
    "flops", "params", "memory_access", "seconds", "reason",
]  # fmt: skip


def trials(*changes: dict) -> pandas.DataFrame:
    """Trials as in a study; figures default to those of the first line."""
    usual = ["0" * 12, "evaluated", 0.9, 1.0, 0.9, 1.2, False, 2_000_000, 100_000, 50_000, 3.0, ""]
    rows = [{**dict(zip(COLUMNS, [i, *usual], strict=True)), **change} for i, change in enumerate(changes)]
    return pandas.DataFrame(rows, columns=COLUMNS)


REJECTED = {"state": "rejected", "accuracy": None, "reason": "latency <b>5</b> ms is above the limit"}


def test_rows_have_kinds_and_the_units_shown():
    rows = pareto_rows(trials({}, {}, REJECTED), NAMES, [1])
    assert rows["kind"].tolist() == ["evaluated", "front", "rejected"]
    assert rows["flops"].tolist() == [2.0, 2.0, 2.0]
    assert rows["params"].tolist() == pytest.approx([0.1] * 3)
    assert rows["accuracy"].tolist()[:2] == [0.9, 0.9]
    assert math.isnan(rows["accuracy"][2])
    assert (rows["latency_low"][0], rows["latency_high"][0]) == (0.9, 1.2)


def test_hover_text_has_figures_and_is_escaped():
    table = trials({"digest": "<i>abc", "latency_contended": True}, REJECTED)
    first, second = pareto_rows(table, NAMES, [])["hover"]
    for part in (
        "trial 0",
        "&lt;i&gt;abc",
        "accuracy 90.00%",
        "latency 1.00 ms (0.900 to 1.20)",
        "FLOPs 2.00 M",
        "other work",
    ):
        assert part in first
    assert "accuracy" not in second
    assert "&lt;b&gt;5&lt;/b&gt; ms is above" in second


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        (["accuracy", "latency", "flops"], [("latency", "accuracy"), ("flops", "accuracy")]),
        (["params", "accuracy"], [("params", "accuracy")]),
        (["latency", "flops"], [("flops", "latency")]),
        (["accuracy"], [("latency", "accuracy"), ("flops", "accuracy")]),
    ],
)
def test_panels(objectives, expected):
    assert panels(objectives) == expected


def test_staircase_is_the_front_of_two_objectives():
    """Brute force: the members that no other member beats in both."""
    points = [(1.0, 0.80), (2.0, 0.85), (3.0, 0.82), (0.5, 0.70), (2.0, 0.84), (4.0, 0.9), (5.0, 0.9)]
    table = trials(*({"latency_ms": x, "accuracy": y} for x, y in points), {"latency_ms": 0.1, "accuracy": 0.99})
    rows = pareto_rows(table, NAMES, range(len(points)))  # the last one, the best, is no member
    expected = sorted((x, y) for x, y in points if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points))
    found = staircase(rows, "latency", "accuracy")
    assert list(zip(found["latency"], found["accuracy"], strict=True)) == expected


def figure_of(table, front=(0,), objectives=NAMES, **arguments):
    return pareto_figure(pareto_rows(table, objectives, front), objectives, **arguments)


def drawn(figure, name):
    return [trace for trace in figure.data if trace.name == name]


def test_figure_has_every_candidate_once_in_each_panel():
    table = trials({"latency_ms": 1}, {"latency_ms": 2}, {"latency_ms": 3}, REJECTED, {**REJECTED, "latency_ms": None})
    figure = figure_of(table, front=[0])
    counts = {
        name: [len(trace.x) for trace in drawn(figure, name) if trace.mode != "lines"]
        for name in ("Pareto front", "evaluated", "stopped at a limit, never trained")
    }
    assert counts == {
        "Pareto front": [1, 1],
        "evaluated": [2, 2],
        "stopped at a limit, never trained": [1, 2],  # the last has FLOPs and no latency
    }
    assert sum(bool(trace.showlegend) for trace in figure.data) == 3


def test_figure_draws_intervals_limits_and_titles():
    table = trials({}, {"latency_ms": 2.0, "latency_low_ms": 1.9, "latency_high_ms": 2.3})
    figure = figure_of(table, limits={"latency": 1.5, "flops": 1e9}, titles={"latency": "latency of mine"})
    bars = drawn(figure, "evaluated")[0].error_x
    assert (bars.array[0], bars.arrayminus[0]) == pytest.approx((0.3, 0.1))
    assert drawn(figure, "evaluated")[1].error_x.array is None
    assert [shape.x0 for shape in figure.layout.shapes] == [1.5]  # the limit of FLOPs is out of range, and only printed
    assert [note.text for note in figure.layout.annotations] == ["limit 1.50 ms", "limit 1,000 M →"]
    titles = {axis.title.text for axis in figure.select_xaxes()} - {None}
    assert titles == {"latency of mine", OBJECTIVES["flops"].axis_title}


def test_axis_is_logarithmic_for_a_wide_range():
    figure = figure_of(trials({"flops": 1_000_000}, {"flops": 900_000_000}), limits={"flops": 100_000_000})
    assert (figure.layout.xaxis.type, figure.layout.xaxis2.type) == ("linear", "log")
    assert figure.layout.xaxis2.range[1] < 3.5
    assert figure.layout.annotations[0].x == pytest.approx(2)
    assert figure.layout.shapes[0].x0 == pytest.approx(100)


@pytest.mark.parametrize(
    "table",
    [
        trials(),
        trials({}),
        trials(REJECTED),
        trials({**REJECTED, "latency_ms": None, "latency_low_ms": None, "latency_high_ms": None}),
        trials(
            {"latency_ms": None, "latency_low_ms": None, "latency_high_ms": None, "params": None}, {"latency_ms": None}
        ),
    ],
)
@pytest.mark.parametrize("objectives", [NAMES, ["accuracy", "params"], ["latency", "flops"]])
def test_few_or_no_trials_can_be_drawn(table, objectives):
    front = table[table["state"] == "evaluated"]["id"]
    assert to_html(figure_of(table, front, objectives, limits={"latency": 1, "flops": 1e6}), whole=False)


class Loads(HTMLParser):
    """Collect every attribute by which a page loads something."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, str | None]] = []
        self.scripts = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.found += [
            (tag, value) for name, value in attributes if name in ("src", "href", "data", "action", "srcset")
        ]
        if tag in ("link", "base", "iframe", "object", "embed", "img"):
            self.found.append((tag, None))


@pytest.mark.parametrize("whole", [True, False])
def test_html_loads_nothing_and_uploads_nothing(whole):
    text = to_html(figure_of(trials({}, REJECTED)), whole=whole)
    assert Loads(text).found == []
    assert "Plotly.newPlot" in text
    assert '"showSendToCloud": false' in text
    assert (len(text) > 1_000_000) is whole


def test_texts_cannot_end_the_script():
    text = to_html(figure_of(trials({"digest": "</script><script>alert(1)</script>"})), whole=False)
    assert "<script>alert" not in text


def test_progress():
    table = trials({}, {}, {}).assign(hypervolume=[0.1, None, 0.3])
    figure = progress_figure(table)
    assert list(figure.data[0].x) == [0, 2]
    assert list(figure.data[0].y) == [0.1, 0.3]
