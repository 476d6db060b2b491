"""Trials as rows of trials.csv and front.csv, and the machine that measured them."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

from nasspace.formatting import csv_cell
from nasspace.studies.objectives import COUNTED_COLUMNS, OBJECTIVES

if TYPE_CHECKING:
    import optuna

    from nasspace.studies.belief import StudyBelief

HEADS = ("global_pool", "flatten", "dropout", "linear")  # every network ends with these: summaries leave them out
EXACT = 2**53  # up to it, a float holds each integer
RESERVED = 0.05  # share of a machine's memory by which the reported size may vary
TRIAL_COLUMNS = [
    *("id", "digest", "state"),
    *(objective.column for objective in OBJECTIVES.values()),
    *(
        "search_accuracy",
        "accuracy_expected",
        "accuracy_low",
        "accuracy_high",
        "resolution",
        "latency_low_ms",
        "latency_high_ms",
        "latency_contended",
        "seconds",
        "reason",
    ),
]
WHOLE_COLUMNS = ("id", *COUNTED_COLUMNS, "resolution")
RECORD = "record"  # key of a trial's row that is no column of the tables: its `TrialRecord`
REMEASURED_COLUMNS = ["latency_again_ms", "latency_again_low_ms", "latency_again_high_ms"]
FRONT_COLUMNS = [
    *(name for name in TRIAL_COLUMNS if name not in ("state", "reason")),
    *(*REMEASURED_COLUMNS, "accuracy_ties", "latency_ties", "architecture"),
]


@dataclass(frozen=True)
class TrialRecord:
    """What a study recorded of a trial, apart from its columns in the tables.

    `choices` are by their names in the space, a block by its label. `started` and `finished` are in UTC.
    `layers_ms` are the milliseconds of each layer, None if the runtime has no profile. `seconds` is the time of the
    search's training. `trainings` are those after the search, each with `resolution`, `epochs`, `accuracy`, `seconds`
    and `steps`, the (resolution, epochs, share) of all trainings of the weights so far. `deployed` is what the exported
    file reached.
    """

    architecture: str  # JSON
    choices: Mapping[str, Any]
    started: datetime | None = None
    finished: datetime | None = None
    layers_ms: Sequence[float] | None = None
    seconds: float | None = None
    trainings: Sequence[Mapping[str, Any]] = ()
    deployed: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls, trial: optuna.trial.FrozenTrial, deployed: Mapping[str, Any] | None, belief: StudyBelief | None
    ) -> TrialRecord:
        """Read the record of a trial; the trainings after the search are those of the belief."""
        attributes = trial.user_attrs
        return cls(
            architecture=attributes.get("architecture", ""),
            choices={**trial.params, **attributes.get("blocks", {})},
            started=_utc(trial.datetime_start),
            finished=_utc(trial.datetime_complete),
            layers_ms=attributes.get("layers_ms"),
            seconds=(attributes.get("training") or {}).get("seconds"),
            trainings=belief.trainings(trial.number) if belief else (),
            deployed=deployed,
        )


def _utc(time: datetime | None) -> datetime | None:
    """A local time, as Optuna gives it, in UTC."""
    return None if time is None else time.astimezone(UTC)


def row(
    trial: optuna.trial.FrozenTrial,
    latency: Mapping[str, Any],
    deployed: Mapping[str, Any] | None,
    last_rung: bool,
    belief: StudyBelief | None = None,
) -> dict[str, Any]:
    """One trial as a row of TRIAL_COLUMNS, and its RECORD.

    With a last rung, the accuracy is that of the exported file (from `deployed`, None before), and the one found by the
    search at its own fidelity is `search_accuracy`. `belief` gives the accuracy that is expected after full training,
    with its interval; without one, the expected accuracy is that of the row.
    """
    attributes = trial.user_attrs
    recorded = attributes.get("values", {})
    values = {objective.column: recorded.get(name) for name, objective in OBJECTIVES.items()}
    values |= {column: whole(values[column]) for column in COUNTED_COLUMNS}
    values["latency_ms"] = latency.get("median_ms", values["latency_ms"])
    search_accuracy = values["accuracy"] if last_rung else None
    if last_rung:
        values["accuracy"] = deployed["accuracy"] if deployed else None
    low, high = belief.interval(trial.number) if belief else (None, None)
    return {
        "id": trial.number,
        "digest": attributes.get("digest"),
        "state": "evaluated" if trial.state.name == "COMPLETE" else "rejected",
        **values,
        "search_accuracy": search_accuracy,
        "accuracy_expected": belief.expected(trial.number) if belief else values["accuracy"],
        "accuracy_low": low,
        "accuracy_high": high,
        "resolution": deployed["resolution"] if deployed else None,
        "latency_low_ms": latency.get("low_ms"),
        "latency_high_ms": latency.get("high_ms"),
        "latency_contended": latency.get("contended"),
        "seconds": attributes.get("seconds"),
        "reason": attributes.get("reason", ""),
        RECORD: TrialRecord.of(trial, deployed, belief),
    }


def machine_of(trials: Iterable[optuna.trial.FrozenTrial]) -> dict[str, Any] | None:
    """The machine that measured the first latency of these trials; None if none was measured."""
    measured = (trial.user_attrs.get("latency_interval", {}) for trial in trials)
    return next((found["machine"] for found in measured if "machine" in found), None)


def is_same_machine(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions (`latency.conditions.machine`) are of one machine.

    The reported memory varies with what firmware and kernel reserve: 24 and 25 GiB count as equal.
    """
    memory = [part.get("memory_gib") for part in (one, other)]
    rest = [{key: value for key, value in part.items() if key != "memory_gib"} for part in (one, other)]
    if rest[0] != rest[1] or memory[0] == memory[1]:
        return rest[0] == rest[1]
    if None in memory:  # recorded by a version of nasspace that did not store it
        return True
    return abs(memory[0] - memory[1]) <= max(1.0, RESERVED * max(memory))


def machine_text(machine: Mapping[str, Any]) -> str:
    """A machine as error messages name it."""
    return ", ".join(f"{key} {value}" for key, value in machine.items())


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the front with JSON values: counts as integers, None for NaN, the architecture as a mapping."""
    values = {}
    for key, value in row.items():
        values[key] = None if not has_value(value) else whole(value) if key in WHOLE_COLUMNS else value
    return {**values, "architecture": json.loads(row["architecture"])}


def whole(value: Any) -> Any:
    """A count as an integer that was recorded as a float, if a float holds it exactly; any other value as it is.

    >>> whole(192576.0), whole(1.5), whole(1e20), whole(None)
    (192576, 1.5, 1e+20, None)
    """
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT else value


def float_columns(rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> set[str]:
    """The columns to write as floats: numbers of which one has a fraction or a row has none, but no counts."""
    return {name for name in columns if name not in WHOLE_COLUMNS and _is_float([row.get(name) for row in rows])}


def _is_float(cells: Sequence[Any]) -> bool:
    found = [cell for cell in cells if has_value(cell)]
    numeric = all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in found)
    return bool(found) and numeric and (len(found) < len(cells) or any(isinstance(cell, float) for cell in found))


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], floats: Container[str]) -> str:
    """Rows as CSV, as `DataFrame.to_csv(index=False)` writes them, without pandas, whose import takes a while.

    `floats` are the columns whose integers are written as floats. Counts are integers, also where a row has none, which
    pandas would write as floats.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(csv_cell, columns))
    for row in rows:
        cells = ((name, whole(row.get(name)) if name in WHOLE_COLUMNS else row.get(name)) for name in columns)
        writer.writerow(
            "" if not has_value(cell) else float(cell) if name in floats else csv_cell(cell) for name, cell in cells
        )
    return text.getvalue()


def ties(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, ...]]:
    """For each row, the ids of the others whose latency intervals overlap its own."""
    intervals = {
        row["id"]: (row["latency_low_ms"], row["latency_high_ms"])
        for row in rows
        if has_value(row["latency_low_ms"]) and has_value(row["latency_high_ms"])
    }

    def overlap(one: int, other: int) -> bool:
        (low, high), (other_low, other_high) = intervals[one], intervals[other]
        return one != other and other_low <= high and low <= other_high

    return [tuple(other for other in intervals if row["id"] in intervals and overlap(row["id"], other)) for row in rows]


def network_words(layers: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """A network in words: '7 shuffle_v2, 4 shuffle_v1, 2 conv' and 'widths 24, 48', both without the head."""
    body = [layer for layer in layers if layer["block"] not in HEADS]
    counts = Counter(layer["block"] for layer in body)
    widths = [width for width, _ in groupby(layer["out"] for layer in body if "out" in layer)]
    blocks = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return blocks, f"widths {', '.join(map(str, widths))}" if widths else ""


def has_value(value: Any) -> bool:
    """Whether a cell is neither None nor NaN."""
    return value is not None and value == value


def listed(numbers: Sequence[int]) -> str:
    """The first twenty numbers, for a message."""
    return ", ".join(map(str, numbers[:20])) + (" ..." if len(numbers) > 20 else "") if numbers else "none yet"
