"""`MnasNetSampler` and `SposSampler` in Optuna studies of other programs."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import optuna
import pytest

from nasspace.samplers.optuna_papers import MnasNetSampler, SposSampler

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


def test_spos_finds_more_accurate_parameters_than_random_ones_within_the_constraint() -> None:
    def limited(trial: optuna.Trial) -> float:
        accuracy, cost = objective(trial)
        trial.set_constraint("cost", cost - TARGET)
        return accuracy

    found = {}
    for sampler in (SposSampler(0), optuna.samplers.RandomSampler(0)):
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(limited, 100)
        feasible = [each for each in study.trials[60:] if each.constraints["cost"] <= 0]
        found[type(sampler)] = len(feasible), mean(each.value for each in feasible)
    assert found[SposSampler] > found[optuna.samplers.RandomSampler]
    assert found[SposSampler][1] > found[optuna.samplers.RandomSampler][1]


@pytest.mark.parametrize("sampler", [lambda: MnasNetSampler(0, targets={1: TARGET}), lambda: SposSampler(0)])
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
        ({"form": "firm"}, "form 'firm': write 'hard' or 'soft'"),
        ({"targets": {0: 1.0}}, "targets: objective 0 has none; give positive targets of costs, from objective 1"),
        ({"targets": {1: 0.0}}, "targets: objective 1 has none"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MnasNetSampler(**settings)


@pytest.mark.parametrize(
    ("directions", "value", "message"),
    [
        (["minimize", "minimize"], 1.0, "a first objective that is maximized, like an accuracy"),
        (["maximize"], 1.0, "targets: the study has no objective 1 that is minimized"),
        (["maximize", "maximize"], 1.0, "targets: the study has no objective 1 that is minimized"),
        (["maximize", "minimize"], -1.0, "values of objective 0 that are not negative: -1"),
    ],
)
def test_a_study_without_a_reward_is_refused(directions: list[str], value: float, message: str) -> None:
    study = optuna.create_study(directions=directions, sampler=MnasNetSampler(0, targets={1: TARGET}))

    def constant(trial: optuna.Trial) -> list[float]:
        trial.suggest_categorical("x", list(range(20)))
        return [value] * len(directions)

    with pytest.raises(ValueError, match=message):
        study.optimize(constant, 10)
