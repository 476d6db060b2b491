"""Channel pruning: what is removed, and that nothing else changes."""

import pytest
import torch

from nasspace import blocks, zoo
from nasspace.architecture import Architecture
from nasspace.compression.channels import channels, kept_channels
from nasspace.compression.pruning import Prunable
from nasspace.network import build

FAMILIES = (
    *("mobilenet_v1_0.25", "mobilenet_v2_0.35", "mobilenet_v3_small_0.5", "mnasnet_a1_0.5", "mobilenext_0.35"),
    *("resnet18", "shufflenet_v2_0.5", "fire"),
    *("universal_inverted_bottleneck", "fused_inverted_bottleneck", "ghost_bottleneck", "fasternet", "starnet"),
    *("repvgg", "mobileone", "inception_v1"),
)
FIRE = [
    {"block": "conv", "out": 16, "kernel": 3},
    *({"block": "fire", "out": out, "bypass": "simple"} for out in (32, 32, 64)),
    *({"block": "global_pool"}, {"block": "linear", "out": 5}),
]


def network_of(name):
    if name == "fire":
        return Architecture.of(FIRE, input=(3, 32, 32))
    if name in blocks.known():
        units = [{"block": name, "out": out, "stride": stride} for out, stride in ((24, 2), (24, 1), (32, 2))]
        end = [{"block": "batch_norm"}, {"block": "global_pool"}, {"block": "linear", "out": 5}]
        return Architecture.of([{"block": "conv", "out": 16}, *units, *end], input=(3, 32, 32))
    return zoo.load(name, resolution=32, classes=5)


def random_state(architecture, seed=0):
    """Initial weights, and scales, shifts and statistics that are all different."""
    generator = torch.Generator().manual_seed(seed)
    state = build(architecture, seed=seed).state_dict()
    return {n: t if t.dim() != 1 else 0.5 + torch.rand(t.shape, generator=generator) for n, t in state.items()}


def without_readers(prunable, architecture):
    """The larger network with zeros where a removed channel is read, so that it computes what the smaller one does."""
    before, after = prunable.channels, channels(build(architecture), architecture.input)
    kept = set(kept_channels(before, after, prunable.importance))
    state = {name: tensor.clone() for name, tensor in prunable.state.items()}
    for number, channel in enumerate(before.all):
        for (name, dimension), positions in channel.places if number not in kept else ():
            if dimension == 1:
                state[name][:, list(positions)] = 0
    return state


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_network_computes_what_the_whole_one_does_without_the_removed_channels(name):
    architecture = network_of(name)
    prunable = Prunable(architecture, random_state(architecture))
    image = torch.rand(2, *architecture.input)
    exact = 0
    for width in [*prunable.widths[::9], prunable.widths[-1]]:
        count = next(count for count in prunable.counts(width) if count <= max(1, 0.75 * width.count))
        smaller = prunable.narrowed(width, count)
        pruned = smaller and prunable.pruned(smaller)
        if not pruned or pruned.lost is None:
            continue
        exact += 1
        whole = build(architecture)
        whole.load_state_dict(without_readers(prunable, smaller))
        with torch.no_grad():
            expected, found = whole.eval()(image), pruned.network.eval()(image)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        assert expected.std(1).min() > 0
    assert exact >= (1 if name.startswith("shuffle") else 2)


def test_the_most_important_channels_stay():
    layers = [{"block": "conv", "out": 8, "kernel": 3}, {"block": "global_pool"}, {"block": "linear", "out": 3}]
    architecture = Architecture.of(layers, input=(3, 8, 8))
    state = random_state(architecture)
    classifier = next(n for n, t in state.items() if t.shape == (3, 8))
    state[classifier][:, [0, 2, 4, 6]] = 0  # the scores do not depend on these channels
    batches = [(torch.rand(16, 3, 8, 8), torch.arange(16) % 3) for _ in range(2)]
    prunable = Prunable(architecture, state, batches)
    (width,) = prunable.widths
    pruned = prunable.pruned(prunable.narrowed(width, 4))
    assert pruned.lost == 0
    image = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(pruned.network.eval()(image), prunable.network.eval()(image))


def test_a_shortcut_that_would_be_lost_is_no_pruning():
    layers = [
        {"block": "conv", "out": 16, "kernel": 3},
        {"block": "inverted_residual", "out": 16, "hidden": 32},
        {"block": "global_pool"},
        {"block": "linear", "out": 3},
    ]
    whole = Architecture.of(layers, input=(3, 8, 8))
    layers[1] = {**layers[1], "out": 12}
    other = Architecture.of(layers, input=(3, 8, 8))
    prunable = Prunable(whole, random_state(whole))
    assert {width.layers for width in prunable.widths if width.option == "out"} == {(0, 1, 2)}
    assert kept_channels(prunable.channels, channels(build(other), other.input), prunable.importance) is None


def test_channels_of_unknown_operations_are_the_first_ones():
    """AlexNet's local response normalization mixes neighbors."""
    layers = [
        {"block": "conv", "out": 16, "kernel": 3},
        {"block": "lrn"},
        {"block": "inverted_residual", "out": 16, "hidden": 32},
        {"block": "global_pool"},
        {"block": "linear", "out": 3},
    ]
    architecture = Architecture.of(layers, input=(3, 8, 8))
    state = random_state(architecture)
    prunable = Prunable(architecture, state)
    assert prunable.channels is None
    (width,) = prunable.widths
    pruned = prunable.pruned(prunable.narrowed(width, 16 + 4))
    assert pruned.lost is None
    name = next(n for n, t in state.items() if t.shape[:1] == (32,) and t.dim() == 4)
    torch.testing.assert_close(pruned.state[name], state[name][:20])
