"""A Gaussian process on groups of features, fitted by its posterior mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LINEAR, WEIGHT, SMOOTH = (1.0, 0.3, 0.2, 0.2), 1.0, 0.5  # prior modes of a, w and s
SPREAD = 1.0  # standard deviation of the priors on their logarithms
MOST, ENOUGH = 1000, 200  # latest observations that are used; of these, how many to fit the hyperparameters on


class Hyperparameters(NamedTuple):
    """Kernel hyperparameters: weights of linear parts and distances (one per group), smooth part's weight, noise."""

    a: np.ndarray
    w: np.ndarray
    s: float
    noise: float


class GaussianProcess:
    """A Gaussian process whose kernel is a sum over groups of features.

    k(x, x') = 1/2 + sum_g a_g x_g.x'_g + s Matern52(sum_g w_g |x_g - x'_g|^2), plus noise, on standardized values.
    The logarithms of a, w, s and the noise have normal priors, so that a few observations are enough to start.
    """

    def __init__(self, groups: Sequence[np.ndarray], values: np.ndarray, noise: float = 0.05, spread: float = 1e-6):
        """Fit `values` of shape (observations,).

        `noise` is the prior mode of the noise's share of the variance, `spread` the smallest standard deviation that
        the values are scaled by.
        """
        self.groups = [group[-MOST:] for group in groups]
        values = values[-MOST:]
        self.mean, self.scale = float(values.mean()), max(float(values.std()), spread)
        target = (values - self.mean) / self.scale
        subset = np.linspace(0, len(values) - 1, min(len(values), ENOUGH)).astype(int)
        self.parameters = _posterior_mode([group[subset] for group in self.groups], target[subset], noise)
        kernel, _, _ = _kernel(self.parameters, *_products_and_distances(self.groups, self.groups))
        self.root = np.linalg.cholesky(kernel + self.parameters.noise * np.eye(len(values)))
        self.weights = _solve(self.root, target)

    def predict(self, groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation without the noise, each of shape (architectures,)."""
        from scipy.linalg import solve_triangular

        a, _, s, _ = self.parameters
        kernel, _, _ = _kernel(self.parameters, *_products_and_distances(groups, self.groups))
        prior = 0.5 + sum(share * (group**2).sum(axis=1) for share, group in zip(a, groups, strict=True)) + s
        left = solve_triangular(self.root, kernel.T, lower=True)
        variance = np.maximum(prior - (left**2).sum(axis=0), 1e-10)
        return self.mean + self.scale * (kernel @ self.weights), self.scale * np.sqrt(variance)

    @property
    def noise_deviation(self) -> float:
        """The standard deviation of the noise, in the units of the values."""
        return self.scale * math.sqrt(self.parameters.noise)


def _posterior_mode(groups: Sequence[np.ndarray], target: np.ndarray, noise: float) -> Hyperparameters:
    """The hyperparameters with the highest posterior density, by L-BFGS-B from the prior's mode."""
    from scipy.optimize import minimize

    prior = np.log([*LINEAR[: len(groups)], *[WEIGHT] * len(groups), SMOOTH, noise])
    given = (prior, *_products_and_distances(groups, groups), target)
    bounds = [(mode - 6 * SPREAD, mode + 6 * SPREAD) for mode in prior]
    found = minimize(_loss, prior, given, "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": 50})
    return _parameters(found.x)


def _parameters(logs: np.ndarray) -> Hyperparameters:
    """Hyperparameters from the vector of their logarithms."""
    values, count = np.exp(logs), len(logs) // 2 - 1
    return Hyperparameters(values[:count], values[count : 2 * count], float(values[-2]), float(values[-1]))


def _kernel(
    parameters: Hyperparameters, products: np.ndarray, distances: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kernel; its smooth part divided by s; the derivative of that by the squared distance."""
    a, w, s, _ = parameters
    r = np.sqrt(5 * np.maximum(np.tensordot(w, distances, 1), 1e-12))
    smooth, slope = (1 + r + r**2 / 3) * np.exp(-r), -5 / 6 * (1 + r) * np.exp(-r)
    return 0.5 + np.tensordot(a, products, 1) + s * smooth, smooth, slope


def _loss(
    logs: np.ndarray, prior: np.ndarray, products: np.ndarray, distances: np.ndarray, target: np.ndarray
) -> tuple[float, np.ndarray]:
    """The negative log posterior and its gradient (Rasmussen and Williams 2006, eq. 5.8 and 5.9)."""
    parameters = _parameters(logs)
    a, w, s, noise = parameters
    kernel, smooth, slope = _kernel(parameters, products, distances)
    identity = np.eye(len(target))
    root = np.linalg.cholesky(kernel + noise * identity)
    weights = _solve(root, target)
    outer = 0.5 * (_solve(root, identity) - np.outer(weights, weights))
    by_a, by_w = a * np.tensordot(products, outer, 2), w * np.tensordot(distances, outer * s * slope, 2)
    gradient = np.concatenate([by_a, by_w, [s * (outer * smooth).sum(), noise * np.trace(outer)]])
    off = (logs - prior) / SPREAD**2
    loss = 0.5 * target @ weights + np.log(np.diag(root)).sum() + 0.5 * off @ (logs - prior)
    return loss, gradient + off


def _products_and_distances(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Inner products and squared distances of rows, each of shape (groups, left rows, right rows)."""
    products = np.array([one @ other.T for one, other in zip(left, right, strict=True)])
    squares = [[(group**2).sum(axis=1) for group in side] for side in (left, right)]
    sums = np.array([one[:, None] + other for one, other in zip(*squares, strict=True)])
    return products, np.maximum(sums - 2 * products, 0)


def _solve(root: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a linear system given the lower Cholesky factor of its matrix."""
    from scipy.linalg import cho_solve

    return cho_solve((root, True), right)
