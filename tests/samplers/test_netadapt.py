"""The path of `netadapt`: its start, its steps, the choice among proposals, and its ends."""

from __future__ import annotations

from typing import Any

import pytest

from nasspace import cost
from nasspace.architecture import Architecture
from nasspace.samplers.netadapt import NetAdaptSampler
from nasspace.samplers.observation import Bounds, Observation
from nasspace.space.space import Space

SPACE = """
input: [3, 8, 8]
width: [0.5, 1.0]
stages: [{depth: [1, 2, 3], out: [16, 32], each: {block: [shuffle_v1: {groups: [1, 2]}, conv: {kernel: [1, 3, 5]}]}}]
"""
SIMPLE = "input: [3, 8, 8]\nstages: [{out: [8, 16, 32], block: [conv: {kernel: [1, 3, 5]}]}]"


def made(
    text: str = SPACE, limits: dict[str, float] | None = None, known: bool = True, **options: Any
) -> NetAdaptSampler:
    figures = {"flops": lambda architecture: cost(architecture).flops} if known else {}
    return NetAdaptSampler(
        Space.from_text(text, "t.yaml"), ("accuracy", "latency"), limits or {}, figures, 0, **options
    )


def trial(architecture: Architecture, accuracy: float | None, latency: float) -> Observation:
    values = {"latency": latency, **({} if accuracy is None else {"accuracy": accuracy})}
    return Observation(architecture, values)


def test_the_path_starts_at_the_largest_network() -> None:
    sampler = made()
    assert cost(sampler.largest).flops == max(cost(one).flops for one in sampler.space.enumerate())
    assert sampler.propose([], 0) == sampler.largest
    assert sampler.bounds([]) == Bounds({}, "the step's bound")
    assert made(known=False).largest.choices["stages.0.depth"] == 3


def test_the_path_starts_at_a_network_that_is_named() -> None:
    start = {"stages.0.out": 16, "stages.0.conv.kernel": 5}
    sampler = made(SIMPLE, start=start)
    assert sampler.propose([], 0).choices == start
    found = [one.choices for one in sampler._step([trial(sampler.first, 0.9, 10.0)]).needed]
    assert sorted(map(str, found)) == sorted(
        map(str, [{**start, "stages.0.out": 8}, {**start, "stages.0.conv.kernel": 3}])
    )


def test_a_step_proposes_one_smaller_option_of_each_choice() -> None:
    sampler = made(SIMPLE, reduction=0.1)
    seen = [trial(sampler.largest, 0.9, 10.0)]
    assert sampler.bounds(seen) == Bounds({"latency": 9.0}, "the step's bound")
    for _ in range(2):
        seen.append(Observation(sampler.propose(seen, 0)))
    choices = sorted((one.architecture.choices for one in seen[1:]), key=str)
    assert choices == [
        {"stages.0.out": 16, "stages.0.conv.kernel": 5},
        {"stages.0.out": 32, "stages.0.conv.kernel": 3},
    ]
    assert sampler.propose(seen, 0) is None, "the step waits for its running networks"
    assert sampler.end(seen) == ""


def by_change(seen: list[Observation], sampler: NetAdaptSampler) -> dict[str, Architecture]:
    """The proposals that are still needed, by the changed choice."""
    start, needed = sampler.largest.choices, sampler._step(seen).needed
    return {next(name for name in start if one.choices[name] != start[name]): one for one in needed}


def test_a_proposal_that_is_not_fast_enough_is_replaced_by_the_next_option() -> None:
    sampler = made(SIMPLE, reduction=0.1)
    seen = [trial(sampler.largest, 0.9, 10.0)]
    needed = by_change(seen, sampler)
    seen.append(trial(needed["stages.0.conv.kernel"], None, 9.5))  # over the step's bound, so not trained
    assert by_change(seen, sampler)["stages.0.conv.kernel"].choices["stages.0.conv.kernel"] == 1
    seen.append(Observation(by_change(seen, sampler)["stages.0.conv.kernel"], failed=True))
    assert list(by_change(seen, sampler)) == ["stages.0.out"]


@pytest.mark.parametrize(("accuracy", "better"), [(0.85, "stages.0.out"), (0.70, "stages.0.conv.kernel")])
def test_the_least_loss_of_accuracy_for_latency_is_kept(accuracy: float, better: str) -> None:
    sampler = made(SIMPLE)
    seen = [trial(sampler.largest, 0.9, 10.0)]
    needed = by_change(seen, sampler)
    seen += [trial(needed["stages.0.conv.kernel"], 0.8, 8.0), trial(needed["stages.0.out"], accuracy, 8.0)]
    following = sampler.propose(seen, 3)
    assert following is not None
    kept = needed[better]
    assert sum(following.choices[name] != kept.choices[name] for name in kept.choices) == 1
    assert sampler.bounds(seen) == Bounds({"latency": pytest.approx(7.9)}, "the step's bound")


def test_the_path_ends_within_the_limits() -> None:
    sampler = made(SIMPLE, {"latency": 8.0})
    seen = [trial(sampler.largest, 0.9, 10.0)]
    needed = by_change(seen, sampler)
    seen += [trial(needed["stages.0.conv.kernel"], 0.8, 7.0), trial(needed["stages.0.out"], 0.5, 7.0)]
    assert sampler.propose(seen, 3) is None
    assert sampler.end(seen) == "a network within the limits was reached in 1 steps"
    over = [*seen[:2], Observation(seen[2].architecture, seen[2].values, margin=1.2)]
    over[1] = Observation(seen[1].architecture, seen[1].values, margin=1.2)
    assert sampler.propose(over, 3) is not None, "the upper end of the latency's interval decides"


def test_the_path_ends_where_nothing_is_faster() -> None:
    sampler = made(SIMPLE)
    seen: list[Observation] = []
    while architecture := sampler.propose(seen, len(seen)):
        seen.append(trial(architecture, 0.5, cost(architecture).flops / 1e5))
    smallest = min(cost(one).flops for one in sampler.space.enumerate())
    assert min(cost(one.architecture).flops for one in seen) == smallest
    assert sampler.end(seen) == "after 4 steps, no change of one choice lowers latency by another 0.0154 ms"


def test_a_step_changes_at_most_so_many_choices() -> None:
    sampler = made(proposals=2)
    seen = [trial(sampler.largest, 0.9, 10.0)]
    assert len(sampler._step(seen).needed) == 2
    assert len(made(proposals=99)._step(seen).needed) > 4


def test_a_start_that_fails_ends_the_search() -> None:
    sampler = made()
    assert sampler.propose([Observation(sampler.largest)], 1) is None
    assert sampler.end([Observation(sampler.largest)]) == ""
    failed = [Observation(sampler.largest, failed=True)]
    assert sampler.propose(failed, 1) is None
    assert sampler.end(failed) == "the network to start from could not be evaluated"
