"""Every sampler by name: limits, conditional choices, and resumed searches equal to uninterrupted ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from nasspace.errors import InputError
from nasspace.samplers.optuna_samplers import SAMPLERS, optuna_sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)
LIMIT = 2.2


def suggested(trial: optuna.Trial) -> dict[str, Any]:
    """A conditional space: `depth` layers, a kernel for one of the blocks only."""
    chosen = {"depth": trial.suggest_categorical("depth", [1, 2, 3])}
    for i in range(chosen["depth"]):
        block = chosen[f"{i}.block"] = trial.suggest_categorical(f"{i}.block", [0, 1])
        if block == 0:
            chosen[f"{i}.kernel"] = trial.suggest_categorical(f"{i}.kernel", [3, 5, 7])
    return chosen


def step(study: optuna.Study, trial: optuna.Trial | None = None) -> None:
    """Run one trial like a search; over the limit it is pruned."""
    trial = trial or study.ask()
    chosen = suggested(trial)
    cost = sum(chosen.get(f"{i}.kernel", 4) / 5 for i in range(chosen["depth"]))
    trial.set_constraint("latency", cost / LIMIT - 1)
    if cost > LIMIT:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(trial, [1 - 0.3 ** (cost + 0.1 * chosen["0.block"]), cost])


def create(name: str, storage: str | None = None, seed: int = 0) -> optuna.Study:
    return optuna.create_study(
        study_name="s",
        storage=storage,
        directions=["maximize", "minimize"],
        sampler=optuna_sampler(name, seed),
        load_if_exists=True,
    )


def drawn(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials if trial.state.is_finished()]


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resumed_search_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    count = 24  # past the first population of nsga2, past the random start of the others
    uninterrupted = create(name)
    for _ in range(count):
        step(uninterrupted)
    assert {trial.state.name for trial in uninterrupted.trials} == {"COMPLETE", "PRUNED"}
    storage = f"sqlite:///{tmp_path}/s.db"
    for number in range(count):
        if number % 5 == 0:
            study = create(name, storage)  # as after a kill, with a new sampler
        if number % 7 == 3:
            study.ask().suggest_categorical("depth", [1, 2, 3])  # killed during a trial, which is then resumed
            study = create(name, storage)
            (killed,) = (trial for trial in study.trials if trial.state.name == "RUNNING")
            step(study, optuna.Trial(study, killed._trial_id))
        else:
            step(study)
    assert drawn(study) == drawn(uninterrupted)


@pytest.mark.parametrize("name", SAMPLERS)
def test_seeds_differ_and_so_do_trials(name: str) -> None:
    first, second = create(name), create(name, seed=1)
    for _ in range(8):
        step(first)
        step(second)
    assert drawn(first) != drawn(second)
    assert len({str(params) for params in drawn(first)}) > 3


@pytest.mark.slow
def test_tpe_learns_from_rejected_trials() -> None:
    kept = {"tpe": 0, "random": 0}
    for name in kept:
        for seed in range(3):
            study = create(name, seed=seed)
            for _ in range(30):
                step(study)
            kept[name] += sum(trial.state.name == "COMPLETE" for trial in study.trials[10:])
    assert kept["tpe"] > kept["random"]


def test_an_unknown_sampler_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="'tqe' is not a sampler; did you mean 'tpe'"):
        optuna_sampler("tqe", 0)


def test_gain_is_a_sampler() -> None:
    assert next(iter(SAMPLERS)) == "gain"
