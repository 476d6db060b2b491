"""Features by hand; the Gaussian process against scikit-learn's, finite differences and a function to learn."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from nasspace.samplers import gaussian_process
from nasspace.samplers.features import Features
from nasspace.samplers.gaussian_process import GaussianProcess

OPTIONS = {
    "stages.0.depth": (1, 2),
    "stages.0.0.block": (0, 1),
    "stages.0.1.block": (0, 1),
    "stages.1.0.block": (0, 1),
    "stages.0.0.shuffle_v1.groups": (1, 2, 8),
}


def an_architecture(**choices) -> SimpleNamespace:
    named = {name.replace("_", "."): value for name, value in choices.items()}
    return SimpleNamespace(choices=named, digest=repr(named))


def test_blocks_of_features() -> None:
    deep = an_architecture(stages_0_depth=2, stages_0_0_block=0, stages_0_1_block=0, stages_1_0_block=1)
    shallow = an_architecture(stages_0_depth=1, stages_0_0_block=1, stages_1_0_block=1)
    features = Features(OPTIONS, {"flops": lambda a: np.e if a is deep else 1.0}, [deep, shallow])
    figures, sizes, counts, places = features._blocks([deep, shallow])
    assert figures.tolist() == [[1], [0]]  # the logarithm of the FLOPs
    assert sizes.tolist() == [[2], [1]]  # the depth
    assert counts.tolist() == [[2, 1, 2, 0], [0, 2, 0, 1]]  # blocks of the whole network, blocks of stage 0
    assert places.shape == (2, 2 + 2 + 2 + 2 + 4)
    assert not places[:, -4:].any()  # groups that no choice reached


def test_numbers_have_a_rank_and_blocks_have_none() -> None:
    some = [an_architecture(), SimpleNamespace(choices={"stages.0.0.shuffle_v1.groups": 8}, digest="8")]
    features = Features(OPTIONS, {}, some)
    assert features._blocks(some)[3][1, -4:].tolist() == [0, 0, 1, 1]


def test_random_networks_are_at_distance_one_in_each_group() -> None:
    rng = np.random.default_rng(0)
    some = [
        SimpleNamespace(choices={name: values[rng.integers(len(values))] for name, values in OPTIONS.items()}, digest=i)
        for i in range(200)
    ]
    features = Features(OPTIONS, {"flops": lambda a: 1.0 + a.digest}, some)
    for group in features.groups(some):
        squared = ((group[:, None] - group[None]) ** 2).sum(axis=2)
        assert squared.mean() == pytest.approx(1, abs=0.02)


def test_a_choice_that_never_varies_is_harmless() -> None:
    same = an_architecture(stages_0_depth=1)
    features = Features({"stages.0.depth": (1, 2)}, {"flops": lambda a: 5}, [same, same])
    assert all(np.isfinite(group).all() for group in features.groups([same]))


def some_data(count: int = 30) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    groups = [rng.normal(size=(count, columns)) / np.sqrt(2 * columns) for columns in (2, 5)]
    return groups, groups[0][:, 0] * 2 + np.sin(5 * groups[1][:, 0]) + rng.normal(0, 0.05, count)


def test_the_gradient_is_that_of_the_loss() -> None:
    from scipy.optimize import check_grad

    groups, values = some_data()
    prior = np.log(np.full(6, 0.3))
    given = (prior, *gaussian_process._products_and_distances(groups, groups), values)
    for at in (prior, prior + 0.5):
        off = check_grad(
            lambda *all_of: gaussian_process._loss(*all_of)[0],
            lambda *all_of: gaussian_process._loss(*all_of)[1],
            at,
            *given,
        )
        assert off < 1e-4


def test_predictions_equal_scikit_learns_of_the_same_kernel() -> None:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern

    groups, values = some_data()
    process = GaussianProcess(groups[:1], values)
    (a,), (w,), s, noise = process.parameters
    kernel = (
        ConstantKernel(0.5)
        + ConstantKernel(a) * DotProduct(sigma_0=1e-6)
        + ConstantKernel(s) * Matern(1 / np.sqrt(w), nu=2.5)
    )
    peer = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
    peer.fit(groups[0], (values - values.mean()) / values.std())
    at = some_data(50)[0][0]
    mean, deviation = process.predict([at])
    expected, spread = peer.predict(at, return_std=True)
    assert mean == pytest.approx(values.mean() + values.std() * expected, abs=1e-4)
    assert deviation == pytest.approx(values.std() * spread, abs=1e-3)


def test_it_learns() -> None:
    groups, values = some_data(80)
    process = GaussianProcess([group[:60] for group in groups], values[:60])
    mean, deviation = process.predict([group[60:] for group in groups])
    assert np.corrcoef(mean, values[60:])[0, 1] > 0.8
    assert (np.abs(mean - values[60:]) < 3 * np.hypot(deviation, process.noise_deviation)).mean() > 0.9


@pytest.mark.parametrize("count", [1, 2])
def test_one_observation_is_enough(count: int) -> None:
    groups, values = some_data(count)
    process = GaussianProcess(groups, values, spread=0.2)
    mean, deviation = process.predict(some_data(9)[0])
    assert np.isfinite(mean).all()
    assert (deviation > 0).all()


def test_equal_values_are_no_error() -> None:
    groups, _ = some_data(6)
    mean, _ = GaussianProcess(groups, np.full(6, 0.1)).predict(groups)
    assert mean == pytest.approx(np.full(6, 0.1))
