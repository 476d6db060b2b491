"""Dominance, the Pareto front and its hypervolume, on plain arrays.

A row is a point. Every column is minimized; negate maximized columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

RULING_OUT = 20  # points that are compared first, before all others


def dominates(a: Any, b: Any) -> bool:
    """Whether point `a` is no worse than point `b` in every column and better in at least one.

    >>> dominates([1, 2], [1, 3]), dominates([1, 3], [1, 3]), dominates([0, 4], [1, 3])
    (True, False, False)
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    return bool((a <= b).all() and (a < b).any())


def front(points: Any) -> np.ndarray:
    """A mask of shape (points,) of the points that no other point dominates; of equal points the first is kept.

    Raises ValueError if a value is NaN.

    >>> front([[1, 3], [2, 2], [2, 3], [1, 3]]).tolist()
    [True, True, False, False]
    """
    points = _rows(points)
    mask = np.zeros(len(points), bool)
    # In lexicographic order nothing is dominated by a later point, so one pass over the survivors is enough.
    left = np.lexsort((np.arange(len(points)), *points.T[::-1]))
    while len(left):
        best = left[0]
        mask[best] = True
        left = left[(points[left] < points[best]).any(axis=1)]
    return mask


def nondominated_shares(
    draws: np.ndarray, costs: np.ndarray, least: float = 0.0, chosen: Iterable[int] | None = None
) -> np.ndarray:
    """How often each point is not dominated if its first column is random: shares of the draws, of shape (points,).

    Args:
        draws: Values of the first column, of shape (draws, points).
        costs: The other columns, of shape (points, columns), which are the same in all draws; there may be none.
        least: Shares below this are returned as 0, which saves most of the time.
        chosen: Indices of the points whose shares are computed, among all; by default all. The others get 0.

    >>> nondominated_shares(np.array([[3, 2, 3], [1, 2, 3]]), np.array([[1], [2], [3]])).tolist()
    [1.0, 0.5, 0.0]
    """
    by_point, shares = np.ascontiguousarray(draws.T), np.zeros(draws.shape[1])
    by_mean = np.argsort(by_point.mean(axis=1), kind="stable")
    for i in range(len(costs)) if chosen is None else chosen:
        cost = costs[i]
        no_worse = by_mean[(costs[by_mean] <= cost).all(axis=1)]
        # A few of the best others alone rule most points out.
        if least and (by_point[no_worse[:RULING_OUT]] >= by_point[i]).all(axis=0).mean() < least:
            continue
        better = no_worse[(costs[no_worse] < cost).any(axis=1)]
        dominated = (by_point[no_worse] < by_point[i]).any(axis=0) | (by_point[better] == by_point[i]).any(axis=0)
        shares[i] = (~dominated).mean()
    return np.where(shares >= least, shares, 0.0)


def hypervolume(points: Any, reference: Any) -> float:
    """The volume that points dominate, bounded by `reference` (one value per column); exact.

    Points that are not below the reference in every column add nothing. Computed in slices along the last column
    (Zitzler 2001); meant for up to four columns and a few hundred points.

    >>> hypervolume([[0, 2], [1, 1], [9, 0]], [3, 3])
    5.0
    """
    points, reference = _rows(points), np.asarray(reference, float)
    if points.size and points.shape[1] != len(reference):
        raise ValueError(f"points have {points.shape[1]} columns, the reference has {len(reference)}")
    points = points[(points < reference).all(axis=1)] if points.size else points
    if not len(points):
        return 0.0
    return float(_volume(points[front(points)], reference))


def _volume(points: np.ndarray, reference: np.ndarray) -> float:
    """The hypervolume of at least one point, all below the reference."""
    points = points[np.argsort(points[:, -1], kind="stable")]
    if points.shape[1] == 1:
        return reference[0] - points[0, 0]
    thickness = np.diff(points[:, -1], append=reference[-1])
    if points.shape[1] == 2:
        return (reference[0] - np.minimum.accumulate(points[:, 0])) @ thickness
    return sum(_volume(points[: i + 1, :-1], reference[:-1]) * step for i, step in enumerate(thickness) if step > 0)


def _rows(points: Any) -> np.ndarray:
    """Points as a float array of shape (points, columns)."""
    points = np.asarray(points, float)
    if points.size == 0:
        return points.reshape(0, points.shape[1] if points.ndim == 2 else 0)
    if points.ndim != 2:
        raise ValueError(f"points must be rows of columns, not of shape {points.shape}")
    if np.isnan(points).any():
        raise ValueError("points must not be NaN")
    return points
