"""The distributions of error of a comparison as a figure for papers: distribution.svg and distribution.png."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nasspace.reporting.distribution import curves, looks
from nasspace.reporting.paper_style import COLUMN, saved, style
from nasspace.studies.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SVG, PNG = "distribution.svg", "distribution.png"
HEIGHT = 2.5  # inches
COLUMNS = 3  # of the legend
DASHES = {  # names of Plotly's dashes as Matplotlib has them
    **{"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."},
    **{"longdash": (0, (8, 3)), "longdashdot": (0, (8, 3, 1, 3))},
}


def files_of(comparison: Comparison) -> dict[str, bytes]:
    """The files distribution.svg and distribution.png by their names; equal comparisons give equal files."""
    title = f"Distributions of error: {comparison.name}"
    with style():
        figure = draw(comparison)
        return {
            SVG: saved(figure, "svg", {"Title": title, "Description": comparison.sentence, "Date": None}),
            PNG: saved(figure, "png", {"Title": title, "Description": comparison.sentence}),
        }


def draw(comparison: Comparison) -> Figure:
    """Draw the empirical distribution function of each group with its band."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(COLUMN, HEIGHT), layout="constrained")
    axes, lines, names = figure.subplots(), [], [group.name for group in comparison.groups]
    for look, curve in zip(looks(), curves(comparison), strict=False):
        own = slice(1, -1)  # outside of a group's own errors, bands would cover each other
        band: dict[str, Any] = {"step": "post", "color": look.color, "alpha": 0.16, "linewidth": 0}
        axes.fill_between(curve.errors[own], curve.low[own], curve.high[own], **band)
        line = {"color": look.color, "linestyle": DASHES[look.dash], "linewidth": 1.2}
        lines += axes.step(curve.errors, curve.share, where="post", **line)
    axes.set_xlabel("error, %")
    axes.set_ylabel("share of networks, 95 % bands")
    axes.set_xlim(curve.errors[0], curve.errors[-1])
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0, symbol=" %"))
    axes.grid(color="#d8d8d8", linewidth=0.4)
    axes.set_axisbelow(True)
    rows = math.ceil(len(names) / COLUMNS)
    place: dict[str, Any] = {"loc": "outside upper center", "columnspacing": 1.0, "handletextpad": 0.4}
    # A dollar sign would start a formula. Given as a list, a name may begin with an underscore.
    labels = [name.replace("$", r"\$") for name in names]
    figure.legend(lines, labels, ncols=math.ceil(len(names) / rows), **place)
    return figure
