"""The data of a study's figures: one row per candidate, in the units shown."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nasspace.formatting import significant
from nasspace.samplers import pareto
from nasspace.studies.objectives import OBJECTIVES
from nasspace.studies.trial_table import listed

if TYPE_CHECKING:
    from nasspace.studies.front import Front

Row = dict[str, Any]
FRONT, EVALUATED, REJECTED, PUBLISHED = "front", "evaluated", "rejected", "published"
WORDS = {
    FRONT: "Pareto front",
    EVALUATED: "evaluated",
    REJECTED: "stopped at a limit, never trained",
    PUBLISHED: "published",
}


def panels(objectives: Sequence[str]) -> list[tuple[str, str]]:
    """The x and y objectives of each panel: accuracy, else the first objective, against each of the others."""
    y = next((name for name in objectives if OBJECTIVES[name].is_maximized), objectives[0])
    others = [name for name in objectives if name != y] or [name for name in ("latency", "flops") if name != y]
    return [(name, y) for name in others]


def views(objectives: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The x and y objectives of a report's linked views: those of `panels`, and the first two others of each other.

    Latency and FLOPs are shown even if they are no objectives, where candidates have values.

    >>> rows = [{"accuracy": 0.9, "latency": 3.0, "flops": 40.0}]
    >>> views(["accuracy", "latency"], rows)
    [('latency', 'accuracy'), ('flops', 'accuracy'), ('flops', 'latency')]
    """
    unasked = (name for name in ("latency", "flops") if name not in objectives and values(rows, name))
    pairs = panels([*objectives, *unasked])
    costs = sorted((x for x, _ in pairs), key=lambda name: name != "latency")
    return [*pairs, (costs[1], costs[0])] if len(costs) > 1 else pairs


def front_rows(front: Front) -> list[Row]:
    """The rows of a study's Pareto plot, as of `pareto_rows`, with ties and probabilities in their hover texts."""
    notes: dict[int, list[str]] = {}
    for member in front.members:
        ties = {"same accuracy": member.accuracy_ties, "same latency": member.ties}
        notes[member.id] = [f"{what}: {listed(others)}" for what, others in ties.items() if others]
    for number, probability in (front.may_belong or {}).items():
        notes[number] = [f"may be on the front after full training: {probability:.0%}"]
    return pareto_rows(front.trials, [member.id for member in front.members], notes)


def pareto_rows(
    trials: Iterable[Mapping[str, Any]], front: Iterable[int], notes: Mapping[int, Sequence[str]] = MappingProxyType({})
) -> list[Row]:
    """The rows of a Pareto plot, one per candidate, in the units shown.

    `trials` are rows of trials.csv, `front` the ids of the front's members. The rows have `id`, `digest`, `kind`
    (`front`, `evaluated`, `rejected`), the value of each objective, the ends of the intervals (`latency_low`,
    `latency_high`, `accuracy_low`, `accuracy_high`), all NaN where there is none, and `hover`, HTML with every text
    escaped. `notes` are further lines of the hover texts, by id. Where accuracies have intervals, `accuracy` is the one
    expected after full training.
    """
    members = {int(number) for number in front}
    return [_pareto_row(trial, members, notes.get(trial["id"], ())) for trial in trials]


def _pareto_row(trial: Mapping[str, Any], members: set[int], notes: Sequence[str]) -> Row:
    kind = FRONT if trial["id"] in members else REJECTED if trial["state"] == REJECTED else EVALUATED
    row: Row = {"id": int(trial["id"]), "digest": str(trial["digest"]), "kind": kind}
    for name, objective in OBJECTIVES.items():
        row[name] = as_float(trial.get(objective.column)) * objective.factor
    for end in ("low", "high"):
        row[f"latency_{end}"] = as_float(trial.get(f"latency_{end}_ms"))
        row[f"accuracy_{end}"] = as_float(trial.get(f"accuracy_{end}"))
    if math.isnan(row["accuracy"]):  # the only accuracy before the last rung
        row["accuracy"] = as_float(trial.get("search_accuracy"))
    if not math.isnan(row["accuracy_low"]):
        row["accuracy"] = as_float(trial.get("accuracy_expected"))
    return {**row, "hover": "<br>".join([_hover(row, trial), *map(html.escape, notes)])}


def as_float(value: Any) -> float:
    """A value as a float; NaN unless it is a number."""
    return float(value) if isinstance(value, int | float) else math.nan


def values(rows: Iterable[Mapping[str, Any]], column: str) -> list[float]:
    """The values of a column, without those that are missing."""
    return [row[column] for row in rows if not math.isnan(row[column])]


def _hover(row: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    """The hover text of a candidate, as HTML."""
    lines = [f"<b>trial {row['id']}</b>, {html.escape(row['digest'])}, {WORDS[row['kind']]}"]
    for name, objective in OBJECTIVES.items():
        if not math.isnan(row[name]):
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
    reported, searched = (as_float(trial.get(column)) for column in ("accuracy", "search_accuracy"))
    parts = [] if math.isnan(reported) else [f"accuracy {objective.format_scaled(reported)}"]
    if not math.isnan(searched):
        text = objective.format_scaled(searched)
        parts.append(f"(in the search {text})" if parts else f"accuracy {text} in the search")
    if not math.isnan(row["accuracy_low"] + row["accuracy_high"]):
        low, high = (objective.format_scaled(row[f"accuracy_{end}"]) for end in ("low", "high"))
        parts.append(f"<br>expected after full training {objective.format_scaled(row['accuracy'])} ({low} to {high})")
    return " ".join(parts)


def staircase(rows: Iterable[Row], x: str, y: str) -> list[Row]:
    """The members that are also on the front of these two objectives alone, from left to right."""
    members = [row for row in rows if row["kind"] == FRONT and not math.isnan(row[x] + row[y])]
    points = [[OBJECTIVES[name].to_minimize(row[name]) for name in (x, y)] for row in members]
    mask = pareto.front(points) if points else []
    steps = [row for row, is_step in zip(members, mask, strict=True) if is_step]
    return sorted(steps, key=lambda row: (row[x], row[y]))


def shown(name: str, row: Mapping[str, Any], column: str = "") -> str:
    """A figure of a trial with its unit, from the objective's own column or another; empty without a value.

    >>> shown("accuracy", {"accuracy": 0.9}), shown("flops", {})
    ('90.00%', '')
    """
    value = as_float(row.get(column or OBJECTIVES[name].column))
    return "" if math.isnan(value) else OBJECTIVES[name].format(value)


def shown_interval(name: str, row: Mapping[str, Any], column: str, ends: str) -> str:
    """A figure with its 95 % interval, from the columns that `ends` gives for low and high; empty without one.

    >>> shown_interval("latency", {"a": 2, "b_low": 1, "b_high": 3}, "a", "b_{}")
    '2.00 ms (1.00 ms to 3.00 ms)'
    """
    low, high = (shown(name, row, ends.format(end)) for end in ("low", "high"))
    return f"{shown(name, row, column)} ({low} to {high})" if low and high else ""
