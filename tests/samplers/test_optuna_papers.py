"""`MnasNetSampler` and `SposSampler` in Optuna studies of other programs."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import optuna
import pytest

from nasspace.samplers.optuna_papers import MnasNetSampler, SposSampler
from nasspace.samplers.optuna_proposer import Figures

optuna.logging.set_verbosity(optuna.logging.WARNING)
TARGET = 8.0


def objective(trial: optuna.Trial) -> tuple[float, float]:
    """Six layers, each of which has a width, if it is wide: 4,096 points."""
    accuracy, cost = 0.1, 1.0
    for i in range(6):
        if trial.suggest_categorical(f"{i}.block", ["narrow", "wide"]) == "wide":
            width = trial.suggest_categorical(f"{i}.width", [2, 3, 4])
            accuracy, cost = accuracy + 0.03 * width, cost + width
    return accuracy, cost


def reward(trial: optuna.trial.FrozenTrial) -> float:
    return trial.values[0] * min(1.0, TARGET / trial.values[1])


def create(sampler: optuna.samplers.BaseSampler, storage: str | None = None) -> optuna.Study:
    return optuna.create_study(
        study_name="s", storage=storage, directions=["maximize", "minimize"], sampler=sampler, load_if_exists=True
    )


def params(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def test_mnasnet_earns_more_than_random_parameters() -> None:
    earned = {}
    for sampler in (MnasNetSampler(0, targets={1: TARGET}), optuna.samplers.RandomSampler(0)):
        study = create(sampler)
        study.optimize(objective, 80)
        earned[type(sampler)] = mean(reward(trial) for trial in study.trials[40:])
    assert earned[MnasNetSampler] > earned[optuna.samplers.RandomSampler]


def test_mnasnet_proposes_nothing_whose_known_cost_is_over_the_target() -> None:
    def known(parameters: Any) -> float:
        return objective(optuna.trial.FixedTrial(dict(parameters)))[1]

    study = create(MnasNetSampler(0, targets={1: TARGET}, known={1: known}))
    study.optimize(objective, 30)
    assert max(trial.values[1] for trial in study.trials[10:]) <= TARGET


def test_spos_finds_more_accurate_parameters_than_random_ones() -> None:
    found: dict[type, float] = {}
    for seed in range(4):
        for sampler in (SposSampler(seed), optuna.samplers.RandomSampler(seed)):
            study = optuna.create_study(direction="maximize", sampler=sampler)
            study.optimize(lambda trial: objective(trial)[0], 60)
            found[type(sampler)] = found.get(type(sampler), 0.0) + mean(trial.value for trial in study.trials[30:])
    assert found[SposSampler] > found[optuna.samplers.RandomSampler]


def test_a_trial_that_violates_a_constraint_is_no_parent() -> None:
    def limited(trial: optuna.Trial) -> float:
        accuracy, cost = objective(trial)
        trial.set_constraint("cost", cost - TARGET)
        return accuracy

    study = optuna.create_study(direction="maximize", sampler=SposSampler(0))
    study.optimize(limited, 20)
    figures = Figures(study.trials, study.directions)
    for trial in study.trials:
        assert ("accuracy" in SposSampler(0).values(figures, trial)) == (trial.constraints["cost"] <= 0)


@pytest.mark.parametrize(
    "sampler", [lambda: MnasNetSampler(0, targets={1: TARGET}), lambda: SposSampler(0)], ids=["mnasnet", "spos"]
)
def test_a_resumed_study_equals_an_uninterrupted_one(tmp_path: Path, sampler) -> None:
    uninterrupted = create(sampler())
    uninterrupted.optimize(objective, 30)
    for _ in range(3):
        study = create(sampler(), f"sqlite:///{tmp_path}/s.db")
        study.optimize(objective, 10)
    assert params(study) == params(uninterrupted)
    assert len({str(sorted(each.items())) for each in params(study)[10:]}) == 20, "no point is proposed twice"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "firm"}, "form: 'firm' is none of 'hard', 'soft'"),
        ({"targets": {1: 0.0}}, "targets: that of objective 1 must be positive"),
        ({"exponent": 3.0}, "exponent: 3.0 rewards cost"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MnasNetSampler(**settings)


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        (["minimize", "minimize"], "a first objective that is maximized, like an accuracy"),
        (["maximize"], "targets: 1 is no objective of the study that is minimized"),
        (["maximize", "maximize"], "targets: 1 is no objective of the study that is minimized"),
    ],
)
def test_a_study_without_a_reward_is_refused(directions: list[str], message: str) -> None:
    study = optuna.create_study(directions=directions, sampler=MnasNetSampler(0, targets={1: TARGET}))
    with pytest.raises(ValueError, match=message):
        study.ask()


def test_trials_without_a_reward_do_not_count() -> None:
    def sometimes_negative(trial: optuna.Trial) -> tuple[float, float]:
        accuracy, cost = objective(trial)
        return (accuracy, cost) if trial.number % 3 else (-accuracy, 0.0)

    study = create(MnasNetSampler(0, targets={1: TARGET}))
    study.optimize(sometimes_negative, 30)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}


def test_a_cost_of_zero_leaves_the_target_where_it_is() -> None:
    def priced(trial: optuna.Trial) -> tuple[float, float]:
        cost = trial.suggest_categorical("a", [0, 2, 4, 6, 8]) + trial.suggest_categorical("b", [0, 1])
        return 0.5 + cost / 20, cost

    known = {1: lambda parameters: parameters["a"] + parameters["b"]}
    study = create(MnasNetSampler(0, targets={1: 6.0}, known=known))
    study.enqueue_trial({"a": 0, "b": 0})
    study.optimize(priced, 10)  # of which five are random; seven points are within the target
    assert all(trial.values[1] <= 6 for trial in study.trials[5:7])
    assert (6, 0) in {(trial.params["a"], trial.params["b"]) for trial in study.trials}
