"""Building networks: seeds, initialization, shapes, failing constructors."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from nasspace import Architecture, Space, blocks, build, zoo
from nasspace.errors import InputError

ARCH = Architecture.of(
    [{"block": "conv", "out": 8}, {"block": "fire", "out": 16}, {"block": "linear", "out": 10}], input=(3, 16, 16)
)


def test_the_same_seed_gives_the_same_weights():
    one, again, other = build(ARCH, seed=1).state_dict(), build(ARCH, seed=1).state_dict(), build(ARCH).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    build(ARCH, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_initialization():
    network = build(Space.load("mobile", resolution=32).sample(random.Random(0))).requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear) and module.bias is not None:
            assert not module.bias.any()
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            fan_out = module.weight[:, 0].numel() // module.groups
            assert float(module.weight.std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    linear = build(zoo.load("mobilenet_v2_0.35"))[-1].linear
    assert float(linear.weight.detach().std()) == pytest.approx(0.01, rel=0.05)


def test_a_users_block_keeps_its_own_initialization(own_blocks):
    class Constant(nn.Conv2d):
        def __init__(self, in_channels, out_channels, stride):
            super().__init__(in_channels, out_channels, 1, stride)
            nn.init.constant_(self.weight, 3.0)

    blocks.register("constant", Constant)
    network = build(Architecture.of([{"block": "constant", "out": 8}, {"block": "linear", "out": 10}]))
    assert bool((network[0].weight == 3).all())


def test_a_network_is_a_chain_of_its_layers():
    network = build(ARCH)
    assert [type(block) for block in network] == [blocks.get(layer.block).cls for layer in ARCH.layers]
    assert network.training
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_a_map_of_1x1_at_the_end_is_a_row():
    arch = Architecture.of([{"block": "conv", "out": 10}, {"block": "global_pool"}], input=(3, 8, 8))
    assert build(arch)(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_networks_run_at_other_resolutions_than_their_own():
    network = build(Space.load("mixed").sample(random.Random(0))).eval()
    for side in (64, 96, 100):
        assert network(torch.randn(1, 3, side, side)).shape == (1, 10)


def test_a_flatten_sees_the_whole_map():
    layers = [{"block": "conv", "out": 4, "stride": 2}, {"block": "flatten"}, {"block": "dropout"}]
    arch = Architecture.of([*layers, {"block": "linear", "out": 10}], input=(3, 9, 6))
    network = build(arch)
    assert network[-1].linear.in_features == 4 * 5 * 3
    assert network.training
    assert network(torch.randn(2, 3, 9, 6)).shape == (2, 10)
    wide = build(Architecture.of([layers[0], {"block": "flatten", "out": 10}], input=(3, 9, 6)))
    assert wide(torch.randn(2, 3, 9, 6)).shape == (2, 10)


def test_a_constructor_that_fails_names_its_layer(own_blocks):
    class Fails(nn.Module):
        def __init__(self, in_channels, out_channels, stride):
            raise KeyError("nothing")

    blocks.register("fails", Fails)
    arch = Architecture.of([{"block": "conv", "out": 8}, {"block": "fails", "out": 10}])
    with pytest.raises(
        InputError, match=r"layers\[1\] \(fails\): cannot be built with 8 channels in, 10 out: 'nothing'"
    ):
        build(arch)
