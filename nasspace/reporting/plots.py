"""Figures of a study, drawn from rows (Plotly)."""

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
COLOURS = {FRONT: "#D55E00", EVALUATED: "#2E86C8", REJECTED: "#8C8C8C"}  # near Okabe and Ito's, told apart by everyone
MARKERS = {
    FRONT: {"color": COLOURS[FRONT], "size": 11, "symbol": "diamond", "line": {"width": 1, "color": "white"}},
    EVALUATED: {"color": COLOURS[EVALUATED], "size": 8, "opacity": 0.6},
    REJECTED: {"color": COLOURS[REJECTED], "size": 13, "symbol": "line-ns-open", "line": {"width": 1.5}},
}
GREY = "rgba(128,128,128,0.22)"
LOGARITHMIC = 20  # from this ratio of the largest to the smallest on, an axis is logarithmic
NEAR = 0.05  # labels closer than this share of the span, both ways, would be written over each other
FAR = 1.5  # a limit further out than this times the largest value is told and not drawn
CONFIG = {  # the first button would upload the figure to a server of Plotly's
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d"],
    "displaylogo": False,
    "responsive": True,
}
FOLLOW_PAGE = """
const figure = document.getElementById('{plot_id}');
const follow = colour => Plotly.relayout(figure, {'font.color': colour || getComputedStyle(document.body).color});
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
    """The rows of `pareto_rows` drawn: a panel for each of `panels(objectives)`, rejected candidates in a strip below.

    `limits` are in milliseconds and counts, as in a study; `titles` (HTML) replaces the titles of some axes.
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
    for col, (across, up) in enumerate(shown, start=1):
        limit = (limits or {}).get(across)
        panel = _Panel(figure, rows, across, up, col, strip, limit and limit * OBJECTIVES[across].factor)
        panel.draw((titles or {}).get(across, OBJECTIVES[across].axis_title))
    _dress_up(figure, rows, shown[0][1], titles or {})
    _dress(figure, strip)
    return figure


@dataclass(frozen=True)
class _Panel:
    """One pair of objectives, in the column `col` of a figure; `limit` is in the unit shown."""

    figure: go.Figure
    rows: pandas.DataFrame
    across: str
    up: str
    col: int
    strip: bool
    limit: float | None

    def draw(self, title: str) -> None:
        """The staircase, evaluated candidates, the front's members above all; the strip; the limit; the axis."""
        self._draw_steps()
        for kind in (EVALUATED, FRONT):
            self._draw_points(kind)
        if self.strip:
            self._draw_rejected()
        if self.limit:
            self._draw_limit(self.limit)
        self._dress_across(title)

    def _part(self, kind: str, *columns: str) -> pandas.DataFrame:
        """The candidates of a kind that have these figures."""
        return self.rows[(self.rows["kind"] == kind) & self.rows[list(columns)].notna().all(axis=1)]

    def _add(self, row: int, kind: str, legend: bool, **trace: Any) -> None:
        import plotly.graph_objects as go

        scatter = go.Scatter(name=WORDS[kind], legendgroup=kind, showlegend=legend and self.col == 1, **trace)
        self.figure.add_trace(scatter, row=row, col=self.col)

    def _draw_steps(self) -> None:
        steps = staircase(self.rows, self.across, self.up)
        line = {"color": COLOURS[FRONT], "width": 1.5, "shape": "hv"}
        self._add(1, FRONT, False, x=steps[self.across], y=steps[self.up], mode="lines", line=line, hoverinfo="skip")

    def _draw_points(self, kind: str) -> None:
        part = self._part(kind, self.across, self.up)
        look = {"marker": MARKERS[kind], "cliponaxis": False}
        if kind == FRONT:
            look |= {
                "mode": "markers+text",
                "text": self._labels(part),
                "textposition": "top left",
                "textfont_size": 11,
            }
        if self.across == "latency":
            look["error_x"] = _interval(part, COLOURS[kind])
        self._add(1, kind, True, x=part[self.across], y=part[self.up], **{"mode": "markers", **look, **_hovering(part)})

    def _labels(self, part: pandas.DataFrame) -> list[str]:
        """The ids of the members on the staircase, but for those that would be written over each other."""
        spans = {name: float(part[name].max() - part[name].min()) or 1.0 for name in (self.across, self.up)}
        kept: list[dict[str, Any]] = []
        for row in records(staircase(self.rows, self.across, self.up)):
            if all(any(abs(row[name] - other[name]) > NEAR * spans[name] for name in spans) for other in kept):
                kept.append(row)
        labelled = {row["id"] for row in kept}
        return [str(i) if i in labelled else "" for i in part["id"]]

    def _draw_rejected(self) -> None:
        """A rug of the candidates that have no accuracy: where they stand on the axis across."""
        part = self._part(REJECTED, self.across)
        look = {"mode": "markers", "marker": MARKERS[REJECTED]}
        self._add(2, REJECTED, True, x=part[self.across], y=[0] * len(part), **look, **_hovering(part))

    @property
    def _near(self) -> bool:
        """Whether the limit is near enough to be drawn; one far to the right of everything is told in words."""
        return bool(self.limit and self.limit <= FAR * self.rows[self.across].max())

    @property
    def _values(self) -> list[float]:
        """All that the axis across must reach."""
        columns = ["latency", "latency_low", "latency_high"] if self.across == "latency" else [self.across]
        values = [float(value) for column in columns for value in self.rows[column].dropna()]
        return values + ([self.limit] if self.limit and self._near else [])

    @property
    def _logarithmic(self) -> bool:
        values = self._values
        return bool(values) and min(values) > 0 and max(values) / min(values) > LOGARITHMIC

    def _draw_limit(self, limit: float) -> None:
        """A dashed line at the limit, and its amount."""
        text = f"limit {OBJECTIVES[self.across].format_scaled(limit)}"
        where: dict[str, Any] = {"x": 1, "xref": "x domain"}
        if self._near:
            look = {"dash": "dash", "width": 1.5, "color": COLOURS[REJECTED]}
            for row in range(1, 2 + self.strip):
                self.figure.add_vline(x=limit, line=look, row=row, col=self.col)
            where = {"x": math.log10(limit) if self._logarithmic else limit}  # annotations stand at the logarithm
        where |= {"xanchor": "right", "y": 0, "yref": "y domain", "yanchor": "bottom", "row": 1, "col": self.col}
        self.figure.add_annotation(text=text if self._near else f"{text} →", showarrow=False, **where)

    def _dress_across(self, title: str) -> None:
        """Range and title of the axis across; a logarithmic one where the values span much."""
        values, logarithmic = self._values, self._logarithmic
        span = _span([math.log10(value) for value in values] if logarithmic else values)
        self.figure.update_xaxes(range=span, type="log" if logarithmic else "linear", col=self.col)
        self.figure.update_xaxes(title_text=title, row=1 + self.strip, col=self.col)


def _hovering(part: pandas.DataFrame) -> dict[str, Any]:
    return {"customdata": part["hover"], "hovertemplate": "%{customdata}<extra></extra>"}


def _interval(part: pandas.DataFrame, colour: str) -> dict[str, Any]:
    """The confidence interval of the latency as an error bar."""
    return {
        "type": "data",
        "symmetric": False,
        "array": (part["latency_high"] - part["latency"]).clip(lower=0),
        "arrayminus": (part["latency"] - part["latency_low"]).clip(lower=0),
        "thickness": 1,
        "width": 3,
        "color": colour,
    }


def _dress_up(figure: go.Figure, rows: pandas.DataFrame, up: str, titles: Mapping[str, str]) -> None:
    """Range, title and ticks of the axis up, which all panels share."""
    low, high = _span([float(value) for value in rows[up].dropna()])
    figure.update_yaxes(range=[low, high], row=1)
    figure.update_yaxes(title_text=titles.get(up, OBJECTIVES[up].axis_title), row=1, col=1)
    if OBJECTIVES[up].is_maximized:
        figure.update_yaxes(tickformat=".0%" if high - low > 0.08 else ".1%", row=1)


def _span(values: Sequence[float]) -> list[float]:
    """From a little below the least to a little above the largest."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
    return [low - margin, high + margin]


def _dress(figure: go.Figure, strip: bool) -> None:
    """What all panels share: transparent ground, thin grid, the legend above."""
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
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": COLOURS[REJECTED], "activecolor": COLOURS[EVALUATED]},
    )
    figure.update_annotations(font_size=12)
    lines = {
        "title_font_size": 13,
        "gridcolor": GREY,
        "linecolor": COLOURS[REJECTED],
        "zeroline": False,
        "ticks": "outside",
    }
    figure.update_xaxes(showline=True, **lines)
    figure.update_yaxes(showline=True, automargin=True, **lines)
    if strip:
        figure.update_yaxes(row=2, visible=False, range=[-1, 1], fixedrange=True)
        figure.update_xaxes(row=1, showticklabels=False, ticks="")


def progress_figure(trials: pandas.DataFrame, column: str = "hypervolume") -> go.Figure:
    """How the front grew: `column` over the trials, in the order of their ids."""
    import plotly.graph_objects as go

    part = trials[trials[column].notna()].sort_values("id")
    line = {"color": COLOURS[FRONT], "width": 2, "shape": "hv"}
    figure = go.Figure(go.Scatter(x=part["id"], y=part[column], mode="lines", line=line, name=column))
    figure.update_xaxes(title_text="trial")
    figure.update_yaxes(title_text=f"{column} of the front")
    _dress(figure, False)
    figure.update_layout(height=320, showlegend=False)
    return figure


def to_html(figure: go.Figure, *, whole: bool = True) -> str:
    """A page with the figure that needs no network: plotly.js stands in it; or, not `whole`, the part for a page.

    A part needs `plotly_js()` once in its page, and takes the page's colour of text.
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
