"""Times of layers: measured once, cached, and used by the search's predictor."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nasspace import Space, build, cost
from nasspace.engine.latency_evaluator import LatencyEvaluator
from nasspace.latency import layerwise
from nasspace.latency.benchmark import measure_latency
from nasspace.latency.cache import LatencyCache
from nasspace.samplers.acquisition import Acquisition, limits_of_medians
from nasspace.samplers.features import Features
from nasspace.samplers.observation import Observation
from nasspace.samplers.surrogates import FigureFromFeatures, LatencyFromLayers, surrogate

SPACE = """
input: [3, 32, 32]
stages:
  - {depth: [1, 2], out: [8, 16, 24, 32], stride: 2, block: [conv, shuffle_v2, inverted_residual]}
"""


@pytest.fixture(scope="module")
def space() -> Space:
    return Space.from_text(SPACE, "space.yaml")


@pytest.fixture(scope="module")
def networks(space):
    return [space.sample(random.Random(seed)) for seed in range(12)]


def test_layers_are_measured_once_and_do_not_exceed_the_latency(networks, tmp_path, monkeypatch):
    architecture, cache = networks[0], LatencyCache(tmp_path / "latency.db")
    model = build(architecture)
    latency = measure_latency(architecture, model=model, seconds=0.05, cache=cache)
    found = layerwise.measure_layers(architecture, model, latency, cache=cache)
    assert len(found) == len(architecture.layers)
    assert 0 < sum(found) <= latency.median_ms * 1.001
    monkeypatch.setattr(layerwise, "_profile_layers", lambda *_: [1.0] * len(architecture.layers))
    assert layerwise.measure_layers(architecture, model, latency, cache=cache) == found
    assert layerwise.measure_layers(architecture, model, latency, fresh=True, cache=cache) == [1.0] * len(found)


def test_a_profile_that_cannot_be_read_does_not_stop_a_search(networks, monkeypatch):
    def broken(*_, **__):
        raise KeyError("node")

    monkeypatch.setattr(layerwise, "measure_layers", broken)
    recipe = type("Recipe", (), {"runtime": "onnxruntime", "latency_device": "local"})
    assert LatencyEvaluator(recipe(), None)._layers(networks[0], None, None) is None


def seen(architectures, profiled: int, margin: float = 1.0) -> list[Observation]:
    """Trials on a fictitious machine whose times follow from multiply-adds and memory access."""
    trials = []
    for i, architecture in enumerate(architectures):
        layers = [1e-7 * part.flops + 1e-6 * part.memory_access for part in cost(architecture).layers]
        values = {"accuracy": 0.5 + i / 100, "latency": sum(layers)}
        trials.append(Observation(architecture, values, layers if i < profiled else None, margin))
    return trials


@pytest.fixture(scope="module")
def features(space, networks) -> Features:
    return Features(space.options, {"flops": lambda one: cost(one).flops}, networks)


def test_a_search_predicts_from_layers_if_most_were_measured(features, networks):
    assert isinstance(surrogate(features, "latency", seen(networks, 12)), LatencyFromLayers)
    assert isinstance(surrogate(features, "latency", seen(networks, 1)), FigureFromFeatures)
    assert isinstance(surrogate(features, "latency", []), FigureFromFeatures)
    mean, deviation = surrogate(features, "latency", seen(networks[:8], 8)).predict(networks[8:], None)
    truth = np.log([trial.values["latency"] for trial in seen(networks[8:], 0)])
    assert np.abs(mean - truth).max() < 0.3
    assert (deviation > 0).all()


def test_the_upper_end_of_the_interval_decides_on_a_limit(features, networks):
    trials = seen(networks, 12, margin=1.05)
    slowest = max(trial.values["latency"] for trial in trials)
    assert limits_of_medians({"latency": 10.0, "flops": 5.0}, trials) == {"latency": 10 / 1.05, "flops": 5.0}
    assert limits_of_medians({"latency": 10.0}, []) == {"latency": 10.0}
    assert Acquisition(features, ["accuracy", "latency"], {"latency": 1.06 * slowest}, trials).front
    strict = Acquisition(features, ["accuracy", "latency"], {"latency": 1.04 * slowest}, trials)
    slow = next(trial.architecture for trial in trials if trial.values["latency"] == slowest)
    assert slow not in strict.front
