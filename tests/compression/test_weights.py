"""Compression of weights: which weights stay, and that the constraint holds after every step."""

import itertools

import pytest
import torch

from nasspace import zoo
from nasspace.architecture import Architecture
from nasspace.compression.clustering import SharedValues, codes, shared
from nasspace.compression.factorization import factorized
from nasspace.compression.sparsity import UPDATES, Sparsity, largest, zeros
from nasspace.compression.weights import large_weights, parameter_count
from nasspace.counting import cost
from nasspace.data.loading import load_data
from nasspace.network import build
from nasspace.training import trainer
from nasspace.training.settings import Fidelity, TrainingSettings

LAYERS = [
    {"block": "conv", "out": 8, "kernel": 3, "stride": 2},
    {"block": "inverted_residual", "out": 16, "hidden": 32, "stride": 2},
    {"block": "conv", "out": 32, "kernel": 1},
    {"block": "global_pool"},
    {"block": "linear", "out": 10},
]
ARCHITECTURE = Architecture.of(LAYERS, input=(1, 16, 16))


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", resolution=16)


def trained(network, constraint, data, *, epochs=1, **settings):
    return trainer.train(network, data, Fidelity(16, epochs), TrainingSettings(**settings), constraint=constraint)


def test_the_first_convolution_and_depthwise_ones_are_left_out():
    network = build(zoo.load("mobilenet_v2_0.35", resolution=32, classes=5))
    names = set(large_weights(network))
    others = {name for name, tensor in network.named_parameters() if tensor.dim() > 1} - names
    depthwise = {f"{n}.weight" for n, p in network.named_modules() if isinstance(p, torch.nn.Conv2d) and p.groups > 1}
    assert len(depthwise) == 17
    assert others == depthwise | {"0.layers.0.weight"}


def test_auxiliary_classifiers_are_left_out_and_branches_that_fold_count():
    auxiliary = {"block": "auxiliary", "classes": 10, "size": 2, "hidden": 16}
    plain, helped = (
        build(Architecture.of([*LAYERS[:1], *one, *LAYERS[3:]], input=(1, 16, 16))) for one in ([], [auxiliary])
    )
    assert parameter_count(helped) == parameter_count(plain) == 178
    assert len(large_weights(helped)) == len(large_weights(plain)) == 1
    branches = build(Architecture.of([{"block": "mobileone", "out": 8, "branches": 4}, *LAYERS[3:]], input=(8, 16, 16)))
    assert parameter_count(branches) == sum(parameter.numel() for parameter in branches.parameters())
    assert SharedValues(branches, 4).computed_bytes(parameter_count(branches)) > 0


@pytest.mark.parametrize("threshold", ["adaptive", "global", "layer"])
def test_the_largest_weights_stay(threshold):
    weights = {"a": torch.tensor([[3.0, -2.0], [0.1, 0.0]]), "b": torch.tensor([5.0, -4.0, 9.0, 0.2])}
    masks = largest(weights, 0.5, threshold)
    kept = {name: sorted(tensor[masks[name]].abs().tolist()) for name, tensor in weights.items()}
    assert kept == ({"a": [3], "b": [4, 5, 9]} if threshold == "global" else {"a": [2, 3], "b": [5, 9]})


def test_adaptive_thresholds_leave_weights_in_every_layer():
    weights = {"small": torch.rand(9000) / 1000, "large": 1 + torch.rand(1000)}
    assert not largest(weights, 0.1, "global")["small"].any()
    masks = largest(weights, 0.1, "adaptive")
    assert min(int(mask.sum()) for mask in masks.values()) > 100
    assert sum(int(mask.sum()) for mask in masks.values()) == 1000


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_zeros_become_more_and_stay(average, digits, monkeypatch):
    network, constraint, seen = build(ARCHITECTURE), Sparsity(0.3), []
    project = Sparsity.project

    def watched(self, model, done, steps):
        project(self, model, done, steps)
        seen.append({name: weight == 0 for name, weight in large_weights(model).items()})

    monkeypatch.setattr(Sparsity, "project", watched)
    trained(network, constraint, digits, average=average)
    for before, after in itertools.pairwise(seen):
        assert all(bool((after[name] >= mask).all()) for name, mask in before.items())
    shares = [zeros({name: (~mask).float() for name, mask in each.items()}) for each in seen]
    assert shares[0] < 0.3
    assert shares[len(shares) // 2] == shares[-1] == zeros(large_weights(network)) == pytest.approx(0.7, abs=1e-3)
    assert len(set(shares)) <= UPDATES


def test_a_stopped_training_continues_with_the_same_zeros(tmp_path, digits):
    expected = build(ARCHITECTURE)
    trained(expected, Sparsity(0.3), digits, epochs=2)
    stopped, path = build(ARCHITECTURE), tmp_path / "checkpoint.pt"

    class Stop(Exception):
        pass

    def stop(epoch):
        if epoch.number == 2:
            raise Stop

    fidelity = Fidelity(16, 2)
    with pytest.raises(Stop):
        trainer.train(stopped, digits, fidelity, constraint=Sparsity(0.3), checkpoint=path, on_epoch=stop)
    again = build(ARCHITECTURE)
    trainer.train(again, digits, fidelity, constraint=Sparsity(0.3), checkpoint=path)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_clusters_are_a_fixed_point_of_kmeans_and_better_than_equal_distances():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(0)) ** 3
    code = codes(values, 16)
    found = shared(values, code)
    centers = found.unique()
    assert 12 < len(centers) <= 16
    assert torch.equal(centers[(values[:, None] - centers).abs().argmin(1)], found)
    grid = torch.linspace(float(values.min()), float(values.max()), 16)
    rounded = grid[(values[:, None] - grid).abs().argmin(1)]
    assert (values - found).square().mean() < 0.5 * (values - rounded).square().mean()
    assert codes(torch.ones(5), 4).unique().numel() == 1


def test_zeros_stay_zero_and_count_as_a_value():
    values = torch.tensor([0.0, 0.01, 1.0, -1.0, 0.0, 0.011, 1.01])
    found = shared(values, codes(values, 4))
    assert (found == 0).tolist() == (values == 0).tolist()
    assert len(found.unique()) == 4
    assert not shared(torch.zeros(3), codes(torch.zeros(3), 4)).any()


def test_zeros_of_a_pruned_network_stay_zero_in_the_training(digits):
    network = build(ARCHITECTURE)
    weights = large_weights(network)
    with torch.no_grad():
        for name, mask in largest(weights, 0.3, "layer").items():
            weights[name].mul_(mask)
    before = {name: weight == 0 for name, weight in weights.items()}
    trained(network, SharedValues(network, 2), digits)
    assert all(torch.equal(weight == 0, before[name]) for name, weight in large_weights(network).items())


def test_a_shared_value_moves_by_the_mean_gradient_of_its_weights(digits):
    """The oracle: the same layers with a parameter for each value, whose gradient PyTorch sums over its weights."""
    network = build(ARCHITECTURE)
    constraint = SharedValues(network, 2)
    constraint.project(network, 0, 1)
    before = {name: weight.detach().clone() for name, weight in large_weights(network).items()}
    images, labels = torch.randn(8, 1, 16, 16), torch.arange(8)
    name = "4.linear.weight"
    code = constraint.codes[name].long()
    book = torch.stack([before[name][code == number].mean() for number in range(4)]).requires_grad_()
    torch.func.functional_call(network, {name: book[code]}, images).log_softmax(1)[range(8), labels].mean().backward()
    summed, sizes = book.grad, code.flatten().bincount()
    network.zero_grad()
    network(images).log_softmax(1)[range(8), labels].mean().backward()
    weight = large_weights(network)[name]
    with torch.no_grad():
        weight -= 0.1 * weight.grad
    constraint.project(network, 1, 1)
    expected = (book - 0.1 * summed / sizes).detach()[code]
    torch.testing.assert_close(weight.detach(), expected)
    trained(network, constraint, digits, average=0.9)
    assert all(len(weight.unique()) == 4 for weight in large_weights(network).values())


MIXED = [
    {"block": "conv", "out": 8, "kernel": 3},
    {"block": "conv", "out": 24, "kernel": 5, "stride": 2, "padding": 1, "activation": "relu6"},
    {"block": "conv", "out": 24, "kernel": 1, "norm": "none", "activation": "none"},
    {"block": "conv", "out": 24, "kernel": 3, "groups": 24},
    {"block": "conv", "out": 24, "kernel": 3, "skip": "identity"},
    {"block": "flatten"},
    {"block": "linear", "out": 64, "activation": "relu"},
    {"block": "linear", "out": 64},
    {"block": "linear", "out": 5},
]


def test_layers_of_low_rank_compute_the_same_when_factorized():
    architecture = Architecture.of(MIXED, input=(3, 12, 12))
    state = build(architecture).state_dict()
    weights = {
        1: "1.layers.0.weight",
        2: "2.layers.0.weight",
        6: "6.linear.weight",
        7: "7.linear.weight",
        8: "8.linear.weight",
    }
    for name in weights.values():
        left, values, right = torch.linalg.svd(state[name].flatten(1), full_matrices=False)
        state[name] = (left[:, :2] * values[:2] @ right[:2]).view_as(state[name])
    found = factorized(architecture, state, 0.5)
    assert found.ranks == dict.fromkeys(weights, 2)
    whole, smaller = build(architecture), build(found.architecture)
    whole.load_state_dict(state)
    smaller.load_state_dict(found.state)
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        expected, computed = (network.eval()(images) for network in (whole, smaller))
    torch.testing.assert_close(computed, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("keep", [0.8, 0.3])
def test_the_share_of_the_weights_and_of_the_multiply_adds_is_kept(keep):
    layers = [{"block": "conv", "out": out, "kernel": 3, "stride": out // 32} for out in (32, 64)]
    layers += [{"block": "conv", "out": 128, "kernel": 1}, {"block": "linear", "out": 100}]
    architecture = Architecture.of(layers, input=(3, 16, 16))
    found = factorized(architecture, build(architecture).state_dict(), keep)
    counts = []
    for network in (architecture, found.architecture):
        large = large_weights(build(network)).values()
        counts.append(
            (sum(weight.numel() for weight in large), cost(network).flops - cost(architecture).layers[0].flops)
        )
    (weights, flops), (fewer, less) = counts
    assert keep - 0.02 < fewer / weights <= keep
    assert keep - 0.2 < less / flops < keep + 0.2
