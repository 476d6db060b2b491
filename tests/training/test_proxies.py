"""Training-free scores against closed forms and plain computations with forward hooks."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nasspace import Architecture, blocks, build, cost, zoo
from nasspace.counting import RECTIFIERS
from nasspace.errors import InputError
from nasspace.training import proxies
from nasspace.training.proxies import SCORES, Minibatch, counts, scores

HEADS = ("global_pool", "flatten", "dropout", "linear")
LIBRARY = [name for name in blocks.known() if blocks.get(name).cls.__module__.startswith("nasspace.blocks.")]
FAMILIES = {zoo.family_of(name): name for name in reversed(zoo.names()) if not name.endswith("_cifar")}  # the smallest
LEAST = {"alexnet": 64, "alexnet_grouped": 67, "inception": 75}  # pixels; others run at 32


def tiny(activation: str = "relu", **changes) -> Architecture:
    layers = [
        {"block": "conv", "out": 6, "stride": 2, "activation": activation},
        {"block": "conv", "out": 9, "activation": activation},
        {"block": "global_pool"},
        {"block": "linear", "out": 4},
    ]
    return Architecture.of(layers, **{"input": (2, 8, 8), **changes})


def minibatch(architecture: Architecture, images: int = 8) -> Minibatch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(images, *architecture.input, generator=generator)
    return Minibatch(pixels, torch.randint(0, architecture.classes, (images,), generator=generator))


def rectified(network: nn.Module, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Input and output of each rectifier, by forward hooks."""
    seen = []
    for part in network.train().modules():
        if isinstance(part, RECTIFIERS):
            part.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0].clone(), out.clone())))
        elif isinstance(part, nn.Dropout):
            part.p = 0.0
    with torch.no_grad():
        network(images)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_one_network_of_each_family_has_every_score_and_its_units(family, shortened):
    architecture = shortened(zoo.load(FAMILIES[family], resolution=LEAST.get(family, 32), classes=10))
    batch = minibatch(architecture, 4)
    found = scores(architecture, batch)
    assert list(found) == list(SCORES)
    assert all(map(math.isfinite, found.values()))
    assert found["units"] == sum(x[0].numel() for x, _ in rectified(build(architecture), batch.images))


@pytest.mark.parametrize("name", [name for name in LIBRARY if name not in HEADS])
def test_every_block_of_the_library_has_every_score(name):
    layers = [{"block": "conv", "out": 8}, {"block": name}, {"block": name, "out": 12, "stride": 2}]
    layers += [{"block": head, "out": 10} for head in HEADS[:-1]] + [{"block": "linear", "out": 5}]
    architecture = Architecture.of(layers, input=(2, 12, 12))
    assert all(map(math.isfinite, scores(architecture, minibatch(architecture)).values()))


def test_counts_are_those_of_the_cost():
    architecture = zoo.load("mobilenet_v2_1.0")
    found, cost_of = counts(architecture), cost(architecture)
    assert found.pop("depth") == 53  # convolutions and the linear layer, Sandler et al. 2018, table 2
    assert found == {name: getattr(cost_of, name) for name in found}
    assert scores(architecture, names=["units"]) == {"units": cost_of.units}


@pytest.mark.parametrize("activation", ["relu", "relu6", "hard_swish", "silu", "gelu", "elu"])
def test_units_are_outputs_of_rectifiers(activation):
    assert cost(tiny(activation)).units == 6 * 16 + 9 * 16
    assert counts(tiny("sigmoid"))["units"] == 0


def test_functions_count_as_modules_do(own_blocks):
    class Functional(nn.Module):
        def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
            super().__init__()
            self.conv = nn.Conv2d(in_channels, out_channels, 1, stride)

        def forward(self, x):
            return F.relu6(self.conv(x), inplace=True)

    blocks.register("functional", Functional)
    architecture = Architecture.of([{"block": "functional", "out": 5}, {"block": "linear", "out": 3}], input=(2, 4, 4))
    assert counts(architecture)["units"] == 5 * 16
    assert all(map(math.isfinite, scores(architecture, minibatch(architecture)).values()))


@pytest.mark.parametrize("kind", RECTIFIERS)
@pytest.mark.parametrize("in_place", [False, True])
def test_every_rectifier_is_recognized(own_blocks, kind, in_place):
    if in_place and kind in (nn.GELU, nn.PReLU):
        return  # has no such form

    class Rectifier(nn.Module):
        def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
            super().__init__()
            self.rectifier = kind(inplace=True) if in_place else kind()

        def forward(self, x):
            return self.rectifier(x.clone())

    blocks.register("rectifier", Rectifier)
    architecture = Architecture.of([{"block": "rectifier"}, {"block": "linear", "out": 3}], input=(2, 4, 4))
    assert counts(architecture)["units"] == 2 * 16


@pytest.mark.parametrize("activation", ["relu", "relu6", "hard_swish"])
def test_naswot_is_the_determinant_of_hamming_distances(activation):
    architecture = tiny(activation)
    images = minibatch(architecture).images
    codes = torch.cat([(x > 0).flatten(1) for x, _ in rectified(build(architecture), images)], 1).numpy()
    kernel = numpy.array([[codes.shape[1] - (one != other).sum() for other in codes] for one in codes])
    expected = numpy.linalg.slogdet(kernel.astype(float))[1]
    assert proxies.naswot(build(architecture), images) == pytest.approx(expected, rel=1e-9)


def test_naswot_of_images_that_are_not_told_apart():
    images = minibatch(tiny()).images
    images[1] = images[0]
    assert proxies.naswot(build(tiny()), images) == -math.inf


def test_trace_ratio_is_the_participation_ratio_of_eigenvalues():
    images = minibatch(tiny()).images
    expected = 0.0
    for _, out in rectified(build(tiny()), images):
        rows = out.permute(0, 2, 3, 1).reshape(-1, out.shape[1]).numpy().astype(float)
        values = numpy.linalg.eigvalsh(numpy.cov(rows, rowvar=False))
        expected += math.log(values.sum() ** 2 / (values**2).sum())
    assert proxies.trace_ratio(build(tiny()), images) == pytest.approx(expected, rel=1e-5)


def plain_gradients(images: torch.Tensor, labels: torch.Tensor) -> list[numpy.ndarray]:
    network = build(tiny()).train()
    F.cross_entropy(network(images), labels).backward()
    return [part.weight.grad.numpy() for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear)]


def test_gradient_norm_is_the_sum_over_layers():
    batch = minibatch(tiny())
    expected = sum(numpy.linalg.norm(gradient) for gradient in plain_gradients(batch.images, batch.labels))
    assert proxies.gradient_norm(build(tiny()), batch.images, batch.labels) == pytest.approx(expected, rel=1e-5)


def test_zico_is_the_inverse_coefficient_of_variation():
    batch = minibatch(tiny(), 12)
    chunks = [plain_gradients(batch.images[4 * i : 4 * i + 4], batch.labels[4 * i : 4 * i + 4]) for i in range(3)]
    expected = 0.0
    for layer in zip(*chunks, strict=True):
        gradients = numpy.stack(layer).astype(float)
        spread = gradients.std(0)
        expected += math.log((numpy.abs(gradients).mean(0)[spread > 0] / spread[spread > 0]).sum())
    assert proxies.zico(build(tiny()), batch.images, batch.labels, parts=3) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("activation", ["relu", "relu6", "hard_swish"])
def test_synflow_of_a_chain_is_its_output_times_its_layers(activation):
    """R is linear in each layer's weights, so that the sum over the weights of one layer of |w| dR/d|w| is R."""
    network = build(tiny(activation))
    x = torch.ones(1, 2, 8, 8, dtype=torch.double)
    x = F.conv2d(x, network[0].layers[0].weight.double().abs(), stride=2, padding=1)
    x = F.conv2d(x, network[1].layers[0].weight.double().abs(), padding=1)
    flow = (x.mean((2, 3)) @ network[3].linear.weight.double().abs().T).sum()
    expected = math.log(3 * flow.item())
    assert proxies.synflow(network, (2, 8, 8)) == pytest.approx(expected, rel=1e-12)


def test_synflow_does_not_overflow():
    layers = [{"block": "conv", "out": 4, "kernel": 1} for _ in range(20)] + [{"block": "linear", "out": 4}]
    network = build(Architecture.of(layers, input=(4, 2, 2)))
    before = proxies.synflow(network, (4, 2, 2))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1e20)
    assert proxies.synflow(network, (4, 2, 2)) == pytest.approx(before + 21 * 20 * math.log(10))


def test_the_same_seed_gives_the_same_scores_and_nothing_else_changes():
    batch = minibatch(tiny())
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = scores(tiny(), batch)
    assert scores(tiny(), batch) == first
    other = scores(tiny(), batch, seed=1)
    assert all((other[name] == value) == (SCORES[name].needs == "counts") for name, value in first.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_network_does_not_change():
    network, batch = build(tiny()).eval(), minibatch(tiny())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for score in SCORES.values():
        if score.of_network:
            score.of_network(network, batch)
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_dropout_and_statistics_of_earlier_images_have_no_effect():
    layers = tiny().to_dict()["layers"]
    dropping = Architecture.of([*layers[:3], {"block": "dropout", "p": 0.9}, layers[3]], input=(2, 8, 8))
    batch = minibatch(tiny())
    without = {name: value for name, value in scores(tiny(), batch).items() if name != "depth"}
    assert {name: scores(dropping, batch)[name] for name in without} == without


@pytest.mark.parametrize(
    ("names", "batch", "message"),
    [
        (["naswt"], None, "'naswt' is not a score; did you mean 'naswot'?"),
        ([], None, "no score is named"),
        (["zico"], None, "'zico' needs a minibatch"),
        (["zico"], minibatch(tiny(), 3), "3 images is too small"),
        (["zico"], minibatch(tiny(input=(3, 8, 8))), r"images of \(3, 8, 8\), the network takes \(2, 8, 8\)"),
        (["zico"], Minibatch(torch.zeros(4, 2, 8, 8), torch.full((4,), 4)), "a class 4, the network has 4"),
    ],
)
def test_bad_arguments_are_one_message(names, batch, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        scores(tiny(), batch, names=names)
