"""Latency predictor with uncertainty, fitted to a few dozen measured networks or blocks.

The time of a network is the sum over its operations: T = Σ s(o) (1 + g(o)). s is a non-negative least-squares fit to an
operation's multiply-adds, memory access, outputs and a constant, for each kind of operation. g, the relative deviation
of an operation from s, is a Gaussian process over operations of a kind. Only sums are measured: of networks and, where
there is a profile, of their layers. Since a sum of Gaussian processes is a Gaussian process, these sums determine the
times of operations, whatever blocks they occur in. A measured block is a network of one layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nasspace.architecture import Architecture
from nasspace.counting import Operation
from nasspace.latency.operation_features import SIZES, OperationCounts, cost_features, operations_by_layer

LEAST_MS = 1e-4  # smallest time of an operation, since deviations are relative to it
# Milliseconds of a multiply-add, an element accessed, an output and an operation before anything is measured.
PRIOR_MS = (2e-8, 2e-7, 2e-7, 5e-3)
RIDGE = 1e-3
PRIOR_MODES = np.array([0.2, 0.1, 2.0, 1.0, 0.015])  # prior modes of the parameters: see `_kernel`
PRIOR_WIDTH = 0.7  # prior standard deviation of the parameters' logarithms
NOISE = PRIOR_MODES[-1]
KIND_DEVIATION = 0.3  # standard deviation of the part of g that all operations of a kind share
INFLATION_PRIOR = (
    2,
    3.0,
)  # prior of `_inflation`: (equivalent number of networks, their errors relative to the expectation)
LAYER_NOISE, LAYER_FLOOR_MS = 0.07, 0.003  # noise of a layer's time in a profile: relative, and absolute
LAYER_WEIGHT = 0.3  # weight of a layer relative to a network in the least-squares fit
STEPS = 15  # optimizer iterations for the most probable parameters

Distances = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class CrossValidation:
    """Accuracy of predicting each measured network from the others: relative errors and Kendall's tau (or NaN)."""

    errors: np.ndarray
    tau: float

    def share_within(self, share: float) -> float:
        """Return the share of networks whose relative error is at most `share`."""
        return float((np.abs(self.errors) <= share).mean())

    def __str__(self) -> str:
        return cross_validation_sentence(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as stored with a study."""
        median, most = np.quantile(np.abs(self.errors), (0.5, 0.9))
        tau = None if math.isnan(self.tau) else self.tau
        figures = {"median_error": float(median), "error_90": float(most), "tau": tau}
        return {
            "networks": len(self.errors),
            **figures,
            "within_5": self.share_within(0.05),
            "within_10": self.share_within(0.1),
        }


def cross_validation_sentence(held_out: Mapping[str, Any]) -> str:
    """Describe the document of `CrossValidation.to_json` in one sentence."""
    half, most = (f"{100 * held_out[key]:.1f} %" for key in ("median_error", "error_90"))
    networks = f"latency predicted for each of {held_out['networks']} networks from the others"
    tau = "" if held_out["tau"] is None else f", Kendall's tau {held_out['tau']:.2f}"
    return f"{networks}: half within {half}, nine in ten within {most}{tau}"


class Predictor:
    """Latency in milliseconds of any architecture, learned from architectures measured under equal conditions."""

    def __init__(
        self,
        architectures: Sequence[Architecture],
        milliseconds: Sequence[float],
        layers_ms: Sequence[Sequence[float] | None] = (),
    ):
        """Fit to measured latencies; `layers_ms` holds times of layers where there is a profile, else None."""
        self.known = OperationCounts(architectures)
        self.networks = len(architectures)
        parts = list(_layer_observations(self.known, architectures, milliseconds, layers_ms))
        self.counts = np.vstack([self.known.counts, *(row for _, row, _ in parts)])
        self.measured = np.array([*milliseconds, *(value for *_, value in parts)], float)
        self.owner = np.array([*range(self.networks), *(owner for owner, *_ in parts)])
        self.base = _BaseModel(self.known.operations, self.counts, self.measured)
        self.weights = self.counts * self.base(self.known.operations)
        self.parameters = _fit_parameters(self)
        self._root = np.linalg.cholesky(self._covariance(_distances(self.known, self.known), self.parameters))
        self._residual = self.measured - self.weights.sum(axis=1)

    def predict(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        """Return the latencies and their standard deviations in milliseconds, each of shape (architectures,)."""
        from scipy.linalg import cho_solve, solve_triangular

        queried = OperationCounts(architectures)
        weights = queried.counts * self.base(queried.operations)
        across = weights @ _kernel(_distances(queried, self.known), self.parameters) @ self.weights.T
        mean = weights.sum(axis=1) + across @ cho_solve((self._root, True), self._residual)
        own = ((weights @ _kernel(_distances(queried, queried), self.parameters)) * weights).sum(axis=1)
        explained = (solve_triangular(self._root, across.T, lower=True) ** 2).sum(axis=0)
        mean = np.maximum(mean, LEAST_MS)
        spread = np.sqrt(np.maximum(own - explained, 0) + (self.parameters[-1] * mean) ** 2)
        return mean, self._inflation * spread

    def _covariance(self, apart: Distances, parameters: np.ndarray) -> np.ndarray:
        """Return the covariance of the measured latencies in ms²."""
        sums = self.weights @ _kernel(apart, parameters) @ self.weights.T
        noise = parameters[-1] * self.measured
        noise[self.networks :] = LAYER_NOISE * self.measured[self.networks :] + LAYER_FLOOR_MS
        return sums + np.diag(noise**2)

    @cached_property
    def _leave_one_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Leave-one-out error of each network and its expected standard deviation, in ms.

        Closed form (Sundararajan and Keerthi 2001) with s and the parameters unchanged.
        """
        from scipy.linalg import cho_solve

        inverse = cho_solve((self._root, True), np.eye(len(self.measured)))
        solved = inverse @ self._residual
        off, spread = np.empty(self.networks), np.empty(self.networks)
        for i in range(self.networks):
            own = np.flatnonzero(self.owner == i)  # the network itself comes first, then its layers
            covariance = np.linalg.inv(inverse[np.ix_(own, own)])
            off[i], spread[i] = covariance[0] @ solved[own], math.sqrt(covariance[0, 0])
        return off, spread

    @cached_property
    def _inflation(self) -> float:
        """Factor by which leave-one-out errors exceed their expectation; s and the parameters are uncertain too."""
        off, spread = self._leave_one_out
        count, times = INFLATION_PRIOR
        return max(1.0, math.sqrt((count * times**2 + ((off / spread) ** 2).sum()) / (count + self.networks)))


def cross_validate(
    architectures: Sequence[Architecture],
    milliseconds: Sequence[float],
    layers_ms: Sequence[Sequence[float] | None] = (),
    folds: int = 10,
) -> CrossValidation:
    """Predict each measured network from the others, with one predictor for each fold."""
    from scipy.stats import kendalltau

    measured, indices = np.asarray(milliseconds, float), np.arange(len(architectures))
    layers = [*layers_ms, *[None] * (len(indices) - len(layers_ms))]
    expected = np.empty(len(indices))
    for fold in range(min(folds, len(indices))):
        out = indices % folds == fold
        known = indices[~out]
        fitted = Predictor([architectures[i] for i in known], measured[known], [layers[i] for i in known])
        expected[out], _ = fitted.predict([architectures[i] for i in indices[out]])
    return CrossValidation(expected / measured - 1, float(kendalltau(expected, measured).statistic))


def select_informative(architectures: Sequence[Architecture], count: int) -> list[int]:
    """Choose the networks whose measurement teaches most: each next one is the most uncertain given those before.

    Uncertainty is relative to the expected latency. Returns the indices of at most `count` networks, in order.
    """
    candidates = OperationCounts(architectures)
    weights = candidates.counts * _BaseModel.prior(candidates.operations)
    weights /= weights.sum(axis=1, keepdims=True)
    covariance = weights @ _kernel(_distances(candidates, candidates), PRIOR_MODES) @ weights.T
    left, columns, chosen = np.diag(covariance).copy(), np.zeros((len(weights), 0)), []
    for _ in range(min(count, len(weights))):
        i = int(np.argmax(left))
        chosen.append(i)
        column = (covariance[:, i] - columns @ columns[i]) / math.sqrt(max(left[i], 0) + NOISE**2)
        columns = np.column_stack([columns, column])
        left = left - column**2
        left[chosen] = -1
    return chosen


def _layer_observations(
    known: OperationCounts,
    architectures: Sequence[Architecture],
    milliseconds: Sequence[float],
    layers_ms: Sequence[Sequence[float] | None],
) -> Iterator[tuple[int, np.ndarray, float]]:
    """Yield the profiled layers: index of the network, counts of operations, milliseconds.

    The time between layers is distributed over them, so that they add up to the latency.
    """
    for i, (architecture, total, layers) in enumerate(zip(architectures, milliseconds, layers_ms, strict=False)):
        if layers is None:
            continue
        whole = sum(layers)
        for operations, layer_ms in zip(operations_by_layer(architecture), layers, strict=True):
            if operations and layer_ms > 0:
                yield i, known.row(operations), layer_ms * total / whole


class _BaseModel:
    """s: milliseconds of an operation from its counts; non-negative least squares on relative errors."""

    def __init__(self, known: Sequence[Operation], counts: np.ndarray, measured: np.ndarray):
        from scipy.optimize import nnls

        self.kinds = sorted({operation.kind for operation in known})
        precision = np.where(counts[:, -1] == 1, 1.0, LAYER_WEIGHT) / (measured + LAYER_FLOOR_MS)
        design = np.column_stack([counts[:, :-1] @ self._design(known), counts[:, -1]]) * precision[:, None]
        scale = np.maximum(np.linalg.norm(design, axis=0), 1e-12)
        ridge = math.sqrt(RIDGE * len(measured)) * np.eye(design.shape[1])
        found, _ = nnls(np.vstack([design / scale, ridge]), np.append(measured * precision, np.zeros(len(ridge))))
        self.coefficients = found / scale

    def __call__(self, operations: Sequence[Operation]) -> np.ndarray:
        """Return milliseconds of each operation, and last those of the run itself."""
        found = self._design(operations) @ self.coefficients[:-1] if operations else np.zeros(0)
        unknown = [operation.kind not in self.kinds for operation in operations]
        found = np.where(unknown, self.prior(operations)[:-1], found)
        return np.maximum(np.append(found, self.coefficients[-1]), LEAST_MS)

    @staticmethod
    def prior(operations: Sequence[Operation]) -> np.ndarray:
        """Return the same before anything is measured."""
        return np.append([np.dot(PRIOR_MS, cost_features(operation)) for operation in operations], LEAST_MS)

    def _design(self, operations: Sequence[Operation]) -> np.ndarray:
        """Return one row for each operation: its counts in the columns of its kind."""
        design = np.zeros((len(operations), len(PRIOR_MS) * len(self.kinds)))
        for row, operation in zip(design, operations, strict=True):
            if operation.kind in self.kinds:
                start = len(PRIOR_MS) * self.kinds.index(operation.kind)
                row[start : start + len(PRIOR_MS)] = cost_features(operation)
        return design


def _distances(ours: OperationCounts, theirs: OperationCounts) -> Distances:
    """Return which operations are of equal kind, and their squared distances in size and in lanes."""
    (kinds, sizes), (other_kinds, other_sizes) = ours.features, theirs.features
    split = np.split(sizes, [SIZES], axis=1), np.split(other_sizes, [SIZES], axis=1)
    return kinds[:, None] == other_kinds[None], *(_squared_distances(a, b) for a, b in zip(*split, strict=True))


def _kernel(apart: Distances, parameters: np.ndarray) -> np.ndarray:
    """Return the covariance of g between operations.

    `parameters` are the standard deviations of g's smooth part and of each operation's own part, the length scales of
    sizes and lanes, and the relative noise of a measurement.
    """
    smooth, own, length, lanes, _ = parameters
    same, sizes, over = apart
    near = smooth**2 * np.exp(-(sizes / length**2 + over / lanes**2) / 2)
    return same * (near + own**2 * (sizes + over < 1e-9) + KIND_DEVIATION**2)


def _squared_distances(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return squared Euclidean distances between rows."""
    return np.maximum((ours**2).sum(1)[:, None] + (theirs**2).sum(1)[None] - 2 * ours @ theirs.T, 0)


def _fit_parameters(predictor: Predictor) -> np.ndarray:
    """Return the most probable parameters."""
    from scipy.optimize import minimize

    residual = predictor.measured - predictor.weights.sum(axis=1)
    apart = _distances(predictor.known, predictor.known)

    def loss(logs: np.ndarray) -> float:
        try:
            root = np.linalg.cholesky(predictor._covariance(apart, np.exp(logs)))
        except np.linalg.LinAlgError:
            return 1e9
        solved = np.linalg.solve(root, residual)
        prior = ((logs - np.log(PRIOR_MODES)) ** 2).sum() / (2 * PRIOR_WIDTH**2)
        return float(solved @ solved / 2 + np.log(np.diag(root)).sum() + prior)

    return np.exp(minimize(loss, np.log(PRIOR_MODES), method="L-BFGS-B", options={"maxiter": STEPS}).x)
