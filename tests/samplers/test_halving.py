"""Which networks are trained further."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nasspace.samplers import pareto
from nasspace.samplers.halving import MARGIN, counts, counts_in_time, most_promising


def test_each_rung_keeps_a_third():
    assert counts(90, 3) == [30, 10, 4]
    assert counts(1, 2) == [1, 1]
    assert counts(8, 0) == []


@pytest.mark.parametrize("seconds", [1, 30, 100, 1000, 1e5])
def test_rungs_fit_their_time(seconds):
    cost = [10, 20, 40]
    found = counts_in_time(seconds, cost, 30)
    assert sum(count * one for count, one in zip(found, cost, strict=False)) <= seconds
    assert found == sorted(found, reverse=True)
    assert all(count <= 30 for count in found)


def test_a_dominated_network_comes_last_and_the_only_fast_one_first():
    accuracies = np.array([[0.9, 0.8, 0.7, 0.85]])
    costs = np.array([[10.0], [2.0], [3.0], [9.0]])
    order = most_promising(accuracies, costs, 4)
    assert order[0] == 1
    assert order[-1] == 2
    assert most_promising(accuracies, costs, 2) == order[:2]
    assert most_promising(accuracies, costs, 9) == order


def test_an_uncertain_network_that_may_be_best_precedes_a_certain_middling_one():
    rng = np.random.default_rng(0)
    draws = 200
    certain = np.full((draws, 2), [0.80, 0.795])
    uncertain = 0.795 + 0.05 * rng.standard_normal((draws, 1))
    order = most_promising(np.hstack([certain, uncertain]), np.array([[1.0], [1.0], [1.0]]), 3)
    assert order.index(2) < order.index(1)


def test_of_two_alike_networks_one_is_enough():
    """Each alone would be missed little, since the other is there."""
    accuracies = np.array([[0.9, 0.9, 0.6]])
    costs = np.array([[5.0], [5.001], [1.0]])
    assert set(most_promising(accuracies, costs, 2)) == {0, 2}
    assert most_promising(accuracies, costs, 2, trained=[1]) == [2, 0]


def test_the_greedy_choice_is_near_the_best_one():
    """At least 63 % of the largest expected hypervolume of any set, and the same gains as the exact hypervolume."""
    rng = np.random.default_rng(1)
    for _ in range(10):
        accuracies, costs = rng.random((5, 8)), rng.random((8, 1))
        scaled = (costs - costs.min()) / np.ptp(costs)
        worst = accuracies.min(axis=1, keepdims=True)
        errors = 1 - (accuracies - worst) / np.ptp(accuracies, axis=1).mean()
        reference = [1 + MARGIN, 1 + MARGIN]

        def volume(chosen, errors=errors, scaled=scaled, reference=reference):
            return np.mean(
                [pareto.hypervolume(np.column_stack([one, scaled])[list(chosen)], reference) for one in errors]
            )

        order = most_promising(accuracies, costs, 8)
        best = max(itertools.combinations(range(8), 3), key=volume)
        assert volume(order[:3]) >= 0.63 * volume(best)
        greedy = []
        for _ in range(3):
            greedy.append(max(set(range(8)) - set(greedy), key=lambda i, greedy=greedy: volume([*greedy, i])))
        assert order[:3] == greedy


@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_the_largest_network_is_promoted_for_its_accuracy_with_any_number_of_costs(kinds):
    rng = np.random.default_rng(0)
    size = np.linspace(0, 1, 90)
    costs = np.clip(size[:, None] + 0.02 * rng.standard_normal((90, kinds)), 0, None)
    costs[-1] = costs.max(axis=0) + 0.01
    accuracies = 0.5 + 0.3 * size + np.array([0.0] * 89 + [0.1]) + 0.01 * rng.standard_normal((64, 90))
    assert 89 in most_promising(accuracies, costs, 30)


def test_several_costs_share_a_grid_and_none_leaves_the_accuracy():
    accuracies = np.array([[0.9, 0.8, 0.7]])
    two = np.array([[9.0, 9.0], [1.0, 5.0], [5.0, 1.0]])
    assert set(most_promising(accuracies, two, 2)) != {0, 1, 2}
    assert most_promising(accuracies, two, 3) == [1, 2, 0]
    assert most_promising(accuracies, np.empty((3, 0)), 3)[0] == 0


def test_what_all_networks_have_in_common_promotes_no_cheap_network():
    """Short trainings leave the level of all accuracies open, which says nothing about which networks are better."""
    rng = np.random.default_rng(0)
    costs = np.geomspace(1, 30, 16)[:, None]
    accuracies = 0.5 + 0.02 * np.arange(16) + 0.01 * rng.standard_normal((200, 16))
    level = 0.1 * rng.standard_normal((200, 1))
    assert most_promising(accuracies + level, costs, 5) == most_promising(accuracies, costs, 5)


def test_a_network_whose_training_collapsed_changes_nothing():
    rng = np.random.default_rng(0)
    costs = np.linspace(2, 30, 16)
    accuracies = 0.6 + 0.01 * np.arange(16) + 0.003 * rng.standard_normal((200, 16))
    order = most_promising(accuracies, costs[:, None], 5)
    collapsed = np.hstack([accuracies, np.full((200, 1), 0.1)])
    assert most_promising(collapsed, np.append(costs, 2.0)[:, None], 5) == order


def test_equal_values_are_ranked_by_number():
    assert most_promising(np.full((4, 3), 0.5), np.ones((3, 1)), 3) == [0, 1, 2]
