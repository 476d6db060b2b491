"""The data of a study's figures: one row per candidate, in the units shown."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace.formatting import significant
from nasspace.samplers import pareto
from nasspace.studies.objectives import OBJECTIVES

if TYPE_CHECKING:
    import pandas


FRONT, EVALUATED, REJECTED = "front", "evaluated", "rejected"
WORDS = {FRONT: "Pareto front", EVALUATED: "evaluated", REJECTED: "stopped at a limit, never trained"}


def panels(objectives: Sequence[str]) -> list[tuple[str, str]]:
    """The x and y objectives of each panel: accuracy, else the first objective, against each of the others."""
    y = next((name for name in objectives if OBJECTIVES[name].is_maximized), objectives[0])
    others = [name for name in objectives if name != y] or [name for name in ("latency", "flops") if name != y]
    return [(name, y) for name in others]


def pareto_rows(trials: pandas.DataFrame, objectives: Sequence[str], front: Iterable[int]) -> pandas.DataFrame:
    """The rows of a Pareto plot, one per candidate, in the units shown.

    `trials` has the columns of trials.csv, `front` the ids of the front's members. The rows have `id`, `digest`, `kind`
    (`front`, `evaluated`, `rejected`), a column for each objective that the trials have, the ends of the intervals
    (`latency_low`, `latency_high`, `accuracy_low`, `accuracy_high`), and `hover`, HTML with every text escaped. Where
    accuracies have intervals, `accuracy` is the one expected after full training.
    """
    import pandas

    members = {int(number) for number in front}
    rows = pandas.DataFrame({"id": trials["id"].astype(int), "digest": trials["digest"].astype(str)})
    rejected = [state == REJECTED for state in trials["state"]]
    kinds = [FRONT if i in members else REJECTED if r else EVALUATED for i, r in zip(rows["id"], rejected, strict=True)]
    rows["kind"] = kinds
    for name, objective in OBJECTIVES.items():
        if objective.column in trials:
            rows[name] = pandas.to_numeric(trials[objective.column]) * objective.factor
    if "search_accuracy" in trials:  # the only accuracy before the last rung
        searched = pandas.to_numeric(trials["search_accuracy"])
        rows["accuracy"] = rows["accuracy"].where(rows["accuracy"].notna(), searched)
    for name, column in (("latency", "latency_{}_ms"), ("accuracy", "accuracy_{}")):
        for end in ("low", "high"):
            known = column.format(end) in trials
            rows[f"{name}_{end}"] = pandas.to_numeric(trials[column.format(end)]) if known else math.nan
    if "accuracy_expected" in trials:
        expected = pandas.to_numeric(trials["accuracy_expected"])
        rows["accuracy"] = rows["accuracy"].where(rows["accuracy_low"].isna(), expected)
    rows["hover"] = [_hover(row, trial) for row, trial in zip(records(rows), records(trials), strict=True)]
    return rows.reset_index(drop=True)


def records(frame: pandas.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as dictionaries of Python values."""
    return frame.to_dict("records")


def _hover(row: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    """The hover text of a candidate, as HTML."""
    lines = [f"<b>trial {row['id']}</b>, {html.escape(row['digest'])}, {WORDS[row['kind']]}"]
    for name, objective in OBJECTIVES.items():
        if not math.isnan(row.get(name, math.nan)):
            line = f"{objective.label} {objective.format_scaled(row[name])}"
            if name == "accuracy":
                line = _accuracy_line(row, trial)
            if name == "latency" and not math.isnan(row["latency_low"] + row["latency_high"]):
                line += f" ({significant(row['latency_low'])} to {significant(row['latency_high'])})"
            lines.append(line)
    if trial.get("latency_contended") is True:
        lines.append("measured during other work")
    if row["kind"] == REJECTED and isinstance(trial.get("reason"), str) and trial["reason"]:
        lines.append(html.escape(trial["reason"][:120]))
    return "<br>".join(lines)


def _accuracy_line(row: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    """The accuracies of a candidate: of its exported file, in the search, and expected after full training."""
    objective = OBJECTIVES["accuracy"]
    reported, searched = (_float(trial.get(column)) for column in ("accuracy", "search_accuracy"))
    parts = [] if math.isnan(reported) else [f"accuracy {objective.format_scaled(reported)}"]
    if not math.isnan(searched):
        text = objective.format_scaled(searched)
        parts.append(f"(in the search {text})" if parts else f"accuracy {text} in the search")
    if not math.isnan(row["accuracy_low"] + row["accuracy_high"]):
        low, high = (objective.format_scaled(row[f"accuracy_{end}"]) for end in ("low", "high"))
        parts.append(f"<br>expected after full training {objective.format_scaled(row['accuracy'])} ({low} to {high})")
    return " ".join(parts)


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def staircase(rows: pandas.DataFrame, x: str, y: str) -> pandas.DataFrame:
    """The members that are also on the front of these two objectives alone, from left to right."""
    members = rows[(rows["kind"] == FRONT) & rows[x].notna() & rows[y].notna()]
    signs = [OBJECTIVES[name].to_minimize(1) for name in (x, y)]
    mask = pareto.front(members[[x, y]].to_numpy(float) * signs) if len(members) else np.zeros(0, bool)
    return members[mask].sort_values([x, y])
