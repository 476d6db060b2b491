"""What the trials seen so far promise of a candidate: the expected gain in hypervolume, in closed form.

Accuracy is uncertain and follows a Gaussian process; FLOPs and the like are known for every candidate; latency is
predicted from the trials seen, and a limit on it enters as the probability that it is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nasspace.samplers import pareto
from nasspace.samplers.features import Features
from nasspace.samplers.gaussian_process import GaussianProcess

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

DESIGN = (0.5, 0.1, 0.9)  # quantiles of cost of the first candidates, before anything is modelled
LEAST = 0.05  # a candidate that keeps the limits with a smaller probability is proposed only if none is better
SLOPE, SPREAD = 0.7, 0.2  # prior guess: latency grows as FLOPs to this power; its logarithm differs by so much
APART = 0.02  # prior guess of the least spread of accuracies, on the scale of `_stabilised`
PROFILED = 40  # measured networks, the latest, from which latency is predicted
TINY = 1e-9
SCALES = (np.exp, np.asarray)  # of the logarithm of a cost: a front is wanted dense on both


@dataclass(frozen=True)
class Seen:
    """A trial as a sampler sees it: `values` are the figures that are had (accuracy as a fraction, ms, FLOPs, ...).

    Without accuracy it was rejected at a limit. Without any value it failed or is still running: it is not proposed
    again, and counts with the accuracy that is expected of it. `layers_ms` is what each of its layers took, if that
    was measured, `margin` the upper end of its latency's interval, which decides about a limit, over the latency.
    """

    architecture: Architecture
    values: Mapping[str, float] = field(default_factory=dict)
    layers_ms: Sequence[float] | None = None
    margin: float = 1.0


def expected_gain(
    mean: np.ndarray, deviation: np.ndarray, costs: np.ndarray, front: np.ndarray, reference: Sequence[float]
) -> np.ndarray:
    """By how much each candidate is expected to raise the hypervolume of accuracy (up) and costs (down); exact.

    `mean`, `deviation`: normal accuracy of each candidate; `costs`: (candidates, costs). `front`: (members,
    1 + costs) with accuracy first, `reference` likewise. The members' costs cut the cost space into boxes; in each
    the accuracy to beat is constant, and the gain there is a classical expected improvement (Jones 1998) times
    the part of the box that the candidate dominates.
    """
    reference = np.asarray(reference, float)
    front = np.minimum(front[np.argsort(front[:, 0], kind="stable")], [np.inf, *reference[1:]])
    cuts = [np.unique(np.append(front[:, i], reference[i])) for i in range(1, len(reference))]
    level = np.zeros([len(cut) for cut in cuts], int)
    for rank, member in enumerate(front[:, 1:], start=1):
        corner = [np.searchsorted(cut, value) for cut, value in zip(cuts, member, strict=True)]
        level[tuple(slice(at + 1, None) for at in corner)] = rank
    to_beat = np.maximum(np.append(reference[0], front[:, 0]), reference[0])
    improvement = _improvement(mean, deviation, to_beat)
    if not cuts:
        return improvement[:, -1]
    overlaps = [_overlap(costs[:, i], cut) for i, cut in enumerate(cuts)]
    gain = np.zeros(len(mean))
    for box in np.ndindex(level.shape[:-1]):
        row = (overlaps[-1] * improvement[:, level[box]]).sum(axis=1)
        for overlap, at in zip(overlaps, box, strict=False):
            row *= overlap[:, at]
        gain += row
    return gain


def _improvement(mean: np.ndarray, deviation: np.ndarray, to_beat: np.ndarray) -> np.ndarray:
    """E[max(accuracy - to_beat, 0)], shape (candidates, levels)."""
    from scipy.special import ndtr

    off = (mean[:, None] - to_beat) / deviation[:, None]
    return deviation[:, None] * (np.exp(-(off**2) / 2) / np.sqrt(2 * np.pi) + off * ndtr(off))


def _overlap(costs: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """How much of each interval, from one cut to the next, lies above a cost; shape (candidates, cuts)."""
    lower = np.append(-np.inf, cut[:-1])
    return np.maximum(cut - np.maximum(lower, costs[:, None]), 0)


class Belief:
    """What is believed of candidates after `seen`: costs, limits kept or not, accuracy; and so what they promise."""

    def __init__(
        self, features: Features, objectives: Sequence[str], limits: Mapping[str, float], seen: Sequence[Seen]
    ):
        self.features = features
        self.limits, self.given = _within(limits, seen), limits
        self.costs = [name for name in objectives if name != "accuracy"]
        unknown = {*self.costs, *limits} - features.known.keys()
        self.predicted = {name: _prediction(features, name, seen) for name in sorted(unknown)}
        self.done = [trial for trial in seen if all(name in trial.values for name in objectives)]
        self.waiting = [trial.architecture for trial in seen if not trial.values]
        self.designed = len(self.done) + len(self.waiting)
        self.rejected = len(seen) - self.designed
        self.formed = bool(self.done) and self.designed >= len(DESIGN)
        self.levels, self.process, self.floor = np.ones(len(self.done)), None, 0.0
        if "accuracy" in objectives:
            self.levels = _stabilised([trial.values["accuracy"] for trial in self.done])
        if self.formed and "accuracy" in objectives:
            self._fit()
        self.front, self.members = self._front()

    def ranked(self, architectures: Sequence[Architecture]) -> list[tuple[float, Architecture]]:
        """Candidates with their scores, the most promising first.

        At first, nearness to the quantile of cost whose turn it is; later the expected gain; times the probability
        that the limits are kept, which at first counts the more, the more were rejected. Where they are hardly kept:
        below zero, by how far they are expected to be missed.
        """
        if not architectures:
            return []
        groups = self.features.groups(architectures)
        figures = {name: self._figure(name, architectures, groups) for name in {*self.costs, *self.limits}}
        chance, excess = self._kept(figures, len(architectures))
        likely = chance >= LEAST
        if self.formed:
            score = self._gain(groups, [figures[name][0] for name in self.costs])
        else:
            score = self._nearness(architectures, likely)
            chance = chance ** (1 + self.rejected)
        score = np.where(likely, score * chance, -excess)
        return [(float(score[i]), architectures[i]) for i in np.argsort(-score, kind="stable")]

    def _fit(self) -> None:
        """Accuracy of what is done; what still runs counts as it is expected."""
        median = np.median(self.levels)
        spread = max(np.median(np.abs(self.levels - median)), 0.01)
        levels = np.maximum(self.levels, median - 5 * spread)  # a failed training must not stretch the scale
        self.floor = levels.min()
        groups = self.features.groups([trial.architecture for trial in self.done])
        self.process = GaussianProcess(groups, levels, spread=APART)
        if self.waiting:
            running = self.features.groups(self.waiting)
            expected, _ = self.process.predict(running)
            both = [np.concatenate(pair) for pair in zip(groups, running, strict=True)]
            self.process = GaussianProcess(both, np.append(levels, expected), spread=APART)

    def _front(self) -> tuple[list[Architecture], np.ndarray]:
        """The front of what is done inside the limits, and its rows (accuracy, logarithms of costs)."""
        inside = [
            (level, trial)
            for level, trial in zip(self.levels, self.done, strict=True)
            if all(_decisive(trial, name) <= most for name, most in self.given.items())
        ]
        rows = np.array([[level, *(_log(trial.values[name]) for name in self.costs)] for level, trial in inside])
        rows = rows.reshape(len(inside), 1 + len(self.costs))
        mask = pareto.front(rows * [-1, *np.ones(len(self.costs))])
        return [trial.architecture for (_, trial), on_it in zip(inside, mask, strict=True) if on_it], rows[mask]

    def _figure(
        self, name: str, architectures: Sequence[Architecture], groups: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The logarithm of a figure and its uncertainty, which is 0 where it is known."""
        if name in self.predicted:
            return self.predicted[name](architectures, groups)
        logs = np.array([_log(self.features.figures(architecture)[name]) for architecture in architectures])
        return logs, np.zeros(len(logs))

    def _kept(self, figures: Mapping, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The probability that the limits are kept, and by how much they are expected to be missed."""
        from scipy.special import ndtr

        chance, excess = np.ones(count), np.zeros(count)
        for name, most in self.limits.items():
            mean, deviation = figures[name]
            chance *= ndtr((_log(most) - mean) / np.maximum(deviation, TINY))
            excess += np.maximum(mean - _log(most), 0)
        return chance, excess

    def _nearness(self, architectures: Sequence[Architecture], likely: np.ndarray) -> np.ndarray:
        """1 at the quantile of FLOPs (or another known figure) whose turn it is, less away from it."""
        names = sorted(self.features.known, key=lambda name: name != "flops")
        if not names or not likely.any():
            return np.ones(len(architectures))
        logs, _ = self._figure(names[0], architectures, [])
        wanted = np.quantile(logs[likely], DESIGN[self.designed % len(DESIGN)])
        return 1 / (1 + np.abs(logs - wanted))

    def _gain(self, groups: Sequence[np.ndarray], costs: Sequence[np.ndarray]) -> np.ndarray:
        """The expected gain in hypervolume, of costs as they are and of their logarithms together."""
        if self.process is None:
            mean, deviation = np.ones(len(groups[0])), np.full(len(groups[0]), TINY)
        else:
            mean, deviation = self.process.predict(groups)
        gain = np.zeros(len(mean))
        low, high = self._range
        for scale in SCALES:
            length = np.maximum(scale(high) - scale(low), TINY)
            paid = scale(np.array(costs).reshape(len(costs), len(mean)).T) / length
            members = np.column_stack([self.members[:, 0], scale(self.members[:, 1:]) / length])
            gain += expected_gain(mean, deviation, paid, members, [self.floor, *(scale(high) / length)])
        return gain

    @cached_property
    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each cost's logarithm the smallest, and the reference point: the limit, else the largest there is."""
        sample = self.features.sample
        groups = self.features.groups(sample)
        low, high = [], []
        for i, name in enumerate(self.costs, start=1):
            logs = np.append(self._figure(name, sample, groups)[0], self.members[:, i])
            low.append(logs.min())
            high.append(_log(self.limits[name]) if name in self.limits else logs.max())
        return np.array(low), np.array(high)


def _within(limits: Mapping[str, float], seen: Sequence[Seen]) -> dict[str, float]:
    """The limits as a latency must keep them so that the upper end of its interval does, too."""
    margins = [trial.margin for trial in seen if "latency" in trial.values]
    least = float(np.median(margins)) if margins else 1.0
    return {name: most / least if name == "latency" else most for name, most in limits.items()}


def _decisive(trial: Seen, name: str) -> float:
    """What decides whether a limit is kept: of a latency the upper end of its interval; 0 where nothing is known."""
    return trial.values.get(name, 0) * (trial.margin if name == "latency" else 1)


def _prediction(features: Features, name: str, seen: Sequence[Seen]) -> _Predicted | _FromLayers:
    """From layers where most were measured: with three networks as good as from choices, with twelve twice as good."""
    measured = [trial for trial in seen if name in trial.values][-PROFILED:]
    enough = name == "latency" and sum(bool(trial.layers_ms) for trial in measured) >= max(1, len(measured) // 2)
    return _FromLayers(measured) if enough else _Predicted(features, name, seen)


class _FromLayers:
    """Latency predicted from what the layers of measured networks took."""

    def __init__(self, trials: Sequence[Seen]):
        from nasspace.latency.predictor import Predictor

        measured = [trial.values["latency"] for trial in trials]
        layers = [trial.layers_ms for trial in trials]
        self.predictor = Predictor([trial.architecture for trial in trials], measured, layers)

    def __call__(self, architectures: Sequence[Architecture], groups: object) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of the logarithm as it would be measured."""
        mean, deviation = self.predictor.predict(architectures)
        return np.log(mean), deviation / mean


class _Predicted:
    """A figure that is measured, predicted from the trials that have it."""

    def __init__(self, features: Features, name: str, seen: Sequence[Seen]):
        trials = [trial for trial in seen if name in trial.values]
        architectures = [trial.architecture for trial in trials]
        self.features = features
        self.process = None
        if trials:
            logs = np.array([_log(trial.values[name]) for trial in trials])
            groups = features.groups(architectures)
            self.process = GaussianProcess(groups, logs - self._trend(architectures), noise=0.02, spread=SPREAD)

    def __call__(
        self, architectures: Sequence[Architecture], groups: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of the figure's logarithm as it would be measured; before any trial, minus infinity."""
        if self.process is None:
            return np.full(len(architectures), -np.inf), np.ones(len(architectures))
        mean, deviation = self.process.predict(groups)
        return mean + self._trend(architectures), np.hypot(deviation, self.process.noise_deviation)

    def _trend(self, architectures: Sequence[Architecture]) -> np.ndarray:
        figures = [self.features.figures(architecture) for architecture in architectures]
        return np.array([SLOPE * _log(figure["flops"]) if "flops" in figure else 0.0 for figure in figures])


def _stabilised(accuracies: Sequence[float]) -> np.ndarray:
    """Accuracies on the scale where the sampling noise of a share is even: arcsin of the root."""
    return np.arcsin(np.sqrt(np.clip(accuracies, 0, 1)))


def _log(figure: float) -> float:
    return math.log(max(figure, TINY))
