"""Predictions of measured figures, such as latency, for candidates that were not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nasspace.samplers.features import Features
from nasspace.samplers.gaussian_process import GaussianProcess
from nasspace.samplers.observation import Observation

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

SLOPE, SPREAD = 0.7, 0.2  # prior: latency grows as FLOPs to this power; standard deviation of its logarithm
RECENT = 40  # latency is predicted from this many of the latest measured networks
TINY = 1e-9


def surrogate(
    features: Features, name: str, observations: Sequence[Observation]
) -> LatencyFromLayers | FigureFromFeatures:
    """A model of a measured figure.

    Latency is predicted from layers if at least half of the networks have measured layers: with three networks that
    is as good as a prediction from choices, with twelve twice as good.
    """
    measured = [trial for trial in observations if name in trial.values][-RECENT:]
    enough = name == "latency" and sum(bool(trial.layers_ms) for trial in measured) >= max(1, len(measured) // 2)
    return LatencyFromLayers(measured) if enough else FigureFromFeatures(features, name, observations)


class LatencyFromLayers:
    """Latency predicted from the measured layers of other networks."""

    def __init__(self, observations: Sequence[Observation]):
        from nasspace.latency.predictor import Predictor

        measured = [trial.values["latency"] for trial in observations]
        layers = [trial.layers_ms for trial in observations]
        self.predictor = Predictor([trial.architecture for trial in observations], measured, layers)

    def predict(self, architectures: Sequence[Architecture], groups: object) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the logarithm of a measurement."""
        mean, deviation = self.predictor.predict(architectures)
        return np.log(mean), deviation / mean


class FigureFromFeatures:
    """A figure predicted by a Gaussian process on features, with a prior trend in FLOPs."""

    def __init__(self, features: Features, name: str, observations: Sequence[Observation]):
        trials = [trial for trial in observations if name in trial.values]
        architectures = [trial.architecture for trial in trials]
        self.features = features
        self.process = None
        if trials:
            logs = np.array([log(trial.values[name]) for trial in trials])
            groups = features.groups(architectures)
            self.process = GaussianProcess(groups, logs - self._trend(architectures), noise=0.02, spread=SPREAD)

    def predict(
        self, architectures: Sequence[Architecture], groups: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the logarithm of a measurement; minus infinity before the first trial.

        `groups` are the architectures' features.
        """
        if self.process is None:
            return np.full(len(architectures), -np.inf), np.ones(len(architectures))
        mean, deviation = self.process.predict(groups)
        return mean + self._trend(architectures), np.hypot(deviation, self.process.noise_deviation)

    def _trend(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """The prior mean of the logarithm, up to a constant; 0 if FLOPs are unknown."""
        figures = [self.features.figures(architecture) for architecture in architectures]
        return np.array([SLOPE * log(figure["flops"]) if "flops" in figure else 0.0 for figure in figures])


def log(figure: float) -> float:
    """The natural logarithm, finite for 0."""
    return math.log(max(figure, TINY))
