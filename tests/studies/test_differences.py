"""Bands, tests and numbers of networks against simulation, SciPy, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm, wilcoxon

from nasspace.samplers import pareto
from nasspace.studies import differences


def errors(rng, count, images=300):
    """Errors of `count` networks on so many images: normal, with ties."""
    return np.round(rng.normal(0.1, 0.02, count) * images) / images


@pytest.mark.parametrize("count", [10, 30])
def test_bands_hold_the_whole_distribution_function(count, monkeypatch):
    monkeypatch.setattr(differences, "RESAMPLES", 300)
    rng, images, held = np.random.default_rng(0), 300, 0
    grid = np.arange(images + 1) / images
    truth = norm.cdf(grid + 0.5 / images, 0.1, 0.02)
    for _ in range(400):
        sample = errors(rng, count)
        share = np.searchsorted(np.sort(sample), grid + 1e-9) / count
        held += np.abs(share - truth).max() <= differences.band(sample, rng) + 1e-12
    assert 0.92 <= held / 400 <= 0.985


def test_a_band_is_narrower_than_that_of_dvoretzky_kiefer_and_wolfowitz():
    rng = np.random.default_rng(0)
    assert differences.band(errors(rng, 100), rng) < math.sqrt(math.log(40) / 200)


@pytest.mark.parametrize("compare", [differences.unpaired, differences.paired])
def test_tests_have_their_size(compare, monkeypatch):
    monkeypatch.setattr(differences, "RESAMPLES", 2)
    monkeypatch.setattr(differences, "PERMUTATIONS", 399)
    rng = np.random.default_rng(1)
    found = [compare(errors(rng, 12), errors(rng, 12), rng, 0.05).p_value for _ in range(600)]
    assert 0.03 <= np.mean(np.array(found) <= 0.05) <= 0.07


def test_p_values_are_those_of_scipy():
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, 9), rng.normal(0.8, 1, 9)
    two = differences.unpaired(a, b, rng, 0.05)
    assert two.p_value == pytest.approx(mannwhitneyu(a, b, method="exact").pvalue, abs=0.02)
    assert two.superiority.value == pytest.approx(mannwhitneyu(b, a).statistic / 81)
    assert two.superiority.low <= two.superiority.value <= two.superiority.high
    assert two.error.value == pytest.approx(np.median(a) - np.median(b))
    pairs = differences.paired(a, b, rng, 0.05)
    assert pairs.p_value == pytest.approx(wilcoxon(a, b, method="exact").pvalue, abs=0.02)
    assert pairs.error.value == pytest.approx(np.median(a - b))


@pytest.mark.parametrize("compare", [differences.unpaired, differences.paired])
def test_the_number_that_is_needed_has_the_power(compare, monkeypatch):
    monkeypatch.setattr(differences, "RESAMPLES", 2)
    monkeypatch.setattr(differences, "PERMUTATIONS", 399)
    rng, shift = np.random.default_rng(3), 0.016
    a, b = rng.normal(0.1, 0.02, 2000), rng.normal(0.1 + shift, 0.02, 2000)
    count = compare(a, b, rng, 0.05).needed
    found = [
        compare(rng.normal(0.1, 0.02, count), rng.normal(0.1 + shift, 0.02, count), rng, 0.05).p_value
        for _ in range(300)
    ]
    assert 0.7 <= np.mean(np.array(found) <= 0.05) <= 0.9


def test_a_point_needs_more_networks_where_errors_spread():
    rng = np.random.default_rng(4)
    narrow, wide = (differences.needed_for_a_point([rng.normal(0.1, sd, 300)], 0.05) for sd in (0.01, 0.03))
    assert narrow < 30 < wide
    narrow, wide = (differences.needed_pairs_for_a_point(rng.normal(0, sd, 300), 0.05) for sd in (0.01, 0.03))
    assert narrow < 20 < wide
    assert differences.needed(0.5001, 0.05, 6) is None


def test_intervals_of_hypervolume_hold_the_expected_one(monkeypatch):
    monkeypatch.setattr(differences, "HALVES", 60)
    rng = np.random.default_rng(5)

    def points():
        cost = rng.random(20)
        return np.column_stack([0.6 - 0.3 * cost + 0.25 * np.abs(rng.normal(size=20)), cost])

    expected = np.mean([pareto.hypervolume(points(), [1, 1]) for _ in range(1000)])
    found = [differences.hypervolume(points(), rng) for _ in range(200)]
    assert 0.9 <= np.mean([one.low <= expected <= one.high for one in found]) <= 0.99


def test_equal_errors_are_no_difference():
    rng = np.random.default_rng(6)
    same = [0.1] * 5
    for compare in (differences.unpaired, differences.paired):
        found = compare(same, same, rng, 0.05)
        assert (found.p_value, found.superiority.value, found.error.value, found.needed) == (1.0, 0.5, 0.0, None)
    assert 0 < differences.band(same, rng) <= 0.1
