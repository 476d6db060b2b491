"""The estimate of a search's duration, and the note about a front far below its latency target."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nasspace.engine import duration, loop
from nasspace.engine.problem import Problem
from nasspace.space.space import Space
from nasspace.studies.recipe import UNBOUNDED, Recipe

SPACE = """
name: few
input: [3, 32, 32]
stem: [{block: conv, out: 8, kernel: 3}]
stages: [{depth: [1, 2, 3, 4], out: [8, 16], stride: 2, block: shuffle_v2}]
head: [{block: conv, out: 32, kernel: 1}]
"""


@pytest.fixture(scope="module")
def problem():
    return Problem.from_data(Recipe(trials=10), Space.from_text(SPACE, "few.yaml"))


def test_more_trials_take_longer_and_without_trials_the_estimate_is_per_trial(problem):
    found = duration.estimate_duration(problem)
    assert found.search[0] > 0
    assert found.delivery[0] < found.mean_delivery < found.delivery[1]
    assert str(found).startswith("estimated time: ")
    unbounded = problem.recipe.model_copy(update={"trials": UNBOUNDED, "time_budget": 60.0})
    assert "for each trial" in str(duration.estimate_duration(replace(problem, recipe=unbounded)))


def test_rungs_are_estimated_with_the_networks_that_they_train():
    timed = [(1.0, [10.0, 20.0]), (1.0, [30.0, 40.0])]
    assert duration._climbing_seconds(timed, [34, 12], 3) == 34 * 20 + 3 * 30
    assert duration._climbing_seconds(timed, [1, 1], 3) == 3 * 20 + 3 * 30
    assert duration._climbing_seconds([(1.0, [10.0])], [], 3) == 3 * 10
    assert duration._climbing_seconds(timed, [34, 12], 3, workers=4) == 9 * 20 + 3 * 30
    assert duration._climbing_seconds(timed, [1, 1], 3, workers=4) == (1 + 2) * 20 + 3 * 30


def test_a_network_that_cannot_be_trained_is_skipped(problem, monkeypatch):
    timed = duration._time_network
    calls = []

    def failing(network, *arguments):
        calls.append(network)
        if len(calls) == 1:
            raise RuntimeError("a user's block fails")
        return timed(network, *arguments)

    monkeypatch.setattr(duration, "_time_network", failing)
    assert duration.estimate_duration(problem)
    monkeypatch.setattr(duration, "_time_network", lambda *_: 1 / 0)
    assert duration.estimate_duration(problem) is None


def test_a_short_search_is_estimated_from_one_network_with_a_wider_range(problem, monkeypatch):
    calls = []
    monkeypatch.setattr(duration, "_time_network", lambda *_: calls.append(1) or (10.0, [10.0]))
    assert duration.estimate_duration(problem).search == pytest.approx((0.7 * 130, 1.4 * 130))
    assert len(calls) == duration.NETWORKS
    monkeypatch.setattr(duration, "SHARE", 0.0)
    assert duration.estimate_duration(problem).search == pytest.approx((0.5 * 130, 2.0 * 130))
    assert len(calls) == duration.NETWORKS + 1


def test_a_front_far_below_its_target_is_noted(tmp_path, monkeypatch):
    """Four networks: the fastest is the best, and one exceeds the limit."""
    monkeypatch.chdir(tmp_path)

    def scored(architecture):
        depth = len(architecture.layers)
        return {"accuracy": 1 - depth / 100, "latency": depth - 4.0, "flops": 1.0}  # 6 to 9 layers

    space = Space.from_text(SPACE.replace("[8, 16]", "8"), "few.yaml")
    study = loop.search(space, evaluator=scored, trials=4, latency_target_ms=4.5, sampler="random", study="s")
    assert study.trials()["latency_ms"].max() == 5.0
    assert study.snapshot().budget_note == (
        "the slowest network of the front takes 2 ms of 4.5 ms: no slower network was better among 3 networks "
        "tried, the slowest of which takes 4 ms"
    )
