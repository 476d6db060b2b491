"""Multi-objective successive halving: which networks are trained further, and how many.

Successive halving (Jamieson and Talwalkar 2016) gives each rung about the same time: fewer networks, trained longer.
Here a network is promoted for its expected contribution to the hypervolume of the front, under what is believed of the
accuracies after full training. A large network that learns late is so not dropped for a slow start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nasspace.samplers import pareto

REDUCTION = 3  # a rung keeps one network in so many
MARGIN = 0.1  # of the spread of the costs, by which the reference point lies beyond the largest


def counts(networks: int, rungs: int) -> list[int]:
    """How many networks each rung trains, from `networks` that were searched.

    >>> counts(90, 3), counts(4, 2)
    ([30, 10, 4], [2, 1])
    """
    found = []
    for _ in range(rungs):
        networks = max(1, math.ceil(networks / REDUCTION))
        found.append(networks)
    return found


def counts_in_time(seconds: float, rung_seconds: Sequence[float], networks: int, workers: int = 1) -> list[int]:
    """How many networks each rung trains if all rungs together have `seconds`, each the same share.

    `rung_seconds` is how long a rung trains one network, `workers` how many are trained at a time. Rungs that could
    train fewer than two networks are left out, the longest first.

    >>> counts_in_time(300, [10, 20, 40], 90), counts_in_time(60, [10, 20, 40], 90), counts_in_time(5, [10], 90)
    ([10, 5, 2], [6], [])
    >>> counts_in_time(300, [10, 20, 40], 90, workers=4)
    [40, 20, 8]
    """
    for rungs in range(len(rung_seconds), 0, -1):
        share = seconds / rungs
        found = [min(networks, workers * int(share / one)) for one in rung_seconds[:rungs]]
        if found[-1] >= 2 or (rungs == 1 and found[0] >= 1):
            return [min(found[: i + 1]) for i in range(rungs)]
    return []


def contributions(accuracies: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The expected hypervolume that each network alone adds to the front of all.

    Args:
        accuracies: Draws from the belief, of shape (draws, networks).
        costs: Costs to minimize, of shape (networks, costs).

    Returns:
        An array of shape (networks,). The unit is the volume between the largest and smallest values seen.
    """
    errors = _scaled(1 - accuracies)
    costs = _scaled(costs, axis=0)
    reference = np.full(costs.shape[1] + 1, 1 + MARGIN)
    total = np.zeros(accuracies.shape[1])
    for drawn in errors:
        points = np.column_stack([drawn, costs])
        members = np.flatnonzero(pareto.front(points))
        whole = pareto.hypervolume(points[members], reference)
        for member in members:
            total[member] += whole - pareto.hypervolume(points[members[members != member]], reference)
    return total / len(errors)


def _scaled(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Values from 0 for the smallest to 1 for the largest."""
    low, high = values.min(axis=axis), values.max(axis=axis)
    return (values - low) / np.where(high > low, high - low, 1.0)
