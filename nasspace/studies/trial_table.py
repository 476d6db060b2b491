"""A trial as a row of the tables: its columns, and its values as JSON has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nasspace.studies.objectives import COUNTED, OBJECTIVES

if TYPE_CHECKING:
    import optuna

RESERVED = 0.05  # share of a machine's memory by which its size may vary
TRIAL_COLUMNS = [
    *("id", "digest", "state"),
    *(objective.column for objective in OBJECTIVES.values()),
    *("search_accuracy", "resolution", "latency_low_ms", "latency_high_ms", "latency_contended", "seconds", "reason"),
]
AGAIN_COLUMNS = ["latency_again_ms", "latency_again_low_ms", "latency_again_high_ms"]
FRONT_COLUMNS = [
    *(name for name in TRIAL_COLUMNS if name not in ("state", "reason")),
    *(*AGAIN_COLUMNS, "latency_ties", "architecture"),
]


def row(
    trial: optuna.trial.FrozenTrial, latency: Mapping[str, Any], deployed: Mapping[str, Any] | None, last_rung: bool
) -> dict[str, Any]:
    """One trial as a row of TRIAL_COLUMNS.

    With a last rung the accuracy is that of the shipped file, which `deployed` tells once there is one; what the search
    found at its own fidelity is `search_accuracy`.
    """
    attributes = trial.user_attrs
    recorded = attributes.get("values", {})
    values = {objective.column: recorded.get(name) for name, objective in OBJECTIVES.items()}
    values["latency_ms"] = latency.get("median_ms", values["latency_ms"])
    searched = values["accuracy"] if last_rung else None
    if last_rung:
        values["accuracy"] = deployed["accuracy"] if deployed else None
    return {
        "id": trial.number,
        "digest": attributes.get("digest"),
        "state": "evaluated" if trial.state.name == "COMPLETE" else "rejected",
        **values,
        "search_accuracy": searched,
        "resolution": deployed["resolution"] if deployed else None,
        "latency_low_ms": latency.get("low_ms"),
        "latency_high_ms": latency.get("high_ms"),
        "latency_contended": latency.get("contended"),
        "seconds": attributes.get("seconds"),
        "reason": attributes.get("reason", ""),
    }


def machine_of(trials: Iterable[optuna.trial.FrozenTrial]) -> dict[str, Any] | None:
    """The machine that took the first latency of these trials; None if none was taken."""
    measured = (trial.user_attrs.get("latency_interval", {}) for trial in trials)
    return next((found["machine"] for found in measured if "machine" in found), None)


def is_same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions (`latency.conditions.machine`) are of one machine.

    The memory that a system reports varies by what firmware and kernel reserve: 24 and 25 GiB are the same.
    """
    memory = [part.get("memory_gib") for part in (one, other)]
    rest = [{key: value for key, value in part.items() if key != "memory_gib"} for part in (one, other)]
    if rest[0] != rest[1] or memory[0] == memory[1]:
        return rest[0] == rest[1]
    if None in memory:  # one was written by a nasspace that did not record it
        return True
    return abs(memory[0] - memory[1]) <= max(1.0, RESERVED * max(memory))


def machine_text(machine: Mapping[str, Any]) -> str:
    """A machine as an error names it."""
    return ", ".join(f"{key} {value}" for key, value in machine.items())


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the front as JSON has it: whole counts, nothing where there is no number."""
    plain = {}
    for key, value in row.items():
        missing = not is_there(value)
        whole = key in ("id", *COUNTED, "resolution") and not missing and value == int(value)
        plain[key] = None if missing else int(value) if whole else value
    return {**plain, "architecture": json.loads(row["architecture"])}


def ties(front: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each member those whose intervals of latency overlap with its own: which of them is faster is not known."""
    measured = [is_there(one["latency_low_ms"]) and is_there(one["latency_high_ms"]) for one in front]
    rows = [
        (one["id"], one["latency_low_ms"], one["latency_high_ms"])
        for one, timed in zip(front, measured, strict=True)
        if timed
    ]

    def tied(one: Mapping[str, Any]) -> str:
        low, high = one["latency_low_ms"], one["latency_high_ms"]
        others = (
            other for other, its_low, its_high in rows if other != one["id"] and its_low <= high and low <= its_high
        )
        return ", ".join(map(str, others))

    return [tied(one) if timed else "" for one, timed in zip(front, measured, strict=True)]


def is_there(value: Any) -> bool:
    """Whether a cell holds something: not None, and not NaN."""
    return value is not None and value == value


def ranges(numbers: list[int]) -> str:
    """Numbers as an error names them."""
    return ", ".join(map(str, numbers[:20])) + (" ..." if len(numbers) > 20 else "") if numbers else "none yet"
