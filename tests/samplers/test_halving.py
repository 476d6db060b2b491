"""Which networks are trained further."""

from __future__ import annotations

import numpy as np
import pytest

from nasspace.samplers.halving import contributions, counts, counts_in_time


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


def test_a_dominated_network_adds_nothing_and_the_only_fast_one_much():
    accuracies = np.array([[0.9, 0.8, 0.7, 0.85]])
    costs = np.array([[10.0], [2.0], [3.0], [9.0]])
    gains = contributions(accuracies, costs)
    assert gains[2] == 0
    assert gains.argmax() == 1


def test_an_uncertain_network_that_may_be_best_adds_more_than_a_certain_middling_one():
    rng = np.random.default_rng(0)
    draws = 200
    certain = np.full((draws, 2), [0.80, 0.795])
    uncertain = 0.795 + 0.05 * rng.standard_normal((draws, 1))
    gains = contributions(np.hstack([certain, uncertain]), np.array([[1.0], [1.0], [1.0]]))
    assert gains[2] > gains[1] == 0


def test_equal_networks_count_once():
    gains = contributions(np.array([[0.8, 0.8]]), np.array([[1.0, 2.0], [1.0, 2.0]]))
    assert (gains > 0).sum() == 1
