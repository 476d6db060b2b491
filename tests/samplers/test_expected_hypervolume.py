"""The closed form of the expected hypervolume improvement against Monte Carlo and exact hypervolumes."""

from __future__ import annotations

import numpy as np
import pytest

from nasspace.samplers import pareto
from nasspace.samplers.expected_hypervolume import expected_improvement


def a_front(rng: np.random.Generator, count: int, costs: int) -> np.ndarray:
    rows = np.column_stack([rng.uniform(0.2, 0.9, count), rng.random((count, costs))])
    return rows[pareto.front(rows * [-1, *np.ones(costs)])]


def volume(rows: np.ndarray, reference: np.ndarray) -> float:
    """Hypervolume of rows (accuracy up, costs down)."""
    signs = np.array([-1, *np.ones(len(reference) - 1)])
    return pareto.hypervolume(rows * signs, reference * signs)


@pytest.mark.parametrize("costs", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_expected_improvement_equals_monte_carlo(costs: int, count: int) -> None:
    rng = np.random.default_rng(10 * costs + count)
    front = a_front(rng, count, costs) if count else np.empty((0, 1 + costs))
    reference = np.array([0.3, *np.full(costs, 0.8)])
    mean, deviation = rng.uniform(0.2, 1, 4), rng.uniform(0.02, 0.3, 4)
    paid = rng.uniform(0, 0.9, (4, costs))
    found = expected_improvement(mean, deviation, paid, front, reference)
    for i in range(4):
        # Quantiles instead of random accuracies: their mean converges quickly.
        drawn = mean[i] + deviation[i] * _normal_quantiles(400)
        before = volume(front, reference)
        gains = [volume(np.vstack([front, [level, *paid[i]]]), reference) - before for level in drawn]
        assert found[i] == pytest.approx(np.mean(gains), abs=2e-3)


def _normal_quantiles(count: int) -> np.ndarray:
    from scipy.special import ndtri

    return ndtri((np.arange(count) + 0.5) / count)


@pytest.mark.parametrize("costs", [1, 2, 3])
def test_a_certain_accuracy_adds_its_exclusive_hypervolume(costs: int) -> None:
    rng = np.random.default_rng(costs)
    front, reference = a_front(rng, 9, costs), np.array([0.1, *np.ones(costs)])
    paid, mean = rng.random((30, costs)), rng.random(30)
    found = expected_improvement(mean, np.full(30, 1e-9), paid, front, reference)
    before = volume(front, reference)
    exact = [volume(np.vstack([front, [mean[i], *paid[i]]]), reference) - before for i in range(30)]
    assert found == pytest.approx(exact, abs=1e-8)


def test_a_cost_above_the_reference_adds_nothing() -> None:
    front = np.array([[0.5, 0.5], [0.8, 2.0]])  # the second member is beyond the reference too
    gains = expected_improvement(np.full(2, 0.9), np.full(2, 0.1), np.array([[1.0], [0.9]]), front, [0.0, 1.0])
    assert gains[0] == 0
    assert gains[1] > 0
