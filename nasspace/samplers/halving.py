"""Multi-objective successive halving: which networks are trained further, and how many.

Successive halving (Jamieson and Talwalkar 2016) gives each rung about the same time: fewer networks, trained longer.
Here the networks are promoted that together are expected to make the best front, under what is believed of their
accuracies after full training. A large network that learns late is therefore not dropped for a slow start.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

import numpy as np

REDUCTION = 3  # a rung keeps one network in so many
MARGIN = 0.1  # of the spread of the costs, by which the reference point lies beyond the largest
FENCE = 1.5  # interquartile ranges above the upper quartile, beyond which an error is an outlier
CELLS = 1024  # at most, of the space of costs


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


def most_promising(accuracies: np.ndarray, costs: np.ndarray, count: int, trained: Sequence[int] = ()) -> list[int]:
    """The networks that together are expected to dominate the largest hypervolume, the most valuable first.

    Greedy: each network is the one that adds the most to those before it and to the networks `trained` already, so of
    two similar networks one is enough. The expected hypervolume is submodular, so the greedy choice reaches at least
    63 % of the best one (Nemhauser, Wolsey and Fisher 1978), and a gain computed earlier is an upper bound.

    Args:
        accuracies: Draws from the belief, of shape (draws, networks).
        costs: Costs to minimize, of shape (networks, costs).
        count: The number of networks to choose; networks in `trained` are not chosen.
        trained: Networks that are on the front whatever is chosen.
    """
    volume = _ExpectedVolume(accuracies, costs)
    for network in trained:
        volume.add(network)
    expected = accuracies.mean(axis=0)
    left = sorted(set(range(accuracies.shape[1])) - set(trained))
    bounds = [(-volume.gain(network), -expected[network], network) for network in left]
    heapq.heapify(bounds)
    chosen: list[int] = []
    while bounds and len(chosen) < count:
        _, *order, network = heapq.heappop(bounds)
        current = (-volume.gain(network), *order, network)
        if bounds and current > bounds[0]:
            heapq.heappush(bounds, current)
        else:
            chosen.append(network)
            volume.add(network)
    return chosen


class _ExpectedVolume:
    """The hypervolume of a growing set of networks, averaged over draws of their accuracies.

    The space of costs is divided into cells. Of each draw, the smallest error of
    the set's networks that are cheap enough is kept for each cell. The unit of each axis is the range of its values:
    of the errors, the mean range of a draw. Errors are measured from the worst network of their draw, since short
    trainings leave open how accurate all networks will be. Otherwise that common level would outweigh the differences
    between networks, and accuracy would hardly count. A network whose training collapsed is not that worst one: from
    there all others would look alike.
    """

    def __init__(self, accuracies: np.ndarray, costs: np.ndarray):
        self._errors = _from_the_worst(1 - accuracies)
        costs = _scaled(costs, axis=0)
        cells, self._sizes = _cells(costs)
        self._reached = np.asarray((costs[:, None, :] <= cells).all(axis=2))  # (networks, cells)
        self._least = np.full((len(accuracies), len(cells)), 1 + MARGIN)

    def gain(self, network: int) -> float:
        """The expected volume that a network would add."""
        reached = self._reached[network]
        lower = np.maximum(self._least[:, reached] - self._errors[:, network, None], 0.0)
        return float((lower @ self._sizes[reached]).mean())

    def add(self, network: int) -> None:
        """Add a network to the set."""
        reached = self._reached[network]
        self._least[:, reached] = np.minimum(self._least[:, reached], self._errors[:, network, None])


def _cells(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower corners (cells, costs) of cells that divide the space of costs up to 1 + MARGIN, and their sizes.

    The grid has the networks' own costs, or quantiles of them if there are too many; their largest are always among
    them, so that the largest networks reach a cell.
    """
    kinds = costs.shape[1]
    most = round(CELLS ** (1 / max(1, kinds)))
    axes = [_quantiles(np.unique(column), most) for column in costs.T]
    sizes = [np.diff(axis, append=1 + MARGIN) for axis in axes]
    volumes = np.array([math.prod(each) for each in itertools.product(*sizes)])
    return np.array(list(itertools.product(*axes)), float).reshape(len(volumes), kinds), volumes


def _quantiles(values: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of sorted values, evenly spread, with the first and the last."""
    return values[np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)]


def _from_the_worst(errors: np.ndarray) -> np.ndarray:
    """Errors (draws, networks) such that the largest of each draw is 1, and 0 is a mean range below it.

    The largest is that without outliers (Tukey 1977); these are above 1.
    """
    lower, upper = np.quantile(errors, [0.25, 0.75], axis=1, keepdims=True)
    usual = np.where(errors <= upper + FENCE * (upper - lower), errors, -np.inf)
    largest = usual.max(axis=1, keepdims=True)
    ranges = float((largest[:, 0] - errors.min(axis=1)).mean())
    return 1 + (errors - largest) / (ranges if ranges > 0 else 1.0)


def _scaled(values: np.ndarray, axis: int) -> np.ndarray:
    """Values from 0 for the smallest to 1 for the largest."""
    low, high = values.min(axis=axis), values.max(axis=axis)
    return (values - low) / np.where(high > low, high - low, 1.0)
