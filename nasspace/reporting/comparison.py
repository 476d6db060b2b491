"""A comparison as one HTML page, with its tables as CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nasspace import files
from nasspace.formatting import csv_cell
from nasspace.reporting import distribution_picture
from nasspace.reporting.distribution import curves, looks
from nasspace.reporting.page import Column, Table, render
from nasspace.reporting.plots import AXIS, LAYOUT, Figure, axis_title
from nasspace.reporting.report import FLOPS, OWN_PLACE
from nasspace.studies.comparison import Comparison, Group
from nasspace.studies.differences import Estimate
from nasspace.studies.front import search_fidelity
from nasspace.studies.objectives import OBJECTIVES

PAGE, DOCUMENT, NETWORKS = "comparison.html", "comparison.json", "networks.csv"


def write_comparison(comparison: Comparison) -> Path:
    """Write comparison.html, comparison.json, networks.csv and the pictures into the folder of the comparison."""
    rows = comparison.rows()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(cell) for name, cell in row.items()} for row in rows)
    texts: dict[str, str | bytes] = {
        NETWORKS: text.getvalue(),
        DOCUMENT: files.json_text(comparison.document()),
        **distribution_picture.files_of(comparison),
        PAGE: comparison_html(comparison),
    }
    files.write_together({comparison.folder / name: content for name, content in texts.items()})
    return comparison.folder / PAGE


def comparison_html(comparison: Comparison) -> str:
    """Render the page of a comparison."""
    kind = "options" if comparison.is_paired else "spaces"
    return render("comparison.html", {
        "name": comparison.name,
        "subtitle": _subtitle(comparison),
        "sentence": comparison.sentence,
        "distribution": distribution_figure(comparison),
        "distribution_hint": (
            "The share of networks whose error is at most the value on the axis; the line further to the left is "
            "better. With a confidence of 95 %, a band holds the whole distribution function of its space."
        ),
        "groups_title": kind.capitalize(),
        "groups": _groups_table(comparison),
        "groups_note": (
            "Hypervolume is the part of a box that the front dominates: costs within the budget, errors up to the "
            "median of all networks. Its 95 % interval is of fronts of as many networks."
        ),
        "differences": _differences_table(comparison),
        "differences_note": _differences_note(comparison),
        "fronts": [front_figure(comparison, cost) for cost in comparison.budget],
        "fronts_hint": "Lines connect the networks of each front that are nondominated in error and this cost.",
        "notes": list(_notes(comparison)),
        "settings": _settings(comparison),
        "networks": _networks_table(comparison),
    })  # fmt: skip


def distribution_figure(comparison: Comparison) -> Figure:
    """Draw the empirical distribution functions of error, with their bands."""
    traces, found = [], curves(comparison)
    for look, curve in zip(looks(), found, strict=False):
        common = {"type": "scatter", "x": curve.errors, "mode": "lines", "legendgroup": curve.name}
        line = {"shape": "hv", "width": 0, "color": look.color}
        hidden = {**common, "showlegend": False, "hoverinfo": "skip", "line": line}
        traces += [
            {**hidden, "y": curve.high},
            {**hidden, "y": curve.low, "fill": "tonexty", "fillcolor": _faint(look.color)},
            {
                **{**common, "y": curve.share, "name": curve.name},
                "line": {"shape": "hv", "width": 2.5, "color": look.color, "dash": look.dash},
                "hovertemplate": f"{curve.name}: %{{y:.0%}} of networks have at most %{{x:.2f}} % error<extra></extra>",
            },
        ]
    ends = [found[0].errors[0], found[0].errors[-1]]
    axes = {
        "xaxis": {**AXIS, "title": axis_title("error, %"), "range": ends},
        "yaxis": {**AXIS, "title": axis_title("share of networks"), "tickformat": ".0%", "range": [0, 1.02]},
    }
    return {"data": traces, "layout": {**LAYOUT, **axes, "height": 420}}


def front_figure(comparison: Comparison, cost: str) -> Figure:
    """Draw error over a cost of the budget, with the front of each group in both."""
    objective, traces = OBJECTIVES[cost], []
    for look, group in zip(looks(), comparison.groups, strict=False):
        points = sorted((one.costs[cost] * objective.factor, 100 * one.error, one.id) for one in group.networks)
        best = np.minimum.accumulate([error for _, error, _ in points]).tolist()
        ends = [comparison.budget[cost][1] * objective.factor]
        common = {"type": "scatter", "legendgroup": group.name, "name": group.name}
        steps = {"x": [point[0] for point in points] + ends, "y": best + best[-1:]}
        line = {"shape": "hv", "width": 1.5, "color": look.color, "dash": look.dash}
        traces += [
            {**common, **steps, "mode": "lines", "line": line, "showlegend": False, "hoverinfo": "skip"},
            {
                **common,
                "x": [point[0] for point in points],
                "y": [point[1] for point in points],
                "mode": "markers",
                "marker": {"color": look.color, "size": 8, "symbol": look.symbol, "opacity": 0.8},
                "customdata": [point[2] for point in points],
                "hovertemplate": f"{group.name}, trial %{{customdata}}<br>{objective.label} %{{x:.3g}} {objective.unit}"
                "<br>error %{y:.2f} %<extra></extra>",
            },
        ]
    axes = {
        "xaxis": {**AXIS, "title": axis_title(objective.axis_title)},
        "yaxis": {**AXIS, "title": axis_title("error, %"), "automargin": True},
    }
    return {"data": traces, "layout": {**LAYOUT, **axes, "height": 420}}


def _faint(color: str) -> str:
    """A color of bands, through which others show."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def _subtitle(comparison: Comparison) -> str:
    recipe = comparison.settings["recipe"]
    varied = f", {comparison.settings['vary']}" if comparison.is_paired else ""
    created = str(comparison.settings["created"]).replace("T", " ").replace("+00:00", " UTC")
    data = "" if comparison.settings["evaluator"] else f", on {recipe['data']}"
    return f"{comparison.count_text} within {comparison.budget_text}{varied}{data}, started {created}"


def _groups_table(comparison: Comparison) -> Table:
    columns = [
        Column("option" if comparison.is_paired else "space"),
        *(Column(name, "number") for name in ("networks", "median error", "best error", "hypervolume")),
        *(Column(f"median {OBJECTIVES[name].label}", "number") for name in comparison.budget),
        Column("failed", "number"),
    ]
    rows = []
    for group in comparison.groups:
        volume = comparison.hypervolumes[group.name]
        best = min(group.networks, key=lambda network: network.error)
        error = (f"{group.median:.2%}", _quartiles(group))
        share = (f"{volume.value:.1%}", f"{volume.low:.1%} to {volume.high:.1%}")
        lowest = (f"{best.error:.2%}", f"trial {best.id}")
        costs = [OBJECTIVES[name].format(group.median_cost(name)) for name in comparison.budget]
        rows.append([group.name, len(group.networks), error, lowest, share, *costs, group.failed])
    return Table.of(columns, rows)


def _quartiles(group: Group) -> str:
    low, high = np.quantile(group.errors, [0.25, 0.75])
    return f"half of them {low:.2%} to {high:.2%}"


def _differences_table(comparison: Comparison) -> Table:
    columns = [
        Column("of"),
        Column("against"),
        Column("error, points", "number"),
        Column("better with probability", "number"),
        Column("p", "number"),
        Column("networks that would tell", "number"),
    ]
    rows = []
    for (first, second), found in comparison.differences.items():
        error, chance = found.error, found.superiority
        needed = f"{found.needed:,}" if found.needed else "over 100,000"
        rows.append(
            [first, second, _points(error), _share(chance), f"{comparison.p_values[first, second]:.2g}", needed]
        )
    return Table.of(columns, rows)


def _points(error: Estimate) -> tuple[str, str]:
    return f"{100 * error.value:+.2f}", f"{100 * error.low:+.2f} to {100 * error.high:+.2f}"


def _share(chance: Estimate) -> tuple[str, str]:
    return f"{chance.value:.0%}", f"{chance.low:.0%} to {chance.high:.0%}"


def _differences_note(comparison: Comparison) -> str:
    several = (
        " p is adjusted for the number of rows (Holm): all of them together are wrong with a probability of 5 %."
        if len(comparison.differences) > 1
        else ""
    )
    if comparison.is_paired:
        how = (
            "Error is the median difference within a pair, below 0 if the first is better. The test flips the signs of "
            "the pairs' signed ranks."
        )
    else:
        how = (
            "Error is the difference of the medians, below 0 if the first is better. The probability is that of a "
            "network of the first to have the smaller error. The test permutes the networks' ranks."
        )
    point = comparison.needed_for_a_point
    told = f"{point:,} would tell a difference of one point" if point else "more than 100,000 would tell one point"
    return (
        f"{how}{several} The last column is how many networks of each would tell a difference as large as it looks, "
        f"four times out of five; {told}."
    )


def _notes(comparison: Comparison) -> Iterator[str]:
    """How to read the page."""
    recipe = comparison.settings["recipe"]
    if comparison.is_paired:
        yield (
            f"The networks of a pair are equal but for the choices {comparison.settings['vary']}, which all have the "
            "option, and are all within the budget. The other choices are drawn uniformly among those for which the "
            "network with the first option is within the budget; draws of which another network is not are left out."
        )
    else:
        yield (
            "Networks are drawn uniformly among all sequences of choices of the space that are within the budget, as "
            "if from a list of all of them, without repetition."
        )
    yield (
        "Error is 1 - accuracy on held-out training images; no test images were used. All networks had the same "
        f"training ({', '.join(f'{name} {value:g}' for name, value in search_fidelity(recipe).items() if value)}): "
        "longer trainings may rank spaces differently."
        if comparison.settings["evaluator"] is None
        else "Error is 1 - the accuracy that the evaluator gave."
    )
    if "latency" in comparison.budget:
        yield "Latency is measured, one network at a time; networks outside of the budget are not trained."
    if any(group.failed for group in comparison.groups):
        yield "Networks whose training failed are not among those compared: a space with many of them looks too good."
    yield FLOPS


def _settings(comparison: Comparison) -> dict[str, Mapping[str, Any]]:
    recipe = comparison.settings["recipe"]
    own = {*OWN_PLACE, "uniform", "rungs", "full", "sampler", "trials", "reward", "netadapt"}
    return {
        "Comparison": {
            "budget": comparison.budget_text,
            "vary": comparison.settings["vary"],
            "networks of each": recipe["trials"],
            "seed": recipe["seed"],
            "training budget": search_fidelity(recipe),
        },
        "Recipe": {key: value for key, value in recipe.items() if key not in own},
        "Machine": comparison.settings["machine"],
        "Versions": comparison.settings["versions"],
    }


def _networks_table(comparison: Comparison) -> Table:
    costs = [
        name for name in OBJECTIVES if all(name in one.costs for group in comparison.groups for one in group.networks)
    ]
    columns = [
        Column("option" if comparison.is_paired else "space"),
        Column("trial", "number"),
        Column("error", "number"),
        *(Column(OBJECTIVES[name].label, "number") for name in costs),
        Column("digest", "code"),
    ]
    rows = (
        [
            group.name,
            one.id,
            f"{one.error:.2%}",
            *(OBJECTIVES[name].format(one.costs[name]) for name in costs),
            one.digest,
        ]
        for group in comparison.groups
        for one in sorted(group.networks, key=lambda one: one.error)
    )
    return Table.of(columns, rows)
