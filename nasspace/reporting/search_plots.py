"""Figures of how a search went: growth of its front, its choices, their importance, and its own predictions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from nasspace.formatting import significant
from nasspace.reporting.choices import in_order, readable
from nasspace.reporting.plot_data import EVALUATED, FRONT, Row, as_float
from nasspace.reporting.plots import (
    AXIS,
    COLORS,
    LAYOUT,
    LIMIT_LINE,
    MARKERS,
    SMALL,
    Figure,
    axis_title,
)
from nasspace.samplers import pareto
from nasspace.studies.objectives import OBJECTIVES
from nasspace.studies.trial_table import RECORD

MARGIN = 1.1  # the reference point of the hypervolume: beyond the worst value by a tenth of the range
MOST_STEPS = 120  # points of a curve of the hypervolume
MOST_EXACT = 3  # objectives of a hypervolume, whose time grows fast with their number
MOST_AXES = 8  # choices in the parallel coordinates
MOST_IMPORTANT = 12  # choices in the figure of importances
MOST_LINES = 300  # lines of networks that are not on the front, evenly spread over the search
AXIS_WIDTH = 92  # pixels of an axis of the parallel coordinates
FAINT = "rgba(111,140,166,0.5)"  # lines of the networks that are not on the front
JITTER = 0.022  # largest shift of a line at an option, so that equal choices stay apart
NOT_REACHED = -0.13  # height of the networks without a choice


@dataclass(frozen=True)
class Growth:
    """The hypervolume of the front, as a share of the box of all values, after some trials and after some seconds.

    `seconds` and `shares_in_time` are empty if the times are not known: workers finish trials in another order.
    """

    objectives: tuple[str, ...]
    trials: tuple[int, ...]
    shares: tuple[float, ...]
    seconds: tuple[float, ...]
    shares_in_time: tuple[float, ...]


def growth(trials: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> Growth | None:
    """How the front of the evaluated networks within the limits grew; None with fewer than two of them.

    The box goes from the best value of each objective to a tenth of the range beyond the worst. Accuracies are the
    expected ones, else those of the search. Of more than three objectives the first three count.
    """
    shown = tuple(objectives[:MOST_EXACT])
    rows = [row for row in trials if row["state"] == EVALUATED and not row.get("reason")]
    points = np.array([[_to_minimize(name, row) for name in shown] for row in rows]).reshape(len(rows), len(shown))
    known = ~np.isnan(points).any(axis=1)
    rows, points = [row for row, is_known in zip(rows, known, strict=True) if is_known], points[known]
    if len(rows) < 2:
        return None
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    scaled = (points - low) / np.where(span > 0, span, 1.0) / MARGIN
    steps = sorted({round(step) for step in np.linspace(1, len(rows), min(len(rows), MOST_STEPS))})

    def shares(ordered: np.ndarray) -> tuple[float, ...]:
        return tuple(pareto.hypervolume(ordered[:step], np.ones(len(shown))) for step in steps)

    seconds = np.array(_seconds(rows))
    finished = np.argsort(seconds, kind="stable")
    in_time = shares(scaled[finished]) if len(seconds) else ()
    at = tuple(float(seconds[finished[step - 1]]) for step in steps) if len(seconds) else ()
    return Growth(shown, tuple(int(rows[step - 1]["id"]) for step in steps), shares(scaled), at, in_time)


def _to_minimize(name: str, row: Mapping[str, Any]) -> float:
    columns = [OBJECTIVES[name].column]
    if name == "accuracy":
        believed = math.isfinite(as_float(row.get("accuracy_low")))
        columns = ["accuracy_expected"] if believed else ["search_accuracy", "accuracy"]
    found = next((value for column in columns if math.isfinite(value := as_float(row.get(column)))), math.nan)
    return OBJECTIVES[name].to_minimize(found)


def _seconds(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds from the start of the first trial to the end of each; empty if a time is not known."""
    records = [row.get(RECORD) for row in rows]
    if not all(record and record.started and record.finished for record in records):
        return []
    start = min(record.started for record in records)
    return [(row[RECORD].finished - start).total_seconds() for row in rows]


def growth_figures(found: Growth) -> list[Figure]:
    """Draw the hypervolume over trials, and over time if that is known."""
    longest = max(found.seconds, default=0)
    unit, seconds = ("seconds", 1) if longest < 180 else ("minutes", 60) if longest < 7200 else ("hours", 3600)
    curves = [("trial", list(found.trials), found.shares)]
    if found.seconds:
        in_unit = [value / seconds for value in found.seconds]
        curves.append((f"time of the search, {unit}", in_unit, found.shares_in_time))
    figures = []
    for title, x, shares in curves:
        trace = {
            **{"type": "scatter", "x": x, "y": list(shares), "mode": "lines+markers", "name": "hypervolume"},
            **{"line": {"color": COLORS[FRONT], "width": 2, "shape": "hv"}, "marker": {"size": 4}},
            "hovertemplate": "%{y:.1%} at %{x:.4g}<extra></extra>",
        }
        y_axis = {**AXIS, "title": axis_title("hypervolume"), "tickformat": ".0%", "automargin": True}
        axes = {"xaxis": {**AXIS, "title": axis_title(title)}, "yaxis": {**y_axis, "rangemode": "tozero"}}
        figures.append({"data": [trace], "layout": {**LAYOUT, **SMALL, **axes, "height": 300}})
    return figures


def choices_figure(rows: Sequence[Row], trials: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure | None:
    """Draw the choices and figures of each network as a line: parallel coordinates of the evaluated networks.

    `rows` are those of `pareto_rows`, `names` the choices, those that matter most first. A network without a choice
    passes below its axis. Points have the numbers of their trials as `ids`. None without choices.
    """
    choices = {row["id"]: row[RECORD].choices for row in trials if row.get(RECORD)}
    lines = [row for row in rows if row["kind"] in (FRONT, EVALUATED) and row["id"] in choices]
    names = list(names[:MOST_AXES])
    step = max(1, math.ceil(sum(row["kind"] == EVALUATED for row in lines) / MOST_LINES))
    lines = [row for i, row in enumerate(lines) if row["kind"] == FRONT or i % step == 0]
    if not lines or not names:
        return None
    axes = [_ChoiceAxis.of(name, [choices[row["id"]] for row in lines]) for name in names]
    measured = [
        name for name in ("accuracy", "latency", "flops") if sum(not math.isnan(row[name]) for row in lines) > 1
    ]
    spans = [_Span.of(name, lines) for name in measured]

    def heights(row: Row) -> list[float | None]:
        """The heights of a network's line on all axes."""
        shift = JITTER * ((row["id"] * 0.618) % 1 - 0.5) * 2
        chosen = [axis.height(choices[row["id"]]) + shift for axis in axes]
        return [*chosen, *(span.height(row[span.name]) for span in spans)]

    count = len(axes) + len(spans)
    traces = []
    for kind, look in (
        (EVALUATED, {"width": 1, "color": FAINT}),
        (FRONT, {"width": 2, "color": COLORS[FRONT]}),
    ):
        x: list[float | None] = []
        y: list[float | None] = []
        ids: list[str] = []
        for row in (one for one in lines if one["kind"] == kind):
            x += [*range(count), None]
            y += [*heights(row), None]
            ids += [str(row["id"])] * count + [""]
        traces.append(_lines(kind, x, y, ids, look))
    layout = {
        **{**LAYOUT, **SMALL, "height": 430, "margin": {"l": 30, "r": 70, "t": 78, "b": 20}},
        "xaxis": {"visible": False, "range": [-0.15, count - 1 + 0.5], "fixedrange": True},
        "yaxis": {"visible": False, "range": [-0.2, 1.06], "fixedrange": True},
        "shapes": [_vertical(i) for i in range(count)],
        "annotations": [note for i, axis in enumerate([*axes, *spans]) for note in _notes(i, axis)],
    }
    return {"data": traces, "layout": layout}


def _lines(name: str, x: list[Any], y: list[Any], ids: list[str], line: Mapping[str, Any]) -> dict[str, Any]:
    points = {"type": "scatter", "x": x, "y": y, "ids": ids, "mode": "lines", "name": name, "line": dict(line)}
    return {**points, "hovertemplate": "trial %{id}<extra></extra>", "connectgaps": False}


def _vertical(x: float) -> dict[str, Any]:
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": {**LIMIT_LINE, "dash": "solid", "width": 1}}


@dataclass(frozen=True)
class _ChoiceAxis:
    """An axis with the options of a choice at equal distances; `is_partial` if some networks do not reach it."""

    name: str
    options: tuple[Any, ...]
    is_partial: bool

    @classmethod
    def of(cls, name: str, networks: Sequence[Mapping[str, Any]]) -> _ChoiceAxis:
        """The axis of a choice of these networks."""
        reached = [choices[name] for choices in networks if name in choices]
        return cls(name, tuple(in_order(set(reached))), len(reached) < len(networks))

    @property
    def title(self) -> str:
        """The name of the choice in short lines."""
        return readable(self.name)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Heights of the options, and their names."""
        ticks = [(self._at(i), str(option)) for i, option in enumerate(self.options)]
        return [*ticks, (NOT_REACHED, "none")] if self.is_partial else ticks

    def _at(self, i: int) -> float:
        return i / (len(self.options) - 1) if len(self.options) > 1 else 0.5

    def height(self, choices: Mapping[str, Any]) -> float:
        """The height of a network's option."""
        return self._at(self.options.index(choices[self.name])) if self.name in choices else NOT_REACHED


@dataclass(frozen=True)
class _Span:
    """An axis with a figure of the networks from its smallest to its largest value."""

    name: str
    low: float
    high: float

    @classmethod
    def of(cls, name: str, rows: Sequence[Row]) -> _Span:
        """The axis of a figure of these networks."""
        found = [row[name] for row in rows if not math.isnan(row[name])]
        return cls(name, min(found), max(found))

    @property
    def title(self) -> str:
        """The label of the figure."""
        return OBJECTIVES[self.name].label

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The ends of the axis."""
        ends = {0.0: self.low, 1.0: self.high} if self.high > self.low else {0.5: self.low}
        return [(height, OBJECTIVES[self.name].format_scaled(value)) for height, value in ends.items()]

    def height(self, value: float) -> float | None:
        """The height of a value; None if it is not known."""
        if math.isnan(value):
            return None
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5


def _notes(x: float, axis: _ChoiceAxis | _Span) -> list[dict[str, Any]]:
    """The title above an axis, and the options or values at it."""
    plain = {"showarrow": False, "x": x}
    title = re.sub(r" (?=layer |[^\d ])", "<br>", escape(axis.title, quote=False)).replace("layer<br>", "layer ")
    above = {"y": 1.05, "yanchor": "bottom", "xanchor": "center", "text": title, "font": {"size": 11}}
    ticks = [
        {
            **plain,
            "y": height,
            "xanchor": "left",
            "xshift": 4,
            "yshift": 7,
            "text": escape(text[:16], quote=False),
            "font": {"size": 11},
        }
        for height, text in axis.ticks
    ]
    return [{**plain, **above}, *ticks]


def importance_figure(importances: Mapping[str, float]) -> Figure:
    """Draw the importances of choices as bars, the largest at the top."""
    shown = list(importances.items())[:MOST_IMPORTANT][::-1]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [value for _, value in shown],
        "y": [escape(readable(name), quote=False) for name, _ in shown],
        "marker": {"color": COLORS[EVALUATED]},
        "hovertemplate": "%{x:.1%}<extra></extra>",
    }
    axes = {
        "xaxis": {**AXIS, "title": axis_title("share of the importance of all choices"), "tickformat": ".0%"},
        "yaxis": {**AXIS, "automargin": True, "ticks": "", "showgrid": False},
    }
    margin = {**SMALL["margin"], "t": 8}
    return {"data": [trace], "layout": {**LAYOUT, **SMALL, **axes, "margin": margin, "height": 90 + 24 * len(shown)}}


@dataclass(frozen=True)
class Agreement:
    """A figure as the search had it first, and as it was found later, of some networks in the unit shown."""

    name: str
    first: str
    found: str
    ids: tuple[int, ...]
    pairs: tuple[tuple[float, float], ...]
    intervals: tuple[tuple[float, float], ...] = ()  # of the found values


def agreement_figure(one: Agreement) -> Figure:
    """Draw found values over first ones, with the line on which both are equal."""
    objective = OBJECTIVES[one.name]
    first, found = ([pair[i] for pair in one.pairs] for i in (0, 1))
    low, high = min(*first, *found), max(*first, *found)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    ends = [low - margin, high + margin]
    points = {
        **{"type": "scatter", "x": first, "y": found, "ids": [str(number) for number in one.ids], "mode": "markers"},
        **{"marker": {**MARKERS[EVALUATED], "opacity": 0.9}, "name": objective.label},
        "hovertemplate": "trial %{id}: %{x} first, %{y} found<extra></extra>",
    }
    if one.intervals:
        points["error_y"] = {
            **{"type": "data", "symmetric": False, "thickness": 1, "width": 3, "color": COLORS[EVALUATED]},
            "array": [max(0.0, end[1] - y) for end, y in zip(one.intervals, found, strict=True)],
            "arrayminus": [max(0.0, y - end[0]) for end, y in zip(one.intervals, found, strict=True)],
        }
    format_ = {"hoverformat": ".3~g"}
    if objective.kind == "fraction":
        format_ = {"tickformat": ".0%" if high - low > 0.08 else ".1%", "hoverformat": ".2%"}
    unit = "" if objective.kind == "fraction" else f", {objective.unit}"
    axes = {
        "xaxis": {**AXIS, **format_, "title": axis_title(f"{one.first}{unit}"), "range": ends},
        "yaxis": {**AXIS, **format_, "title": axis_title(f"{one.found}{unit}"), "range": ends, "automargin": True},
    }
    shapes = [{"type": "line", **dict(zip(("x0", "y0", "x1", "y1"), [*2 * ends[:1], *2 * ends[1:]], strict=True))}]
    shapes[0]["line"] = LIMIT_LINE
    return {"data": [points], "layout": {**LAYOUT, **SMALL, **axes, "shapes": shapes, "height": 330}}


def agreement_sentence(one: Agreement) -> str:
    """How far the found values are from the first ones, and whether their order is the same."""
    objective, count = OBJECTIVES[one.name], len(one.pairs)
    changes = [found - first for first, found in one.pairs]
    typical = sorted(abs(change) for change in changes)[count // 2]
    if objective.kind == "fraction":
        change = f"changed by {100 * sum(changes) / count:+.1f} points on average"
    else:
        relative = sorted(abs(found / first - 1) for first, found in one.pairs if first)
        share = f" ({relative[len(relative) // 2]:.1%})" if relative else ""
        change = f"changed by {significant(typical)} {objective.unit}{share} in the middle case"
    order = ""
    if count > 2:
        same = opposite = 0
        for i, (first, found) in enumerate(one.pairs):
            for other_first, other_found in one.pairs[:i]:
                sign = (first - other_first) * (found - other_found)
                same, opposite = same + (sign > 0), opposite + (sign < 0)
        order = f"; of {same + opposite} pairs of networks that differ in both, {same} kept their order"
    return f"{objective.label.capitalize()} of {count} network{'s' if count > 1 else ''} {change}{order}."
