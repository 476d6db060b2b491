"""`GainSampler` in Optuna studies: conditional parameters, constraints, resumed studies, any directions."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest

from nasspace.errors import InputError
from nasspace.samplers import pareto
from nasspace.samplers.evolution import EvolutionSampler
from nasspace.samplers.learned_space import LearnedSpace
from nasspace.samplers.optuna_gain import GainSampler
from nasspace.samplers.optuna_papers import MnasNetSampler, SposSampler

optuna.logging.set_verbosity(optuna.logging.WARNING)


def objective(trial: optuna.Trial) -> tuple[float, float]:
    """A conditional space of 258 points: `depth` layers, a kernel for one of the blocks only."""
    depth = trial.suggest_categorical("depth", [1, 2, 3])
    quality = cost = 0.0
    for i in range(depth):
        if trial.suggest_categorical(f"{i}.block", ["plain", "wide"]) == "wide":
            cost += 1.5
            quality += 1.2
        else:
            kernel = trial.suggest_categorical(f"{i}.kernel", [3, 5, 7, 9, 11])
            cost += kernel / 5
            quality += 2 - abs(kernel - 5) / 2
    return 1 - 0.5**quality, cost


def create(sampler: optuna.samplers.BaseSampler, storage: str | None = None) -> optuna.Study:
    return optuna.create_study(
        study_name="s", storage=storage, directions=["maximize", "minimize"], sampler=sampler, load_if_exists=True
    )


def params(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def test_the_space_is_learned_with_its_conditions() -> None:
    study = create(optuna.samplers.RandomSampler(0))
    study.optimize(objective, 60)
    space = LearnedSpace.of(study.trials)
    assert {name: condition.name for name, condition in space.conditions.items()} == {
        "0.kernel": "0.block",
        "1.block": "depth",
        "1.kernel": "1.block",
        "2.block": "depth",
        "2.kernel": "2.block",
    }
    assert space.conditions["2.block"].options == {3}
    assert len({point.digest for point in space.enumerate()}) == 6 + 6**2 + 6**3
    for trial in study.trials:
        point = space.replay(trial.params)
        assert space.architecture(lambda name, _, trial=trial: trial.params[name]) == point
        for neighbor in space.neighbors(point):
            assert neighbor.digest != point.digest


def test_parameters_of_two_branches_depend_on_the_same_choice() -> None:
    def branched(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("model", ["forest", "svc", None]) == "forest":
            return trial.suggest_categorical("trees", [10, 100])
        if trial.params["model"] == "svc":
            return {"rbf": 2, "linear": 1}[trial.suggest_categorical("kernel", ["rbf", "linear"])]
        return 0

    study = optuna.create_study(sampler=GainSampler(0))
    study.optimize(branched, 12)
    space = LearnedSpace.of(study.trials)
    assert space.conditions["trees"] == ("model", {"forest"})
    assert space.conditions["kernel"] == ("model", {"svc"})
    assert len(list(space.enumerate())) == 5
    assert len({str(each) for each in params(study)}) == 5, "all points are proposed before one is repeated"


def test_a_parameter_may_depend_on_the_option_none() -> None:
    def chained(trial: optuna.Trial) -> float:
        if trial.suggest_categorical("pool", [True, False]) and trial.suggest_categorical("size", [2, None]) is None:
            return trial.suggest_categorical("kernel", [3, 5])
        return 0

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    study.optimize(chained, 30)
    assert LearnedSpace.of(study.trials).conditions["kernel"] == ("size", {None})


def test_proposals_are_complete_new_and_better_than_random() -> None:
    volumes = {}
    for sampler in (GainSampler(0), optuna.samplers.RandomSampler(0)):
        study = create(sampler)
        study.optimize(objective, 25)
        volumes[type(sampler)] = pareto.hypervolume([[-t.values[0], t.values[1]] for t in study.trials], [0, 8])
    study = create(GainSampler(0))
    study.optimize(objective, 25)
    proposed = params(study)[10:]
    assert len({str(each) for each in proposed}) == len(proposed)
    assert volumes[GainSampler] > volumes[optuna.samplers.RandomSampler]


def test_a_resumed_study_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    uninterrupted = create(GainSampler(0))
    uninterrupted.optimize(objective, 14)
    for _ in range(7):
        study = create(GainSampler(0), f"sqlite:///{tmp_path}/s.db")
        study.optimize(objective, 2)
    assert params(study) == params(uninterrupted)


def test_pruned_trials_teach_the_constraints() -> None:
    def limited(trial: optuna.Trial) -> tuple[float, float]:
        values = objective(trial)
        trial.set_constraint("cost", values[1] - 2.3)
        if values[1] > 2.3:
            raise optuna.TrialPruned
        return values

    study = create(GainSampler(0))
    study.optimize(limited, 30)
    states = [trial.state.name for trial in study.trials]
    assert states[15:].count("COMPLETE") > states[:10].count("COMPLETE")


@pytest.mark.parametrize("directions", [["minimize"], ["minimize", "maximize", "minimize"]])
def test_any_directions_and_signs(directions: list[str]) -> None:
    study = optuna.create_study(directions=directions, sampler=GainSampler(0))
    study.optimize(lambda trial: [-objective(trial)[0], -objective(trial)[1], 0.0][: len(directions)], 10)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}


def test_failed_and_running_trials_are_not_proposed_again() -> None:
    study = create(GainSampler(0))
    study.optimize(objective, 8)
    waiting = [study.ask() for _ in range(4)]
    for trial in waiting:
        objective(trial)
    study.tell(waiting[0], state=optuna.trial.TrialState.FAIL)
    study.optimize(objective, 2)
    proposed = params(study)[8:]
    assert len({str(each) for each in proposed}) == len(proposed)


def test_a_known_cost_is_called_on_candidates() -> None:
    calls = []

    def known(parameters: Any) -> float:
        calls.append(parameters)
        return objective(optuna.trial.FixedTrial(parameters))[1]

    study = create(GainSampler(0, known={1: known}))
    study.optimize(objective, 8)
    assert len(calls) > 100


def test_threads_propose_different_parameters() -> None:
    def slow(trial: optuna.Trial) -> tuple[float, float]:
        time.sleep(0.005)  # before the proposal, so that both threads make one at about the same time
        return objective(trial)

    study = create(GainSampler(0))
    study.optimize(slow, 24, n_jobs=2)
    proposed = params(study)[12:]
    assert len({str(each) for each in proposed}) == len(proposed)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_parameters_that_another_sampler_fixes_are_left_to_it() -> None:
    for own in (GainSampler(0), MnasNetSampler(0), SposSampler(0), EvolutionSampler(0)):
        study = create(optuna.samplers.PartialFixedSampler({"0.block": "wide"}, own))
        study.optimize(objective, 24)
        assert {each["0.block"] for each in params(study)} == {"wide"}
        if not isinstance(own, EvolutionSampler):
            proposed = [str(each) for each in params(study)[10:]]
            assert len(set(proposed)) == len(proposed)


@pytest.mark.parametrize("options", [["only"], [3, 3, 3], [[1, 2], [3, 4]], [(1, 2), "x"]])
def test_options_that_cannot_be_learned_are_random(options: list[Any]) -> None:
    def objective_with(trial: optuna.Trial) -> tuple[float, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Optuna's, of options that no storage keeps
            trial.suggest_categorical("odd", options)
        return sum(trial.suggest_categorical(f"{i}", [1, 2, 3, 4]) for i in range(7)), 1.0

    study = create(GainSampler(0))
    study.optimize(objective_with, 8)
    assert "odd" not in LearnedSpace.of(study.trials).options
    create(EvolutionSampler(0)).optimize(objective_with, 24)


def test_infinite_values_are_those_of_a_failure() -> None:
    def sometimes_infinite(trial: optuna.Trial) -> tuple[float, float]:
        accuracy, cost = objective(trial)
        trial.set_constraint("cost", math.inf if trial.number == 6 else cost - 3)
        return (accuracy, math.inf) if trial.number % 3 == 0 else (accuracy, cost)

    study = create(GainSampler(0))
    study.optimize(sometimes_infinite, 12)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({0: lambda _: 1.0}, "known: 0 is no cost of the study"),
        ({2: lambda _: 1.0}, "known: 2 is no cost of the study"),
        ({1: lambda parameters: parameters["rate"]}, "known: the function of objective 1 raises KeyError: 'rate', for"),
        ({1: lambda _: math.nan}, "known: the function of objective 1 returns nan, for"),
    ],
)
def test_a_known_cost_that_cannot_be_computed_is_named(known: Any, message: str) -> None:
    study = create(GainSampler(0, known=known))
    with pytest.raises((ValueError, InputError), match=message):
        study.optimize(objective, 8)


def test_a_known_cost_gets_parameters_with_one_option() -> None:
    def priced(trial: optuna.Trial) -> tuple[float, float]:
        return trial.suggest_categorical("width", [1, 2, 3, 4]), trial.suggest_categorical("price", [2])

    study = create(GainSampler(0, known={1: lambda parameters: parameters["width"] * parameters["price"]}))
    study.optimize(priced, 8)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}


def test_numeric_parameters_are_random_and_an_exhausted_space_is_no_error() -> None:
    study = optuna.create_study(sampler=GainSampler(0))
    study.optimize(lambda t: t.suggest_float("x", 0, 1) + t.suggest_categorical("y", [1, 2, 3]), 12)
    assert len({trial.params["x"] for trial in study.trials}) == 12


def test_the_best_choices_are_tried_with_several_learning_rates() -> None:
    study = optuna.create_study(direction="maximize", sampler=GainSampler(0))
    study.optimize(lambda t: t.suggest_float("rate", 0, 1) + t.suggest_categorical("y", [0, 5, 10, 15]), 40)
    assert sum(trial.params["y"] == 15 for trial in study.trials[10:]) > 15
