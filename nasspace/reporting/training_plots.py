"""Figures of a training, drawn from plain values as plotly.js takes them (see `nasspace.reporting.plots`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from nasspace.reporting.plot_data import EVALUATED, FRONT, values
from nasspace.reporting.plots import AXIS, COLORS, LAYOUT, Figure, axis_title

BLUE, ORANGE = COLORS[EVALUATED], COLORS[FRONT]
PANEL, MARGINS = 180, 110  # pixels: height of a curve, and of the rest of its figure
BETWEEN = 0.06  # gap between curves, a share of the figure's height
MARKED = 40  # epochs up to which each has a marker
ROW = 24  # pixels per class
COUNTED = 12  # classes up to which the cells of a confusion matrix show their counts
NAMED = 60  # classes up to which the axes of a confusion matrix show their names
LONGEST = 24  # characters of a class's name on an axis
CELLS = [  # colors of shares from -1 (wrong) to 1 (correct), fading to the page at 0
    [0, ORANGE],
    [0.5, "rgba(213,94,0,0)"],
    [0.5, "rgba(46,134,200,0)"],
    [1, BLUE],
]


@dataclass(frozen=True)
class _Curve:
    """A column of the epochs, drawn in a panel of its own."""

    column: str
    title: str
    color: str
    format: str


CURVES = (
    _Curve("loss", "training loss", ORANGE, ".4~g"),
    _Curve("accuracy", "validation accuracy", BLUE, ".1%"),
    _Curve("rate", "learning rate", COLORS["rejected"], ".3~g"),
)


def curves_figure(epochs: Sequence[Mapping[str, Any]], accuracy: float) -> Figure:
    """Draw loss, validation accuracy and learning rate over the epochs, one above the other.

    `epochs` have `epoch`, `loss`, `accuracy` (a fraction) and `rate`, NaN where unknown; a curve without values is left
    out. `accuracy` is the finished network's, drawn as a diamond.
    """
    shown = [curve for curve in CURVES if values(epochs, curve.column)]
    traces, axes = [], {}
    for i, curve in enumerate(shown, start=1):
        name = "y" if i == 1 else f"y{i}"
        traces.append({**_line(epochs, curve), "yaxis": name})
        if curve.column == "accuracy":
            traces.append({**_diamond(len(epochs), accuracy), "yaxis": name})
        axes[f"yaxis{name[1:]}"] = _panel_axis(curve, _domain(i, len(shown)))
    last = "y" if len(shown) == 1 else f"y{len(shown)}"
    margin = 0.03 * len(epochs)
    x_axis = {
        **AXIS,
        "anchor": last,
        "title": axis_title("epoch"),
        "unifiedhovertitle": {"text": "epoch %{x}"},
        "spikecolor": COLORS["rejected"],
        "spikethickness": -2,  # a thin line without its white border
        "range": [1 - margin, len(epochs) + margin],
    }
    if len(epochs) == 1:
        x_axis |= {"range": [0, 2], "dtick": 1}
    layout = {
        **LAYOUT,
        "xaxis": x_axis,
        **axes,
        "height": PANEL * len(shown) + MARGINS,
        "showlegend": False,
        "hovermode": "x unified",
        "hoversubplots": "axis",
    }
    return {"data": traces, "layout": layout}


def _line(epochs: Sequence[Mapping[str, Any]], curve: _Curve) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": curve.title,
        "x": [row["epoch"] for row in epochs],
        "y": [None if math.isnan(row[curve.column]) else row[curve.column] for row in epochs],
        "mode": "lines+markers" if len(epochs) <= MARKED else "lines",
        "line": {"color": curve.color, "width": 2},
        "hovertemplate": f"{curve.title} %{{y:{curve.format}}}<extra></extra>",
    }


def _diamond(epoch: int, accuracy: float) -> dict[str, Any]:
    """The finished network."""
    marker = {"color": BLUE, "size": 12, "symbol": "diamond", "line": {"width": 1, "color": "white"}}
    return {
        "type": "scatter",
        "name": "finished network",
        "x": [epoch],
        "y": [accuracy],
        "mode": "markers",
        "marker": marker,
        "cliponaxis": False,
        "hovertemplate": "finished network %{y:.1%}<extra></extra>",
    }


def _domain(number: int, count: int) -> list[float]:
    """The share of the figure's height of a panel, counted from 1 at the top."""
    height = (1 - BETWEEN * (count - 1)) / count
    low = (count - number) * (height + BETWEEN)
    return [low, low + height]


def _panel_axis(curve: _Curve, domain: list[float]) -> dict[str, Any]:
    return {
        **AXIS,
        "anchor": "x",
        "domain": domain,
        "automargin": True,
        "tickformat": ".0%" if curve.column == "accuracy" else ".3~g",
        "nticks": 5,
        "rangemode": "tozero" if curve.column == "rate" else "normal",
        "title": axis_title(curve.title, 10),
    }


def confusion_figure(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix of counts, rows true classes: correct cells blue, wrong ones orange.

    The color of a cell is the square root of its share of the row, so that rare confusions are visible.
    """
    names = [escape(name) for name in classes]
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    cells = {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": [
            [round(math.sqrt(share) * (1 if i == j else -1), 3) for j, share in enumerate(row)]
            for i, row in enumerate(shares)
        ],
        "zmin": -1,
        "zmax": 1,
        "colorscale": CELLS,
        "showscale": False,
        "text": [list(row) for row in confusion],
        "customdata": [[round(share, 4) for share in row] for row in shares],
        "hovertemplate": (
            "true class %{y}<br>predicted %{x}<br>%{text} images, %{customdata:.1%} of %{y}<extra></extra>"
        ),
        "opacity": 0.8,
    }
    if len(names) <= NAMED:
        cells |= {"xgap": 1, "ygap": 1}
    traces = [cells, _counts(confusion, names)] if len(names) <= COUNTED else [cells]
    axes = {
        "xaxis": {**_class_axis(names, classes), "title": axis_title("predicted class", 12), "tickangle": -45},
        "yaxis": {**_class_axis(names, classes), "title": axis_title("true class", 12), "autorange": "reversed"},
    }
    height = min(640, 200 + ROW * len(names))
    return {"data": traces, "layout": {**LAYOUT, **axes, "height": height, "showlegend": False}}


def _class_axis(names: list[str], classes: Sequence[str]) -> dict[str, Any]:
    axis = {**AXIS, "type": "category", "showgrid": False, "automargin": True}
    if len(names) > NAMED:
        return axis | {"showticklabels": False, "ticks": ""}
    return axis | {"tickvals": names, "ticktext": [short(name) for name in classes], "tickfont": {"size": 11}}


def _counts(confusion: Sequence[Sequence[int]], names: list[str]) -> dict[str, Any]:
    """The counts above 0, as a trace of texts, which take their color from the page."""
    found = [(i, j, count) for i, row in enumerate(confusion) for j, count in enumerate(row) if count]
    return {
        "type": "scatter",
        "x": [names[j] for _, j, _ in found],
        "y": [names[i] for i, _, _ in found],
        "text": [str(count) for _, _, count in found],
        "mode": "text",
        "textfont": {"size": 12},
        "hoverinfo": "skip",
    }


def classes_figure(rows: Sequence[Mapping[str, Any]], accuracy: float) -> Figure:
    """Draw the accuracy of classes with its interval, from top to bottom, and that of all images as a dashed line.

    `rows` have `name`, `images`, `correct`, `accuracy`, `low` and `high` (fractions).
    """
    names = [escape(row["name"]) for row in rows]
    points = {
        "type": "scatter",
        "x": [row["accuracy"] for row in rows],
        "y": names,
        "mode": "markers",
        "marker": {"color": BLUE, "size": 9},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [row["high"] - row["accuracy"] for row in rows],
            "arrayminus": [row["accuracy"] - row["low"] for row in rows],
            "thickness": 1.5,
            "width": 3,
            "color": BLUE,
        },
        "customdata": [f"{row['correct']} of {row['images']}, {row['low']:.1%} to {row['high']:.1%}" for row in rows],
        "hovertemplate": "%{y}: %{x:.1%}<br>%{customdata}<extra></extra>",
        "cliponaxis": False,
    }
    line = {
        "type": "line",
        "x0": accuracy,
        "x1": accuracy,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"dash": "dash", "width": 1.5, "color": COLORS["rejected"]},
    }
    axes = {
        "xaxis": {**AXIS, "tickformat": ".0%", "title": axis_title("accuracy"), "range": _accuracy_range(rows)},
        "yaxis": {
            **_class_axis(names, [row["name"] for row in rows]),
            "showgrid": True,
            "range": [len(rows) - 0.5, -0.5],
        },
    }
    height = ROW * len(rows) + MARGINS
    layout = {**LAYOUT, **axes, "shapes": [line], "height": height, "showlegend": False}
    return {"data": [points], "layout": layout}


def _accuracy_range(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    low = min((row["low"] for row in rows), default=0.0)
    return [max(0.0, low - 0.05 * (1 - low)), 1.0 + 0.01 * (1 - low)]


def short(name: str) -> str:
    """A class's name of at most 24 characters, escaped for plotly.js.

    >>> short("a<b"), short("Staffordshire bullterrier, Staffordshire bull terrier")
    ('a&lt;b', 'Staffordshire bullterri…')
    """
    return escape(name if len(name) <= LONGEST else name[: LONGEST - 1].rstrip() + "…")
