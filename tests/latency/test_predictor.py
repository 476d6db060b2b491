"""The predictor on networks whose operations take a known time."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from nasspace import Architecture, Space, blocks, cost
from nasspace.counting import operations
from nasspace.latency import predictor
from nasspace.latency.predictor import Predictor, cross_validate, select_informative

PER_KIND = {"pointwise": 2.0, "depthwise": 9.0, "grouped": 6.0, "dense": 1.5, "linear": 3.0}  # 1e-8 ms a multiply-add


def layers_ms(architecture: Architecture) -> list[float]:
    """A fictitious machine: a cost for each kind of operation, lanes of 16 channels, and memory traffic."""
    parts = zip(architecture.layers, cost(architecture).layers, strict=True)
    return [sum(map(operation_ms, operations(layer, part.in_shape))) for layer, part in parts]


def operation_ms(operation) -> float:
    out = operation.out_shape[0]
    lanes = math.ceil(out / 16) * 16 / out
    work = 1e-8 * PER_KIND.get(operation.kind, 0) * operation.flops * lanes
    return work + 5e-8 * math.prod(operation.out_shape) + 2e-3


def measured(architectures, noise=0.0, seed=0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    exact = np.array([0.05 + sum(layers_ms(architecture)) for architecture in architectures])
    return exact * np.exp(noise * generator.standard_normal(len(exact)))


@pytest.fixture(scope="module")
def networks() -> list[Architecture]:
    space, rng = Space.load("mixed", classes=10), random.Random(0)
    return [space.sample(rng) for _ in range(90)]


def errors(fitted: Predictor, architectures) -> np.ndarray:
    mean, _ = fitted.predict(architectures)
    return np.abs(mean / measured(architectures) - 1)


def test_it_learns_the_times_of_operations(networks):
    known, others = networks[:40], networks[40:]
    assert np.quantile(errors(Predictor(known, measured(known, 0.01)), others), 0.9) < 0.06


def test_a_profile_of_the_layers_helps(networks):
    known, others = networks[:15], networks[40:]
    plain = errors(Predictor(known, measured(known)), others)
    profiled = errors(Predictor(known, measured(known), [layers_ms(one) for one in known]), others)
    some = errors(Predictor(known, measured(known), [layers_ms(known[0]), None]), others)
    assert np.median(profiled) < 0.7 * np.median(plain)
    assert np.isfinite(some).all()


def test_uncertainty_is_honest_and_less_where_more_is_known(networks):
    known, others = networks[:40], networks[40:]
    fitted = Predictor(known, measured(known, 0.02))
    mean, deviation = fitted.predict(others)
    surprise = (mean - measured(others)) / deviation
    assert 0.2 < surprise.std() < 1.8
    _, of_known = fitted.predict(known)
    few = Predictor(known[:3], measured(known[:3])).predict(others)[1]
    assert np.median(of_known) < np.median(deviation) < np.median(few)


def test_networks_are_predicted_from_single_blocks(networks):
    """Only single blocks, each a network of one layer, and one whole network are measured."""
    parts = {
        (layer, part.in_shape)
        for one in networks[:25]
        for layer, part in zip(one.layers, cost(one).layers, strict=True)
    }
    blocks = [
        Architecture.of([layer.to_dict()], input=shape)
        for layer, shape in sorted(parts, key=str)
        if layer.block not in ("dropout", "linear") and len(shape) == 3
    ]
    known = [*blocks, networks[0]]
    fitted = Predictor(known, measured(known))
    assert np.median(errors(fitted, networks[1:25])) < 0.03


def test_held_out_networks_are_predicted_by_predictors_without_them(networks):
    known, layers = networks[:6], [layers_ms(one) for one in networks[:4]]
    found = cross_validate(known, measured(known, 0.03), layers)
    rest = [0, 1, 3, 4, 5]
    taught = Predictor(
        [known[i] for i in rest], measured(known, 0.03)[rest], [*(layers[i] for i in (0, 1, 3)), None, None]
    )
    assert found.errors[2] == pytest.approx(taught.predict(known[2:3])[0][0] / measured(known, 0.03)[2] - 1)
    document = json.loads(json.dumps(found.to_json()))
    assert document["networks"] == 6
    assert 0 <= document["within_5"] <= document["within_10"] <= 1
    assert -1 <= document["tau"] <= 1
    assert "6 networks" in str(found)
    assert cross_validate([known[0], known[0]], [1.0, 1.0]).to_json()["tau"] is None


def test_the_closed_form_equals_leaving_one_network_out(networks):
    known = networks[:8]
    fitted = Predictor(known, measured(known, 0.03), [layers_ms(one) for one in known[:4]])
    apart = predictor._distances(fitted.known, fitted.known)
    covariance = fitted._covariance(apart, fitted.parameters)
    kept = fitted.owner != 2
    weights = np.linalg.solve(covariance[np.ix_(kept, kept)], fitted._residual[kept])
    expected = fitted.weights[2].sum() + covariance[2, kept] @ weights
    assert fitted._leave_one_out[0][2] == pytest.approx(fitted.measured[2] - expected)


def test_informative_networks_predict_better_than_random_ones(networks):
    pool, others = networks[:60], networks[60:]
    chosen = select_informative(pool, 12)
    assert len(set(chosen)) == 12
    assert select_informative(pool, 5) == chosen[:5]
    assert sorted(select_informative(pool[:3], 9)) == [0, 1, 2]
    best = [pool[i] for i in chosen]
    taught = np.median(errors(Predictor(best, measured(best)), others))
    at_random = []
    for seed in range(5):
        some = random.Random(seed).sample(pool, 12)
        at_random.append(np.median(errors(Predictor(some, measured(some)), others)))
    assert taught < 1.1 * np.median(at_random)


def test_one_network_is_enough_to_fit(networks):
    fitted = Predictor(networks[:1], measured(networks[:1]))
    mean, deviation = fitted.predict(networks[:5])
    assert mean[0] == pytest.approx(measured(networks[:1])[0], rel=0.1)
    assert (mean > 0).all()
    assert np.isfinite(deviation).all()


def test_unmeasured_kinds_use_the_prior(networks):
    plain = Architecture.of([{"block": "conv", "out": 16}, {"block": "global_pool"}], input=(3, 32, 32))
    mean, deviation = Predictor([plain], [0.1]).predict(networks[:2])
    assert (mean > 0.1).all()
    assert (deviation > 0).all()


class Scaled(nn.Module):
    """A user's block with a learned scalar."""

    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv, self.scale = nn.Conv2d(in_channels, out_channels, 3, stride, 1), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * self.conv(x) + x.mean((1, 2, 3))[:, None, None, None]


def test_user_defined_blocks_are_learned(own_blocks):
    blocks.register("scaled", Scaled)
    known = [Architecture.of([{"block": "scaled", "out": out}], input=(3, 16, 16)) for out in (4, 8, 16, 32)]
    mean, _ = Predictor(known, [0.1, 0.15, 0.25, 0.45]).predict(known)
    assert mean == pytest.approx([0.1, 0.15, 0.25, 0.45], rel=0.15)
