"""Draws within a budget: the same networks and the same distribution as from a list of all of them."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections import Counter

import pytest
from scipy.stats import chisquare

from nasspace import cost
from nasspace.errors import InputError
from nasspace.space import budget
from nasspace.space.budget import Numbered, WithinBudget, varied_options
from nasspace.space.space import Space
from nasspace.space.tree import all_walks

SPACE = """
name: little
input: [3, 16, 16]
width: [0.5, 1.0]
stem: [{block: conv, out: [8, 12], stride: 2}, {block: conv, out: 8, kernel: [1, 3], stride: 2}]
stages:
  - {depth: [1, 2, 3], out: [8, 16], stride: 2, each: {block: [conv: {kernel: [1, 3]}, fire]}}
  - {depth: [1, 2], out: [16, 24, 32], stride: 2, block: [sandglass: {reduction: [2, 4]}, shuffle_v2]}
head: [{block: conv, out: [16, 32], kernel: 1}]
"""
COUNTS = {"flops": lambda one: cost(one).flops, "params": lambda one: cost(one).params}


@pytest.fixture(scope="module")
def space():
    return Space.from_text(SPACE, "little.yaml")


@pytest.fixture(scope="module")
def listed(space):
    """Every sequence of choices, as the network that it gives."""
    return list(all_walks(space.architecture))


def inside(listed, limits):
    return [one for one in listed if all(low <= COUNTS[name](one) <= high for name, (low, high) in limits.items())]


def key(choices):
    return tuple(sorted((name, str(option)) for name, option in choices.items()))


def test_all_sequences_are_numbered_once(space):
    numbered = Numbered(space, "", 0, 0, {})
    assert numbered.count == space.size
    assert len({key(numbered.choices(i)) for i in range(numbered.count)}) == space.size


def test_sequences_are_numbered_once_for_each_space_and_forgotten_with_it():
    space = Space.from_text(SPACE, "little.yaml")
    limits = {"flops": (0, 1e6)}
    first = WithinBudget(space, limits, COUNTS).numbered
    assert WithinBudget(space, dict(limits), COUNTS).numbered is first
    assert WithinBudget(space, {"flops": (0, 2e6)}, COUNTS).numbered is not first
    assert WithinBudget(Space.from_text(SPACE, "little.yaml"), limits, COUNTS).numbered is not first
    kept = weakref.ref(space)
    del space
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("name", ["flops", "params"])
def test_the_numbers_include_every_sequence_within_the_budget(space, listed, name):
    values = sorted(COUNTS[name](one) for one in listed)
    limits = {name: (values[len(values) // 3], values[len(values) // 3 + 300])}
    numbered = Numbered(space, name, *limits[name], {})
    found = {key(numbered.choices(i)) for i in range(numbered.count)}
    expected = {key(one.choices) for one in inside(listed, limits)}
    assert len(found) == numbered.count
    assert expected <= found
    assert len(found) < 1.5 * len(expected)


@pytest.mark.parametrize("most_listed", [budget.LISTED, 0])
def test_draws_are_uniform_over_the_list(space, listed, most_listed, monkeypatch):
    monkeypatch.setattr(budget, "LISTED", most_listed)
    limits = {"flops": (60_000.0, 63_000.0), "params": (1_000.0, 3_500.0)}
    expected = Counter(one.digest for one in inside(listed, limits))
    assert len(expected) > 15
    within = WithinBudget(space, limits, COUNTS)
    draws = 2_000
    found = Counter(next(within.draws(seed))[0].digest for seed in range(draws))
    assert found.keys() == expected.keys()
    total = expected.total()
    names = sorted(expected)
    test = chisquare([found[one] for one in names], [draws * expected[one] / total for one in names])
    assert test.pvalue > 0.001


def test_all_networks_of_a_budget_are_drawn_once(space, listed):
    limits = {"flops": (60_000.0, 70_000.0)}
    drawn = [one.digest for (one,) in WithinBudget(space, limits, COUNTS).draws(0)]
    assert Counter(drawn) == Counter(dict.fromkeys((one.digest for one in inside(listed, limits)), 1))


def test_a_thousandth_of_a_large_space_is_found(monkeypatch):
    monkeypatch.setattr(budget, "MOST_PASSED", 100)  # seconds, also on a busy machine
    within = WithinBudget(Space.load("spos", resolution=32), {"flops": (5.6e6, 5.7e6)}, COUNTS)
    assert 0 < within.numbered.count < within.space.size / 1000
    drawn = [one for (one,) in itertools.islice(within.draws(0), 20)]
    assert len(drawn) == 20
    assert all(5.6e6 <= cost(one).flops <= 5.7e6 for one in drawn)


def test_a_budget_that_nothing_meets_has_no_draws(space):
    within = WithinBudget(space, {"flops": (1.0, 2.0)}, COUNTS)
    assert within.numbered.count == 0
    assert list(within.draws(0)) == []


def test_networks_of_a_draw_are_equal_but_for_the_varied_choices(space):
    limits = {"flops": (50_000.0, 200_000.0)}
    within = WithinBudget(space, limits, COUNTS, "stages.*.kernel")
    assert within.options == (1, 3)
    for draw in itertools.islice(within.draws(0), 30):
        assert all(within.includes(one) for one in draw)
        rest = [{name: option for name, option in one.choices.items() if name not in within.varied} for one in draw]
        assert rest[0] == rest[1]
        kernels = [{option for name, option in one.choices.items() if name in within.varied} for one in draw]
        assert kernels == [{1}, {3}]


def test_pairs_are_uniform_over_the_other_choices(space, listed):
    limits = {"flops": (60_000.0, 66_000.0)}
    within = WithinBudget(space, limits, COUNTS, "stages.*.reduction")
    small = [one for one in listed if {o for n, o in one.choices.items() if n.endswith("reduction")} == {2}]
    pairs = [(one, space.replay({**one.choices, "stages.1.sandglass.reduction": 4})) for one in small]
    pairs = [pair for pair in pairs if pair[0].digest != pair[1].digest]  # rounding can make the options equal
    expected = Counter(one.digest for one, other in pairs if within.includes(one) and within.includes(other))
    assert len(expected) > 5
    found = Counter(next(within.draws(seed))[0].digest for seed in range(1_000))
    assert found.keys() == expected.keys()
    names, total = sorted(expected), expected.total()
    assert chisquare([found[one] for one in names], [1_000 * expected[one] / total for one in names]).pvalue > 0.001


def test_mistakes_in_a_pattern_name_the_choices(space):
    with pytest.raises(InputError, match=r"matches no choice .* it has .*stages\.\*\.kernel"):
        varied_options(space, "stages.*.kernl")
    with pytest.raises(InputError, match="depend on its block"):
        varied_options(space, "stages.0.*.block")
    with pytest.raises(InputError, match="two options in common"):
        varied_options(space, "*out")
