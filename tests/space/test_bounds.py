"""The reachable range of a space against brute force over every network."""

from __future__ import annotations

import pytest

from nasspace import Architecture, Space, cost
from nasspace.errors import InputError
from nasspace.space import bounds

SPACES = {
    "choices once for the stage and separately for each layer": """
input: [3, 64, 64]
width: [0.5, 1.0]
stem: [{block: conv, out: 16, kernel: [3, 5], stride: 2}]
stages:
  - {depth: [1, 2], out: [16, 32], stride: 2, each: {block: [shuffle_v2: {kernel: [3, 5]}, fire]}}
  - {out: [24, 8], block: [conv, inverted_residual: {expansion: [1, 4]}]}
""",
    "resolutions, a small one without the stem's strides": """
input: [1, 32, 32]
resolution: [32, 64, 96]
stem: [{block: conv, out: 8, stride: 2}]
stages: [{depth: [1, 3], block: sandglass, reduction: [2, 6], out: [8, 16]}]
head: [{block: conv, out: [16, 32], kernel: 1}]
""",
}


@pytest.mark.parametrize("text", SPACES.values(), ids=SPACES.keys())
def test_exact(text):
    space = Space.from_text(text, "t.yaml")
    costs = [cost(architecture) for architecture in space.enumerate()]
    found = bounds.reachable(space)
    assert found.exact
    for name in bounds.COUNTS:
        counts = [getattr(counted, name) for counted in costs]
        assert getattr(found, name) == (min(counts), max(counts))


def test_a_range_of_a_sample_is_not_exact(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_LAYERS", 5)
    space = Space.from_text(next(iter(SPACES.values())), "t.yaml")
    assert not bounds.reachable(space).exact


@pytest.mark.parametrize("text", SPACES.values(), ids=SPACES.keys())
def test_reachable_layers_are_those_of_all_networks(text):
    space = Space.from_text(text, "t.yaml")
    met = {placed for architecture in space.enumerate() for placed in bounds.placed_layers(space, architecture)}
    found = bounds.reachable_layers(space)
    assert set(found) == met
    assert len(found) == len(met)
    assert {placed.place for placed in found if placed.place.startswith("stem")} == {"stem.0"}


@pytest.mark.parametrize("text", SPACES.values(), ids=SPACES.keys())
def test_choices_are_found_for_every_network_without_them(text):
    space = Space.from_text(text, "t.yaml")
    for architecture in space.enumerate():
        read = Architecture.from_json(architecture.to_json())
        assert space.replay(space.choices_of(read)).digest == architecture.digest
        assert bounds.placed_layers(space, read) == bounds.placed_layers(space, architecture)


def test_a_network_of_another_space_has_no_choices():
    spaces = [Space.from_text(text, "t.yaml") for text in SPACES.values()]
    other = spaces[1].replay({})
    with pytest.raises(InputError, match=r"not a network of the space 't'"):
        spaces[0].choices_of(other)
