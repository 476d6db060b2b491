"""Every sampler that proposes outside Optuna: new networks, limits, conditional choices, and repeatable proposals."""

from __future__ import annotations

import ast
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from nasspace import cost
from nasspace.architecture import Architecture
from nasspace.samplers.observation import Observation
from nasspace.samplers.optuna_samplers import SAMPLERS
from nasspace.samplers.proposers import PROPOSERS, Proposer, proposer
from nasspace.space.space import Space

SPACE = """
name: little
input: [3, 16, 16]
stages:
  - {depth: [1, 2, 3], out: [8, 16], stride: 2, each: {block: [conv: {kernel: [1, 3]}, fire]}}
  - {depth: [1, 2], out: [16, 24, 32], stride: 2, block: [sandglass: {reduction: [2, 4]}, shuffle_v2]}
"""
LIMITS = {"latency": 1.6}


def space() -> Space:
    return Space.from_text(SPACE, "little.yaml")


def flops(architecture: Architecture) -> float:
    return cost(architecture).flops


def values_of(architecture: Architecture) -> dict[str, float]:
    noise = random.Random(architecture.digest)
    counted = cost(architecture)
    return {
        "accuracy": 0.5 + 0.03 * len(architecture.layers) + 0.1 * noise.random(),
        "latency": counted.memory_access / 1e4 + 0.1 * noise.random(),
        "flops": float(counted.flops),
    }


def made(name: str, limits: Mapping[str, float] = LIMITS, seed: int = 0, **options: Any) -> Proposer:
    known = {"flops": flops}
    found = proposer(name, space(), ("accuracy", "latency", "flops"), limits, known, seed, **options)
    assert found is not None
    return found


def observed(
    sampler: Proposer, architecture: Architecture, seen: Sequence[Observation], limits: Mapping
) -> Observation:
    """The outcome of a proposal, which has no accuracy over the sampler's bounds or the limits."""
    bounds = sampler.bounds(seen) if sampler.ignores_limits else None
    values = values_of(architecture)
    if any(values[name] > most for name, most in (bounds.values if bounds else limits).items()):
        del values["accuracy"]
    return Observation(architecture, values)


def searched(sampler: Proposer, count: int, limits: Mapping[str, float] = LIMITS) -> list[Observation]:
    """At most `count` proposals in a row."""
    seen: list[Observation] = []
    for number in range(count):
        architecture = sampler.propose(seen, number)
        if architecture is None:
            break
        seen.append(observed(sampler, architecture, seen, limits))
    return seen


def digests(seen: Sequence[Observation]) -> list[str]:
    return [trial.architecture.digest for trial in seen]


@pytest.mark.parametrize("name", PROPOSERS)
def test_it_is_a_sampler_and_needs_no_draws_of_optuna(name: str) -> None:
    assert name in SAMPLERS
    assert proposer("random", space(), (), {}, {}, 0) is None


@pytest.mark.parametrize("name", PROPOSERS)
def test_no_network_is_proposed_twice(name: str) -> None:
    seen = searched(made(name), 30)
    assert len(seen) > 10
    assert len(set(digests(seen))) == len(seen)


@pytest.mark.parametrize("name", PROPOSERS)
def test_proposals_depend_on_seed_observations_and_number_only(name: str) -> None:
    used = made(name)
    seen = searched(used, 24)
    for count in (0, 1, 7, 15, 23):
        if count < len(seen):
            fresh = made(name).propose(seen[:count], count)
            assert fresh is not None
            assert fresh.digest == digests(seen)[count]
            assert made(name).bounds(seen[:count]) == used.bounds(seen[:count])


@pytest.mark.slow
def test_proposals_are_the_same_in_another_process() -> None:
    """Python orders sets of text differently in every process; no proposal may depend on it."""
    code = "import test_proposers as t; print({name: t.digests(t.searched(t.made(name), 16)) for name in t.PROPOSERS})"
    outputs = []
    for seed in ("1", "2"):
        path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        process = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        outputs.append(ast.literal_eval(process.stdout))
    assert outputs[0].keys() == set(PROPOSERS)
    for name in PROPOSERS:
        assert outputs[0][name] == outputs[1][name], name


@pytest.mark.parametrize("name", [name for name in PROPOSERS if name != "netadapt"])
def test_a_known_limit_is_never_exceeded(name: str) -> None:
    limits = {"flops": 250_000.0}
    seen = searched(made(name, limits), 20, limits)
    assert len(seen) == 20
    assert all(trial.values["flops"] <= limits["flops"] for trial in seen)


@pytest.mark.parametrize("name", PROPOSERS)
def test_running_networks_are_not_proposed_again(name: str) -> None:
    sampler = made(name)
    seen = searched(sampler, 8)
    running: list[Observation] = []
    for number in range(8, 12):
        architecture = sampler.propose(seen + running, number)
        if architecture is None:  # of `netadapt`, whose step is then complete
            break
        running.append(Observation(architecture))
    assert running
    assert len(set(digests(seen + running))) == len(seen) + len(running)


@pytest.mark.parametrize("name", PROPOSERS)
def test_failed_networks_are_no_obstacle(name: str) -> None:
    sampler = made(name)
    seen: list[Observation] = []
    for number in range(15):
        architecture = sampler.propose(seen, number)
        assert architecture is not None
        failed = number % 3 == 2
        seen.append(Observation(architecture, failed=True) if failed else observed(sampler, architecture, seen, LIMITS))
    assert len(set(digests(seen))) == 15


@pytest.mark.parametrize("name", PROPOSERS)
def test_the_end_has_a_reason(name: str) -> None:
    sampler = made(name)
    seen = [Observation(architecture, values_of(architecture)) for architecture in space().enumerate()]
    assert sampler.propose(seen, len(seen)) is None
    assert sampler.end(seen)
