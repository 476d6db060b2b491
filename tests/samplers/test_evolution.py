"""Regularized evolution: children differ from a good recent parent in one choice."""

from __future__ import annotations

import optuna

from nasspace.samplers.evolution import POPULATION, EvolutionSampler

optuna.logging.set_verbosity(optuna.logging.WARNING)
NAMES = [f"op{i}" for i in range(8)]


def value(trial: optuna.Trial) -> float:
    return sum(trial.suggest_categorical(name, [0, 1, 2, 3]) for name in NAMES)


def test_a_child_differs_in_one_choice_from_a_recent_trial() -> None:
    study = optuna.create_study(direction="maximize", sampler=EvolutionSampler(0))
    study.optimize(value, POPULATION + 15)
    trials = study.trials
    for i in range(POPULATION, len(trials)):
        recent = trials[i - POPULATION : i]
        assert 1 in [sum(trials[i].params[name] != other.params[name] for name in NAMES) for other in recent]


def test_it_climbs() -> None:
    study = optuna.create_study(direction="maximize", sampler=EvolutionSampler(0))
    study.optimize(value, 120)
    values = [trial.value for trial in study.trials]
    assert min(values[-10:]) > sum(values[:POPULATION]) / POPULATION


def test_choices_that_the_parent_did_not_reach_are_drawn() -> None:
    def conditional(trial: optuna.Trial) -> float:
        depth = trial.suggest_categorical("depth", [1, 2, 3])
        return sum(trial.suggest_categorical(f"{i}.kernel", [3, 5, 7]) for i in range(depth))

    study = optuna.create_study(direction="maximize", sampler=EvolutionSampler(0))
    study.optimize(conditional, 60)
    assert all(len(trial.params) == trial.params["depth"] + 1 for trial in study.trials)
    assert {trial.params["depth"] for trial in study.trials[30:]} >= {2, 3}


def test_a_resumed_study_continues_its_random_population() -> None:
    study = optuna.create_study(direction="maximize", sampler=EvolutionSampler(0))
    study.optimize(value, 5)
    study.sampler = EvolutionSampler(0)
    study.optimize(value, 5)
    assert len({str(trial.params) for trial in study.trials}) == 10
