"""Choices: names for people, and what the front prefers."""

from __future__ import annotations

import pytest

from nasspace.reporting.choices import in_order, preferences, ranked, readable, stage_of

EVERY = [
    {"width": 1.0, "stages.0.depth": 2, "stages.0.0.block": "fire", "stages.0.1.block": "basic"},
    {"width": 0.5, "stages.0.depth": 1, "stages.0.0.block": "basic"},
    {"width": 1.0, "stages.0.depth": 1, "stages.0.0.block": "basic"},
    {"width": 0.5, "stages.0.depth": 2, "stages.0.0.block": "fire", "stages.0.1.block": "fire"},
]


@pytest.mark.parametrize(
    ("name", "text", "stage"),
    [
        ("width", "width", ("network", "width")),
        ("stages.1.out", "stage 2 out", ("stage 2", "out")),
        ("stages.1.3.fire#2.squeeze", "stage 2 layer 4 fire#2 squeeze", ("stage 2", "fire#2 squeeze")),
        ("stem.0.kernel", "stem layer 1 kernel", ("stem layer 1", "kernel")),
        ("head.1.conv.out", "head layer 2 conv out", ("head layer 2", "conv out")),
        ("stages", "stages", ("network", "stages")),
    ],
)
def test_names(name, text, stage):
    assert readable(name) == text
    assert stage_of(name) == stage


def test_shares_are_over_all_layers_of_a_stage():
    found = {(one.part, one.what): one for one in preferences([EVERY[0], EVERY[3]], EVERY)}
    assert list(found) == [("network", "width"), ("stage 1", "depth"), ("stage 1", "block")]
    assert found["stage 1", "block"].options == {"basic": (1 / 4, 3 / 6), "fire": (3 / 4, 3 / 6)}
    assert found["stage 1", "block"].preferred == "fire"
    assert found["stage 1", "depth"].options == {1: (0.0, 0.5), 2: (1.0, 0.5)}
    assert found["stage 1", "depth"].difference == 0.5
    assert found["network", "width"].difference == 0


def test_choices_without_alternatives_are_left_out():
    assert preferences(EVERY[1:2], EVERY[1:2]) == []
    assert ranked(EVERY[1:2], EVERY[1:2], None) == []
    assert preferences([], EVERY) == []


def test_the_clearest_choice_comes_first():
    """Of equal ones, the network's own choices."""
    assert ranked(EVERY[3:], EVERY, None)[0] == "width"
    assert ranked([EVERY[0], EVERY[3]], EVERY, None)[-1] == "width"
    assert ranked(EVERY, EVERY, {"width": 0.7, "stages.0.depth": 0.3})[:2] == ["width", "stages.0.depth"]


def test_options_are_in_order():
    assert in_order({10, 9, 0.5}) == [0.5, 9, 10]
    assert in_order(["b", 2, "a", 1]) == [1, 2, "a", "b"]
