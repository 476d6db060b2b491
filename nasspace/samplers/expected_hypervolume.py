"""Expected hypervolume improvement of one uncertain objective and any number of known costs, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def expected_improvement(
    mean: np.ndarray, deviation: np.ndarray, costs: np.ndarray, front: np.ndarray, reference: Sequence[float]
) -> np.ndarray:
    """The expected increase of the hypervolume of accuracy (up) and costs (down) by each candidate; exact.

    `mean`, `deviation`: each candidate's normally distributed accuracy. `costs`: (candidates, costs). `front`:
    (members, 1 + costs) with accuracy in the first column; `reference` likewise. The members' costs cut the cost space
    into boxes. In each box the accuracy to beat is constant, and the increase is a classical expected improvement
    (Jones 1998) times the part of the box that the candidate dominates.
    """
    reference = np.asarray(reference, float)
    front = np.minimum(front[np.argsort(front[:, 0], kind="stable")], [np.inf, *reference[1:]])
    cuts = [np.unique(np.append(front[:, i], reference[i])) for i in range(1, len(reference))]
    level = np.zeros([len(cut) for cut in cuts], int)
    for rank, member in enumerate(front[:, 1:], start=1):
        corner = [np.searchsorted(cut, value) for cut, value in zip(cuts, member, strict=True)]
        level[tuple(slice(at + 1, None) for at in corner)] = rank
    to_beat = np.maximum(np.append(reference[0], front[:, 0]), reference[0])
    improvement = _improvement_over(to_beat, mean, deviation)
    if not cuts:
        return improvement[:, -1]
    overlaps = [_overlap(costs[:, i], cut) for i, cut in enumerate(cuts)]
    total = np.zeros(len(mean))
    for box in np.ndindex(level.shape[:-1]):
        row = (overlaps[-1] * improvement[:, level[box]]).sum(axis=1)
        for overlap, at in zip(overlaps, box, strict=False):
            row *= overlap[:, at]
        total += row
    return total


def _improvement_over(to_beat: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """E[max(accuracy - to_beat, 0)], shape (candidates, levels)."""
    from scipy.special import ndtr

    z = (mean[:, None] - to_beat) / deviation[:, None]
    return deviation[:, None] * (np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) + z * ndtr(z))


def _overlap(costs: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """The length of each interval between neighboring cuts that lies above a cost; shape (candidates, cuts)."""
    lower = np.append(-np.inf, cut[:-1])
    return np.maximum(cut - np.maximum(lower, costs[:, None]), 0)
