"""The private names of Optuna that nasspace uses exist; one message reports a missing one."""

from __future__ import annotations

import tomllib
from pathlib import Path

import optuna
import pytest

from nasspace import optuna_adapter
from nasspace.errors import NasspaceError

optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_the_installed_optuna_has_every_name():
    assert optuna_adapter.missing_names() == []


def test_a_missing_name_is_one_message(monkeypatch):
    monkeypatch.setattr(optuna_adapter, "METHODS", {optuna.Study: ("_gone",)})
    monkeypatch.setattr(optuna_adapter, "ATTRIBUTES", {optuna.Trial: ("_trial_id", "_left")})
    with pytest.raises(NasspaceError, match=r"^optuna \S+ lacks Study\._gone, Trial\._left, .*'optuna>=5\.0,<6'$"):
        optuna_adapter.check_names()


def test_the_supported_versions_are_those_of_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert optuna_adapter.SUPPORTED in project["project"]["dependencies"]


def test_a_running_trial_of_the_record_is_reopened():
    study = optuna.create_study()
    study.enqueue_trial({"x": 1})
    assert optuna_adapter.enqueued_params(study.get_trials()[0]) == {"x": 1}
    trial = study.ask()
    left = study.get_trials()[0]
    assert optuna_adapter.trial_id(left) == optuna_adapter.trial_id(trial)
    study.tell(optuna_adapter.reopened_trial(study, left), 0.5)
    assert [finished.value for finished in study.trials] == [0.5]


def test_samplers_may_see_finished_trials_only():
    study = optuna.create_study(directions=["minimize", "maximize"])
    study.tell(study.ask(), [1.0, 2.0])
    study.ask()
    finished = optuna_adapter.FinishedTrials(study)
    assert [trial.number for trial in finished._get_trials()] == [0]
    assert finished.directions == study.directions
