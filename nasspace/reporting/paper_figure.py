"""The front of a study as a figure for papers: front.svg and front.png, one column wide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nasspace.reporting.paper_style import COLUMN, saved, style
from nasspace.reporting.plot_data import EVALUATED, FRONT, REJECTED, Row, panels, pareto_rows, staircase, values
from nasspace.reporting.plots import COLORS, FAR, LOGARITHMIC
from nasspace.reporting.publication import PNG, SVG, source
from nasspace.studies.front import Front, runs_with
from nasspace.studies.objectives import OBJECTIVES
from nasspace.studies.trial_table import has_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL, LEGEND = 2.25, 0.3  # inches: the height of a panel, and of the legend above
CLOSE = (0.05, 0.09)  # labels overlap if they are closer than these shares of width and height
WORDS = {FRONT: "Pareto front, 95 % intervals", EVALUATED: "evaluated", REJECTED: "over a limit"}


def files_of(front: Front) -> dict[str, bytes]:
    """The files front.svg and front.png by their names; both name the study that they were drawn from."""
    with style():
        figure = draw(front)
        # Each format has its own keys; without a date, equal fronts give equal files.
        svg = {"Title": f"Pareto front of {front.name}", "Description": source(front), "Date": None}
        png = {"Title": f"Pareto front of {front.name}", "Description": source(front)}
        return {SVG: saved(figure, "svg", svg), PNG: saved(figure, "png", png)}


def png(front: Front, dpi: int) -> bytes:
    """The figure as PNG with this resolution."""
    with style():
        return saved(draw(front), "png", {}, dpi)


def draw(front: Front) -> Figure:
    """Draw one panel for each pair of `panels`, one above the other."""
    from matplotlib.figure import Figure

    rows = pareto_rows(front.trials, [member.id for member in front.members])
    shown = panels(front.objectives)
    figure = Figure(figsize=(COLUMN, LEGEND + PANEL * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for each, (x, y) in zip(axes, shown, strict=True):
        limit = front.limits.get(x)
        _draw_panel(each, rows, x, y, limit and limit * OBJECTIVES[x].factor)
        each.set_xlabel(axis_title(front, x))
        each.set_ylabel(axis_title(front, y))
    drawn = {label: handle for each in axes for handle, label in zip(*each.get_legend_handles_labels(), strict=True)}
    labels = [label for label in WORDS.values() if label in drawn]
    look = {"loc": "outside upper center", "ncols": 3, "columnspacing": 1.0, "handletextpad": 0.2}
    figure.legend([drawn[label] for label in labels], labels, **look)
    return figure


def axis_title(front: Front, name: str) -> str:
    """The title of an objective's axis: the accuracy that is meant, and how the latency was measured."""
    if name == "accuracy" and any(has_value(row.get("accuracy_low")) for row in front.trials):
        return "accuracy after full training"
    if name == "latency":
        return f"{OBJECTIVES[name].axis_title} ({runs_with(front.recipe)})"
    return OBJECTIVES[name].axis_title


def _draw_panel(axes: Axes, rows: Sequence[Row], x: str, y: str, limit: float | None) -> None:
    """Draw the candidates, the line through the front and the limit, in the unit shown."""
    _set_scales(axes, rows, x, y, limit)
    part = {kind: [row for row in rows if row["kind"] == kind and not math.isnan(row[x])] for kind in WORDS}
    if part[REJECTED]:
        places = [row[x] for row in part[REJECTED]]
        rug = axes.get_xaxis_transform()  # along the lower edge: they have no accuracy
        look = {"color": COLORS[REJECTED], "markersize": 5, "markeredgewidth": 0.7}
        axes.plot(places, [0.025] * len(places), "|", transform=rug, label=WORDS[REJECTED], **look)
    evaluated = [row for row in part[EVALUATED] if not math.isnan(row[y])]
    if evaluated:
        look = {"color": COLORS[EVALUATED], "markersize": 3.2, "markeredgewidth": 0, "alpha": 0.6}
        axes.plot([row[x] for row in evaluated], [row[y] for row in evaluated], "o", label=WORDS[EVALUATED], **look)
    steps = staircase(rows, x, y)
    line = {"color": COLORS[FRONT], "linewidth": 1.2, "alpha": 0.4}  # lighter than the bars, which it crosses
    axes.step([row[x] for row in steps], [row[y] for row in steps], where="post", **line)
    members = [row for row in part[FRONT] if not math.isnan(row[y])]
    if members:
        bars = {"xerr": _lengths(members, x), "yerr": _lengths(members, y)}
        look = {"fmt": "D", "color": COLORS[FRONT], "markersize": 3.6, "markeredgecolor": "white", "zorder": 3}
        look |= {"markeredgewidth": 0.4, "elinewidth": 0.7, "capsize": 1.5, "capthick": 0.7}
        axes.errorbar([row[x] for row in members], [row[y] for row in members], label=WORDS[FRONT], **bars, **look)
    _label(axes, steps, x, y)
    if limit:
        _draw_limit(axes, limit, x)


def _set_scales(axes: Axes, rows: Sequence[Row], x: str, y: str, limit: float | None) -> None:
    """Set the scale and the range of both axes before anything is placed."""
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    shown = [value for name in (x, f"{x}_low", f"{x}_high") for value in _values(rows, name)]
    shown += [limit] if limit and shown and limit <= FAR * max(shown) else []
    if shown and min(shown) > 0 and max(shown) / min(shown) > LOGARITHMIC:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlim(*(10**end for end in _span([math.log10(value) for value in shown])))
    elif shown:
        axes.set_xlim(*_span(shown))
    members = [row for row in rows if row["kind"] == FRONT]
    heights = _values(rows, y) + [value for end in ("low", "high") for value in _values(members, f"{y}_{end}")]
    if heights:
        low, high = _span(heights)
        axes.set_ylim(low, high)
        if OBJECTIVES[y].kind == "fraction":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0 if high - low > 0.08 else 1, symbol=" %"))
    axes.grid(color="#d8d8d8", linewidth=0.4)
    axes.set_axisbelow(True)


def _values(rows: Sequence[Row], name: str) -> list[float]:
    """The values of a column that some objectives do not have."""
    return values(rows, name) if rows and name in rows[0] else []


def _span(shown: Sequence[float]) -> tuple[float, float]:
    """A range with a margin around the values; below, it has room for the ticks of rejected candidates."""
    low, high = min(shown), max(shown)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _lengths(members: Sequence[Row], name: str) -> list[list[float]] | None:
    """The lengths of error bars below and above; NaN for a member without an interval, None without any."""
    if not _values(members, f"{name}_low"):
        return None
    ends = [(row[name] - row[f"{name}_low"], row[f"{name}_high"] - row[name]) for row in members]
    return [[length if math.isnan(length) else max(length, 0.0) for length in side] for side in zip(*ends, strict=True)]


def _label(axes: Axes, steps: Sequence[Row], x: str, y: str) -> None:
    """Write the ids of the members on the line, without those that would overlap."""
    to_share = (axes.transData + axes.transAxes.inverted()).transform
    kept: list[Any] = []
    for row in steps:
        place = to_share((row[x], row[y]))
        if all(any(abs(place[i] - other[i]) > CLOSE[i] for i in (0, 1)) for other in kept):
            kept.append(place)
            where = {"textcoords": "offset points", "xytext": (-3, 3), "ha": "right", "va": "bottom"}
            axes.annotate(str(row["id"]), (row[x], row[y]), fontsize=7, color="#333333", **where)


def _draw_limit(axes: Axes, limit: float, name: str) -> None:
    """Draw a dashed line at the limit with its value; one far to the right is written with an arrow."""
    text = f"limit {OBJECTIVES[name].format_scaled(limit)}"
    look = {"fontsize": 7, "color": "#555555", "ha": "right", "va": "bottom"}
    low, high = axes.get_xlim()
    if low <= limit <= high:
        axes.axvline(limit, color="#555555", linestyle=(0, (4, 2)), linewidth=0.8)
        place = axes.get_xaxis_transform()
        axes.text(limit, 0.08, text, rotation=90, transform=place, **look)
    else:
        axes.text(0.99, 0.08, f"{text} \N{RIGHTWARDS ARROW}", transform=axes.transAxes, **look)
