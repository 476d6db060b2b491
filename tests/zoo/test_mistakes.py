"""Common mistakes in implementations of published networks: each has a known wrong count, which ours must not have.

The wrong counts were measured on implementations with the mistake.
"""

from __future__ import annotations

import pytest

from nasspace import Architecture, cost, zoo

Layers = list[dict]
MISTAKES: dict[str, tuple] = {}


def mistake(name: str, params: int | None = None, flops: int | None = None, resolution: int | None = None):
    """Register a wrong variant of a network with its wrong counts (to as many digits as are known)."""

    def register(edit):
        MISTAKES[f"{edit.__name__} of {name}"] = (name, edit, params, flops, resolution)
        return edit

    return register


def of_block(layers: Layers, block: str, **changes) -> Layers:
    return [{**layer, **changes} if layer["block"] == block else layer for layer in layers]


@mistake("shufflenet_v1_g3_1.0", 1_863_768, 134_450_112)
@mistake("shufflenet_v1_g8_1.0", 2_431_752, 132_043_776)
def first_pointwise_grouped(layers: Layers) -> Layers:
    return [{key: value for key, value in layer.items() if key != "first_groups"} for layer in layers]


@mistake("shufflenet_v1_g3_1.5", flops=299_600_000)
def stem_scaled(layers: Layers) -> Layers:
    return [{**layers[0], "out": 36}, *layers[1:]]


@mistake("shufflenet_v2_1.0", flops=144_907_992)
@mistake("shufflenet_v2_1.5", flops=295_759_392)
@mistake("shufflenet_v2_2.0", flops=583_253_464)
def equal_halves(layers: Layers) -> Layers:
    return of_block(layers, "shuffle_v2", split="half")


@mistake("mobilenet_v3_large_1.0", 4_228_718)
def squeezed_from_input(layers: Layers) -> Layers:
    return [{**layer, "se_from": "input"} if layer.get("se") else layer for layer in layers]


@mistake("mobilenet_v2_0.5", 1_225_000)
def last_convolution_halved(layers: Layers) -> Layers:
    return [{**layer, "out": 640} if layer.get("out") == 1280 else layer for layer in layers]


@mistake("mobilenet_v2_0.35", 750_280)
def last_convolution_scaled(layers: Layers) -> Layers:
    return [{**layer, "out": 448} if layer.get("out") == 1280 else layer for layer in layers]


@mistake("mobilenext_0.5", 1_263_152)
def last_block_scaled(layers: Layers) -> Layers:
    return last_convolution_halved(layers)


@mistake("mobilenet_v2_0.75", flops=179_400_000)
def widths_cut_off(layers: Layers) -> Layers:
    """No rounding to multiples of 8."""
    whole = zoo.load("mobilenet_v2_1.0")
    outs = [int(0.75 * layer.out) for layer in whole.layers[:18]] + [1280, 1280, 1280, 1000]
    return [{**layer, "out": out} for layer, out in zip(layers, outs, strict=True)]


@mistake("mobilenet_v2_1.0", 3_505_960, 313_619_328)
def expansion_at_one(layers: Layers) -> Layers:
    """An expansion convolution in the block with t = 1."""
    return [layers[0], {"block": "conv", "out": 32, "kernel": 1, "activation": "relu6"}, *layers[1:]]


@mistake("mobilenet_v1_1.0", flops=533_833_216)
def last_stride_as_printed(layers: Layers) -> Layers:
    last = max(i for i, layer in enumerate(layers) if layer["block"] == "depthwise_separable")
    return [{**layer, "stride": 2} if i == last else layer for i, layer in enumerate(layers)]


@mistake("mobilenext_1.0", 3_567_624, 319_300_000)
def every_block_whole(layers: Layers) -> Layers:
    dropped = ("first_depthwise", "last_depthwise")
    return [{key: value for key, value in layer.items() if key not in dropped} for layer in layers]


@mistake("mobilenext_1.0", 3_237_064, 303_402_240)
@mistake("mobilenext_1.4", 5_536_408, 568_740_032)
@mistake("mobilenext_0.35", 1_879_432, 75_706_688)
def as_the_papers_table(layers: Layers) -> Layers:
    """Every block whole, and two of width 960."""
    whole = every_block_whole(layers)
    return [*whole[:-6], *whole[-5:]]


@mistake("squeezenet_1.0", flops=777_221_152)
@mistake("squeezenet_1.1", flops=352_500_000, resolution=227)
def pools_without_ceil(layers: Layers) -> Layers:
    return of_block(layers, "max_pool", ceil=False)


@mistake("squeezenet_1.0", 1_248_424, 861_339_936, 227)
def padded_last_convolution(layers: Layers) -> Layers:
    return [*layers[:-2], {**layers[-2], "padding": 1}, layers[-1]]


@mistake("alexnet_grouped", 62_378_344, 1_135_256_096)
def no_groups(layers: Layers) -> Layers:
    return of_block(layers, "conv", groups=1)


@mistake("resnet50", flops=3_857_973_248)
def stride_in_the_first_convolution(layers: Layers) -> Layers:
    return of_block(layers, "bottleneck", stride_at="1x1")


@pytest.mark.parametrize("key", MISTAKES)
def test_mistake(key):
    name, edit, params, flops, resolution = MISTAKES[key]
    right = zoo.load(name, resolution=resolution)
    layers = [{**layer, "out": layer.get("out")} for layer in right.to_dict()["layers"]]
    layers = [{key: value for key, value in layer.items() if value is not None} for layer in layers]
    wrong = Architecture.of(edit(layers), input=right.input)
    counted, ours = cost(wrong), cost(right)
    assert params is None or counted.params == params
    if flops is not None:
        digits = 5e-4 * flops if flops % 100_000 == 0 else 0  # known to four digits only, or exactly
        assert abs(counted.flops - flops) <= digits
    assert (ours.params, ours.flops) != (counted.params, counted.flops)
    assert wrong.digest != right.digest


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("mnasnet_a1_1.0", 5_139_518),  # squeezed to a quarter of the expanded width, not rounded
        ("mobilenet_v3_large_1.0", 5_481_198),  # the same
        ("mobilenet_v3_small_1.0", 2_537_238),
        ("mobilenet_v3_small_1.0", 2_945_288),  # squeeze-and-excitation on the last convolution
        ("mobilenet_v3_large_0.75", 3_377_576),  # torchvision's rule
        ("mobilenext_1.0", 3_551_416),  # hidden widths rounded to 8
        ("mobilenext_1.0", 3_273_512),  # without the least hidden width
        ("mobilenet_v2_1.0", 3_504_872 + 17_056),  # biases before batch norm
        ("mobilenet_v1_1.0", 4_231_976 + 10_944),
        ("shufflenet_v2_1.5", 4_406_098),  # last convolution scaled
        ("shufflenet_v2_2.0", 7_601_686),
    ],
)
def test_not_the_count_of_a_mistake_that_blocks_cannot_make(name, params):
    assert cost(zoo.load(name)).params != params
