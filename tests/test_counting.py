"""Counts against forward hooks, fvcore and closed forms."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nasspace import Architecture, Space, blocks, build, cost, zoo
from nasspace.counting import _Recorder, layer_cost, operations
from nasspace.errors import InputError

SPACES = ["fire", "inception", "mixed", "mnasnet", "mobile", "resnext", "sandglass", "shuffle", "spos", "xception"]


def check(arch: Architecture, by_hooks) -> None:
    """Check counts of a network against forward hooks, and its JSON round trip."""
    counted, network = cost(arch), build(arch).eval()
    image = torch.randn(1, *arch.input)
    assert (counted.flops, counted.params, counted.memory_access) == by_hooks(network, image)
    for name in ("flops", "params", "memory_access", "activations"):
        assert getattr(counted, name) == sum(getattr(layer, name) for layer in counted.layers)
    assert counted.layers[-1].out_shape == (arch.classes,)
    again = Architecture.from_json(arch.to_json())
    assert again.digest == arch.digest
    assert cost(again) == counted


@pytest.mark.parametrize("name", SPACES)
def test_random_networks(name, by_hooks):
    space = Space.load(name, resolution=32)
    for seed in range(8):
        check(space.sample(random.Random(seed)), by_hooks)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_many_random_networks(name, by_hooks):
    rng = random.Random(0)
    for task in ({"resolution": 32}, {"resolution": 64, "channels": 1, "classes": 7}):
        space = Space.load(name, **task)
        for _ in range(12):
            check(space.sample(rng), by_hooks)


@pytest.mark.parametrize("name", SPACES)
def test_networks_at_their_own_resolution(name, by_hooks):
    check(Space.load(name).sample(random.Random(0)), by_hooks)


@pytest.mark.parametrize("name", SPACES)
def test_whole_networks_are_counted_as_by_fvcore(name):
    arch = Space.load(name, resolution=64).sample(random.Random(3))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(build(arch).eval(), torch.zeros(1, *arch.input))
        counts = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    assert cost(arch).flops == counts["conv"] + counts["linear"]


def test_a_network_by_hand():
    arch = Architecture.of(
        [
            {"block": "conv", "out": 8, "kernel": 3, "stride": 2, "bias": True},
            {"block": "conv", "out": 12, "kernel": 1, "groups": 4},
            {"block": "flatten"},
            {"block": "linear", "out": 10},
        ],
        input=(3, 9, 7),
    )
    counted = cost(arch)
    conv, grouped, flat, linear = counted.layers
    assert [layer.out_shape for layer in counted.layers] == [(8, 5, 4), (12, 5, 4), (240,), (10,)]
    assert conv.flops == 20 * 8 * 9 * 3
    assert conv.params == 8 * 9 * 3 + 8 + 2 * 8
    assert conv.memory_access == 9 * 7 * 3 + 8 * 9 * 3 + 20 * 8
    assert conv.activations == 160
    assert (grouped.flops, grouped.params) == (20 * 12 * 2, 12 * 2 + 2 * 12)
    assert grouped.memory_access == 20 * 8 + 12 * 2 + 20 * 12
    assert (flat.flops, flat.params, flat.memory_access) == (0, 0, 0)
    assert (linear.flops, linear.params, linear.memory_access) == (2400, 2410, 240 + 2400 + 10)
    assert conv.in_shape == (3, 9, 7)


def test_memory_access_is_shufflenet_v2s():
    """hw(c1 + c2) + c1 c2 of a 1x1 convolution; section 2 of the paper, equation 1."""
    arch = Architecture.of([{"block": "conv", "out": 52, "kernel": 1}], input=(312, 56, 56))
    assert cost(arch).memory_access == 56 * 56 * (312 + 52) + 312 * 52


def test_a_map_that_is_too_small_names_the_layer():
    layers = [{"block": "conv", "out": 8}, {"block": "conv", "out": 8, "kernel": 7, "padding": 0}]
    with pytest.raises(
        InputError,
        match=r"layers\[1\] \(conv\): does not run on an input of 8x4x4: .*[Kk]ernel size.*; choose a larger",
    ):
        cost(Architecture.of(layers, input=(3, 4, 4)))


def test_a_flattened_map_has_one_width_only():
    arch = Architecture.of([{"block": "flatten"}, {"block": "conv", "out": 10}], input=(3, 4, 4))
    with pytest.raises(InputError, match=r"layers\[1\] \(conv\): does not run on an input of 48"):
        cost(arch)


def test_a_layer_is_counted_once():
    layer_cost.cache_clear()
    arch = Architecture.of(
        [{"block": "shuffle_v2", "out": 16}] * 5 + [{"block": "linear", "out": 10}], input=(16, 8, 8)
    )
    cost(arch)
    assert layer_cost.cache_info().misses == 2
    cost(Architecture.from_json(arch.to_json()))
    assert layer_cost.cache_info().misses == 2


def test_counting_has_no_side_effects():
    state, modes = torch.get_rng_state(), torch.is_grad_enabled()
    layer_cost.cache_clear()
    cost(Space.load("mixed").sample(random.Random(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled() == modes
    assert torch.empty(1).device.type == "cpu"
    assert nn.Conv2d(2, 2, 1).weight.abs().sum() > 0


class Odd(nn.Module):
    """Operations that the library's blocks do not use."""

    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.transposed = nn.ConvTranspose2d(in_channels, 6, 3, 2, 1)
        self.reflecting = nn.Conv2d(6, 4, 3, padding="same", padding_mode="reflect", dilation=2)
        self.flat = nn.Conv1d(4, 4, 3, groups=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, out_channels, bias=False)

    def forward(self, x):
        x = self.reflecting(self.transposed(x))
        x = self.flat(x.flatten(2)).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        x = F.conv2d(x.transpose(1, 2)[..., None], torch.ones(4, 1, 3, 1, device=x.device), groups=4, padding=(1, 0))
        return self.last(x.mean((2, 3)))


def test_unusual_operations_are_counted(own_blocks):
    blocks.register("odd", Odd)
    arch = Architecture.of([{"block": "odd", "out": 5}], input=(3, 4, 4))
    pixels, tokens = 7 * 7, 7 * 7 - 2
    attention = 4 * tokens * 4 * 4 + 2 * tokens * tokens * 4  # four projections; scores and their use
    reflecting, flat, grouped = pixels * 4 * 6 * 9, tokens * 4 * 2 * 3, tokens * 4 * 3
    assert cost(arch).flops == 4 * 4 * 3 * 6 * 9 + reflecting + flat + attention + grouped + 4 * 5


@pytest.mark.parametrize("name", ["mobilenet_v3_small_1.0", "shufflenet_v1_g3_1.0", "squeezenet_1.1", "alexnet"])
def test_operations_add_up_to_the_layer(name):
    architecture = zoo.load(name)
    for layer, counted in zip(architecture.layers, cost(architecture).layers, strict=True):
        done = operations(layer, counted.in_shape)
        weighted = [operation for operation in done if operation.weight_shape]
        assert sum(operation.flops for operation in done) == counted.flops
        assert sum(operation.memory_access for operation in weighted) == counted.memory_access


def test_operations_are_named_as_in_the_field():
    def kinds(**layer) -> list[str]:
        architecture = Architecture.of([layer], input=(24, 8, 8))
        return [operation.kind for operation in operations(architecture.layers[0], architecture.input)]

    assert kinds(block="inverted_residual", se=0.25) == [
        *("pointwise", "depthwise", "mean", "pointwise", "pointwise", "mul", "pointwise", "add")
    ]
    assert kinds(block="shuffle_v1", groups=3) == ["grouped", "clone", "depthwise", "grouped", "add"]
    assert kinds(block="conv", out=8) == ["dense"]
    assert kinds(block="repvgg") == ["dense"]
    assert kinds(block="mobileone", branches=4) == ["depthwise", "pointwise"]


def test_counting_does_not_import_pytorchs_compiler():
    """It takes seconds, more than all else that `nas show` does."""
    code = (
        "import sys; from nasspace import cost, zoo\n"
        "for name in ('mobilenet_v3_large_1.0', 'shufflenet_v1_g3_1.0', 'googlenet'): cost(zoo.load(name))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


class Sums(nn.Module):
    """Sums of maps of unequal shapes, means and concatenations of unusual dimensions, tensors in another order."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        x = x + x.mean((2, 3), keepdim=True)
        x = x * x.mean(1, keepdim=True) - x.mean((0, 1, 2, 3)) + self.linear(x.mean((2, 3))).sum()
        turned = x.view(1, 2, 3, 5, 7).transpose(1, 2)
        x = x + (turned + turned).reshape(x.shape) + (x * 1j).real
        x = torch.cat([x, x[:, :2]], 1)
        return torch.cat([x, x], dim=-1) / x.amax(2, keepdim=True).repeat(1, 1, 1, 2)


def test_shapes_of_frequent_operations_are_pytorchs():
    x, module = torch.randn(1, 6, 5, 7), Sums()
    with torch.no_grad(), _Recorder() as recorder:
        expected = module(x)
    with torch.no_grad(), _Recorder() as found:
        assert module.to("meta")(x.to("meta")).shape == expected.shape
    assert found.operations == recorder.operations


@pytest.mark.parametrize(
    "refused",
    [
        lambda x: x + x[:, :4],
        lambda x: torch.cat([x, x[:, :, 1:]], 1),
        lambda x: x.mean((6,), keepdim=True),
        lambda x: x.mean((2, -2), keepdim=True),
        lambda x: F.linear(x[:, :, 0, 0], torch.empty(3, 5, device="meta"), torch.empty(3, device="meta")),
        lambda x: (x.transpose(1, 2) + x.transpose(1, 2)).view(1, -1),
    ],
)
def test_what_pytorch_refuses_is_refused(refused):
    with pytest.raises((RuntimeError, IndexError)), torch.no_grad(), _Recorder():
        refused(torch.empty(1, 6, 5, 7, device="meta"))
