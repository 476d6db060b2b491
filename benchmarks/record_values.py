"""Compute `tests/recorded/values.json` by the originals: small blocks with the weights of a formula.

    python benchmarks/record_values.py FOLDER

needs what `originals.py` does. The formula and the form of the file stand in `tests/test_values.py`.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from originals import executed, values
from originals_list import Bypassed, official, pooled_first, shuffled, version
from torch import nn

EPS = 1e-3
MEGVII = "megvii-model/ShuffleNet-Series a96672f"


def case(
    name: str,
    source: str,
    original: nn.Module,
    layers: list[dict[str, Any]],
    wrong: dict[str, list[dict[str, Any]]],
    size: tuple[int, ...] = (2, 8, 8, 8),
    scale: float = 1,
    late: str = "",
) -> dict[str, Any]:
    """One record: the outputs of the original, what ours is, what it is not; `late` as in `originals.Pair`."""
    record = {"name": name, "source": source, "input": list(size), "scale": scale, "layers": layers, "wrong": wrong}
    image, network = values.image_of(record), nn.Sequential(original).double().eval()
    values.fill(executed(network, image, late))
    with torch.no_grad():
        return {**record, **values.summary(network(image))}


def changed(layers: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    """The layers with other options."""
    return [{**layer, **options} for layer in layers]


def layer(block: str, out: int, stride: int = 1, **options: Any) -> dict[str, Any]:
    return {"block": block, "out": out, "stride": stride, **options}


def stem(in_channels: int, out_channels: int) -> nn.Module:
    """A stem that ends in a ReLU: a ReLU before the concatenation (the code) then equals one after it (the paper)."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def shuffle_v1(folder: Path) -> Iterator[dict[str, Any]]:
    from pytorchcv.models.shufflenet import ShuffleUnit

    units = [layer("shuffle_v1", 60, 2, groups=3, first_groups=1), layer("shuffle_v1", 60, groups=3)]
    paper, code = [layer("conv", 24), *units], [layer("conv", 24), *changed(units, shuffle="megvii")]
    network = nn.Sequential(stem(8, 24), ShuffleUnit(24, 60, 3, True, True), ShuffleUnit(60, 60, 3, False, False))
    source = f"{version('pytorchcv')} shufflenet.ShuffleUnit, the pooled input in front"
    yield case("shuffle_v1", source, pooled_first(network), paper, {"official order": code})
    make = official(folder / "ShuffleNetV1" / "blocks.py").ShuffleV1Block
    block = functools.partial(make, mid_channels=15, ksize=3, group=3)
    first, second = block(24, 60, first_group=True, stride=2), block(60, 60, first_group=False, stride=1)
    source = f"{MEGVII} ShuffleNetV1/blocks.py ShuffleV1Block"
    yield case("shuffle_v1_official", source, nn.Sequential(stem(8, 24), first, second), code, {"paper's order": paper})


def shuffle_v2(folder: Path) -> Iterator[dict[str, Any]]:
    from torchvision.models.shufflenetv2 import InvertedResidual

    units = [layer("shuffle_v2", 24, 2), layer("shuffle_v2", 24), layer("shuffle_v2", 24)]
    half, late = changed(units, split="half"), changed(units, shuffle="megvii")
    basic = [InvertedResidual(24, 24, 1), InvertedResidual(24, 24, 1)]
    source = f"{version('torchvision')} shufflenetv2.InvertedResidual"
    wrong = {"official order": changed(half, shuffle="megvii"), "official split": units}
    yield case("shuffle_v2_torchvision", source, nn.Sequential(InvertedResidual(8, 24, 2), *basic), half, wrong)
    block = functools.partial(official(folder / "ShuffleNetV2" / "blocks.py").ShuffleV2Block, mid_channels=12, ksize=3)
    megvii = f"{MEGVII} ShuffleNetV2/blocks.py ShuffleV2Block"
    network = nn.Sequential(block(8, 24, stride=2), block(12, 24, stride=1), block(12, 24, stride=1))
    wrong = {"paper's order": units, "torchvision's split": changed(late, split="half")}
    yield case("shuffle_v2_official", megvii, network, late, wrong)
    network = nn.Sequential(shuffled(block(8, 24, stride=2)), *basic)
    wrong = {"official order": late, "torchvision's split": half}
    yield case("shuffle_v2", f"{source}, the first unit {megvii}", network, units, wrong)


def mobilenets() -> Iterator[dict[str, Any]]:
    from timm.models._efficientnet_blocks import DepthwiseSeparableConv
    from torchvision.models.mobilenetv2 import InvertedResidual

    norm = functools.partial(nn.BatchNorm2d, eps=EPS)
    timm = f"{version('timm')} _efficientnet_blocks.DepthwiseSeparableConv"
    unit = functools.partial(DepthwiseSeparableConv, norm_layer=norm)
    layers = changed(
        [layer("depthwise_separable", 12, 2), layer("depthwise_separable", 12)], activation="relu6", eps=EPS
    )
    wrong = {"ReLU": changed(layers, activation="relu"), "linear": changed(layers, middle="none")}
    wrong |= {"epsilon 1e-5": changed(layers, eps=1e-5), "skip": changed(layers, skip="identity")}
    options = {"pw_act": True, "noskip": True, "act_layer": nn.ReLU6}
    network = nn.Sequential(unit(8, 12, stride=2, **options), unit(12, 12, **options))
    yield case("depthwise_separable", f"{timm}, pw_act", network, layers, wrong)
    layers = [layer("depthwise_separable", 12, activation="none", middle="relu", eps=EPS)]
    wrong = {"activated": changed(layers, activation="relu"), "ReLU6": changed(layers, middle="relu6")}
    wrong |= {"linear": changed(layers, middle="none"), "epsilon 1e-5": changed(layers, eps=1e-5)}
    yield case("mnasnet_separable", timm, unit(8, 12), layers, wrong)
    layers = [layer("inverted_residual", 12, 2), layer("inverted_residual", 12)]
    activated = [
        layer("conv", 48, kernel=1, activation="relu6"),
        layer("conv", 48, 2, groups=48, activation="relu6"),
        layer("conv", 12, kernel=1, activation="relu6"),
    ]
    wrong = {"ReLU": changed(layers, activation="relu"), "no skip": changed(layers, skip="none")}
    wrong |= {"activated projection": [*activated, layers[1]], "epsilon 1e-3": changed(layers, eps=EPS)}
    network = nn.Sequential(InvertedResidual(8, 12, 2, 6), InvertedResidual(12, 12, 1, 6))
    yield case("inverted_residual", f"{version('torchvision')} mobilenetv2.InvertedResidual", network, layers, wrong)


def excited() -> Iterator[dict[str, Any]]:
    from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
    from torchvision.models import mobilenetv3

    norm = functools.partial(nn.BatchNorm2d, eps=EPS)
    se = functools.partial(SqueezeExcite, rd_ratio=0.25 / 3)  # of the expanded width: 0.25 of the input's
    network = InvertedResidual(16, 16, 5, exp_ratio=3, norm_layer=norm, se_layer=se)
    options = {"kernel": 5, "expansion": 3, "activation": "relu", "eps": EPS}
    layers = [layer("inverted_residual", 16, **options, se=0.25, se_from="input")]
    wrong = {"hard sigmoid": changed(layers, se_gate="hard_sigmoid"), "ReLU6": changed(layers, activation="relu6")}
    wrong |= {"SE from the expanded": changed(layers, se_from="expanded"), "epsilon 1e-5": changed(layers, eps=1e-5)}
    source = f"{version('timm')} _efficientnet_blocks.InvertedResidual"
    yield case("mnasnet", source, network, layers, wrong, (2, 16, 8, 8))
    config = mobilenetv3.InvertedResidualConfig(16, 5, 40, 16, True, "HS", 1, 1, 1.0)
    options = {"kernel": 5, "hidden": 40, "activation": "hard_swish", "eps": EPS}
    layers = [layer("inverted_residual", 16, **options, se=0.25, se_gate="hard_sigmoid")]
    wrong = {name: changed(layers, activation=name) for name in ("silu", "relu", "relu6")}
    wrong |= {"sigmoid": changed(layers, se_gate="sigmoid"), "epsilon 1e-5": changed(layers, eps=1e-5)}
    source = f"{version('torchvision')} mobilenetv3.InvertedResidual"
    yield case("mobilenet_v3", source, mobilenetv3.InvertedResidual(config, norm), layers, wrong, (2, 16, 8, 8))


def sandglass(folder: Path) -> Iterator[dict[str, Any]]:
    block = official(folder / "MobileNeXt" / "mnext.py").SGBlock
    source = "yitu-opensource/MobileNeXt 94ac67d mnext.py SGBlock"
    start = [layer("sandglass", 24, 2, first_depthwise=False), layer("sandglass", 32, first_depthwise=False)]
    start[1]["last_depthwise"] = False
    whole = layer("sandglass", 32)
    first = [layer("conv", 16, kernel=1, activation="relu"), layer("conv", 24, kernel=1, activation="relu6")]
    activated = [*first, layer("conv", 24, 2, groups=24, activation="none"), start[1], whole]
    for share, identity, name in ((1, 1.0, "1"), (2, 1 / 2, "half"), (3, 1 / 3, "third")):
        blocks = [block(16, 24, 2, 6), block(24, 32, 1, 6), block(32, 32, 1, 6)]
        blocks[-1].identity_div = share
        layers = [*start, {**whole, "identity": identity}]
        others = {
            f"identity {other:.2g}": [*start, {**whole, "identity": other}] for other in (1.0, 1 / 2, 1 / 3, 1 / 6)
        }
        wrong = {key: value for key, value in others.items() if value != layers}
        wrong["activated reduction"] = [*activated[:-1], layers[-1]]
        yield case(f"sandglass_{name}", source, nn.Sequential(*blocks), layers, wrong, (2, 16, 8, 8))


def squeezenets() -> Iterator[dict[str, Any]]:
    from pytorchcv.models.alexnet import AlexConv
    from pytorchcv.models.squeezenet import FireUnit
    from torchvision.models.squeezenet import Fire

    unit = functools.partial(FireUnit, squeeze_channels=2, expand1x1_channels=8, expand3x3_channels=8)
    layers = [layer("fire", 16), layer("fire", 16, bypass="simple")]
    wrong = {"no bypass": changed(layers, bypass="none"), "complex": changed(layers, bypass="complex")}
    wrong["batch norm"] = changed(layers, norm="bn")
    source = f"{version('pytorchcv')} squeezenet.FireUnit"
    network = nn.Sequential(unit(8, residual=False), unit(16, residual=True))
    yield case("fire_simple", source, network, layers, wrong)
    layers = [layer("fire", 16, bypass="complex"), layer("fire", 16, bypass="complex")]
    wrong = {name: changed(layers, bypass=name) for name in ("none", "simple")}
    network = nn.Sequential(Bypassed(unit(8, residual=False)), unit(16, residual=True))
    yield case("fire_complex", f"{source}, with a parallel 1x1 convolution", network, layers, wrong)
    pool = {"block": "max_pool", "kernel": 3, "stride": 2, "padding": 0, "ceil": True}
    layers = [pool, layer("fire", 16), {"block": "global_pool"}]
    wrong = {"floor": [{**pool, "ceil": False}, *layers[1:]], "padding": [{**pool, "padding": 1}, *layers[1:]]}
    network = nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True), Fire(8, 2, 8, 8), nn.AdaptiveAvgPool2d(1))
    yield case("fire_pooled", f"{version('torchvision')} squeezenet.Fire after its pooling", network, layers, wrong)
    layers = [layer("conv", 12, norm="none"), {"block": "lrn"}]
    plain, five = layers[:1], changed(layers[:1], activation="relu6")
    network = AlexConv(8, 12, 3, 1, 1, use_lrn=True)
    source = f"{version('pytorchcv')} alexnet.AlexConv"
    yield case("lrn", source, network, layers, {"no norm": plain, "ReLU6": [*five, layers[1]]}, scale=100)


def xception() -> Iterator[dict[str, Any]]:
    from timm.models.xception import Block

    layers = [
        layer("xception", 12, 2, repeats=2, first_relu=False),
        layer("xception", 12, repeats=3),
        layer("xception", 16, 2, repeats=2, grow="last"),
    ]
    blocks = [Block(8, 12, 2, 2, start_with_relu=False), Block(12, 12, 3), Block(12, 16, 2, 2, grow_first=False)]
    wrong = {"first ReLU": changed(layers, first_relu=True), "no ReLU": changed(layers, first_relu=False)}
    wrong |= {"activation between": changed(layers, middle="relu"), "average": changed(layers, pool="avg")}
    wrong |= {"epsilon 1e-3": changed(layers, eps=EPS), "no skip": changed(layers, skip=False)}
    wrong["grows first"] = changed(layers, grow="first")
    yield case("xception", f"{version('timm')} xception.Block", nn.Sequential(*blocks), layers, wrong, (2, 8, 16, 16))


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def residual() -> Iterator[dict[str, Any]]:
    from timm.layers import SEModule
    from timm.models.resnet import Bottleneck as Timm
    from timm.models.senet import SEResNetBottleneck
    from torchvision.models.resnet import BasicBlock, Bottleneck

    source = f"{version('torchvision')} resnet"
    layers = [layer("basic", 12, 2), layer("basic", 12)]
    plain = [layer("conv", 12), layer("conv", 12, activation="none")]
    wrong = {"no shortcut": [layers[0], *plain], "epsilon 1e-3": [layer("conv", 12, 2, eps=EPS), layer("conv", 12)]}
    network = nn.Sequential(BasicBlock(8, 12, 2, projection(8, 12, 2)), BasicBlock(12, 12))
    yield case("basic", f"{source}.BasicBlock", network, layers, wrong)
    size = (2, 16, 8, 8)
    layers = [layer("bottleneck", 32, 2), layer("bottleneck", 32)]
    first = changed(layers, stride_at="1x1")
    shape = {"downsample": projection(16, 32, 2)}
    network = nn.Sequential(Bottleneck(16, 8, 2, **shape), Bottleneck(32, 8))
    yield case("bottleneck", f"{source}.Bottleneck", network, layers, {"stride in the 1x1": first}, size)
    grouped = changed(layers, groups=4, base_width=32)
    network = nn.Sequential(
        Bottleneck(16, 8, 2, **shape, groups=4, base_width=32), Bottleneck(32, 8, groups=4, base_width=32)
    )
    wrong = {"stride in the 1x1": changed(grouped, stride_at="1x1"), "no groups": changed(layers, base_width=128)}
    yield case("bottleneck_grouped", f"{source}.Bottleneck", network, grouped, wrong, size)
    excited, later = changed(first, se=1 / 4), changed(layers, se=1 / 4)
    network = nn.Sequential(SEResNetBottleneck(16, 8, 1, 4, 2, projection(16, 32, 2)), SEResNetBottleneck(32, 8, 1, 4))
    wrong = {"stride in the 3x3": later, "no SE": first}
    yield case(
        "se_bottleneck_v1",
        f"{version('timm')} senet.SEResNetBottleneck",
        network,
        excited,
        wrong,
        size,
        late="downsample",
    )
    attention = {"attn_layer": functools.partial(SEModule, rd_channels=8)}
    network = nn.Sequential(Timm(16, 8, 2, projection(16, 32, 2), **attention), Timm(32, 8, **attention))
    wrong = {"stride in the 1x1": excited, "no SE": layers}
    yield case("se_bottleneck", f"{version('timm')} resnet.Bottleneck", network, later, wrong, size)


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(record) for record in records)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(records)} in {path}")


def main(folder: str) -> None:
    path = Path(folder)
    groups = [shuffle_v1(path), shuffle_v2(path), mobilenets(), excited(), sandglass(path), squeezenets(), xception()]
    write(values.BLOCKS, [record for group in [*groups, residual()] for record in group])


if __name__ == "__main__":
    main(*sys.argv[1:])
