"""Latency predicted from a few dozen measured networks or blocks, with its uncertainty.

A network takes the sum of what its operations take: T = Σ s(o) (1 + g(o)). s is a non-negative least-squares fit to an
operation's multiply-adds, memory access, outputs and a constant, for each kind of operation. g, by how much an
operation differs from that, is a Gaussian process over operations of a kind. Only sums are measured, of networks
and, where a profile tells, of their layers; and a sum of Gaussian processes is one: so they say what operations take,
whatever blocks they stand in. A measured block is a network of one layer.
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

LEAST_MS = 1e-4  # of an operation, so that something can differ from it
PRIOR_MS = (
    2e-8,
    2e-7,
    2e-7,
    5e-3,
)  # of a multiply-add, an element accessed, an output, an operation: none is measured yet
RIDGE = 1e-3
PRIOR_MODES = np.array([0.2, 0.1, 2.0, 1.0, 0.015])  # prior modes: see `Parameters`
PRIOR_WIDTH = 0.7  # standard deviation of the logarithms of all these
NOISE = PRIOR_MODES[-1]
KIND_DEVIATION = 0.3  # standard deviation of g that all operations of a kind share: what s may miss by
INFLATION_PRIOR = 2, 3.0  # so many networks, so many times as far off as expected, are counted beside those left out
LAYER_NOISE, LAYER_FLOOR_MS = 0.07, 0.003  # of a layer's time in a profile: relative to it, and at least
LAYER_WEIGHT = 0.3  # of a layer beside a network, in the least-squares fit
STEPS = 15  # of the search for the most probable parameters

Distances = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class CrossValidation:
    """How well each measured network is predicted from the others: relative errors, Kendall's tau or not a number."""

    errors: np.ndarray
    tau: float

    def share_within(self, share: float) -> float:
        """The share of networks that were predicted to within `share` of what was measured."""
        return float((np.abs(self.errors) <= share).mean())

    def __str__(self) -> str:
        return cross_validation_sentence(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Plain values, as they are kept with a study."""
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
    """What `HeldOut.to_json` says, in words."""
    half, most = (f"{100 * held_out[key]:.1f} %" for key in ("median_error", "error_90"))
    networks = f"latency predicted for each of {held_out['networks']} networks from the others"
    tau = "" if held_out["tau"] is None else f", Kendall's tau {held_out['tau']:.2f}"
    return f"{networks}: half within {half}, nine in ten within {most}{tau}"


class Predictor:
    """Latency in milliseconds of any architecture, from some that were measured in one set of circumstances."""

    def __init__(
        self,
        architectures: Sequence[Architecture],
        milliseconds: Sequence[float],
        layers_ms: Sequence[Sequence[float] | None] = (),
    ):
        """`milliseconds` are the measured latencies; `layers_ms` those of the layers, where a profile was taken."""
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
        """The latencies and their standard deviations, in milliseconds, each of shape (architectures,)."""
        from scipy.linalg import cho_solve, solve_triangular

        asked = OperationCounts(architectures)
        weights = asked.counts * self.base(asked.operations)
        across = weights @ _kernel(_distances(asked, self.known), self.parameters) @ self.weights.T
        mean = weights.sum(axis=1) + across @ cho_solve((self._root, True), self._residual)
        own = ((weights @ _kernel(_distances(asked, asked), self.parameters)) * weights).sum(axis=1)
        explained = (solve_triangular(self._root, across.T, lower=True) ** 2).sum(axis=0)
        mean = np.maximum(mean, LEAST_MS)
        spread = np.sqrt(np.maximum(own - explained, 0) + (self.parameters[-1] * mean) ** 2)
        return mean, self._inflation * spread

    def _covariance(self, apart: Distances, parameters: np.ndarray) -> np.ndarray:
        """Of the measured latencies, in ms²."""
        sums = self.weights @ _kernel(apart, parameters) @ self.weights.T
        noise = parameters[-1] * self.measured
        noise[self.networks :] = LAYER_NOISE * self.measured[self.networks :] + LAYER_FLOOR_MS
        return sums + np.diag(noise**2)

    @cached_property
    def _leave_one_out(self) -> tuple[np.ndarray, np.ndarray]:
        """By how much each network differs from what the others say, and how far it was expected to, in ms.

        In closed form (Sundararajan and Keerthi 2001), s and the parameters as they are.
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
        """By how much networks were further off than expected: with few of them s and the parameters are not sure."""
        off, spread = self._leave_one_out
        count, times = INFLATION_PRIOR
        return max(1.0, math.sqrt((count * times**2 + ((off / spread) ** 2).sum()) / (count + self.networks)))


def cross_validate(
    architectures: Sequence[Architecture],
    milliseconds: Sequence[float],
    layers_ms: Sequence[Sequence[float] | None] = (),
    folds: int = 10,
) -> CrossValidation:
    """Each measured network predicted from the others, by as many predictors as there are folds."""
    from scipy.stats import kendalltau

    measured, places = np.asarray(milliseconds, float), np.arange(len(architectures))
    layers = [*layers_ms, *[None] * (len(places) - len(layers_ms))]
    expected = np.empty(len(places))
    for fold in range(min(folds, len(places))):
        out = places % folds == fold
        kept = places[~out]
        taught = Predictor([architectures[i] for i in kept], measured[kept], [layers[i] for i in kept])
        expected[out], _ = taught.predict([architectures[i] for i in places[out]])
    return CrossValidation(expected / measured - 1, float(kendalltau(expected, measured).statistic))


def select_informative(architectures: Sequence[Architecture], count: int) -> list[int]:
    """Which networks to measure to learn most: each next one is the most uncertain given those before.

    Uncertain is relative to what a network is expected to take; the positions of at most `count` come back, in order.
    """
    bag = OperationCounts(architectures)
    weights = bag.counts * _BaseModel.prior(bag.operations)
    weights /= weights.sum(axis=1, keepdims=True)
    covariance = weights @ _kernel(_distances(bag, bag), PRIOR_MODES) @ weights.T
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
    """The layers that a profile tells of: whose they are, how often they have each operation, their milliseconds.

    What a run takes beside its layers is shared among them, so that they add up to the latency.
    """
    for i, (architecture, total, layers) in enumerate(zip(architectures, milliseconds, layers_ms, strict=False)):
        if layers is None:
            continue
        whole = sum(layers)
        for done, taken in zip(operations_by_layer(architecture), layers, strict=True):
            if done and taken > 0:
                yield i, known.row(done), taken * total / whole


class _BaseModel:
    """s: milliseconds of an operation by its counts, non-negative, fitted to relative errors."""

    def __init__(self, known: Sequence[Operation], counts: np.ndarray, measured: np.ndarray):
        from scipy.optimize import nnls

        self.kinds = sorted({operation.kind for operation in known})
        certain = np.where(counts[:, -1] == 1, 1.0, LAYER_WEIGHT) / (measured + LAYER_FLOOR_MS)
        design = np.column_stack([counts[:, :-1] @ self._design(known), counts[:, -1]]) * certain[:, None]
        scale = np.maximum(np.linalg.norm(design, axis=0), 1e-12)
        ridge = math.sqrt(RIDGE * len(measured)) * np.eye(design.shape[1])
        found, _ = nnls(np.vstack([design / scale, ridge]), np.append(measured * certain, np.zeros(len(ridge))))
        self.coefficients = found / scale

    def __call__(self, asked: Sequence[Operation]) -> np.ndarray:
        """Milliseconds of each operation, and last of a run itself."""
        found = self._design(asked) @ self.coefficients[:-1] if asked else np.zeros(0)
        unknown = [operation.kind not in self.kinds for operation in asked]
        found = np.where(unknown, self.prior(asked)[:-1], found)
        return np.maximum(np.append(found, self.coefficients[-1]), LEAST_MS)

    @staticmethod
    def prior(asked: Sequence[Operation]) -> np.ndarray:
        """The same where nothing was measured."""
        return np.append([np.dot(PRIOR_MS, cost_features(operation)) for operation in asked], LEAST_MS)

    def _design(self, asked: Sequence[Operation]) -> np.ndarray:
        """A row an operation: its counts, in the columns of its kind."""
        design = np.zeros((len(asked), len(PRIOR_MS) * len(self.kinds)))
        for row, operation in zip(design, asked, strict=True):
            if operation.kind in self.kinds:
                start = len(PRIOR_MS) * self.kinds.index(operation.kind)
                row[start : start + len(PRIOR_MS)] = cost_features(operation)
        return design


def _distances(ours: OperationCounts, theirs: OperationCounts) -> Distances:
    """Which operations are of one kind, and their squared distances in size and in lanes."""
    (kinds, sizes), (other_kinds, other_sizes) = ours.features, theirs.features
    split = np.split(sizes, [SIZES], axis=1), np.split(other_sizes, [SIZES], axis=1)
    return kinds[:, None] == other_kinds[None], *(_squared_distances(a, b) for a, b in zip(*split, strict=True))


def _kernel(apart: Distances, parameters: np.ndarray) -> np.ndarray:
    """The covariance of g between operations.

    `parameters` are the standard deviations of g's smooth part and of what is an operation's own, the scales on which
    sizes and lanes matter, and the noise of a measurement relative to it.
    """
    smooth, own, length, lanes, _ = parameters
    same, sizes, over = apart
    near = smooth**2 * np.exp(-(sizes / length**2 + over / lanes**2) / 2)
    return same * (near + own**2 * (sizes + over < 1e-9) + KIND_DEVIATION**2)


def _squared_distances(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.maximum((ours**2).sum(1)[:, None] + (theirs**2).sum(1)[None] - 2 * ours @ theirs.T, 0)


def _fit_parameters(predictor: Predictor) -> np.ndarray:
    """The most probable parameters."""
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
