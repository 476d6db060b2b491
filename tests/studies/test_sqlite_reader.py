"""A study's SQLite file read without Optuna gives what Optuna gives, or is left to Optuna."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from nasspace.studies import sqlite_reader, storage
from nasspace.studies import study as records
from nasspace.studies.sqlite_reader import RecordedTrial, UnfamiliarError

optuna.logging.set_verbosity(optuna.logging.WARNING)
RECORDED = Path(__file__).parents[1] / "recorded" / "study"
FIELDS = [each.name for each in dataclasses.fields(RecordedTrial)]


@pytest.fixture
def path(tmp_path):
    """A database with a study of three objectives, and another study in the same file."""
    path = tmp_path / "study.db"
    storage.create(path, "mine", ["maximize", "minimize", "minimize"], ["accuracy", "latency", "flops"])
    other = optuna.create_study(study_name="other", storage=f"sqlite:///{path}")
    other.tell(other.ask(), 1.0)
    yield path
    other._storage.engine.dispose() if hasattr(other._storage, "engine") else other._storage._backend.engine.dispose()


@pytest.fixture
def real(restore_study, tmp_path, monkeypatch):
    """The database of a finished search on digits, as study 'real' below the working folder."""
    monkeypatch.chdir(tmp_path)
    return restore_study(tmp_path) / "study.db"


def by_optuna(path, name="mine"):
    return optuna.load_study(study_name=name, storage=storage.open_file(path))


def as_text(trial, name):
    """An attribute of a trial as text: NaN, which differs from itself, is equal, and 1 differs from True."""
    value = getattr(trial, name)
    return value.name if name == "state" else repr(value)


def assert_same(path, name="mine"):
    mine, theirs = storage.read_file(path, name), by_optuna(path, name)
    assert mine is not None
    for one, other in zip(mine.get_trials(), theirs.get_trials(), strict=True):
        for name in FIELDS:
            assert as_text(one, name) == as_text(other, name), (one.number, name)
    assert repr(mine.user_attrs) == repr(theirs.user_attrs)
    assert [each.name for each in mine.directions] == [each.name for each in theirs.directions]


def test_every_state_and_value_is_read_as_optuna_reads_it(path):
    study = by_optuna(path)
    choices = {"width": [0.5, 1.0], "block": [0, 1, "x", None, True], "text": ["é", "\u2028", "\x00", "'"]}
    values = [[0.9, 1e-300, 3e8], [math.inf, -math.inf, 1.0], [-0.0, 5, 1e300]]
    for numbers in values:
        trial = study.ask()
        for name, options in choices.items():
            trial.suggest_categorical(name, options)
        trial.set_user_attr("values", {"accuracy": 0.1, "nan": math.nan, "big": 10**30, "list": [1, None, "\ud800"]})
        trial.set_user_attr("", "text")
        trial.set_constraint("latency", -0.25)
        study.tell(trial, numbers)
    trial = study.ask()
    trial.set_user_attr("reason", "latency")
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    study.enqueue_trial({"width": 0.5})
    study.ask()
    study.enqueue_trial({"width": 1.0}, user_attrs={"a": 1})
    study.set_user_attr("finished", True)
    study.set_user_attr("nested", {"a": [1.5, {"b": None}]})
    assert {trial.state.name for trial in study.get_trials()} == {*sqlite_reader.State.__members__}
    assert_same(path)


def test_intermediate_values_are_read_as_optuna_reads_them(tmp_path):
    path = tmp_path / "study.db"
    storage.create(path, "mine", ["maximize"], ["accuracy"])
    trial = by_optuna(path).ask()
    for step, value in enumerate([0.5, math.nan, math.inf, -math.inf, 3]):
        trial.report(value, step * 2)
    assert_same(path)


def test_a_recorded_study_is_read_as_optuna_reads_it(real):
    assert_same(real, "real")


@pytest.mark.parametrize(
    "changes",
    [
        ["UPDATE alembic_version SET version_num = 'v9.0.0.a'"],
        ["DELETE FROM alembic_version"],
        ["UPDATE version_info SET schema_version = 13"],
        ["UPDATE studies SET study_name = 'theirs' WHERE study_name = 'mine'"],
        ["UPDATE trials SET number = 'x'"],
        ["UPDATE trials SET number = 0"],
        ["UPDATE trials SET state = 'DONE'"],
        ["UPDATE trials SET datetime_start = 'today'"],
        ["UPDATE trials SET datetime_start = '2026-02-31 00:00:00.000000'"],
        ["UPDATE trial_params SET param_value = 7"],
        ["UPDATE trial_params SET param_value = -1"],
        ["UPDATE trial_params SET distribution_json = '[]'"],
        ["UPDATE trial_values SET objective = objective + 1 WHERE objective = 2"],
        ["UPDATE trial_values SET value = NULL"],
        ["UPDATE trial_values SET value = 'x'"],
        ["UPDATE trial_values SET value_type = 'NAN', value = NULL"],
        ["UPDATE trial_user_attributes SET value_json = NULL"],
        ["UPDATE trial_user_attributes SET value_json = '{'"],
        ["UPDATE trial_user_attributes SET value_json = CAST(x'22ff22' AS TEXT)"],
        ["UPDATE study_directions SET objective = objective + 5"],
        ["UPDATE study_directions SET direction = 'NOT_SET'"],
        ["DELETE FROM study_directions"],
        ["DROP TABLE trial_intermediate_values"],
    ],
)
def test_what_optuna_does_not_write_is_left_to_optuna(path, changes):
    study = by_optuna(path)
    for _ in range(2):
        trial = study.ask()
        trial.suggest_categorical("width", [1, 2])
        trial.set_user_attr("a", 1)
        study.tell(trial, [1.0, 2.0, 3.0])
    assert_same(path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for change in changes:
            assert connection.execute(change)
    with contextlib.closing(sqlite3.connect(path)) as connection, pytest.raises(UnfamiliarError):
        sqlite_reader.read(connection, "mine")
    assert storage.read_file(path, "mine") is None


def test_other_distributions_are_left_to_optuna(path):
    study = by_optuna(path)
    study.ask().suggest_float("rate", 0.1, 0.5)
    assert storage.read_file(path, "mine") is None
    assert by_optuna(path).get_trials()[0].params


def test_the_installed_optuna_writes_the_tables_that_are_read(tmp_path):
    from optuna.storages._rdb.storage import _VersionManager

    storage.create(tmp_path / "study.db", "mine", ["maximize"], ["accuracy"])
    database = storage.open_file(tmp_path / "study.db")
    assert isinstance(database._version_manager, _VersionManager)
    assert database.get_head_version() == sqlite_reader.REVISION
    assert storage.read_file(tmp_path / "study.db", "mine") is not None


def test_the_writes_of_a_running_search_are_read(real):
    """Another process holds the database open: what it committed is in the log, and its lock is kept."""
    with contextlib.closing(sqlite3.connect(real)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        with connection:
            connection.execute("UPDATE study_user_attributes SET value_json = 'false' WHERE key = 'finished'")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE study_user_attributes SET value_json = 'true' WHERE key = 'finished'")
        assert not records.read("real").is_finished, "this is not committed"
        connection.rollback()
        assert real.with_name("study.db-wal").exists()


def test_results_are_read_without_optuna(real):
    code = (
        "import sys; from nasspace.studies import study\n"
        "study.read('real').snapshot().document()\n"
        "heavy = {'optuna', 'sqlalchemy', 'alembic', 'mako', 'torch', 'pandas', 'plotly', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
