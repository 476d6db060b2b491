"""The sampler `gain` on synthetic tables: proposals are new, inside the limits, repeatable, better than chance."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nasspace.samplers import gain_sampler, pareto
from nasspace.samplers.acquisition import normal_scores
from nasspace.samplers.gain_sampler import GainSampler
from nasspace.samplers.observation import Observation

KERNELS, WIDTHS = (3, 5, 7), (16, 24, 32, 48)


class Table:
    """A space as samplers see it: `stages` stages of 1 or 2 layers; a width per stage, a block and kernel per layer."""

    def __init__(self, stages: int):
        self.options: dict[str, tuple] = {}
        for i in range(stages):
            self.options |= {f"stages.{i}.depth": (1, 2), f"stages.{i}.out": WIDTHS}
            for j in range(2):
                self.options |= {f"stages.{i}.{j}.block": (0, 1), f"stages.{i}.{j}.a.kernel": KERNELS}
        self.stages = stages
        a_layer = 1 + len(KERNELS)  # the second block has no kernel to choose
        self.size = (len(WIDTHS) * (a_layer + a_layer**2)) ** stages

    def architecture(self, choose: Callable[[str, Sequence], Any]) -> SimpleNamespace:
        choices: dict[str, Any] = {}

        def take(name: str) -> Any:
            choices[name] = choose(name, self.options[name])
            return choices[name]

        for i in range(self.stages):
            take(f"stages.{i}.out")
            for j in range(take(f"stages.{i}.depth")):
                if take(f"stages.{i}.{j}.block") == 0:
                    take(f"stages.{i}.{j}.a.kernel")
        return SimpleNamespace(choices=choices, digest=hashlib.md5(repr(choices).encode()).hexdigest()[:12])

    def sample(self, rng: random.Random) -> SimpleNamespace:
        return self.architecture(lambda _, options: rng.choice(options))

    def neighbors(self, architecture: SimpleNamespace) -> Iterator[SimpleNamespace]:
        for name, option in architecture.choices.items():
            for other in self.options[name]:
                changed = {**architecture.choices, name: other}
                if other != option:
                    yield self.architecture(lambda at, options, made=changed: made.get(at, options[0]))

    def enumerate(self) -> Iterator[SimpleNamespace]:
        seen = set()
        for picked in itertools.product(*self.options.values()):
            made = dict(zip(self.options, picked, strict=True))
            architecture = self.architecture(lambda name, _, made=made: made[name])
            if architecture.digest not in seen:
                seen.add(architecture.digest)
                yield architecture


def flops(architecture: SimpleNamespace) -> float:
    total, channels = 1e5, 16
    for name, width in architecture.choices.items():
        if name.endswith(".out"):
            stage = name.split(".")[1]
            for j in range(architecture.choices[f"stages.{stage}.depth"]):
                kernel = architecture.choices.get(f"stages.{stage}.{j}.a.kernel", 1)
                total += 1000 * width * (channels + kernel**2)
                channels = width
    return total


def values_of(architecture: SimpleNamespace) -> dict[str, float]:
    """Synthetic values: accuracy grows with FLOPs and kernels of 5; the second block is slow for its FLOPs."""
    chosen = architecture.choices
    kernels = [chosen[name] for name in chosen if name.endswith("kernel")]
    slow = sum(chosen[name] for name in chosen if name.endswith("block"))
    merit = 0.5 * np.log(flops(architecture) / 1e5) + 0.3 * kernels.count(5) - 0.1 * slow
    noise = int(architecture.digest, 16) / 16**12 - 0.5
    return {
        "accuracy": float(1 - 0.4 * np.exp(-0.6 * merit) + 0.01 * noise),
        "flops": flops(architecture),
        "latency": flops(architecture) ** 0.8 * (1 + 0.3 * slow) * (1 + 0.05 * noise) / 1e4,
    }


def searched(
    space: Table, count: int, limits: Mapping[str, float] | None = None, seed: int = 0, objectives: str = "flops"
) -> list[Observation]:
    """`count` proposals in a row; one over a limit has no accuracy."""
    limits = limits or {}
    sampler = GainSampler(space, ["accuracy", *objectives.split()], limits, {"flops": flops}, seed)
    seen: list[Observation] = []
    for number in range(count):
        architecture = sampler.propose(seen, number)
        if architecture is None:
            break
        values = values_of(architecture)
        if any(values[name] > most for name, most in limits.items()):
            del values["accuracy"]
        seen.append(Observation(architecture, values))
    return seen


def digests(seen: Sequence[Observation]) -> list[str]:
    return [trial.architecture.digest for trial in seen]


def test_a_small_space_is_searched_to_its_last_architecture() -> None:
    space = Table(1)
    seen = searched(space, 200)
    assert len(seen) == space.size == len(list(space.enumerate()))
    assert len(set(digests(seen))) == len(seen)


@pytest.mark.slow
def test_a_space_too_large_to_list_is_searched_to_its_last_architecture(monkeypatch) -> None:
    monkeypatch.setattr(gain_sampler, "LISTED", 10)
    monkeypatch.setattr(gain_sampler, "CLIMBS", 4)
    seen = searched(Table(1), 200)
    assert len(set(digests(seen))) == len(seen) == Table(1).size


def test_a_space_too_large_to_enumerate_ends_with_no_proposal(monkeypatch) -> None:
    monkeypatch.setattr(gain_sampler, "LISTED", 10)
    monkeypatch.setattr(gain_sampler, "SEARCHED", 10)
    space = Table(1)
    everything = [Observation(architecture, values_of(architecture)) for architecture in space.enumerate()]
    sampler = GainSampler(space, ["accuracy", "flops"], {}, {"flops": flops}, 0)
    assert sampler.propose(everything[1:], 0).digest == everything[0].architecture.digest
    assert sampler.propose(everything, 0) is None


def test_proposals_depend_on_seed_observations_and_number_only() -> None:
    space = Table(3)
    seen = searched(space, 9, {"latency": 20.0}, objectives="latency flops")
    for count in (0, 2, 6, 9):
        fresh = GainSampler(Table(3), ["accuracy", "latency", "flops"], {"latency": 20.0}, {"flops": flops}, 0)
        used = GainSampler(space, ["accuracy", "latency", "flops"], {"latency": 20.0}, {"flops": flops}, 0)
        used.propose(seen[:5], 40)  # earlier proposals must not matter
        assert used.propose(seen[:count], count).digest == fresh.propose(seen[:count], count).digest
        if count < 9:
            assert fresh.propose(seen[:count], count).digest == digests(seen)[count]


def test_another_seed_is_another_search() -> None:
    assert digests(searched(Table(3), 3, seed=0)) != digests(searched(Table(3), 3, seed=1))


@pytest.mark.slow
def test_proposals_are_the_same_in_another_process() -> None:
    """Python orders sets of text differently in every process; no proposal may depend on it."""
    code = "import test_gain_sampler as t; print(t.digests(t.searched(t.Table(3), 8, {'latency': 20.0}, 0, LATENCY)))"
    code = code.replace("LATENCY", "'latency flops'")
    outputs = set()
    for seed in ("1", "2"):
        path = os.pathsep.join([os.path.dirname(__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        process = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        outputs.add(process.stdout)
    assert len(outputs) == 1


@pytest.mark.parametrize("share", [0.3, 0.005])
def test_a_known_limit_is_never_exceeded(share: float) -> None:
    space, rng = Table(5), random.Random(0)
    most = float(np.quantile([flops(space.sample(rng)) for _ in range(2000)], share))
    seen = searched(space, 12, {"flops": most})
    assert len(seen) == 12
    assert all(trial.values["flops"] <= most for trial in seen)


def test_nothing_is_proposed_if_no_network_meets_a_known_limit() -> None:
    assert searched(Table(2), 1, {"flops": 10.0}) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_tight_limit_on_latency_is_mostly_met_after_the_first_trials(seed: int) -> None:
    space, rng = Table(5), random.Random(0)
    most = float(np.quantile([values_of(space.sample(rng))["latency"] for _ in range(500)], 0.05))
    seen = searched(space, 16, {"latency": most}, seed, "latency flops")
    assert sum("accuracy" in trial.values for trial in seen[4:]) >= 8


@pytest.mark.parametrize("seed", range(3))
def test_without_feasible_networks_it_approaches_the_smallest(seed: int) -> None:
    space, rng = Table(5), random.Random(0)
    drawn = [values_of(space.sample(rng))["latency"] for _ in range(2000)]
    seen = searched(space, 12, {"latency": 0.01}, seed, "latency")
    assert min(trial.values["latency"] for trial in seen) < min(drawn)


def volume(seen: Sequence[Observation], reference: Sequence[float]) -> float:
    points = [[-trial.values["accuracy"], np.log(trial.values["flops"])] for trial in seen]
    return pareto.hypervolume(points, reference)


def test_only_the_order_of_accuracies_counts() -> None:
    space = Table(3)
    seen = searched(space, 9)
    bent = [Observation(t.architecture, {**t.values, "accuracy": t.values["accuracy"] ** 9}) for t in seen]
    proposals = [
        GainSampler(space, ["accuracy", "flops"], {}, {"flops": flops}, 0).propose(trials, 9) for trials in (seen, bent)
    ]
    assert proposals[0].digest == proposals[1].digest


def test_normal_scores_share_ranks_of_equal_values() -> None:
    assert normal_scores([0.5, 0.01, 0.01, 0.9]) == pytest.approx([0.319, -0.674, -0.674, 1.15], abs=1e-3)
    assert normal_scores([]).shape == (0,)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_search_with_a_limit_looks_up_to_the_limit(seed: int) -> None:
    space, rng = Table(5), random.Random(0)
    most = float(np.quantile([flops(space.sample(rng)) for _ in range(500)], 0.5))
    seen = searched(space, 20, {"flops": most}, seed)
    assert sum(trial.values["flops"] > 0.7 * most for trial in seen[5:]) >= 3


@pytest.mark.slow
def test_half_the_trials_find_more_than_random_search() -> None:
    space = Table(5)
    ours, chance = [], []
    for seed in range(3):
        rng = random.Random(f"random/{seed}")
        drawn = [Observation(a, values_of(a)) for a in (space.sample(rng) for _ in range(24))]
        reference = [-0.5, max(np.log(trial.values["flops"]) for trial in drawn)]
        chance.append(volume(drawn, reference))
        ours.append(volume(searched(space, 12, seed=seed), reference))
    assert np.mean(ours) > np.mean(chance)


def test_running_candidates_are_not_proposed_again() -> None:
    space = Table(4)
    sampler = GainSampler(space, ["accuracy", "flops"], {}, {"flops": flops}, 0)
    seen = searched(space, 8)
    running: list[Observation] = []
    for number in range(8, 13):
        running.append(Observation(sampler.propose(seen + running, number)))
    assert len({*digests(running), *digests(seen)}) == 13


@pytest.mark.parametrize("objectives", [["accuracy"], ["latency", "flops"], ["accuracy", "latency", "flops", "params"]])
def test_any_objectives(objectives: list[str]) -> None:
    space = Table(2)
    known = {"flops": flops, "params": lambda architecture: len(architecture.choices)}
    sampler = GainSampler(space, objectives, {"params": 12}, known, 0)
    seen: list[Observation] = []
    for number in range(8):
        architecture = sampler.propose(seen, number)
        values = {**values_of(architecture), "params": float(len(architecture.choices))}
        seen.append(Observation(architecture, {name: value for name, value in values.items() if name in objectives}))
    assert len(set(digests(seen))) == 8


def test_no_known_value_is_needed() -> None:
    space = Table(3)
    sampler = GainSampler(space, ["accuracy", "latency"], {"latency": 30.0}, {}, 0)
    seen: list[Observation] = []
    for number in range(8):
        architecture = sampler.propose(seen, number)
        seen.append(Observation(architecture, values_of(architecture)))
    assert len(set(digests(seen))) == 8


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 1.0])
def test_equal_accuracies_are_no_error(accuracy: float) -> None:
    space = Table(3)
    sampler = GainSampler(space, ["accuracy", "flops"], {}, {"flops": flops}, 0)
    seen: list[Observation] = []
    for number in range(7):
        architecture = sampler.propose(seen, number)
        seen.append(Observation(architecture, {"accuracy": accuracy, "flops": flops(architecture)}))
    assert len(set(digests(seen))) == 7


def test_a_space_without_choices_has_one_proposal() -> None:
    only = SimpleNamespace(choices={}, digest="0")
    space = SimpleNamespace(options={}, size=1, enumerate=lambda: iter([only]))
    sampler = GainSampler(space, ["accuracy", "flops"], {}, {"flops": lambda _: 1e6}, 0)
    assert sampler.propose([], 0) is only
    assert sampler.propose([Observation(only, {"accuracy": 0.5, "flops": 1e6})], 1) is None
