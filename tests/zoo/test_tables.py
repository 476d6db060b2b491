"""Shapes of layers against the tables in the papers, and published figures against our counts."""

from __future__ import annotations

import pytest

from nasspace import Architecture, cost, zoo

TABLES = {  # name: CHANNELSxSIDE of each row of the paper's table, equal consecutive rows once
    "alexnet_grouped": "96x55 96x27 256x27 256x13 384x13 256x13 256x6",
    "squeezenet_1.0": "96x109 96x54 128x54 256x54 256x27 384x27 512x27 512x13 1000x13 1000x1",
    "squeezenet_1.1": "64x111 64x55 128x55 128x27 256x27 256x13 384x13 512x13 1000x13 1000x1",
    "xception": "32x149 64x147 128x74 256x37 728x19 1024x10 1536x10 2048x10 2048x1",
    "mobilenet_v1_1.0": "32x112 64x112 128x56 256x28 512x14 1024x7 1024x1",
    "mobilenet_v2_1.0": "32x112 16x112 24x56 32x28 64x14 96x14 160x7 320x7 1280x7 1280x1",
    "mnasnet_a1_1.0": "32x112 16x112 24x56 40x28 80x14 112x14 160x7 320x7 1280x7 1280x1",
    "mobilenet_v3_large_1.0": "16x112 24x56 40x28 80x14 112x14 160x7 960x7 960x1",
    "mobilenet_v3_small_1.0": "16x112 16x56 24x28 40x14 48x14 96x7 576x7 576x1",
    "mobilenet_v4_conv_small": "32x112 32x56 96x28 64x28 96x14 128x7 960x7 960x1 1280x1",
    "mobilenet_v4_conv_medium": "32x128 48x64 80x32 160x16 256x8 960x8 960x1 1280x1",
    "fasternet_t0": "40x56 80x28 160x14 320x7 320x1",
    "starnet_s1": "32x112 24x56 48x28 96x14 192x7 192x1",
    "ghostnet_1.0": "16x112 24x56 40x28 80x14 112x14 160x7 960x7 960x1",
    "shufflenet_v1_g3_1.0": "24x112 24x56 240x28 480x14 960x7 960x1",
    "shufflenet_v1_g8_2.0": "48x112 48x56 768x28 1536x14 3072x7 3072x1",
    "shufflenet_v2_1.0": "24x112 24x56 116x28 232x14 464x7 1024x7 1024x1",
    "mobilenext_1.0": "32x112 96x56 144x56 192x28 288x14 384x14 576x7 960x7 1280x7 1280x1",
    "resnet50": "64x112 64x56 256x56 512x28 1024x14 2048x7 2048x1",
    "resnext50_32x4d": "64x112 64x56 256x56 512x28 1024x14 2048x7 2048x1",
    "resnet18_cifar": "64x32 128x16 256x8 512x4 512x1",
    "mobilenet_v2_1.0_cifar": "32x32 16x32 24x16 32x8 64x4 96x4 160x2 320x2 1280x2 1280x1",
}
UNITS = {  # name: number of layers for each row above, if the paper's table has it
    "mobilenet_v2_1.0": [1, 1, 2, 3, 4, 3, 3, 1, 1],
    "shufflenet_v1_g3_1.0": [1, 1, 4, 8, 4],
    "shufflenet_v2_1.0": [1, 1, 4, 8, 4, 1],
    "mobilenext_1.0": [1, 1, 1, 3, 3, 4, 4, 3, 1],
    "resnet50": [1, 1, 3, 4, 6, 3],
    "mobilenet_v1_1.0": [1, 1, 2, 2, 6, 2],
    "fasternet_t0": [1, 2, 8, 2],
    "starnet_s1": [1, 2, 2, 8],
}


def rows(name: str) -> list[tuple[str, int]]:
    """The maps of a network as in TABLES, each with its number of consecutive layers."""
    found: list[tuple[str, int]] = []
    for layer in cost(zoo.load(name)).layers:
        if len(layer.out_shape) == 3:
            shape = f"{layer.out_shape[0]}x{layer.out_shape[1]}"
            same = bool(found) and found[-1][0] == shape
            found[-1:] = [(shape, found[-1][1] + 1)] if same else [*found[-1:], (shape, 1)]
    return found


@pytest.mark.parametrize("name", TABLES)
def test_maps_are_those_of_the_table(name):
    assert " ".join(shape for shape, _ in rows(name)) == TABLES[name]


@pytest.mark.parametrize("name", UNITS)
def test_numbers_of_layers_are_those_of_the_table(name):
    assert [count for _, count in rows(name)][: len(UNITS[name])] == UNITS[name]


def test_published_figures_belong_to_networks_and_are_near_our_counts():
    for name in zoo.figures._all():
        for row in zoo.published(name):
            assert row.source
            assert row.top1 is None or 40 < row.top1 < 85
            ours = cost(zoo.load(name, row.resolution))
            assert row.params_m is None or abs(row.params_m * 1e6 / ours.params - 1) < 0.15, row
            assert row.madds_m is None or abs(row.madds_m * 1e6 / ours.flops - 1) < 0.15, row


def test_published_figures_are_of_that_network_only():
    original = zoo.load("mobilenet_v2_1.0", resolution=160)
    assert [row.top1 for row in zoo.published_of(original)] == [68.8]
    assert zoo.published_of(zoo.load("mobilenet_v2_1.0", resolution=161)) == ()
    assert zoo.published_of(zoo.load("mobilenet_v2_1.0", classes=10)) == ()
    other = Architecture.of([{"block": "global_pool"}, {"block": "linear", "out": 1000}], name="mobilenet_v2_1.0")
    assert zoo.published_of(other) == ()
