"""Importance of choices: the one that decides is the most important."""

from __future__ import annotations

import random

import pytest

from nasspace.samplers.importance import LEAST, choice_importances


def networks(count: int) -> tuple[list[dict], list[list[float]]]:
    """Networks of which `kernel` decides the error; `deep` is not always there."""
    rng = random.Random(0)
    choices, points = [], []
    for _ in range(count):
        one = {
            "kernel": rng.choice([3, 5, 7]),
            "groups": rng.choice([1, 2]),
            "name": rng.choice(["a", "b"]),
            "fixed": 1,
        }
        if rng.random() < 0.5:
            one["deep"] = rng.choice([1, 2])
        choices.append(one)
        points.append([one["kernel"] + 0.1 * rng.random(), 10 + 0.1 * rng.random()])
    return choices, points


def test_the_choice_that_decides_is_the_most_important():
    found = choice_importances(*networks(60))
    assert next(iter(found)) == "kernel"
    assert found["kernel"] > 0.5
    assert sum(found.values()) == pytest.approx(1)
    assert "deep" in found
    assert "fixed" not in found


def test_few_networks_or_no_choices_have_no_importance():
    assert choice_importances(*networks(LEAST - 1)) is None
    assert choice_importances([{"a": 1}] * 20, [[1.0, 2.0]] * 20) is None
    assert choice_importances([], []) is None


def test_options_of_any_kind():
    choices = [{"block": "shuffle_v2" if i % 3 else 4, "se": i % 2 == 0} for i in range(20)]
    assert choice_importances(choices, [[float(i % 3), 1.0] for i in range(20)]) is not None
