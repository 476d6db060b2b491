"""The acquisition function of `gain`: expected hypervolume improvement times the probability of feasibility.

A Gaussian process models the normal scores of the accuracies: only their order counts, so that failed trainings do not
distort the model of the good ones, and small differences near the top weigh as much as large ones below. FLOPs,
parameters and memory access are known for every candidate. Latency is predicted from the observed trials; a limit on
it enters as the probability that it is met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nasspace.samplers import pareto
from nasspace.samplers.expected_hypervolume import expected_improvement
from nasspace.samplers.features import Features
from nasspace.samplers.gaussian_process import GaussianProcess
from nasspace.samplers.observation import Observation
from nasspace.samplers.surrogates import TINY, log, surrogate

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

INITIAL_QUANTILES = (0.5, 0.1, 0.9)  # of cost, in turn: the initial design, before accuracy is modeled
MIN_PROBABILITY = 0.05  # of feasibility; a less likely candidate is proposed only if no other exceeds it
BEYOND = 1.5  # the reference point in multiples of a limit: with 1, a candidate at the limit would gain nothing
UNINTERESTING = 0.25  # the reference point's accuracy: this share of random networks is expected to be below it


class Acquisition:
    """Scores candidates by their expected improvement over `observations`.

    Of the `objectives`, accuracy is maximized and all others (`costs`) are minimized. `limits` holds the largest
    allowed values.
    """

    def __init__(
        self,
        features: Features,
        objectives: Sequence[str],
        limits: Mapping[str, float],
        observations: Sequence[Observation],
    ):
        self.features = features
        self.limits, self.given_limits = limits_of_medians(limits, observations), limits
        self.costs = [name for name in objectives if name != "accuracy"]
        unknown = {*self.costs, *limits} - features.known.keys()
        self.surrogates = {name: surrogate(features, name, observations) for name in sorted(unknown)}
        self.complete = [trial for trial in observations if all(name in trial.values for name in objectives)]
        self.pending = [trial.architecture for trial in observations if not trial.values]
        self.trained_count = len(self.complete) + len(self.pending)
        self.rejected = len(observations) - self.trained_count
        self.is_modeled = bool(self.complete) and self.trained_count >= len(INITIAL_QUANTILES)
        self.accuracies, self.least_accuracy = np.ones(len(self.complete)), 0.0
        self.process: GaussianProcess | None = None
        if "accuracy" in objectives:
            self.accuracies = normal_scores([trial.values["accuracy"] for trial in self.complete])
        if self.is_modeled and "accuracy" in objectives:
            self._fit()
        self.front, self.front_rows = self._front()

    def ranked(self, architectures: Sequence[Architecture]) -> list[tuple[float, Architecture]]:
        """Return candidates with their scores, highest first.

        The score is the expected hypervolume improvement times the probability that the limits are met. During the
        initial design, the improvement is replaced by the proximity to the current quantile of cost, and the
        probability gains weight with each rejected trial. A candidate that is unlikely to meet the limits scores minus
        its expected excess over them.
        """
        if not architectures:
            return []
        groups = self.features.groups(architectures)
        figures = {name: self._figure(name, architectures, groups) for name in {*self.costs, *self.limits}}
        probability, excess = self._feasibility(figures, len(architectures))
        likely = probability >= MIN_PROBABILITY
        if self.is_modeled:
            score = self._improvement(groups, [figures[name][0] for name in self.costs])
        else:
            score = self._proximity(architectures, likely)
            probability = probability ** (1 + self.rejected)
        score = np.where(likely, score * probability, -excess)
        return [(float(score[i]), architectures[i]) for i in np.argsort(-score, kind="stable")]

    def _fit(self) -> None:
        """Fit the Gaussian process to complete trials, and to pending ones at their expected accuracy."""
        groups = self.features.groups([trial.architecture for trial in self.complete])
        self.process = GaussianProcess(groups, self.accuracies)
        expected, _ = self.process.predict(self.features.groups(self.features.sample))
        self.least_accuracy = float(np.quantile(expected, UNINTERESTING))
        if self.pending:
            pending = self.features.groups(self.pending)
            expected, _ = self.process.predict(pending)
            both = [np.concatenate(pair) for pair in zip(groups, pending, strict=True)]
            self.process = GaussianProcess(both, np.append(self.accuracies, expected))

    def _front(self) -> tuple[list[Architecture], np.ndarray]:
        """The front of the complete trials within the limits, and its rows (accuracy, logarithms of costs)."""
        feasible = [
            (accuracy, trial)
            for accuracy, trial in zip(self.accuracies, self.complete, strict=True)
            if all(trial.limited_value(name) <= limit for name, limit in self.given_limits.items())
        ]
        rows = np.array([[accuracy, *(log(trial.values[name]) for name in self.costs)] for accuracy, trial in feasible])
        rows = rows.reshape(len(feasible), 1 + len(self.costs))
        mask = pareto.front(rows * [-1, *np.ones(len(self.costs))])
        return [trial.architecture for (_, trial), on_front in zip(feasible, mask, strict=True) if on_front], rows[mask]

    def _figure(
        self, name: str, architectures: Sequence[Architecture], groups: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The logarithm of a figure and its standard deviation, which is 0 for known figures."""
        if name in self.surrogates:
            return self.surrogates[name].predict(architectures, groups)
        logs = np.array([log(self.features.figures(architecture)[name]) for architecture in architectures])
        return logs, np.zeros(len(logs))

    def _feasibility(
        self, figures: Mapping[str, tuple[np.ndarray, np.ndarray]], count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The probability that all limits are met, and the expected excess over them (sum of logarithms)."""
        from scipy.special import ndtr

        probability, excess = np.ones(count), np.zeros(count)
        for name, limit in self.limits.items():
            mean, deviation = figures[name]
            probability *= ndtr((log(limit) - mean) / np.maximum(deviation, TINY))
            excess += np.maximum(mean - log(limit), 0)
        return probability, excess

    def _proximity(self, architectures: Sequence[Architecture], likely: np.ndarray) -> np.ndarray:
        """Proximity of FLOPs (or another known figure) to the current quantile of the initial design, at most 1."""
        names = sorted(self.features.known, key=lambda name: name != "flops")
        if not names or not likely.any():
            return np.ones(len(architectures))
        logs, _ = self._figure(names[0], architectures, [])
        target = np.quantile(logs[likely], INITIAL_QUANTILES[self.trained_count % len(INITIAL_QUANTILES)])
        return 1 / (1 + np.abs(logs - target))

    def _improvement(self, groups: Sequence[np.ndarray], costs: Sequence[np.ndarray]) -> np.ndarray:
        """The expected hypervolume improvement; costs are on a linear scale."""
        if self.process is None:
            mean, deviation = np.ones(len(groups[0])), np.full(len(groups[0]), TINY)
        else:
            mean, deviation = self.process.predict(groups)
        low, high = np.exp(self._cost_range)
        length = np.maximum(high - low, TINY)
        scaled = np.exp(np.array(costs).reshape(len(costs), len(mean)).T) / length
        front = np.column_stack([self.front_rows[:, 0], np.exp(self.front_rows[:, 1:]) / length])
        return expected_improvement(mean, deviation, scaled, front, [self.least_accuracy, *(high / length)])

    @cached_property
    def _cost_range(self) -> np.ndarray:
        """Logarithms of each cost: the smallest, and the reference point (beyond the limit, else the largest)."""
        sample = self.features.sample
        groups = self.features.groups(sample)
        low, high = [], []
        for i, name in enumerate(self.costs, start=1):
            logs = np.append(self._figure(name, sample, groups)[0], self.front_rows[:, i])
            low.append(logs.min())
            high.append(log(BEYOND * self.limits[name]) if name in self.limits else logs.max())
        return np.array([low, high])


def limits_of_medians(limits: Mapping[str, float], observations: Sequence[Observation]) -> dict[str, float]:
    """Limits on medians: that on latency is lowered so that the upper end of the interval meets the given limit."""
    margins = [trial.margin for trial in observations if "latency" in trial.values]
    margin = float(np.median(margins)) if margins else 1.0
    return {name: limit / margin if name == "latency" else limit for name, limit in limits.items()}


def normal_scores(values: Sequence[float]) -> np.ndarray:
    """The normal quantiles of the values' ranks, (rank - 1/2) / count; equal values share their mean rank.

    >>> normal_scores([0.1, 0.9, 0.5]).round(2).tolist()
    [-0.97, 0.97, 0.0]
    """
    from scipy.special import ndtri
    from scipy.stats import rankdata

    return ndtri((rankdata(values) - 0.5) / max(len(values), 1))
