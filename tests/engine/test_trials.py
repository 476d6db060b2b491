"""Ask and tell: several candidates at a time, failed and rejected ones, latencies of one machine only."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import ClassVar

import pytest

from nasspace import cost
from nasspace.engine.evaluator import Outcome, evaluate
from nasspace.engine.problem import Problem
from nasspace.engine.trials import MAX_FAILURES, TrialManager
from nasspace.errors import InputError
from nasspace.samplers.accuracy_belief import Prior
from nasspace.samplers.optuna_samplers import optuna_sampler
from nasspace.space.space import Space
from nasspace.studies import study as records
from nasspace.studies.recipe import Recipe
from nasspace.studies.schema import RUNG

SPACE = """
input: [3, 16, 16]
stages: [{depth: [1, 2, 3], out: [8, 12, 16], stride: 2, each: {block: [conv: {kernel: [1, 3]}, sandglass]}}]
"""


class DigestEvaluator:
    """Accuracy from the digest; `known` as in the package's own evaluator."""

    known: ClassVar = {"flops": lambda architecture: cost(architecture).flops}

    def __call__(self, architecture):
        values = {"accuracy": int(architecture.digest, 16) / 16**12, "latency": 1.0, "flops": cost(architecture).flops}
        return Outcome(values)


@pytest.fixture
def manager(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(trials=8, sampler="random")
    problem = Problem.from_function(recipe, Space.from_text(SPACE, "little.yaml"), len, None)
    study = records.create(tmp_path / "s", problem.settings("s", None), optuna_sampler("random", 0))
    problem = replace(problem, evaluator=DigestEvaluator())
    with TrialManager(study, problem, lambda kind, **_: None) as manager:
        yield manager


def test_the_number_of_trials_is_kept_and_no_network_comes_twice(manager):
    candidates = []
    while candidate := manager.ask():
        candidates.append(candidate)
    assert len(candidates) == len({candidate.architecture.digest for candidate in candidates}) == 8
    assert not manager.is_finished, "they are running"
    for candidate in reversed(candidates):
        manager.tell(candidate, evaluate(manager.problem.evaluator, candidate.architecture))
    assert manager.is_finished
    assert manager.study.evaluated == 8
    assert manager.ask() is None


def test_trials_of_a_dead_process_are_resumed_once_each(manager):
    left = [manager.ask() for _ in range(3)]
    again = TrialManager(records.load(manager.study.folder), manager.problem, manager.report)
    taken = [again.ask() for _ in range(3)]
    assert [one.number for one in taken] == [one.number for one in left]
    assert [one.architecture.digest for one in taken] == [one.architecture.digest for one in left]
    assert again.ask().number not in [one.number for one in left]


def test_a_rejected_or_failed_candidate_is_replaced(manager):
    candidates = [manager.ask() for _ in range(8)]
    assert manager.ask() is None
    manager.tell(candidates[0], Outcome({}, failure="out of memory"))
    manager.tell(candidates[1], Outcome({"flops": 1.0}, reason="latency is over the limit"))
    fresh = [manager.ask(), manager.ask()]
    assert all(fresh)
    assert manager.ask() is None
    assert {one.architecture.digest for one in fresh}.isdisjoint(one.architecture.digest for one in candidates)


def test_failures_in_a_row_end_the_search(manager):
    for _ in range(MAX_FAILURES - 1):
        manager.tell(manager.ask(), Outcome({}, failure="out of memory"))
    with pytest.raises(InputError, match="5 candidates in a row could not be evaluated; the last one: out of memory"):
        manager.tell(manager.ask(), Outcome({}, failure="out of memory"))


def test_latencies_of_two_machines_are_not_mixed(manager):
    def measured(candidate, processor):
        interval = {"median_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "machine": {"processor": processor, "cores": 2}}
        return Outcome(DigestEvaluator()(candidate.architecture).values, details={"latency_interval": interval})

    for _ in range(2):
        candidate = manager.ask()
        manager.tell(candidate, measured(candidate, "one"))
    candidate = manager.ask()
    with pytest.raises(InputError, match=r"another machine \(processor other, cores 2\)"):
        manager.tell(candidate, measured(candidate, "other"))
    assert manager.study.evaluated == 2
    assert manager.study.latency_machine() == {"processor": "one", "cores": 2}


def test_the_sampler_sees_the_trainings_of_rungs(manager):
    """Two networks were trained further: the best one gained little, and the worst one became better than it."""
    accuracies = [0.7, 0.72, 0.74, 0.5]
    for accuracy in accuracies:
        candidate = manager.ask()
        values = {"accuracy": accuracy, "latency": 1.0, "flops": 1e6}
        manager.tell(candidate, Outcome(values, details={"training": {"losses": [2.0, 1.0], "log_loss": 1.0}}))
    study = manager.study
    data = {"validation": 4000, "train": 10_000}
    recipe = {
        **study.settings["recipe"],
        "full": {"epochs": 30},
        "fidelity": {"resolution": 16, "epochs": 1, "share": 1.0},
    }
    study.settings = {**study.settings, "data": data, "recipe": recipe, "belief": asdict(Prior())}
    assert not study.has_further_trainings
    before = [trial.values["accuracy"] for trial in manager._proposals.observations()]
    assert before[:3] == sorted(before)[1:]
    steps = [[16, 1, 1.0], [16, 29, 1.0]]
    for number, accuracy in ((2, 0.75), (3, 0.9)):
        record = {"resolution": 16, "epochs": 29, "seconds": 1.0, "accuracy": accuracy, "log_loss": 1 - accuracy}
        study.record.set_user_attr(f"{RUNG}0:{number}", {**record, "steps": steps})
    study = records.load(study.folder)
    study.settings = manager.study.settings
    manager._proposals.study = study
    after = [trial.values["accuracy"] for trial in manager._proposals.observations()]
    assert after == [study.belief().expected(number) for number in range(4)]
    assert after[3] > after[2]


def test_the_sampler_sees_accuracy_and_log_loss_together_and_the_record_the_accuracy(manager):
    """Log losses order networks of equal accuracy; Optuna also records the accuracy as an intermediate value."""
    log_losses = [1.0, 0.8, 1.2, 0.9]
    candidates = [manager.ask() for _ in log_losses]
    for candidate, log_loss in zip(candidates, log_losses, strict=True):
        values = {"accuracy": 0.5, "latency": 1.0, "flops": cost(candidate.architecture).flops}
        manager.tell(candidate, Outcome(values, details={"training": {"losses": [2.0, 1.0], "log_loss": log_loss}}))
    manager.study.settings = {**manager.study.settings, "data": {"validation": 400}}
    seen = [trial.values["accuracy"] for trial in manager._proposals.observations()]
    assert sorted(range(4), key=lambda i: -seen[i]) == [1, 3, 0, 2]
    for trial in manager.study.frozen("COMPLETE"):
        assert trial.user_attrs["values"]["accuracy"] == 0.5
        assert trial.intermediate_values == {2: 0.5}
