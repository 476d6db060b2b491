"""Statistics of samples of networks: distributions with bands, differences with tests, and how many networks tell.

Errors are fractions; the smaller one is better. `benchmarks/compare.py` checks coverage, size and power by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from nasspace.samplers import pareto

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE  # of the tests
POWER = 0.8  # probability with which the number of networks that is named finds the difference
RESAMPLES = 2_000  # bootstrap samples
PERMUTATIONS = 4_999
HALVES = 400  # random halves of a sample
POINT = 0.01  # a difference of one point of error
MOST_NEEDED = 100_000  # networks; more are not named
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How the errors of one sample differ from those of another.

    `superiority` is the probability that a network of the first has the smaller error, ties counted half. `error` is
    the median error of the first minus that of the second; of pairs, the median difference. `p_value` is that of a
    permutation test, for two samples. `needed` is how many networks of each would find the difference with
    probability 0.8 if it is as large as it looks, None for more than 100,000.
    """

    superiority: Estimate
    error: Estimate
    p_value: float
    needed: int | None


def band(errors: Sequence[float], rng: np.random.Generator) -> float:
    """Half the height of a simultaneous 95 % band around the empirical distribution function, by the bootstrap.

    It is the 95 % quantile of the largest distance between the distribution functions of a bootstrap sample and of the
    sample (Bickel and Freedman 1981), plus 1 / 2n: a bootstrap sample jumps at the same errors as the sample, so that
    the distances miss, on average, half a jump. The inequality of Dvoretzky, Kiefer and Wolfowitz gives
    sqrt(log(40) / 2n), which is wider, the more so where errors are tied, as fractions of the same images are.
    """
    count = len(errors)
    jumps = np.unique(np.asarray(errors, float), return_counts=True)[1]
    drawn = rng.multinomial(count, jumps / count, size=RESAMPLES)
    distances = np.abs(np.cumsum(drawn - jumps, axis=1)).max(axis=1) / count
    return float(np.quantile(distances, CONFIDENCE, method="higher") + 1 / (2 * count))


def hypervolume(points: Any, rng: np.random.Generator) -> Estimate:
    """The hypervolume of a sample's front, as a part of the unit box, with its interval.

    `points`: (networks, columns), minimized, scaled so that 1 is the reference. The interval is of the expected
    hypervolume of as many networks. Its standard error is the standard deviation over random halves of the sample,
    drawn without replacement: the bootstrap would be biased, since a front never grows by repeated networks.
    """
    from scipy.special import stdtrit

    points = np.asarray(points, float)
    one = np.ones(points.shape[1])
    value = pareto.hypervolume(points, one)
    halves = [pareto.hypervolume(rng.permutation(points)[: math.ceil(len(points) / 2)], one) for _ in range(HALVES)]
    margin = float(stdtrit(max(1, len(points) - 1), 1 - LEVEL / 2) * np.std(halves))
    return Estimate(value, max(0.0, value - margin), min(1.0, value + margin))


def unpaired(first: Sequence[float], second: Sequence[float], rng: np.random.Generator, level: float) -> Difference:
    """Compare two independent samples.

    The test permutes the sums of ranks of Wilcoxon, Mann and Whitney, which one failed training cannot decide. It is
    exact for the hypothesis that both have the same distribution. `needed` is of a test at `level` (Noether 1987).
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    ranks = _ranks(np.concatenate([a, b]))
    orders = rng.permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1)[:, : len(a)].sum(axis=1)
    expected = ranks.mean() * len(a)
    p_value = _p_value(abs(ranks[: len(a)].sum() - expected), np.abs(orders - expected))
    picks = [rng.integers(len(one), size=(RESAMPLES, len(one))) for one in (a, b)]
    drawn = list(zip(a[picks[0]], b[picks[1]], strict=True))
    superior = Estimate(superiority(a, b), *_ends([superiority(*pair) for pair in drawn]))
    medians = np.median(a[picks[0]], axis=1) - np.median(b[picks[1]], axis=1)
    error = Estimate(float(np.median(a) - np.median(b)), *_ends(medians))
    return Difference(superior, error, p_value, needed(superior.value, level, 6))


def paired(first: Sequence[float], second: Sequence[float], rng: np.random.Generator, level: float) -> Difference:
    """Compare pairs of networks; the test flips the signs of Wilcoxon's signed ranks, and is exact."""
    gaps = np.asarray(first, float) - np.asarray(second, float)
    signed = np.sign(gaps) * _ranks(np.abs(gaps))
    flips = rng.choice([-1.0, 1.0], size=(PERMUTATIONS, len(gaps)))
    p_value = _p_value(abs(signed.sum()), np.abs(flips @ signed))
    drawn = gaps[rng.integers(len(gaps), size=(RESAMPLES, len(gaps)))]

    def better(values: Array) -> Array:
        return np.asarray((values < 0).mean(axis=-1) + (values == 0).mean(axis=-1) / 2)

    superior = Estimate(float(better(gaps)), *_ends(better(drawn)))
    error = Estimate(float(np.median(gaps)), *_ends(np.median(drawn, axis=1)))
    sums = (gaps[:, None] + gaps)[np.triu_indices(len(gaps), 1)]
    return Difference(superior, error, p_value, needed(float(better(sums)) if len(sums) else 0.5, level, 3))


def superiority(first: Array, second: Array) -> float:
    """The share of pairs of one from each in which the first is smaller, ties counted half.

    >>> superiority(np.array([1, 2]), np.array([2, 3]))
    0.875
    """
    ordered = np.sort(second)
    above = len(ordered) - np.searchsorted(ordered, first, "right")
    ties = np.searchsorted(ordered, first, "right") - np.searchsorted(ordered, first, "left")
    return float((above + ties / 2).mean() / len(ordered))


def needed(probability: float, level: float, factor: float) -> int | None:
    """Networks of each that a rank test at `level` needs to find a probability of superiority (Noether 1987).

    `factor` is 6 for two samples, 3 for pairs. None for more than 100,000.

    >>> needed(0.64, 0.05, 6), needed(0.5, 0.05, 6)
    (67, None)
    """
    effect = abs(probability - 0.5)
    if effect == 0:
        return None
    count = math.ceil((_z(level / 2) + _z(1 - POWER)) ** 2 / (factor * effect**2))
    return count if count <= MOST_NEEDED else None


def needed_for_a_point(samples: Sequence[Sequence[float]], level: float) -> int | None:
    """Networks of each that find a shift of one point of error, for samples with the spread of these.

    A network is not compared with itself, which it would always beat once it is shifted.

    >>> needed_for_a_point([[0.1, 0.2, 0.3]] * 2, 0.05), needed_for_a_point([[0.1, 0.105, 0.112]] * 2, 0.05)
    (None, 12)
    """
    shifted = []
    for one in samples:
        values = np.asarray(one, float)
        others = ~np.eye(len(values), dtype=bool)
        gaps = (values[:, None] - POINT - values)[others]
        shifted.append(float((gaps < 0).mean() + (gaps == 0).mean() / 2) if len(gaps) else 0.5)
    return needed(float(np.mean(shifted)), level, 6)


def needed_pairs_for_a_point(gaps: Sequence[float], level: float) -> int | None:
    """Pairs that find a shift of one point of error, for differences with the spread of these."""
    values = np.asarray(gaps, float) - np.median(gaps) - POINT
    sums = (values[:, None] + values)[np.triu_indices(len(values), 1)]
    return needed(float((sums < 0).mean() + (sums == 0).mean() / 2) if len(sums) else 0.5, level, 3)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several tests so that all of them together are wrong with 5 % (Holm 1979).

    >>> [round(one, 3) for one in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _ranks(values: Array) -> Array:
    """Ranks from 1; equal values share their mean rank."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[places])


def _p_value(observed: float, drawn: Array) -> float:
    """The share of the permutations, the observed one among them, that are at least as far off."""
    return float((1 + (drawn >= observed - 1e-9).sum()) / (1 + len(drawn)))


def _ends(drawn: Any) -> tuple[float, float]:
    """The 95 % percentile interval."""
    low, high = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def _z(tail: float) -> float:
    """The standard normal quantile with this upper tail."""
    return NormalDist().inv_cdf(1 - tail)
