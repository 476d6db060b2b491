"""Figures of a study, drawn with Plotly from the rows of `plot_data`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nasspace.reporting.plot_data import (
    EVALUATED,
    FRONT,
    REJECTED,
    WORDS,
    panels,
    pareto_rows,
    records,
    staircase,
)
from nasspace.studies.objectives import OBJECTIVES

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

__all__ = ["panels", "pareto_figure", "pareto_rows", "plotly_js", "progress_figure", "staircase", "to_html"]
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
GRAY = "rgba(128,128,128,0.22)"
LOGARITHMIC = 20  # ratio of largest to smallest value above which an axis is logarithmic
NEAR = 0.05  # labels overlap if they are closer than this share of both axes
FAR = 1.5  # a limit above this multiple of the largest value is written and not drawn
CONFIG = {  # the button to upload figures to Plotly's servers is removed
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d"],
    "displaylogo": False,
    "responsive": True,
}
FOLLOW_PAGE = """
const figure = document.getElementById('{plot_id}');
const follow = color => Plotly.relayout(figure, {'font.color': color || getComputedStyle(document.body).color});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => follow());
addEventListener('beforeprint', () => follow('#111'));
addEventListener('afterprint', () => follow());
follow();
"""


def pareto_figure(
    rows: pandas.DataFrame,
    objectives: Sequence[str],
    *,
    limits: Mapping[str, float] | None = None,
    titles: Mapping[str, str] | None = None,
) -> go.Figure:
    """Draw the rows of `pareto_rows`: one panel for each of `panels(objectives)`, rejected candidates in a strip below.

    `limits` are in milliseconds and counts; `titles` (HTML) replace the titles of some axes.
    """
    from plotly.subplots import make_subplots

    shown = panels(objectives)
    strip = bool((rows["kind"] == REJECTED).any())
    figure = make_subplots(
        rows=1 + strip,
        cols=len(shown),
        shared_xaxes=True,
        shared_yaxes=True,
        row_heights=[0.9, 0.1][: 1 + strip],
        vertical_spacing=0.03,
        horizontal_spacing=0.04,
    )
    for col, (x, y) in enumerate(shown, start=1):
        limit = (limits or {}).get(x)
        panel = _Panel(figure, rows, x, y, col, strip, limit and limit * OBJECTIVES[x].factor)
        panel.draw((titles or {}).get(x, OBJECTIVES[x].axis_title))
    _format_y_axis(figure, rows, shown[0][1], titles or {})
    _format_figure(figure, strip)
    return figure


@dataclass(frozen=True)
class _Panel:
    """The panel of two objectives in column `col` of a figure; `limit` is in the unit shown."""

    figure: go.Figure
    rows: pandas.DataFrame
    x: str
    y: str
    col: int
    strip: bool
    limit: float | None

    def draw(self, title: str) -> None:
        """Draw the staircase, the evaluated candidates below the front's members, the strip, the limit and the axis."""
        self._draw_steps()
        for kind in (EVALUATED, FRONT):
            self._draw_points(kind)
        if self.strip:
            self._draw_rejected()
        if self.limit:
            self._draw_limit(self.limit)
        self._format_x_axis(title)

    def _part(self, kind: str, *columns: str) -> pandas.DataFrame:
        """The candidates of a kind that have values in these columns."""
        return self.rows[(self.rows["kind"] == kind) & self.rows[list(columns)].notna().all(axis=1)]

    def _add(self, row: int, kind: str, legend: bool, **trace: Any) -> None:
        import plotly.graph_objects as go

        scatter = go.Scatter(name=WORDS[kind], legendgroup=kind, showlegend=legend and self.col == 1, **trace)
        self.figure.add_trace(scatter, row=row, col=self.col)

    def _draw_steps(self) -> None:
        steps = staircase(self.rows, self.x, self.y)
        line = {"color": COLORS[FRONT], "width": 1.5, "shape": "hv"}
        self._add(1, FRONT, False, x=steps[self.x], y=steps[self.y], mode="lines", line=line, hoverinfo="skip")

    def _draw_points(self, kind: str) -> None:
        part = self._part(kind, self.x, self.y)
        look = {"marker": MARKERS[kind], "cliponaxis": False}
        if kind == FRONT:
            look |= {
                "mode": "markers+text",
                "text": self._labels(part),
                "textposition": "top left",
                "textfont_size": 11,
            }
        if self.x == "latency":
            look["error_x"] = _interval(part, self.x, COLORS[kind])
        if kind == FRONT and self.y == "accuracy" and part["accuracy_low"].notna().any():
            look["error_y"] = _interval(part, self.y, COLORS[kind])
        self._add(1, kind, True, x=part[self.x], y=part[self.y], **{"mode": "markers", **look, **_hovering(part)})

    def _labels(self, part: pandas.DataFrame) -> list[str]:
        """The ids of the members on the staircase, without labels that would overlap."""
        spans = {name: float(part[name].max() - part[name].min()) or 1.0 for name in (self.x, self.y)}
        kept: list[dict[str, Any]] = []
        for row in records(staircase(self.rows, self.x, self.y)):
            if all(any(abs(row[name] - other[name]) > NEAR * spans[name] for name in spans) for other in kept):
                kept.append(row)
        labeled = {row["id"] for row in kept}
        return [str(i) if i in labeled else "" for i in part["id"]]

    def _draw_rejected(self) -> None:
        """Draw a rug of the candidates without accuracy along the x axis."""
        part = self._part(REJECTED, self.x)
        look = {"mode": "markers", "marker": MARKERS[REJECTED]}
        self._add(2, REJECTED, True, x=part[self.x], y=[0] * len(part), **look, **_hovering(part))

    @property
    def _near(self) -> bool:
        """Whether the limit is close enough to the values to be drawn."""
        return bool(self.limit and self.limit <= FAR * self.rows[self.x].max())

    @property
    def _values(self) -> list[float]:
        """The values that the x axis must include."""
        columns = ["latency", "latency_low", "latency_high"] if self.x == "latency" else [self.x]
        values = [float(value) for column in columns for value in self.rows[column].dropna()]
        return values + ([self.limit] if self.limit and self._near else [])

    @property
    def _logarithmic(self) -> bool:
        values = self._values
        return bool(values) and min(values) > 0 and max(values) / min(values) > LOGARITHMIC

    def _draw_limit(self, limit: float) -> None:
        """Draw a dashed line at the limit, and write its value."""
        text = f"limit {OBJECTIVES[self.x].format_scaled(limit)}"
        where: dict[str, Any] = {"x": 1, "xref": "x domain"}
        if self._near:
            look = {"dash": "dash", "width": 1.5, "color": COLORS[REJECTED]}
            for row in range(1, 2 + self.strip):
                self.figure.add_vline(x=limit, line=look, row=row, col=self.col)
            where = {"x": math.log10(limit) if self._logarithmic else limit}  # annotations take the logarithm
        where |= {"xanchor": "right", "y": 0, "yref": "y domain", "yanchor": "bottom", "row": 1, "col": self.col}
        self.figure.add_annotation(text=text if self._near else f"{text} →", showarrow=False, **where)

    def _format_x_axis(self, title: str) -> None:
        """Set range, title and scale of the x axis."""
        values, logarithmic = self._values, self._logarithmic
        span = _span([math.log10(value) for value in values] if logarithmic else values)
        self.figure.update_xaxes(range=span, type="log" if logarithmic else "linear", col=self.col)
        self.figure.update_xaxes(title_text=title, row=1 + self.strip, col=self.col)


def _hovering(part: pandas.DataFrame) -> dict[str, Any]:
    return {"customdata": part["hover"], "hovertemplate": "%{customdata}<extra></extra>"}


def _interval(part: pandas.DataFrame, name: str, color: str) -> dict[str, Any]:
    """Error bars with the intervals of latency or accuracy."""
    return {
        "type": "data",
        "symmetric": False,
        "array": (part[f"{name}_high"] - part[name]).clip(lower=0),
        "arrayminus": (part[name] - part[f"{name}_low"]).clip(lower=0),
        "thickness": 1,
        "width": 3,
        "color": color,
    }


def _format_y_axis(figure: go.Figure, rows: pandas.DataFrame, y: str, titles: Mapping[str, str]) -> None:
    """Set range, title and ticks of the y axis, which all panels share."""
    values = [float(value) for value in rows[y].dropna()]
    if y == "accuracy":
        members = rows[rows["kind"] == FRONT]
        values += [float(value) for end in ("low", "high") for value in members[f"accuracy_{end}"].dropna()]
    low, high = _span(values)
    figure.update_yaxes(range=[low, high], row=1)
    figure.update_yaxes(title_text=titles.get(y, OBJECTIVES[y].axis_title), row=1, col=1)
    if OBJECTIVES[y].is_maximized:
        figure.update_yaxes(tickformat=".0%" if high - low > 0.08 else ".1%", row=1)


def _span(values: Sequence[float]) -> list[float]:
    """A range with a margin around the values."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - margin, high + margin]


def _format_figure(figure: go.Figure, strip: bool) -> None:
    """Set the style that all figures share: transparent background, thin grid, legend above."""
    figure.update_layout(
        template="none",
        height=560,
        margin={"l": 70, "r": 20, "t": 40, "b": 70},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
        hoverlabel={"bgcolor": "white", "bordercolor": "#888", "font": {"color": "#111"}, "align": "left"},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": COLORS[REJECTED], "activecolor": COLORS[EVALUATED]},
    )
    figure.update_annotations(font_size=12)
    lines = {
        "title_font_size": 13,
        "gridcolor": GRAY,
        "linecolor": COLORS[REJECTED],
        "zeroline": False,
        "ticks": "outside",
    }
    figure.update_xaxes(showline=True, **lines)
    figure.update_yaxes(showline=True, automargin=True, **lines)
    if strip:
        figure.update_yaxes(row=2, visible=False, range=[-1, 1], fixedrange=True)
        figure.update_xaxes(row=1, showticklabels=False, ticks="")


def progress_figure(trials: pandas.DataFrame, column: str = "hypervolume") -> go.Figure:
    """Draw the growth of the front: `column` over the trials."""
    import plotly.graph_objects as go

    part = trials[trials[column].notna()].sort_values("id")
    line = {"color": COLORS[FRONT], "width": 2, "shape": "hv"}
    figure = go.Figure(go.Scatter(x=part["id"], y=part[column], mode="lines", line=line, name=column))
    figure.update_xaxes(title_text="trial")
    figure.update_yaxes(title_text=f"{column} of the front")
    _format_figure(figure, False)
    figure.update_layout(height=320, showlegend=False)
    return figure


def to_html(figure: go.Figure, *, whole: bool = True) -> str:
    """Render a figure as a page that contains plotly.js, or, without `whole`, as a part of a page.

    The page of a part must contain `plotly_js()` once; the part takes its text color from the page.
    """
    return figure.to_html(
        full_html=whole,
        include_plotlyjs=whole,
        include_mathjax=False,
        config=CONFIG,
        post_script=None if whole else FOLLOW_PAGE,
        default_height=f"{figure.layout.height}px",
    )


def plotly_js() -> str:
    """The source of plotly.js."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
