"""Read a study from its SQLite file without Optuna, SQLAlchemy and Alembic, whose imports take longer than the reading.

Only what Optuna itself would read, and read equally, is accepted. Everything else raises `UnfamiliarError`: the caller
then asks Optuna, which also knows other versions of the tables and reports what is damaged.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

REVISION = "v3.2.0.a"  # of the tables, as Alembic names it: Optuna 3.2 and later
State = Enum("State", "RUNNING COMPLETE PRUNED FAIL WAITING")
Direction = Enum("Direction", "MINIMIZE MAXIMIZE")
NOT_FINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}", re.ASCII)
ERRORS_OF_VALUES = (sqlite3.Error, ValueError, OverflowError, RecursionError)


class UnfamiliarError(Exception):
    """The file differs from what Optuna writes."""


@dataclass(frozen=True)
class RecordedTrial:
    """A trial with the attributes of `optuna.trial.FrozenTrial`; all parameters are categorical."""

    number: int
    state: State
    datetime_start: datetime.datetime | None
    datetime_complete: datetime.datetime | None
    values: list[float] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    user_attrs: dict[str, Any] = field(default_factory=dict)
    system_attrs: dict[str, Any] = field(default_factory=dict)
    intermediate_values: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedStudy:
    """What an `optuna.Study` gives a reader; nothing can be recorded with it."""

    directions: list[Direction]
    user_attrs: dict[str, Any]
    trials: tuple[RecordedTrial, ...]

    def get_trials(self, deepcopy: bool = True) -> list[RecordedTrial]:
        """The trials by their numbers, never copied: `deepcopy` is Optuna's."""
        return list(self.trials)


def read(connection: sqlite3.Connection, name: str) -> RecordedStudy:
    """Read the study of this name in one transaction; `UnfamiliarError` if Optuna may read anything else."""
    try:
        connection.execute("BEGIN")
        try:
            return _read(connection, name)
        finally:
            connection.rollback()
    except ERRORS_OF_VALUES as error:
        raise UnfamiliarError(str(error)) from error


def _read(connection: sqlite3.Connection, name: str) -> RecordedStudy:
    _expect(connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(REVISION,)])
    _expect(connection.execute("SELECT schema_version FROM version_info").fetchall() == [(12,)])  # Optuna's last
    studies = connection.execute("SELECT study_id FROM studies WHERE study_name = ?", (name,)).fetchall()
    _expect(len(studies) == 1)
    (study,) = studies[0]
    directions = _checked(
        connection.execute(
            "SELECT direction, objective FROM study_directions WHERE study_id = ? ORDER BY study_direction_id", (study,)
        ),
        (str, int),
    )
    names, objectives = zip(*directions, strict=True)
    _expect(objectives == tuple(range(len(names))) and set(names) <= Direction.__members__.keys())
    attributes = connection.execute(
        "SELECT key, value_json FROM study_user_attributes WHERE study_id = ? ORDER BY key",
        (study,),
    )
    return RecordedStudy(
        directions=[Direction[each] for each in names],
        user_attrs={key: json.loads(text) for key, text in _checked(attributes, (str, str))},
        trials=tuple(_trials(connection, study)),
    )


def _trials(connection: sqlite3.Connection, study: int) -> list[RecordedTrial]:
    """The trials of a study, by their numbers."""
    query = "SELECT trial_id, number, state, datetime_start, datetime_complete FROM trials WHERE study_id = ?"
    maybe = (str, type(None))
    trials = {}
    for trial, number, state, start, complete in _checked(
        connection.execute(query, (study,)), (int, int, str, maybe, maybe)
    ):
        _expect(state in State.__members__)
        trials[trial] = RecordedTrial(number, State[state], _local(start), _local(complete))
    _expect(len({trial.number for trial in trials.values()}) == len(trials))
    parts = functools.partial(_parts, connection, study)
    for kind in ("user", "system"):
        for trial, key, text in parts(f"trial_{kind}_attributes", {"key": str, "value_json": str}):
            getattr(trials[trial], f"{kind}_attrs")[key] = json.loads(text)
    columns = {"param_name": str, "param_value": float, "distribution_json": str}
    for trial, key, index, text in parts("trial_params", columns):
        choices = _choices(text)
        _expect(index in range(len(choices)))
        trials[trial].params[key] = choices[int(index)]
    number_or_none = (float, type(None))
    columns = {"step": int, "intermediate_value": number_or_none, "intermediate_value_type": str}
    for trial, step, value, kind in parts("trial_intermediate_values", columns):
        trials[trial].intermediate_values[step] = _number(value, kind)
    values: dict[int, dict[int, float]] = {}
    for trial, i, value, kind in parts("trial_values", {"objective": int, "value": number_or_none, "value_type": str}):
        _expect(kind != "NAN")
        values.setdefault(trial, {})[i] = _number(value, kind)
    for trial, found in values.items():
        _expect(sorted(found) == list(range(len(found))))
        trials[trial] = _with_values(trials[trial], [found[i] for i in range(len(found))])
    return sorted(trials.values(), key=lambda trial: trial.number)


def _with_values(trial: RecordedTrial, values: list[float]) -> RecordedTrial:
    return RecordedTrial(**{**vars(trial), "values": values})


def _parts(connection: sqlite3.Connection, study: int, table: str, columns: dict[str, Any]) -> Iterator[tuple]:
    """Rows of a table that belong to trials of the study: the trial's id, then `columns` with their types.

    Parameters are in the order of their creation, everything else in that of its key, as Optuna gives it.
    """
    order = "rowid" if "param_name" in columns else next(iter(columns))
    query = (
        f"SELECT part.trial_id, {', '.join(f'part.{name}' for name in columns)} FROM {table} AS part "
        f"JOIN trials ON trials.trial_id = part.trial_id WHERE trials.study_id = ? ORDER BY part.trial_id, part.{order}"
    )
    return _checked(connection.execute(query, (study,)), (int, *columns.values()))


def _checked(rows: sqlite3.Cursor, kinds: tuple[Any, ...]) -> Iterator[tuple]:
    """Rows whose values have the types of Optuna's columns: SQLite stores any value in any column."""
    allowed = [kind if isinstance(kind, tuple) else (kind,) for kind in kinds]
    for row in rows:
        _expect(all(type(value) in each for value, each in zip(row, allowed, strict=True)))
        yield row


@functools.lru_cache(maxsize=4096)
def _choices(text: str) -> tuple[Any, ...]:
    """The choices of a categorical distribution in Optuna's JSON."""
    match json.loads(text):
        case {"name": "CategoricalDistribution", "attributes": {"choices": [*choices], **other}, **rest}:
            _expect(not other and not rest and all(isinstance(each, str | int | float | None) for each in choices))
            return tuple(choices)
    raise UnfamiliarError(text)


def _number(value: float | None, kind: str) -> float:
    """A number as Optuna stores it: infinity and NaN in a column of their own."""
    _expect((kind == "FINITE") == (value is not None) and (kind == "FINITE" or kind in NOT_FINITE))
    return NOT_FINITE[kind] if value is None else value


def _local(text: str | None) -> datetime.datetime | None:
    """A time as Optuna gives it, local and without a time zone; UTC in the file."""
    if text is None:
        return None
    _expect(TIME.fullmatch(text) is not None)
    return datetime.datetime.fromisoformat(f"{text}+00:00").astimezone().replace(tzinfo=None)


def _expect(holds: bool) -> None:
    if not holds:
        raise UnfamiliarError
