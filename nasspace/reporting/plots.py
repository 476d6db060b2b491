"""Figures of a study, drawn from the rows of `plot_data` as the plain values that plotly.js takes.

A figure is `{"data": [...], "layout": {...}}` in Plotly's schema, in which `plotly.graph_objects.Figure(figure)` checks
it. Importing Plotly's classes and pandas takes longer than everything else that a report needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from nasspace.reporting.plot_data import (
    EVALUATED,
    FRONT,
    PUBLISHED,
    REJECTED,
    WORDS,
    Row,
    panels,
    staircase,
    values,
    views,
)
from nasspace.studies.objectives import OBJECTIVES

Figure = dict[str, Any]
COLORS = {
    FRONT: "#D55E00",
    EVALUATED: "#2E86C8",
    REJECTED: "#8C8C8C",
}  # close to Okabe and Ito's palette for color-blind readers
MARKERS = {
    FRONT: {"color": COLORS[FRONT], "size": 11, "symbol": "diamond", "line": {"width": 1, "color": "white"}},
    EVALUATED: {"color": COLORS[EVALUATED], "size": 8, "opacity": 0.6},
    REJECTED: {"color": COLORS[REJECTED], "size": 13, "symbol": "line-ns-open", "line": {"width": 1.5}},
}
MUTED = {  # of the linked views: the front stands out
    EVALUATED: {"color": "#6F8CA6", "size": 8, "opacity": 0.5},
    REJECTED: {"color": COLORS[REJECTED], "size": 8, "symbol": "x-thin-open", "opacity": 0.7, "line": {"width": 1.5}},
}
PUBLISHED_MARKER = {"color": "#009E73", "size": 9, "symbol": "triangle-up", "opacity": 0.9}
BARS = {FRONT: COLORS[FRONT], EVALUATED: "rgba(111,140,166,0.3)", REJECTED: "rgba(140,140,140,0.3)"}
LIMIT_LINE = {"dash": "dash", "width": 1.5, "color": COLORS[REJECTED]}
GRAY = "rgba(128,128,128,0.22)"
CLEAR = "rgba(0,0,0,0)"
LOGARITHMIC = 20  # ratio of largest to smallest value above which an axis is logarithmic
NEAR = 0.05  # labels overlap if they are closer than this share of both axes
FAR = 1.5  # a limit above this multiple of the largest value is written and not drawn
BETWEEN_PANELS, ABOVE_STRIP = 0.04, 0.03  # gaps, as shares of the figure's width and height
STRIP = 0.1  # share of the height left by the gap
CONFIG = {  # the button to upload figures to Plotly's servers is removed
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d"],
    "displaylogo": False,
    "responsive": True,
}
LAYOUT = {  # of all figures: transparent background, legend above
    "height": 560,
    "margin": {"l": 70, "r": 20, "t": 40, "b": 70},
    "paper_bgcolor": CLEAR,
    "plot_bgcolor": CLEAR,
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": CLEAR},
    "hoverlabel": {"bgcolor": "white", "bordercolor": "#888", "font": {"color": "#111"}, "align": "left"},
    "hovermode": "closest",
    "modebar": {"bgcolor": CLEAR, "color": COLORS[REJECTED], "activecolor": COLORS[EVALUATED]},
}
SMALL = {"height": 400, "margin": {"l": 55, "r": 12, "t": 18, "b": 62}, "showlegend": False}  # of the linked views
AXIS = {"gridcolor": GRAY, "linecolor": COLORS[REJECTED], "zeroline": False, "ticks": "outside", "showline": True}


def pareto_figure(
    rows: Sequence[Row],
    objectives: Sequence[str],
    *,
    limits: Mapping[str, float] | None = None,
    titles: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the rows of `pareto_rows`: one panel for each of `panels(objectives)`, rejected candidates in a strip below.

    `limits` are in milliseconds and counts; `titles` (HTML) replace the titles of some axes.
    """
    shown = panels(objectives)
    titles = {name: (titles or {}).get(name, objective.axis_title) for name, objective in OBJECTIVES.items()}
    strip = any(row["kind"] == REJECTED for row in rows)
    figure: Figure = {"data": [], "layout": {**LAYOUT, "shapes": [], "annotations": []}}
    for col, (x, y) in enumerate(shown, start=1):
        panel = _Panel(rows, x, y, _Place(col, len(shown), strip), _scaled(limits))
        _draw(panel, figure, titles)
    return figure


def linked_figures(
    rows: Sequence[Row],
    objectives: Sequence[str],
    *,
    limits: Mapping[str, float] | None = None,
    titles: Mapping[str, str] | None = None,
    published: Sequence[Row] = (),
) -> list[Figure]:
    """Draw the rows of `pareto_rows`: a figure for each of `views(objectives, rows)`; arguments as of `pareto_figure`.

    Points have the numbers of their trials as `ids`, by which the page marks a network in all figures. Limits of both
    axes are drawn; the legend is the page's.
    `published` networks have the values of objectives, and `hover`; they are drawn where both axes are known.
    """
    titles = {name: (titles or {}).get(name, objective.axis_title) for name, objective in OBJECTIVES.items()}
    figures = []
    for x, y in views(objectives, rows):
        panel = _LinkedPanel(rows, x, y, _Place(1, 1, False), _scaled(limits), published)
        panel = replace(panel, place=_Place(1, 1, bool(panel.below(REJECTED) or panel.below(PUBLISHED))))
        figure: Figure = {"data": [], "layout": {**LAYOUT, **SMALL, "shapes": [], "annotations": []}}
        _draw(panel, figure, titles)
        figures.append(figure)
    return figures


def _scaled(limits: Mapping[str, float] | None) -> dict[str, float]:
    """Limits in the units shown."""
    return {name: limit * OBJECTIVES[name].factor for name, limit in (limits or {}).items()}


def _draw(panel: _Panel, figure: Figure, titles: Mapping[str, str]) -> None:
    """Add a panel to a figure."""
    figure["data"] += panel.traces()
    figure["layout"] |= panel.axes(titles[panel.x], titles[panel.y])
    figure["layout"]["shapes"] += panel.limit_lines()
    figure["layout"]["annotations"] += panel.limit_texts()


@dataclass(frozen=True)
class _Place:
    """Column `col` (from 1) of `columns` side by side; with `strip`, every column has a second row below."""

    col: int
    columns: int
    strip: bool

    @property
    def last_row(self) -> int:
        return 1 + self.strip

    def axis(self, letter: str, row: int, col: int | None = None) -> str:
        """The name of an axis in traces: x, x2, ..., by rows."""
        i = (row - 1) * self.columns + (col or self.col)
        return letter if i == 1 else f"{letter}{i}"

    def key(self, letter: str, row: int) -> str:
        """The name of an axis in the layout: xaxis, xaxis2, ..."""
        return f"{letter}axis{self.axis(letter, row)[1:]}"

    def across(self) -> list[float]:
        """The domain of the x axes: shares of the figure's width."""
        width = (1 - BETWEEN_PANELS * (self.columns - 1)) / self.columns
        start = (self.col - 1) * (width + BETWEEN_PANELS)
        return [start, start + width]

    def upwards(self, row: int) -> list[float]:
        """The domain of a row's y axes: shares of the figure's height."""
        top = STRIP * (1 - ABOVE_STRIP)
        if not self.strip:
            return [0.0, 1.0]
        return [top + ABOVE_STRIP, 1.0] if row == 1 else [0.0, top]


@dataclass(frozen=True)
class _Panel:
    """The panel of two objectives; `limits` are in the units shown."""

    rows: Sequence[Row]
    x: str
    y: str
    place: _Place
    limits: Mapping[str, float]

    @property
    def limit(self) -> float | None:
        """The limit of the x axis."""
        return self.limits.get(self.x)

    @cached_property
    def is_near(self) -> bool:
        """Whether the limit is close enough to the values to be drawn."""
        return self._is_near(self.x)

    def _is_near(self, name: str) -> bool:
        limit = self.limits.get(name)
        return bool(limit and limit <= FAR * max(values(self.rows, name), default=math.nan))

    @cached_property
    def shown_values(self) -> list[float]:
        """The values that the x axis must include."""
        return self._shown(self.x)

    def _shown(self, name: str) -> list[float]:
        columns = ["latency", "latency_low", "latency_high"] if name == "latency" else [name]
        found = [value for column in columns for value in values(self.rows, column)]
        return found + ([self.limits[name]] if self._is_near(name) else [])

    @property
    def is_logarithmic(self) -> bool:
        """Whether the values of the x axis span a wide range."""
        return _is_wide(self.shown_values)

    def traces(self) -> list[dict[str, Any]]:
        """The staircase, the evaluated candidates below the front's members, and the strip."""
        drawn = [self._steps(), self._points(EVALUATED), self._points(FRONT)]
        return [*drawn, self._rejected()] if self.place.strip else drawn

    def _part(self, kind: str, *columns: str) -> list[Row]:
        """The candidates of a kind that have values in these columns."""
        return [row for row in self.rows if row["kind"] == kind and not any(math.isnan(row[name]) for name in columns)]

    def _trace(self, row: int, kind: str, legend: bool, **look: Any) -> dict[str, Any]:
        axes = {"xaxis": self.place.axis("x", row), "yaxis": self.place.axis("y", row)}
        shown = {"legendgroup": kind, "showlegend": legend and self.place.col == 1}
        return {"type": "scatter", "name": WORDS[kind], **shown, **axes, **look}

    def _steps(self) -> dict[str, Any]:
        steps = staircase(self.rows, self.x, self.y)
        line = {"color": COLORS[FRONT], "width": 1.5, "shape": "hv"}
        points = {"x": [row[self.x] for row in steps], "y": [row[self.y] for row in steps]}
        return self._trace(1, FRONT, False, **points, mode="lines", line=line, hoverinfo="skip")

    def _points(self, kind: str) -> dict[str, Any]:
        part = self._part(kind, self.x, self.y)
        look = {"mode": "markers", "marker": MARKERS[kind], "cliponaxis": False}
        if kind == FRONT:
            labels = {"text": self._labels(part), "textposition": "top left", "textfont": {"size": 11}}
            look |= {"mode": "markers+text", **labels}
        if self.x == "latency":
            look["error_x"] = _interval(part, self.x, COLORS[kind])
        if kind == FRONT and self.y == "accuracy" and values(part, "accuracy_low"):
            look["error_y"] = _interval(part, self.y, COLORS[kind])
        points = {"x": [row[self.x] for row in part], "y": [row[self.y] for row in part]}
        return self._trace(1, kind, True, **points, **look, **_hovering(part))

    def _labels(self, part: Sequence[Row]) -> list[str]:
        """The ids of the members on the staircase, without labels that would overlap."""
        return self._labels_of(part, staircase(self.rows, self.x, self.y))

    def _labels_of(self, part: Sequence[Row], ranked: Iterable[Row], near: float = NEAR) -> list[str]:
        """The ids of members; of labels that would overlap, the first of `ranked` is kept."""
        columns = {name: [row[name] for row in part] for name in (self.x, self.y)}
        spans = {name: max(column) - min(column) or 1.0 for name, column in columns.items() if column}
        kept: list[Row] = []
        for row in ranked:
            if all(any(abs(row[name] - other[name]) > near * spans[name] for name in spans) for other in kept):
                kept.append(row)
        labeled = {row["id"] for row in kept}
        return [str(row["id"]) if row["id"] in labeled else "" for row in part]

    def _rejected(self) -> dict[str, Any]:
        """A rug of the candidates without accuracy along the x axis."""
        return self._rug(REJECTED, self._part(REJECTED, self.x))

    def _rug(self, kind: str, part: Sequence[Row]) -> dict[str, Any]:
        """Candidates in the strip below the panel."""
        points = {"x": [row[self.x] for row in part], "y": [0] * len(part)}
        return self._trace(2, kind, True, **points, mode="markers", marker=MARKERS[kind], **_hovering(part))

    def limit_lines(self) -> list[dict[str, Any]]:
        """A dashed line at the limit in each row, if it is near the values."""
        shape = {"type": "line", "x0": self.limit, "x1": self.limit, "y0": 0, "y1": 1, "line": LIMIT_LINE}
        axis, rows = self.place.axis, range(1, 1 + self.place.last_row)
        return [{**shape, "xref": axis("x", i), "yref": f"{axis('y', i)} domain"} for i in rows if self.is_near]

    def limit_texts(self) -> list[dict[str, Any]]:
        """The value of the limit at its line, or at the right edge with an arrow."""
        limit = self.limit
        if not limit:
            return []
        axis, text = self.place.axis("x", 1), f"limit {OBJECTIVES[self.x].format_scaled(limit)}"
        where: dict[str, Any] = {"x": 1, "xref": f"{axis} domain", "text": f"{text} →"}
        if self.is_near:  # annotations take the logarithm
            where = {"x": math.log10(limit) if self.is_logarithmic else limit, "xref": axis, "text": text}
        below = {"y": 0, "yref": f"{self.place.axis('y', 1)} domain", "yanchor": "bottom"}
        return [{**where, **below, "xanchor": "right", "showarrow": False, "font": {"size": 12}}]

    def axes(self, x_title: str, y_title: str) -> dict[str, Any]:
        """The axes of all rows by their keys in the layout."""
        rows = range(1, 1 + self.place.last_row)
        found = {self.place.key("x", row): self._x_axis(row, x_title) for row in rows}
        return found | {self.place.key("y", row): self._y_axis(row, y_title) for row in rows}

    def _x_axis(self, row: int, title: str) -> dict[str, Any]:
        """Scale and range of the x axis; the lowest row has its title and ticks."""
        shown, logarithmic, last = self.shown_values, self.is_logarithmic, self.place.last_row
        axis = {
            **AXIS,
            "anchor": self.place.axis("y", row),
            "domain": self.place.across(),
            "range": _span([math.log10(value) for value in shown] if logarithmic else shown),
            "type": "log" if logarithmic else "linear",
            "title": axis_title(title if row == last else ""),
        }
        if row == last:
            return axis
        return axis | {"matches": self.place.axis("x", last), "showticklabels": False, "ticks": ""}

    def _y_axis(self, row: int, title: str) -> dict[str, Any]:
        """The y axis of a row, which all panels share: the first has its title and ticks; the strip shows none."""
        axis = {
            **AXIS,
            "automargin": True,
            "anchor": self.place.axis("x", row),
            "domain": self.place.upwards(row),
            "title": axis_title(title if (row, self.place.col) == (1, 1) else ""),
        }
        if self.place.col > 1:
            axis |= {"matches": self.place.axis("y", row, 1), "showticklabels": False}
        if row > 1:
            return axis | {"visible": False, "range": [-1, 1], "fixedrange": True}
        shown = self._shown(self.y)
        if self.y == "accuracy":
            members = [candidate for candidate in self.rows if candidate["kind"] == FRONT]
            shown += values(members, "accuracy_low") + values(members, "accuracy_high")
        low, high = _span(shown)
        if OBJECTIVES[self.y].is_maximized:
            axis["tickformat"] = ".0%" if high - low > 0.08 else ".1%"
        return axis | {"range": [low, high]}


@dataclass(frozen=True)
class _LinkedPanel(_Panel):
    """A panel of the linked views: both axes have their limits and intervals, and points have ids."""

    published: Sequence[Row] = ()

    def traces(self) -> list[dict[str, Any]]:
        """The published networks, the candidates, and the strip."""
        shown = self._published(
            [row for row in self.published if not math.isnan(row.get(self.x, math.nan) + row.get(self.y, math.nan))], 1
        )
        drawn = [shown, self._points(REJECTED), *super().traces()]
        return [*drawn, self._published(self.below(PUBLISHED), 2)] if self.place.strip else drawn

    def _shown(self, name: str) -> list[float]:
        """The values that an axis must include, with those of published networks."""
        return [*super()._shown(name), *(row[name] for row in self.published if name in row)]

    def below(self, kind: str) -> list[Row]:
        """The networks of a kind that have a value on the x axis only."""
        rows = self.published if kind == PUBLISHED else [row for row in self.rows if row["kind"] == kind]
        missing = math.nan
        return [
            row for row in rows if math.isnan(row.get(self.y, missing)) and not math.isnan(row.get(self.x, missing))
        ]

    def _published(self, part: Sequence[Row], row: int) -> dict[str, Any]:
        """Published networks, in the panel or in the strip."""
        y = [one[self.y] for one in part] if row == 1 else [0.5] * len(part)
        points = {"x": [one[self.x] for one in part], "y": y, "customdata": [one["hover"] for one in part]}
        look = {"mode": "markers", "marker": PUBLISHED_MARKER, "hovertemplate": "%{customdata}<extra></extra>"}
        return self._trace(row, PUBLISHED, False, **points, **look)

    def _trace(self, row: int, kind: str, legend: bool, **look: Any) -> dict[str, Any]:
        return super()._trace(row, kind, False, **look)

    def _points(self, kind: str) -> dict[str, Any]:
        part = self._part(kind, self.x, self.y)
        look = {"ids": [str(row["id"]) for row in part], "marker": MUTED.get(kind, MARKERS[kind])}
        for axis, name in (("x", self.x), ("y", self.y)):
            if name in ("accuracy", "latency") and values(part, f"{name}_low"):
                look[f"error_{axis}"] = _interval(part, name, BARS[kind])
        points = super()._points(kind)
        points.pop("error_x", None)
        return {**points, **look}

    def _rejected(self) -> dict[str, Any]:
        """The rug of the candidates that lack the value of the y axis."""
        missing = self.below(REJECTED)
        return {**self._rug(REJECTED, missing), "ids": [str(row["id"]) for row in missing]}

    def _labels(self, part: Sequence[Row]) -> list[str]:
        """The ids of all members, without labels that would overlap; those on the staircase come first."""
        return self._labels_of(part, [*staircase(self.rows, self.x, self.y), *part], near=2 * NEAR)

    @property
    def _is_y_logarithmic(self) -> bool:
        """Whether the values of the y axis span a wide range."""
        return self.y != "accuracy" and _is_wide(self._shown(self.y))

    def _y_axis(self, row: int, title: str) -> dict[str, Any]:
        axis = super()._y_axis(row, title)
        if row > 1 or not self._is_y_logarithmic:
            return axis
        return {**axis, "type": "log", "range": _span([math.log10(value) for value in self._shown(self.y)])}

    def limit_lines(self) -> list[dict[str, Any]]:
        """The lines of both limits."""
        limit, axis = self.limits.get(self.y), self.place.axis
        shape = {"type": "line", "x0": 0, "x1": 1, "y0": limit, "y1": limit, "line": LIMIT_LINE}
        across = [{**shape, "xref": f"{axis('x', 1)} domain", "yref": axis("y", 1)}] if self._is_near(self.y) else []
        return [*super().limit_lines(), *across]

    def limit_texts(self) -> list[dict[str, Any]]:
        """The values of both limits."""
        limit, axis = self.limits.get(self.y), self.place.axis("y", 1)
        if not limit:
            return super().limit_texts()
        text = f"limit {OBJECTIVES[self.y].format_scaled(limit)}"
        where: dict[str, Any] = {"y": 1, "yref": f"{axis} domain", "yanchor": "top", "text": f"{text} ↑"}
        if self._is_near(self.y):
            at = math.log10(limit) if self._is_y_logarithmic else limit
            where = {"y": at, "yref": axis, "yanchor": "bottom", "text": text}
        left = {"x": 0, "xref": f"{self.place.axis('x', 1)} domain", "xanchor": "left"}
        return [*super().limit_texts(), {**where, **left, "showarrow": False, "font": {"size": 12}}]


def _hovering(part: Sequence[Row]) -> dict[str, Any]:
    return {"customdata": [row["hover"] for row in part], "hovertemplate": "%{customdata}<extra></extra>"}


def _interval(part: Sequence[Row], name: str, color: str) -> dict[str, Any]:
    """Error bars with the intervals of latency or accuracy; a candidate without an interval has none."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [_length(row[f"{name}_high"] - row[name]) for row in part],
        "arrayminus": [_length(row[name] - row[f"{name}_low"]) for row in part],
        "thickness": 1,
        "width": 3,
        "color": color,
    }


def _is_wide(shown: Sequence[float]) -> bool:
    """Whether values span a range that a logarithmic axis shows better."""
    return bool(shown) and min(shown) > 0 and max(shown) / min(shown) > LOGARITHMIC


def _length(difference: float) -> float | None:
    return None if math.isnan(difference) else max(difference, 0.0)


def _span(shown: Sequence[float]) -> list[float]:
    """A range with a margin around the values."""
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    margin = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - margin, high + margin]


def axis_title(text: str = "", standoff: int | None = None) -> dict[str, Any]:
    """The title of an axis, `standoff` pixels from its labels (None: at the figure's margin)."""
    font = {"font": {"size": 13}} | ({} if standoff is None else {"standoff": standoff})
    return {"text": text, **font} if text else font


def plotly_js() -> str:
    """The source of plotly.js."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
