"""Asking and telling, whoever evaluates: several under way at once, and one machine's latencies only."""

from __future__ import annotations

from typing import ClassVar

import pytest

from nasspace import cost
from nasspace.engine.evaluator import Outcome
from nasspace.engine.problem import Task
from nasspace.engine.trials import FAILURES, Driver, scored
from nasspace.errors import InputError
from nasspace.samplers.optuna_samplers import optuna_sampler
from nasspace.space.space import Space
from nasspace.studies import study as records
from nasspace.studies.recipe import Recipe

SPACE = """
input: [3, 16, 16]
stages: [{depth: [1, 2, 3], out: [8, 12, 16], stride: 2, each: {block: [conv: {kernel: [1, 3]}, sandglass]}}]
"""


class Scorer:
    """Accuracy by digest; `known` as the project's own evaluator has it."""

    known: ClassVar = {"flops": lambda architecture: cost(architecture).flops}

    def __call__(self, architecture):
        values = {"accuracy": int(architecture.digest, 16) / 16**12, "latency": 1.0, "flops": cost(architecture).flops}
        return Outcome(values)


@pytest.fixture
def driver(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = Recipe(trials=8, sampler="random")
    task = Task.of_function(asked, Space.from_text(SPACE, "little.yaml"), scored, None)
    settings = task.settings("s", None)
    task.scorer = Scorer()
    study = records.create(tmp_path / "s", settings, optuna_sampler("random", 0))
    with Driver(study, task, lambda kind, **_: None) as driver:
        yield driver


def test_no_more_are_asked_than_are_wanted_and_none_twice(driver):
    asked = []
    while candidate := driver.ask():
        asked.append(candidate)
    assert len(asked) == len({candidate.architecture.digest for candidate in asked}) == 8
    assert not driver.finished, "they are under way"
    for candidate in reversed(asked):
        driver.tell(candidate, scored(driver.task.scorer, candidate.architecture))
    assert driver.finished
    assert driver.study.evaluated == 8
    assert driver.ask() is None


def test_what_a_dead_process_had_under_way_is_taken_up_once_each(driver):
    left = [driver.ask() for _ in range(3)]
    again = Driver(records.load(driver.study.folder), driver.task, driver.report)
    taken = [again.ask() for _ in range(3)]
    assert [one.number for one in taken] == [one.number for one in left]
    assert [one.architecture.digest for one in taken] == [one.architecture.digest for one in left]
    assert again.ask().number not in [one.number for one in left]


def test_a_rejected_or_failed_candidate_makes_room_for_another(driver):
    asked = [driver.ask() for _ in range(8)]
    assert driver.ask() is None
    driver.tell(asked[0], Outcome({}, failure="out of memory"))
    driver.tell(asked[1], Outcome({"flops": 1.0}, reason="latency is over the limit"))
    fresh = [driver.ask(), driver.ask()]
    assert all(fresh)
    assert driver.ask() is None
    assert {one.architecture.digest for one in fresh}.isdisjoint(one.architecture.digest for one in asked)


def test_failures_in_a_row_end_the_search(driver):
    for _ in range(FAILURES - 1):
        driver.tell(driver.ask(), Outcome({}, failure="out of memory"))
    with pytest.raises(InputError, match="5 candidates in a row could not be evaluated; the last one: out of memory"):
        driver.tell(driver.ask(), Outcome({}, failure="out of memory"))


def test_latencies_of_two_machines_are_not_mixed(driver):
    def measured(candidate, processor):
        interval = {"median_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "machine": {"processor": processor, "cores": 2}}
        return Outcome(Scorer()(candidate.architecture).values, details={"latency_interval": interval})

    for _ in range(2):
        candidate = driver.ask()
        driver.tell(candidate, measured(candidate, "one"))
    candidate = driver.ask()
    with pytest.raises(InputError, match=r"another machine \(processor other, cores 2\)"):
        driver.tell(candidate, measured(candidate, "other"))
    assert driver.study.evaluated == 2
    assert driver.study.latency_machine() == {"processor": "one", "cores": 2}
