"""SPOS's evolution: generations, parents, crossover and mutation."""

from __future__ import annotations

import random
from collections.abc import Sequence

from nasspace.architecture import Architecture
from nasspace.samplers.observation import Observation
from nasspace.samplers.spos import GENERATION, PARENTS, SposSampler
from nasspace.space.space import Space

SPACE = """
input: [3, 16, 16]
stages:
  - {depth: [1, 2, 3], out: [8, 16, 24, 32], stride: 2, each: {block: [conv: {kernel: [1, 3, 5]}, fire]}}
  - {depth: [1, 2], out: [16, 24, 32], stride: 2, block: [sandglass: {reduction: [2, 4]}, shuffle_v2]}
"""


def made(seed: int = 0) -> SposSampler:
    return SposSampler(Space.from_text(SPACE, "t.yaml"), ("accuracy",), {}, {}, seed)


def accuracy(architecture: Architecture) -> float:
    """One option of each choice is the right one."""
    choices = architecture.choices or {}
    right = sum(random.Random(name).choice(made().space.options[name]) == option for name, option in choices.items())
    return right / len(made().space.options)


def searched(trials: int) -> list[Observation]:
    sampler, seen = made(), []
    while len(seen) < trials:
        architecture = sampler.propose(seen, len(seen))
        assert architecture is not None
        seen.append(Observation(architecture, {"accuracy": accuracy(architecture)}))
    return seen


def mean(trials: Sequence[Observation]) -> float:
    return sum(trial.values["accuracy"] for trial in trials) / len(trials)


def test_generations_improve_and_repeat_nothing() -> None:
    seen = searched(6 * GENERATION)
    assert len({trial.architecture.digest for trial in seen}) == len(seen)
    assert mean(seen[-GENERATION:]) > mean(seen[:GENERATION]) + 0.1


def test_parents_are_the_most_accurate_of_finished_generations() -> None:
    seen = searched(2 * GENERATION)
    rejected = Observation(seen[0].architecture, {"latency": 9.0})
    parents = made().parents([rejected, *seen[1:]])
    ranked = sorted(seen[1:], key=lambda trial: -trial.values["accuracy"])
    assert [one.digest for one in parents] == [trial.architecture.digest for trial in ranked[:PARENTS]]


def test_a_child_of_crossover_has_options_of_its_parents() -> None:
    seen = searched(GENERATION)
    parents = made().parents(seen)
    child = made().propose(seen, len(seen))
    assert child is not None
    given = {(name, option) for parent in parents for name, option in (parent.choices or {}).items()}
    known = {name for name, _ in given}
    assert all((name, option) in given for name, option in (child.choices or {}).items() if name in known)


def test_a_child_of_mutation_differs_from_a_parent_in_few_choices() -> None:
    seen = searched(GENERATION + GENERATION // 2)
    child = made().propose(seen, len(seen))
    assert child is not None
    parents = made().parents(seen[:GENERATION])
    differences = [
        sum((parent.choices or {}).get(name) != option for name, option in (child.choices or {}).items())
        for parent in parents
    ]
    assert min(differences) <= 3


def test_a_generation_without_an_accurate_network_is_followed_by_a_random_one() -> None:
    seen = [Observation(trial.architecture, {"latency": 9.0}) for trial in searched(GENERATION)]
    assert made().propose(seen, len(seen)) is not None
