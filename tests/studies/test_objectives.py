"""The table of objectives agrees with what it describes."""

from __future__ import annotations

from nasspace import counting, zoo
from nasspace.studies.objectives import COUNTED, LIMITED, OBJECTIVES, directions
from nasspace.studies.recipe import Limits


def test_limits_are_those_of_the_table():
    assert set(Limits.model_fields) == set(LIMITED)
    assert all(OBJECTIVES[name].limit_help for name in LIMITED)


def test_counted_objectives_are_attributes_of_a_cost():
    cost = counting.cost(zoo.load("shufflenet_v2_0.5"))
    assert all(getattr(cost, name) > 0 for name in COUNTED)


def test_only_accuracy_is_maximized():
    assert directions(OBJECTIVES) == ["maximize", *["minimize"] * (len(OBJECTIVES) - 1)]
    assert (OBJECTIVES["accuracy"].to_minimize(0.9), OBJECTIVES["latency"].to_minimize(3.0)) == (-0.9, 3.0)
