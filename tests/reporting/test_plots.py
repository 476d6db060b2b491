"""Figures: their rows, and the traces that Plotly draws."""

from __future__ import annotations

import math

import plotly.graph_objects as go
import pytest

from nasspace.reporting.plot_data import panels, pareto_rows, staircase, views
from nasspace.reporting.plots import CONFIG, linked_figures, pareto_figure
from nasspace.studies.objectives import OBJECTIVES

NAMES = ["accuracy", "latency", "flops"]
COLUMNS = [
    "id", "digest", "state", "accuracy", "latency_ms", "latency_low_ms", "latency_high_ms", "latency_contended",
    "flops", "params", "memory_access", "seconds", "reason",
]  # fmt: skip


def trials(*changes: dict) -> list[dict]:
    """Trials as in a study; figures default to those of the first line."""
    usual = ["0" * 12, "evaluated", 0.9, 1.0, 0.9, 1.2, False, 2_000_000, 100_000, 50_000, 3.0, ""]
    return [{**dict(zip(COLUMNS, [i, *usual], strict=True)), **change} for i, change in enumerate(changes)]


REJECTED = {"state": "rejected", "accuracy": None, "reason": "latency <b>5</b> ms is above the limit"}


def test_rows_have_kinds_and_the_units_shown():
    rows = pareto_rows(trials({}, {}, REJECTED), [1])
    assert [row["kind"] for row in rows] == ["evaluated", "front", "rejected"]
    assert [row["flops"] for row in rows] == [2.0, 2.0, 2.0]
    assert [row["params"] for row in rows] == pytest.approx([0.1] * 3)
    assert [row["accuracy"] for row in rows[:2]] == [0.9, 0.9]
    assert math.isnan(rows[2]["accuracy"])
    assert (rows[0]["latency_low"], rows[0]["latency_high"]) == (0.9, 1.2)
    assert math.isnan(rows[0]["accuracy_low"])


def test_accuracy_is_the_expected_one_else_that_of_the_search():
    believed = {"accuracy_low": 0.7, "accuracy_high": 0.9, "accuracy_expected": 0.8}
    searched = {"accuracy": None, "search_accuracy": 0.6, "accuracy_expected": 0.6}
    rows = pareto_rows(trials(believed, searched), [])
    assert [row["accuracy"] for row in rows] == [0.8, 0.6]
    assert "expected after full training 80.00% (70.00% to 90.00%)" in rows[0]["hover"]
    assert "accuracy 60.00% in the search" in rows[1]["hover"]


def test_hover_text_has_figures_and_is_escaped():
    table = trials({"digest": "<i>abc", "latency_contended": True}, REJECTED)
    first, second = (row["hover"] for row in pareto_rows(table, []))
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


def test_hover_text_ends_with_notes_which_are_escaped():
    first, second = (row["hover"] for row in pareto_rows(trials({}, {}), [0], {0: ["same accuracy: 1", "<b>"]}))
    assert first.endswith("<br>same accuracy: 1<br>&lt;b&gt;")
    assert "same accuracy" not in second


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
    rows = pareto_rows(table, range(len(points)))  # the last one, the best, is no member
    expected = sorted((x, y) for x, y in points if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points))
    found = staircase(rows, "latency", "accuracy")
    assert [(row["latency"], row["accuracy"]) for row in found] == expected


def figure_of(table, front=(0,), objectives=NAMES, **arguments) -> go.Figure:
    """The figure as Plotly reads it: an unknown or wrong property raises ValueError."""
    return go.Figure(pareto_figure(pareto_rows(table, front), objectives, **arguments))


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
    front = [row["id"] for row in table if row["state"] == "evaluated"]
    assert figure_of(table, front, objectives, limits={"latency": 1, "flops": 1e6}).data


@pytest.mark.parametrize("objectives", [NAMES, ["accuracy", "params"]])
@pytest.mark.parametrize("table", [trials({}, {}), trials({}, REJECTED)])
def test_panels_lie_where_plotly_lays_subplots(table, objectives):
    from plotly.subplots import make_subplots

    strip, columns = len({row["state"] for row in table}) > 1, len(panels(objectives))
    oracle = make_subplots(
        rows=1 + strip,
        cols=columns,
        shared_xaxes=True,
        shared_yaxes=True,
        row_heights=[0.9, 0.1][: 1 + strip],
        vertical_spacing=0.03,
        horizontal_spacing=0.04,
    )
    found = figure_of(table, objectives=objectives)
    assert len(list(oracle.select_xaxes())) == columns * (1 + strip)
    for name, expected in oracle.layout.to_plotly_json().items():
        if "axis" in name:
            axis = found.layout[name]
            assert axis.domain == pytest.approx(tuple(expected.pop("domain")))
            assert {key: axis[key] for key in expected} == expected


def test_a_candidate_without_interval_has_no_bar():
    table = trials({}, {"latency_low_ms": None, "latency_high_ms": None})
    assert drawn(figure_of(table), "evaluated")[0].error_x.array == (None,)


def test_nothing_can_be_uploaded():
    assert CONFIG["showSendToCloud"] is False


LIMITS = {"latency": 1.5, "flops": 2.5e6}


def linked(table, front=(0,), objectives=NAMES, **arguments) -> dict[tuple[str, str], go.Figure]:
    """The linked figures by their objectives."""
    rows = pareto_rows(table, front)
    figures = map(go.Figure, linked_figures(rows, objectives, **arguments))
    return dict(zip(views(objectives, rows), figures, strict=True))


def test_views_are_each_pair_of_three_objectives():
    rows = pareto_rows(trials({}), [])
    assert views(NAMES, rows) == [("latency", "accuracy"), ("flops", "accuracy"), ("flops", "latency")]
    assert views(["accuracy"], rows) == views(NAMES, rows)
    assert views(["accuracy", "flops"], rows) == [("flops", "accuracy"), ("latency", "accuracy"), ("flops", "latency")]
    assert views(["latency", "flops", "params"], rows)[-1] == ("params", "flops")
    unmeasured = pareto_rows(trials({"latency_ms": None}), [])
    assert views(["accuracy", "flops"], unmeasured) == [("flops", "accuracy")]


def test_linked_points_have_the_numbers_of_their_trials():
    table = trials({"latency_ms": 1}, {"latency_ms": 2}, REJECTED, {**REJECTED, "latency_ms": None})
    for figure in linked(table).values():
        found = [number for trace in figure.data for number in trace.ids or ()]
        assert sorted(found) in (["0", "1", "2"], ["0", "1", "2", "3"])


def test_rejected_networks_are_points_where_both_values_are_known():
    figures = linked(trials({}, REJECTED))
    for names, row in {("flops", "latency"): "y", ("latency", "accuracy"): "y2"}.items():
        shown = [trace for trace in figures[names].data if trace.ids and "1" in trace.ids]
        assert [trace.yaxis for trace in shown] == [row]


def test_linked_views_draw_the_limits_of_both_axes():
    figure = linked(trials({}, {"latency_ms": 2.0}), limits=LIMITS)["flops", "latency"]
    assert sorted((shape.x0, shape.y0) for shape in figure.layout.shapes) == [(0, 1.5), (2.5, 0)]
    assert {note.text for note in figure.layout.annotations} == {"limit 1.50 ms", "limit 2.50 M"}
    far = linked(trials({}), limits={"latency": 100.0})["flops", "latency"]
    assert [note.text for note in far.layout.annotations] == ["limit 100 ms ↑"]
    wide = linked(trials({"latency_ms": 1.0}, {"latency_ms": 100.0}), limits={"latency": 10.0})["flops", "latency"]
    assert wide.layout.yaxis.type == "log"
    assert wide.layout.annotations[0].y == pytest.approx(1)


def test_linked_views_draw_intervals_on_both_axes():
    believed = {"accuracy_low": 0.85, "accuracy_high": 0.95, "accuracy_expected": 0.9}
    figure = linked(trials(believed, believed))["latency", "accuracy"]
    for name in ("Pareto front", "evaluated"):
        (points,) = [trace for trace in drawn(figure, name) if trace.ids]
        assert points.error_x.array == pytest.approx((0.2,))
        assert points.error_y.arrayminus == pytest.approx((0.05,))
    bare = linked(trials({"latency_low_ms": None, "latency_high_ms": None}))["latency", "accuracy"]
    assert all(trace.error_x.array is None for trace in bare.data)


def test_published_networks_are_drawn_where_their_figures_are_known():
    published = [{"flops": 2.0, "hover": "a"}, {"flops": 3.0, "latency": 1.5, "hover": "b"}]
    figures = linked(trials({}), published=published)
    counts = {
        names: [(trace.yaxis, len(trace.x)) for trace in figure.data if trace.name == "published"]
        for names, figure in figures.items()
    }
    assert counts == {
        ("latency", "accuracy"): [("y", 0), ("y2", 1)],
        ("flops", "accuracy"): [("y", 0), ("y2", 2)],
        ("flops", "latency"): [("y", 1), ("y2", 1)],
    }


@pytest.mark.parametrize("table", [trials(), trials({}), trials(REJECTED), trials({"latency_ms": None, "flops": None})])
def test_few_or_no_trials_can_be_linked(table):
    for objectives in (NAMES, ["latency", "flops"], ["accuracy"]):
        linked(table, [row["id"] for row in table if row["state"] == "evaluated"], objectives, limits=LIMITS)
