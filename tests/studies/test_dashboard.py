"""Notes and figures in the format of optuna-dashboard, written without the package."""

from __future__ import annotations

import json

import optuna
import pytest

from nasspace import optuna_adapter
from nasspace.studies.dashboard import PART, SIGNATURE, Dashboard

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture
def record(tmp_path) -> optuna.Study:
    """A study with a finished trial in a SQLite file."""
    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'a.db'}", directions=["maximize", "minimize"])
    study.tell(study.ask(), [0.5, 2.0])
    return study


def read(record: optuna.Study, key: str) -> tuple[int, str]:
    """A note as optuna-dashboard 0.21 reads it: its version, and the joined parts."""
    attributes = optuna_adapter.study_system_attrs(record)
    parts = [name for name in attributes if name.startswith(f"{key}note_str:")]
    return attributes[f"{key}note_ver"], "".join(attributes[f"{key}note_str:{i}"] for i in range(len(parts)))


@pytest.mark.parametrize("length", [1, PART - 30, PART, 3 * PART])
def test_a_note_is_written_in_parts_and_shortened(record, length):
    trial = record.trials[0]
    key = f"dashboard:{optuna_adapter.trial_id(trial)}:"
    for version, text in enumerate(("x" * length, "y", "z" * length), start=1):
        Dashboard(record).write_note(text, trial)
        found, note = read(record, key)
        assert (found, SIGNATURE.sub("", note)) == (version, text)
        assert Dashboard(record).note(trial) == note
    parts = [value for name, value in optuna_adapter.study_system_attrs(record).items() if "note_str" in name]
    assert all(len(part) <= PART for part in parts)


def test_equal_notes_are_not_written_again(record, monkeypatch):
    Dashboard(record).write_note("the front")
    Dashboard(record).write_figure("front", {"data": [], "layout": {}})
    monkeypatch.setattr(optuna_adapter, "set_study_system_attr", None)
    Dashboard(record).write_note("the front")
    Dashboard(record).write_figure("front", {"data": [], "layout": {}})
    assert json.loads(optuna_adapter.study_system_attrs(record)["dashboard:plot_data:front:0"]) == {
        "data": [],
        "layout": {},
    }


@pytest.mark.parametrize("edited", ["mine", "the front, which I like", "the front\n\n[nasspace]: # (00000000)"])
def test_a_note_of_the_user_is_kept(record, edited):
    Dashboard(record).write_note("the front")
    optuna_adapter.set_study_system_attr(record, "dashboard:note_str:0", edited)
    optuna_adapter.set_study_system_attr(record, "dashboard:note_ver", 2)
    Dashboard(record).write_note("another front")
    assert read(record, "dashboard:") == (2, edited)


def test_a_note_that_was_written_halfway_is_written_again(record):
    optuna_adapter.set_study_system_attr(record, "dashboard:note_str:0", "x" * PART)
    Dashboard(record).write_note("x" * PART)
    assert SIGNATURE.sub("", read(record, "dashboard:")[1]) == "x" * PART


@pytest.mark.parametrize("writes", range(6))
def test_a_note_whose_replacement_was_interrupted_is_replaced(record, monkeypatch, writes):
    Dashboard(record).write_note("x" * 2 * PART)
    write, left = optuna_adapter.set_study_system_attr, [None] * writes

    def killed(*arguments):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        write(*arguments)

    monkeypatch.setattr(optuna_adapter, "set_study_system_attr", killed)
    try:
        Dashboard(record).write_note("y" * 2 * PART)
    except KeyboardInterrupt:
        monkeypatch.setattr(optuna_adapter, "set_study_system_attr", write)
        Dashboard(record).write_note("y" * 2 * PART)
    assert SIGNATURE.sub("", read(record, "dashboard:")[1]) == "y" * 2 * PART
    optuna_adapter.set_study_system_attr(record, "dashboard:note_str:0", "mine")
    Dashboard(record).write_note("z")
    assert "mine" in read(record, "dashboard:")[1]


def test_an_intermediate_value_of_a_finished_trial_is_recorded_and_replaced(record):
    trial = record.trials[0]
    for value in (0.6, 0.7):
        optuna_adapter.report_finished(optuna_adapter.backend(record), trial, value, 8)
    optuna_adapter.report_finished(optuna_adapter.backend(record), trial, float("nan"), 9)
    name = record.study_name
    again = optuna.load_study(study_name=name, storage=optuna_adapter.backend(record).url).trials[0]
    assert again.intermediate_values[8] == 0.7
    assert again.intermediate_values[9] != again.intermediate_values[9]
    assert (again.values, again.state) == (trial.values, trial.state)
