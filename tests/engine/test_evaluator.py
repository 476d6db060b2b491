"""Evaluators: a candidate over a limit is neither measured further nor trained."""

from __future__ import annotations

import random

import pytest

import nasspace.latency.benchmark
import nasspace.training.trainer
from nasspace import Space, cost
from nasspace.data.loading import load_data
from nasspace.engine import latency_evaluator
from nasspace.engine.evaluator import (
    FunctionEvaluator,
    TrainingEvaluator,
    candidate_seed,
    counts,
    evaluate,
    violated_limit,
)
from nasspace.errors import InputError
from nasspace.samplers.observation import Bounds
from nasspace.studies.recipe import Recipe


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", resolution=32)


@pytest.fixture
def architecture():
    return Space.load("shuffle", resolution=32, channels=1).sample(random.Random(0))


def recipe(**changes):
    fidelity = {"resolution": 32, "epochs": 1, "share": 0.2}
    return Recipe().with_changes({"fidelity": fidelity, **changes})


def refuse(*_, **__):
    raise AssertionError("this should not have run")


def test_over_a_counted_limit_nothing_is_measured(monkeypatch, digits, architecture):
    monkeypatch.setattr(nasspace.latency.benchmark, "measure_latency", refuse)
    flops = cost(architecture).flops
    outcome = TrainingEvaluator(recipe(limits={"flops": flops - 1}), digits)(architecture)
    assert outcome.reason.startswith("flops")
    assert "latency" not in outcome.values
    assert "accuracy" not in outcome.values


def test_over_the_latency_limit_nothing_is_trained(monkeypatch, digits, architecture):
    monkeypatch.setattr(nasspace.training.trainer, "train", refuse)
    outcome = TrainingEvaluator(recipe(limits={"latency": "0.001ms"}), digits)(architecture)
    assert outcome.reason.startswith("latency")
    assert outcome.details["latency_interval"]["median_ms"] == outcome.values["latency"]
    assert "accuracy" not in outcome.values


class Measured:
    """A latency that was not measured: 2 ms, 1.8 to 2.2."""

    median_ms, low_ms, high_ms = 2.0, 1.8, 2.2

    def to_json(self):
        return {"median_ms": self.median_ms, "low_ms": self.low_ms, "high_ms": self.high_ms}


@pytest.mark.parametrize(("limit", "inside"), [(1.9, False), (2.1, False), (2.19, False), (2.2, True), (2.3, True)])
def test_the_upper_end_of_the_interval_decides(limit, inside, digits, architecture):
    settings = recipe(limits={"latency": f"{limit}ms"}, objectives=["latency", "flops"])
    outcome = TrainingEvaluator(
        settings, digits, measure=lambda _: latency_evaluator.MeasuredLatency(Measured(), "here")
    )(architecture)
    assert outcome.values["latency"] == 2.0
    assert outcome.details["latency_interval"]["high_ms"] == 2.2
    assert (outcome.reason == "") == inside
    assert inside or "at the upper end of its interval" in outcome.reason


@pytest.mark.slow
def test_inside_the_limits_it_is_trained_and_repeats(digits, architecture):
    """From the seed; a latency that other work disturbed would be measured again."""
    settings = recipe(limits={"latency": "1s"})
    evaluator = TrainingEvaluator(
        settings, digits, measure=lambda _: latency_evaluator.MeasuredLatency(Measured(), "here")
    )
    first, second = evaluator(architecture), evaluator(architecture)
    assert 0 < first.values["accuracy"] <= 1
    assert first.values == second.values
    assert first.details["activations"] == cost(architecture).activations, "which the belief uses"
    assert all(first.weights[name].equal(second.weights[name]) for name in first.weights)


def test_the_first_violated_limit_is_named():
    assert violated_limit({"flops": 2e6, "latency": 3.0}, {"latency": 5.0, "flops": 1e6}) == (
        "flops 2 million multiply-adds is over the limit of 1 million multiply-adds"
    )
    assert violated_limit({"latency": 3.0}, {"latency": 3.0, "params": 1.0}) == ""


def test_a_candidates_seed_is_its_own_and_the_studys(architecture):
    assert candidate_seed(0, architecture) != candidate_seed(1, architecture)
    assert candidate_seed(5, architecture) == candidate_seed(5, architecture) < 2**32


def test_the_result_of_a_function_is_completed_by_known_and_counted_values(architecture):
    evaluator = FunctionEvaluator(lambda a: {"accuracy": 0.5}, {"flops": lambda a: 7}, ("accuracy", "flops"), {})
    values = evaluator(architecture).values
    assert (values["accuracy"], values["flops"]) == (0.5, 7)
    assert values["params"] == cost(architecture).params


@pytest.mark.parametrize("returned", [None, 0.9, {"accuracy": float("nan")}, {"accuracy": None}, {}])
def test_the_result_of_a_function_is_checked(returned, architecture):
    with pytest.raises(InputError, match="evaluator"):
        FunctionEvaluator(lambda a: returned, None, ("accuracy",), {})(architecture)


def test_known_values_must_be_numbers():
    with pytest.raises(InputError, match="known: 'speed'"):
        FunctionEvaluator(lambda a: {}, {"speed": len}, ("accuracy",), {})


def test_within_bounds_a_network_over_a_limit_is_trained(digits, architecture):
    flops = cost(architecture).flops
    evaluator = TrainingEvaluator(recipe(limits={"flops": flops - 1, "latency": "0.001ms"}), digits)
    evaluator.measure = lambda _: latency_evaluator.MeasuredLatency(Measured(), "here")
    outcome = evaluate(evaluator, architecture, Bounds({}))
    assert "accuracy" in outcome.values
    assert outcome.reason.startswith("flops")
    assert outcome.weights


def test_a_bound_of_a_sampler_replaces_the_limits_and_is_named(monkeypatch, digits, architecture):
    monkeypatch.setattr(nasspace.training.trainer, "train", refuse)
    evaluator = TrainingEvaluator(recipe(limits={"latency": "9ms"}), digits)
    evaluator.measure = lambda _: latency_evaluator.MeasuredLatency(Measured(), "here")
    outcome = evaluate(evaluator, architecture, Bounds({"latency": 1.9}, "the step's bound"))
    assert outcome.reason == "latency 2 ms is over the step's bound of 1.9 ms"
    assert "accuracy" not in outcome.values


def test_memory_is_that_of_the_network_that_ships(architecture):
    counted = cost(architecture)
    found = {
        runtime: [counts(runtime)[name](architecture) for name in ("peak_memory", "flash")]
        for runtime in ("onnxruntime", "onnxruntime-int8")
    }
    assert found["onnxruntime"] == [counted.peak_memory, counted.flash]
    assert found["onnxruntime-int8"] == [counted.peak_memory_int8, counted.flash_int8]
