"""Dominance, the Pareto front and its hypervolume, on plain arrays.

Every column is to be minimised; who wants accuracy to rise passes its negative. A row is a point.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def dominates(a: Any, b: Any) -> bool:
    """Whether point `a` is nowhere worse than point `b` and somewhere better.

    >>> dominates([1, 2], [1, 3]), dominates([1, 3], [1, 3]), dominates([0, 4], [1, 3])
    (True, False, False)
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    return bool((a <= b).all() and (a < b).any())


def front(points: Any) -> np.ndarray:
    """Which points no other point dominates: a mask of shape (points,); of equal points the first is kept.

    ValueError where a value is NaN, which is neither better nor worse than anything.

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


def hypervolume(points: Any, reference: Any) -> float:
    """The volume that lies above some point and below `reference` in every column; exact.

    `reference` has one value a column. Points not below it in every column add nothing. By slices along the
    last column (Zitzler 2001), meant for up to four columns and some hundred points.

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
    """Hypervolume of points that all lie below the reference; shape (at least one, columns)."""
    points = points[np.argsort(points[:, -1], kind="stable")]
    if points.shape[1] == 1:
        return reference[0] - points[0, 0]
    thickness = np.diff(points[:, -1], append=reference[-1])
    if points.shape[1] == 2:
        return (reference[0] - np.minimum.accumulate(points[:, 0])) @ thickness
    return sum(_volume(points[: i + 1, :-1], reference[:-1]) * step for i, step in enumerate(thickness) if step > 0)


def _rows(points: Any) -> np.ndarray:
    points = np.asarray(points, float)
    if points.size == 0:
        return points.reshape(0, points.shape[1] if points.ndim == 2 else 0)
    if points.ndim != 2:
        raise ValueError(f"points must be rows of columns, not of shape {points.shape}")
    if np.isnan(points).any():
        raise ValueError("points must not be NaN")
    return points
