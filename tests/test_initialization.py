"""Initialization schemes on published networks: spread and bounds of weights, biases, batch norms."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import nn

from nasspace import Architecture, Space, build, initialization, zoo
from nasspace.blocks.layers import SqueezeExcite
from nasspace.errors import InputError
from nasspace.network import make_block

LARGE = 2000  # draws: their standard deviation is off by 8 % less than once in a million times
CLASSES = 100


def parts(network: nn.Module, kind: type) -> list:
    return [part for part in network.requires_grad_(False).modules() if isinstance(part, kind)]


def published(name: str) -> nn.Module:
    return build(zoo.load(name, classes=CLASSES), seed=3, initialization=zoo.initialization_of(name))


def check_normal(modules: list, std: Callable[[nn.Module], float]) -> None:
    large = [part for part in modules if part.weight.numel() > LARGE]
    assert large
    for part in large:
        assert float(part.weight.std()) == pytest.approx(std(part), rel=0.08)
        assert abs(float(part.weight.mean())) < 5 * std(part) / math.sqrt(part.weight.numel())
        assert float(part.weight.abs().max()) > 2.2 * std(part), "a normal distribution has no bound"


def check_uniform(modules: list, bound: Callable[[nn.Module], float]) -> None:
    assert modules
    for part in modules:
        most = float(part.weight.abs().max())
        assert most <= bound(part) * (1 + 1e-6)
        if part.weight.numel() > LARGE:
            assert most > 0.99 * bound(part)
            assert float(part.weight.std()) == pytest.approx(bound(part) / math.sqrt(3), rel=0.08)


def check_rest(network: nn.Module, norm_bias: float = 0.0) -> None:
    """Norms 1 and `norm_bias`, all other biases 0."""
    for norm in parts(network, nn.BatchNorm2d):
        assert bool((norm.weight == 1).all())
        assert bool((norm.bias == norm_bias).all())
    for part in [*parts(network, nn.Conv2d), *parts(network, nn.Linear)]:
        assert part.bias is None or not part.bias.any()


def fan_in(part: nn.Module) -> int:
    return part.weight[0].numel()


def fan_out(part: nn.Conv2d) -> int:
    return part.kernel_size[0] * part.kernel_size[1] * part.out_channels


@pytest.mark.parametrize("name", ["alexnet", "alexnet_grouped"])
def test_alexnet(name):
    network = published(name)
    convolutions, linear = parts(network, nn.Conv2d), parts(network, nn.Linear)
    check_normal([*convolutions, *linear], lambda part: 0.01)
    biases = [part.bias.unique().tolist() for part in [*convolutions, *linear]]
    assert biases == [[0], [1], [0], [1], [1], [1], [1], [0]]


@pytest.mark.parametrize("name", ["squeezenet_1.0", "squeezenet_1.1", "squeezenet_1.0_complex_bypass"])
def test_squeezenet(name):
    network = published(name)
    *others, last = parts(network, nn.Conv2d)
    check_uniform(others, lambda part: math.sqrt(3 / fan_in(part)))
    check_normal([last], lambda part: 0.01)
    check_rest(network)


def test_xception():
    network = published("xception")
    check_uniform(
        parts(network, nn.Conv2d),
        lambda part: math.sqrt(6 / (fan_in(part) + part.weight.shape[0] * part.weight[0, 0].numel())),
    )
    check_uniform(parts(network, nn.Linear), lambda part: math.sqrt(6 / (part.in_features + CLASSES)))
    check_rest(network)


def test_mobilenet_v1():
    network = published("mobilenet_v1_0.5")
    for part in [*parts(network, nn.Conv2d), *parts(network, nn.Linear)]:
        assert float(part.weight.abs().max()) <= 0.18
        if part.weight.numel() > LARGE:  # cut off at two, a normal distribution keeps 0.8796 of its deviation
            assert float(part.weight.std()) == pytest.approx(0.8796 * 0.09, rel=0.08)
    check_rest(network)


@pytest.mark.parametrize("name", ["mobilenet_v2_0.5", "mobilenet_v3_small_1.0", "mobilenext_0.35", "resnet18"])
def test_families_with_kaiming(name):
    network = published(name)
    check_normal(parts(network, nn.Conv2d), lambda part: math.sqrt(2 / fan_out(part)))
    check_normal(parts(network, nn.Linear), lambda part: 0.01)
    check_rest(network)


def test_inception():
    network = published("inception_v3_cifar")
    weights = torch.cat([part.weight.flatten() for part in parts(network, nn.Conv2d)])
    assert float(weights.abs().max()) == pytest.approx(0.2, rel=0.01)
    assert float(weights.std()) == pytest.approx(0.088, rel=0.02)  # 0.1 truncated at two standard deviations
    check_rest(network)


@pytest.mark.parametrize("name", ["fasternet_t0", "starnet_s1"])
def test_families_with_one_deviation(name):
    network = published(name)
    convolutions = parts(network, nn.Conv2d)
    check_normal([*convolutions, *parts(network, nn.Linear)], lambda part: 0.02)
    for part in convolutions:
        bound = 1 / math.sqrt(fan_in(part))
        assert part.bias is None or bound / 2 < float(part.bias.abs().max()) <= bound


@pytest.mark.parametrize("name", ["mnasnet_a1_0.5", "mnasnet_small"])
def test_mnasnet(name):
    network = published(name)
    depthwise = [part for part in parts(network, nn.Conv2d) if part.groups > 1]
    full = [part for part in parts(network, nn.Conv2d) if part.groups == 1]
    check_normal(full, lambda part: math.sqrt(2 / fan_out(part)))
    check_normal(depthwise, lambda part: math.sqrt(2) / part.kernel_size[0])
    check_uniform(parts(network, nn.Linear), lambda part: 1 / math.sqrt(CLASSES))
    check_rest(network)


@pytest.mark.parametrize("name", ["shufflenet_v1_g3_1.0", "shufflenet_v2_1.0"])
def test_shufflenet(name):
    network = published(name)
    stem, *others = parts(network, nn.Conv2d)
    assert float(stem.weight.std()) == pytest.approx(0.01, rel=0.15)
    check_normal(others, lambda part: 1 / part.weight.shape[1])
    depthwise = torch.cat([part.weight.flatten() for part in others if part.weight.shape[1] == 1])
    assert float(depthwise.std()) == pytest.approx(1, rel=0.05)
    check_normal(parts(network, nn.Linear), lambda part: 0.01)
    check_rest(network, norm_bias=torch.tensor(1e-4).item())


@pytest.mark.parametrize(("name", "scheme"), [("mobilenet_v2_0.35", "pytorch"), ("mobileone_s0", "mobileone")])
def test_pytorch_scheme(name, scheme):
    network = build(zoo.load(name, classes=CLASSES), initialization=scheme)
    check_uniform([*parts(network, nn.Conv2d), *parts(network, nn.Linear)], lambda part: 1 / math.sqrt(fan_in(part)))


def test_squeeze_and_excitation_starts_with_biases_of_0():
    for scheme in set(initialization.names()) - {"pytorch", "repvgg", "mobileone", "alexnet", "starnet"}:
        network = build(zoo.load("mobilenet_v3_small_0.35", classes=CLASSES), initialization=scheme)
        biased = [part.bias for part in parts(network, nn.Conv2d) if part.bias is not None]
        assert biased
        assert not torch.cat(biased).any()


@pytest.mark.parametrize("name", zoo.names())
def test_every_published_network_has_its_scheme(name):
    scheme = zoo.initialization_of(name)
    assert scheme in initialization.names()
    others = {"efficientnet_lite": "mnasnet", "googlenet": "inception", "ghostnet": "pytorch"}  # same code; it has none
    assert name.startswith(scheme) or scheme == "resnet" or others.get(zoo.family_of(name)) == scheme


@pytest.mark.parametrize("name", ["shufflenet_v2_0.5", "mobilenet_v2_0.35"])
def test_the_name_of_an_architecture_does_not_decide_its_weights(name):
    architecture = zoo.load(name, classes=CLASSES)
    one, other = build(architecture, seed=4), build(architecture.with_name("other"), seed=4)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def kaiming(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)


@pytest.mark.parametrize("space", ["mixed", "mobile", "shuffle"])
def test_random_draws_are_in_the_order_of_the_layers(space):
    """First all constructors draw, then the default scheme, so a seed gives the weights of older versions.

    Only signs in narrow squeeze-and-excitations differ.
    """
    architecture = Space.load(space, resolution=32).sample(random.Random(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        blocks, channels = [], architecture.input[0]
        for layer in architecture.layers:
            blocks.append(make_block(layer, channels))
            channels = layer.out
        expected = nn.Sequential(*blocks).apply(kaiming)
        initialization.activate_squeeze(list(expected.modules()))
    network = build(architecture.with_name("mobilenet_v2_1.0-4"), seed=9)
    pairs = zip(expected.parameters(), network.parameters(), strict=True)
    assert all(torch.equal(one, other) or one.ndim == 1 for one, other in pairs)
    check_rest(network)


@pytest.mark.slow
def test_no_squeeze_and_excitation_starts_dead():
    """Of 200 random networks, 14 had one whose units were zero for every image, and so had no gradient."""
    space, rng = Space.load("mnasnet", resolution=32), random.Random(0)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    met = dead = 0

    def count(_, __, out: torch.Tensor) -> None:
        nonlocal met, dead
        met, dead = met + 1, dead + (not bool((out > 0).any()))

    for seed in range(80):
        network = build(space.sample(rng), seed=seed)
        for part in parts(network, SqueezeExcite):
            part.relu.register_forward_hook(count)
        with torch.no_grad():
            network(images)
    assert met > 400
    assert dead == 0


def test_an_unknown_scheme_is_refused_with_the_nearest():
    architecture = Architecture.of([{"block": "linear", "out": 10}], input=(3, 8, 8))
    with pytest.raises(InputError, match="'shufflenet_v2' is not a scheme; did you mean 'shufflenet'"):
        build(architecture, initialization="shufflenet_v2")
