"""Brute force: the order of the enumeration, up to its end."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from nasspace.errors import InputError
from nasspace.samplers.brute_force import BruteForceSampler
from nasspace.samplers.observation import Observation
from nasspace.space.space import Space

SPACE = "input: [3, 8, 8]\nstages: [{depth: [1, 2], out: [4, 8], each: {block: [conv: {kernel: [1, 3]}, fire]}}]"


def made(space: Any, limits: dict[str, float] | None = None, **known: Any) -> BruteForceSampler:
    return BruteForceSampler(space, ("accuracy",), limits or {}, known, 0)


def proposed(sampler: BruteForceSampler, seen: list[Observation]) -> Any:
    """The next architecture, which there must be."""
    found = sampler.propose(seen, len(seen))
    assert found is not None
    return found


def test_every_network_comes_once_in_the_order_of_the_file() -> None:
    space = Space.from_text(SPACE, "t.yaml")
    sampler = made(space)
    seen: list[Observation] = []
    while architecture := sampler.propose(seen, len(seen)):
        seen.append(Observation(architecture, {"accuracy": 0.5}))
    assert [trial.architecture.digest for trial in seen] == [one.digest for one in space.enumerate()]
    assert sampler.end(seen) == "every network of the space within the limits was tried"


class Numbers:
    """A space of numbers, too many to list."""

    size = 10**12

    def __init__(self) -> None:
        self.drawn = 0

    def enumerate(self) -> Iterator[SimpleNamespace]:
        for number in range(self.size):
            self.drawn += 1
            yield SimpleNamespace(digest=str(number), choices={"n": number})


def test_a_resumed_search_continues_where_it_stopped() -> None:
    space = Numbers()
    seen = [Observation(architecture) for architecture, _ in zip(space.enumerate(), range(100), strict=False)]
    assert proposed(made(space), seen).digest == "100"
    assert proposed(made(space), seen[:5] + seen[6:]).digest == "5"


def test_proposals_stay_fast_after_thousands() -> None:
    space, seen = Numbers(), []
    sampler = made(space)
    for _ in range(3_000):
        seen.append(Observation(proposed(sampler, seen)))
    assert space.drawn == 3_000, "no proposal starts the enumeration again"


def test_networks_over_a_known_limit_or_broken_are_passed_over() -> None:
    def flops(architecture: SimpleNamespace) -> float:
        if architecture.choices["n"] == 7:
            raise RuntimeError("out of memory")
        return 1.0 if architecture.choices["n"] in (7, 9) else 3.0

    assert proposed(made(Numbers(), {"flops": 2.0}, flops=flops), []).digest == "9"


def test_a_space_in_which_nothing_runs_is_an_error() -> None:
    def flops(architecture: SimpleNamespace) -> float:
        raise RuntimeError("out of memory")

    space = SimpleNamespace(enumerate=lambda: iter([SimpleNamespace(digest="0", choices={})]))
    with pytest.raises(InputError, match=r"no network of this space runs; the first one: .*out of memory"):
        made(space, flops=flops).propose([], 0)


def test_a_space_without_end_over_the_limits_ends_the_search() -> None:
    space = Numbers()
    sampler = made(space, {"flops": 0.5}, flops=lambda architecture: 0.0 if architecture.choices["n"] < 2 else 1.0)
    seen: list[Observation] = []
    while architecture := sampler.propose(seen, len(seen)):
        seen.append(Observation(architecture, {"accuracy": 0.5}))
    assert len(seen) == 2
    assert sampler.end(seen).startswith("20,000 networks in a row are over a limit; --sampler gain")
    drawn = space.drawn
    assert sampler.propose(seen, 2) is None
    assert space.drawn == drawn, "the enumeration is not tried again"
