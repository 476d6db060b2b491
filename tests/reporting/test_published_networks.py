"""Published networks next to a study: within its limits, with exact counts, and latencies from the cache alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from nasspace import zoo
from nasspace.counting import cost
from nasspace.latency.benchmark import Latency
from nasspace.latency.cache import LatencyCache
from nasspace.latency.conditions import Conditions, machine
from nasspace.latency.runtimes import versions
from nasspace.reporting.published_networks import LARGER, MOST, within_limits
from nasspace.studies.front import Front
from nasspace.studies.weight_store import StudyWeights, Weights

MOBILE = zoo.load("mobilenet_v2_1.0_cifar", resolution=32, classes=10).with_input(1)
RECIPE = {"runtime": "onnxruntime", "threads": 1, "batch_size": 1, "objectives": ["accuracy", "latency", "flops"]}


def front_of(resolution: int | None = 32, limits: dict | None = None, flops: float = 1e9, **changes) -> Front:
    settings = {
        "recipe": {**RECIPE, **changes.pop("recipe", {})},
        "limits": limits or {},
        "task": {"classes": 10, "channels": 1, "resolution": resolution},
    }
    stores = StudyWeights(Weights(Path("w")), Weights(Path("w/deployed")), Path("exports"))
    found = {"machine": machine(), **changes}
    return Front("mine", Path("reports/mine"), settings, (), ({"flops": flops},), stores, **found)


def store(median: float) -> None:
    """Store a latency of MOBILE in the cache, as `nas latency` does."""
    key = Conditions.on_this_machine(MOBILE.digest, "onnxruntime", input=MOBILE.input)
    times = {"median_ms": median, "low_ms": 0.9 * median, "high_ms": 1.1 * median}
    samples = {"samples_ms": (median,) * 12, "reference_ms": (), "reference_usual_ms": None}
    where = {"machine": machine(), "versions": versions("onnxruntime"), "measured_at": "2026-01-01T00:00:00+00:00"}
    found = Latency(
        "onnxruntime", key.device, 1, 1, MOBILE.input, **times, rounds=12, contended=False, **samples, **where
    )
    LatencyCache().put(key, found.to_json())


def test_counts_are_exact_at_the_study_s_resolution_and_classes():
    found = {one.name: one for one in within_limits(front_of())}
    assert all(name.endswith("_cifar") for name in found)
    assert found["mobilenet_v2_1.0_cifar"].values["flops"] == cost(MOBILE).flops
    flops = [one.values["flops"] for one in found.values()]
    assert flops == sorted(flops)
    assert all(one.latency is None for one in found.values())


def test_networks_over_a_limit_or_far_larger_than_the_study_s_are_left_out():
    limits = {"flops": 1.2 * cost(MOBILE).flops, "params": 3e6}
    found = within_limits(front_of(limits=limits))
    assert "mobilenet_v2_1.0_cifar" in [one.name for one in found]
    assert all(one.values[name] <= limit for one in found for name, limit in limits.items())
    small = within_limits(front_of(flops=1e7))
    assert all(one.values["flops"] <= LARGER * 1e7 for one in small)


def test_latencies_are_those_of_the_cache():
    store(2.0)
    found = {one.name: one for one in within_limits(front_of(limits={"latency": 3.0}))}
    assert found["mobilenet_v2_1.0_cifar"].latency == pytest.approx({"median_ms": 2.0, "low_ms": 1.8, "high_ms": 2.2})
    assert len([one for one in found.values() if one.latency]) == 1
    assert "mobilenet_v2_1.0_cifar" not in [one.name for one in within_limits(front_of(limits={"latency": 1.0}))]


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": {"threads": 2}},
        {"recipe": {"batch_size": 4}},
        {"recipe": {"runtime": "eager"}},
        {"recipe": {"runtime": "of another package"}},
        {"recipe": {"latency_device": "ssh://pi"}},
        {"machine": {"processor": "another"}},
    ],
)
def test_a_latency_under_other_conditions_is_not_shown(changes):
    store(2.0)
    assert all(one.latency is None for one in within_limits(front_of(**changes)))


def test_large_images_have_the_papers_networks():
    found = within_limits(front_of(resolution=96))
    assert 3 < len(found) <= MOST
    assert not any(one.name.endswith("_cifar") for one in found)


def test_a_study_without_resolution_or_trials_has_none():
    assert within_limits(front_of(resolution=None)) == []
    assert within_limits(front_of(flops=float("nan"))) == []
