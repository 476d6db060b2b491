"""The front against its definition, the hypervolume against Monte Carlo, inclusion-exclusion and Optuna."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nasspace.samplers import pareto


def points_of(seed: int, count: int, columns: int) -> np.ndarray:
    """Random points, every other set on a coarse grid, where ties and equal points are frequent."""
    rng = np.random.default_rng(seed)
    points = rng.random((count, columns))
    return np.round(points * 4) / 4 if seed % 2 else points


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(8))
def test_the_front_has_all_points_that_are_not_dominated(seed: int, columns: int) -> None:
    points = points_of(seed, 40, columns)
    expected = [
        not any(pareto.dominates(other, point) for other in points)
        and not any((other == point).all() for other in points[:i])
        for i, point in enumerate(points)
    ]
    assert pareto.front(points).tolist() == expected


@pytest.mark.parametrize("columns", [0, 1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_shares_of_draws_are_those_that_each_draw_gives(seed: int, columns: int) -> None:
    costs, draws = points_of(seed, 60, columns), points_of(seed + 10, 50, 60)
    points = [np.column_stack([draw, costs]) for draw in draws]
    expected = [
        np.mean([not any(pareto.dominates(other, each[i]) for other in each) for each in points]) for i in range(60)
    ]
    assert pareto.nondominated_shares(draws, costs) == pytest.approx(expected)
    least = [share if share >= 0.2 else 0.0 for share in expected]
    assert pareto.nondominated_shares(draws, costs, least=0.2) == pytest.approx(least)
    some = pareto.nondominated_shares(draws, costs, chosen=[0, 3])
    assert some[[0, 3]] == pytest.approx(np.asarray(expected)[[0, 3]])
    assert some.sum() == pytest.approx(some[[0, 3]].sum())


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_hypervolume_equals_inclusion_and_exclusion(seed: int, columns: int) -> None:
    points, reference = points_of(seed, 8, columns), np.full(columns, 0.9)
    expected = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, size):
            edges = np.maximum(reference - np.max(chosen, axis=0), 0)
            expected += (-1) ** (size + 1) * edges.prod()
    assert pareto.hypervolume(points, reference) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(6))
def test_hypervolume_equals_optunas(seed: int, columns: int) -> None:
    from optuna._hypervolume.wfg import compute_hypervolume

    points, reference = points_of(seed, 30, columns), np.full(columns, 1.1)
    expected = compute_hypervolume(points, reference)
    assert pareto.hypervolume(points, reference) == pytest.approx(expected)


def test_hypervolume_equals_monte_carlo() -> None:
    points, reference = points_of(0, 20, 4), np.ones(4)
    drawn = np.random.default_rng(1).random((40_000, 4))
    covered = (drawn[:, None] >= points).all(axis=2).any(axis=1).mean()
    assert pareto.hypervolume(points, reference) == pytest.approx(covered, abs=0.01)


def test_points_beyond_the_reference_add_nothing() -> None:
    assert pareto.hypervolume([[0, 0], [-9, 2]], [1, 1]) == 1
    assert pareto.hypervolume([[1, 0]], [1, 1]) == 0
    assert pareto.hypervolume([], [1, 1]) == 0
    assert pareto.hypervolume(np.empty((0, 2)), [1, 1]) == 0


def test_an_empty_front_is_empty() -> None:
    assert pareto.front([]).shape == (0,)
    assert pareto.front(np.empty((0, 3))).shape == (0,)


@pytest.mark.parametrize("points", [[[float("nan"), 1.0]], [1.0, 2.0]])
def test_other_arrays_are_refused(points: list) -> None:
    with pytest.raises(ValueError, match="points must"):
        pareto.front(points)


def test_columns_must_agree() -> None:
    with pytest.raises(ValueError, match="2 columns"):
        pareto.hypervolume([[1, 2]], [1, 2, 3])


def test_the_front_of_many_points_is_fast() -> None:
    points = np.random.default_rng(0).random((20_000, 3))
    mask = pareto.front(points)
    survivors = points[mask]
    assert pareto.front(survivors).all()
    worse = points[~mask][:200]
    assert all((survivors <= point).all(axis=1).any() for point in worse)
