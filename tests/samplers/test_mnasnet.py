"""The policy gradient of `mnasnet`: its reward, what it learns, and what it does once it has converged."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nasspace import cost
from nasspace.architecture import Architecture
from nasspace.samplers.mnasnet import BATCH, MnasNetSampler, Policy
from nasspace.samplers.observation import Bounds, Observation
from nasspace.space.space import Space

STAGE = "{depth: [1, 2], out: [16, 24, 32, 48], each: {block: [conv: {kernel: [1, 3, 5]}, fire]}}"
ANY = SimpleNamespace(digest="0", choices={})


def space(stages: int = 4) -> Space:
    return Space.from_text(f"input: [3, 8, 8]\nstages: [{', '.join([STAGE] * stages)}]", "t.yaml")


def flops(architecture: Architecture) -> float:
    return cost(architecture).flops


def values_of(architecture: Architecture) -> dict[str, float]:
    """Synthetic values: latency is FLOPs in millions, accuracy grows with kernels of 5 and widths."""
    choices = architecture.choices or {}
    merit = sum(option == 5 for option in choices.values()) + sum(option >= 32 for option in choices.values())
    return {"accuracy": 0.4 + 0.04 * merit, "latency": flops(architecture) / 1e6}


def made(
    limits: dict[str, float], form: Any = "hard", exponent: float | None = None, stages: int = 3
) -> MnasNetSampler:
    return MnasNetSampler(space(stages), ("accuracy", "latency"), limits, {"flops": flops}, 0, form, exponent)


def reward(sampler: MnasNetSampler, margin: float = 1.0, **values: float) -> float:
    return float(sampler.rewards([Observation(ANY, values, margin=margin)])[0])


def test_the_rewards_are_those_of_the_paper() -> None:
    hard, soft = made({"latency": 10.0}), made({"latency": 10.0}, "soft")
    assert reward(hard, accuracy=0.7, latency=5.0) == pytest.approx(0.7)
    assert reward(hard, accuracy=0.7, latency=20.0) == pytest.approx(0.35)
    assert reward(soft, accuracy=0.7, latency=10.0) == pytest.approx(0.7)
    # Doubling latency is worth 5 % of accuracy (section 3.1 of the paper).
    assert reward(soft, accuracy=0.525, latency=20.0) == pytest.approx(
        reward(soft, accuracy=0.5, latency=10.0), rel=1e-3
    )
    assert reward(soft, accuracy=0.7, latency=5.0) > 0.7
    assert reward(made({"latency": 10.0}, "soft", -0.5), accuracy=0.8, latency=40.0) == pytest.approx(0.4)


def test_the_interval_of_a_latency_and_every_limit_count() -> None:
    sampler = made({"latency": 10.0, "flops": 100.0})
    assert reward(sampler, accuracy=0.8, latency=10.0, flops=50.0, margin=1.25) == pytest.approx(0.64)
    assert reward(sampler, accuracy=0.8, latency=20.0, flops=400.0) == pytest.approx(0.1)


def test_a_rejected_network_has_the_mean_accuracy_so_far() -> None:
    values = [
        {"latency": 20.0},
        {"accuracy": 0.4, "latency": 1.0},
        {"accuracy": 0.6, "latency": 1.0},
        {"latency": 20.0},
    ]
    rewards = made({"latency": 10.0}).rewards([Observation(ANY, each) for each in values])
    assert rewards == pytest.approx([0.5, 0.4, 0.6, 0.25])


def test_the_policy_prefers_what_was_rewarded() -> None:
    policy = Policy({"a": (1, 2), "b": ("x", "y", "z")})
    policy.update([{"a": 1}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}], np.array([-1.0, 2.0, -1.0]))
    probabilities = policy.probabilities()
    assert probabilities["a"][1] > 0.5
    assert probabilities["b"][0] > probabilities["b"][2] > probabilities["b"][1]
    assert [sum(each) for each in probabilities.values()] == pytest.approx([1, 1])


def test_equal_rewards_and_few_trials_change_nothing() -> None:
    policy = Policy({"a": (1, 2)})
    policy.update([{"a": 1}, {"a": 2}], np.zeros(2))
    assert policy.probabilities() == {"a": [0.5, 0.5]}
    sampler = made({"latency": 10.0})
    rng = random.Random(0)
    trials = [Observation(one, values_of(one)) for one in (sampler.space.sample(rng) for _ in range(BATCH))]
    uniform = Policy(sampler.space.options).probabilities()
    assert sampler.policy(trials[:-1]).probabilities() == uniform
    assert sampler.policy(trials).probabilities() != uniform
    assert sampler.policy([*trials[:-1], Observation(trials[-1].architecture)]).probabilities() == uniform


def test_a_space_without_choices_has_one_proposal() -> None:
    only = SimpleNamespace(choices={}, digest="0")
    table = SimpleNamespace(options={}, architecture=lambda choose: only)
    sampler = MnasNetSampler(table, ("accuracy",), {"flops": 1.0}, {}, 0)
    assert sampler.propose([], 0) is only
    seen = [Observation(SimpleNamespace(choices={}, digest=str(i)), {"accuracy": i / 9}) for i in range(BATCH)]
    assert sampler.propose(seen, BATCH) is None


def searched(seed: int, form: Any, count: int, learns: bool = True) -> tuple[MnasNetSampler, list[Observation]]:
    rng = random.Random(0)
    target = float(np.quantile([values_of(space().sample(rng))["latency"] for _ in range(500)], 0.3))
    sampler = MnasNetSampler(space(), ("accuracy", "latency"), {"latency": target}, {}, seed, form)
    seen: list[Observation] = []
    for number in range(count):
        architecture = sampler.propose(seen if learns else [], number)
        assert architecture is not None
        values = values_of(architecture)
        if form == "hard" and values["latency"] > target:
            del values["accuracy"]
        seen.append(Observation(architecture, values))
    return sampler, seen


@pytest.mark.slow
@pytest.mark.parametrize("form", ["hard", "soft"])
def test_its_networks_earn_more_than_random_ones(form: str) -> None:
    means = {True: 0.0, False: 0.0}
    for seed in range(2):
        for learns in means:
            sampler, seen = searched(seed, form, 60, learns)
            means[learns] += float(sampler.rewards(seen)[-20:].mean())
    assert means[True] > means[False]


def test_only_the_soft_form_ignores_limits() -> None:
    hard, soft = made({"flops": 10.0}), made({"flops": 10.0}, "soft")
    assert (hard.ignores_limits, soft.ignores_limits) == (False, True)
    assert soft.bounds([]) == Bounds({})
    assert hard.propose([], 0) is None, "no network is within the limit"
    assert soft.propose([], 0) is not None


def test_a_converged_policy_still_finds_new_networks() -> None:
    sampler = made({"latency": 1e9}, stages=2)
    best = sampler.space.sample(random.Random(0))
    rng = random.Random(1)
    seen = [Observation(best, {"accuracy": 1.0, "latency": 1.0})]
    for i in range(60):
        architecture = sampler.propose(seen, i)
        assert architecture is not None
        same = sum(best.choices.get(name) == option for name, option in architecture.choices.items())
        seen.append(Observation(architecture, {"accuracy": same / 20 + rng.random() / 100, "latency": 1.0}))
    assert len({trial.architecture.digest for trial in seen}) == len(seen)
