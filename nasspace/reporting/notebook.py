"""A study in a notebook: its front as a Plotly figure, and as the HTML that a notebook shows for an object."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from nasspace.reporting import paper_figure, plots
from nasspace.reporting.plot_data import front_rows, shown, shown_interval
from nasspace.studies.front import Front, Member
from nasspace.studies.objectives import COUNTED, OBJECTIVES

if TYPE_CHECKING:
    import plotly.graph_objects

MOST_ROWS = 20  # of the front in HTML
SCREEN_DPI = 130  # of the picture in HTML
TABLE = "border-collapse:collapse;font-variant-numeric:tabular-nums"
CELL = "padding:2px 10px;text-align:right"


def front_figure(front: Front) -> plotly.graph_objects.Figure:
    """The Pareto plot of the report as a Plotly figure, on white, so that a dark notebook shows it, too."""
    import plotly.graph_objects

    rows = front_rows(front)
    titles = {name: escape(paper_figure.axis_title(front, name)) for name in OBJECTIVES}
    figure = plots.pareto_figure(rows, front.objectives, limits=front.limits, titles=titles)
    return plotly.graph_objects.Figure(figure).update_layout(paper_bgcolor="white", plot_bgcolor="white")


def front_html(front: Front) -> str:
    """What a study found, as HTML: a sentence, the table of the front, and its picture; every text is escaped."""
    sentence = f"{front.evaluated} evaluated, {front.rejected} rejected; {len(front.members)} on the Pareto front"
    parts = [f"<p><b>{escape(front.name)}</b>: {sentence}</p>"]
    if front.members:
        picture = base64.b64encode(paper_figure.png(front, SCREEN_DPI)).decode("ascii")
        image = f'<img alt="Pareto front of {escape(front.name)}" src="data:image/png;base64,{picture}">'
        table = f'<table style="{TABLE}">{"".join(_table_rows(front))}</table>{_rest(front)}'
        parts.append(
            f'<div style="display:flex;flex-wrap:wrap;gap:1.5em;align-items:start"><div>{table}</div>{image}</div>'
        )
    return f"<div>{''.join(parts)}</div>"


def _table_rows(front: Front) -> Iterator[str]:
    """The rows of the table as HTML, the header first."""
    cells = [_cells(front, member) for member in front.members[:MOST_ROWS]]
    titles = [title for title in cells[0] if any(row[title] for row in cells)]
    yield _row("th", titles)
    for row in cells:
        yield _row("td", [row[title] for title in titles])


def _row(tag: str, cells: list[str]) -> str:
    return "<tr>" + "".join(f'<{tag} style="{CELL}">{escape(cell)}</{tag}>' for cell in cells) + "</tr>"


def _rest(front: Front) -> str:
    left = len(front.members) - MOST_ROWS
    return f"<p>and {left} more: <code>.front()</code> has all</p>" if left > 0 else ""


def _cells(front: Front, member: Member) -> dict[str, str]:
    """The cells of a member by the titles of their columns; empty ones for what it does not have."""
    row, asked = member.row, (*front.objectives, *front.limits, "flops", "params")
    return {
        "trial": str(member.id),
        "accuracy": shown("accuracy", row),
        "after full training": shown_interval("accuracy", row, "accuracy_expected", "accuracy_{}"),
        "latency": shown_interval("latency", row, "latency_ms", "latency_{}_ms") or shown("latency", row),
        **{OBJECTIVES[name].label: shown(name, row) for name in COUNTED if name in asked},
        "digest": str(row["digest"]),
    }
