"""The published networks, as `Architecture`s, equal to the originals to the last parameter and multiply-add.

A name is its family and its parameters: `mobilenet_v2_0.75`, `shufflenet_v1_g3_1.0`. Where the paper and its official
code differ, the code is followed, since the published counts are the code's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from nasspace.architecture import Architecture
from nasspace.blocks.layers import make_divisible
from nasspace.errors import InputError, nearest

Layers = list[dict[str, Any]]
WIDTH = r"(?P<width>\d+(?:\.\d+)?)"
MAX_WIDTH_MULTIPLIER = 4.0


def names() -> list[str]:
    """The published networks; the MobileNet families, MnasNet and MobileNeXt take other width multipliers, too."""
    return [name for _, _, members in FAMILIES for name in members]


def load(name: str, resolution: int | None = None, classes: int = 1000) -> Architecture:
    """The published network of a name, at its own resolution unless another is given.

    An unknown name is an `InputError` with the nearest known one.
    """
    for pattern, family, members in FAMILIES:
        match = re.fullmatch(pattern, name)
        if match and (WIDTH in pattern or name in members):
            side = resolution or (227 if name == "alexnet_grouped" else 224)
            layers = family(classes, **_read(name, match.groupdict()))
            return Architecture.of(layers, input=(3, side, side), classes=classes, name=name)
    raise InputError(f"'{name}' is not a published network{nearest(name, names())}")


def _read(name: str, parts: dict[str, str | None]) -> dict[str, Any]:
    if "width" in parts:
        parts["width"] = float(parts["width"])
        if not 0 < parts["width"] <= MAX_WIDTH_MULTIPLIER:
            raise InputError(f"'{name}': the width must be above 0 and at most {MAX_WIDTH_MULTIPLIER:g}")
    return parts


def _repeat(count: int, first: dict[str, Any]) -> Layers:
    """A stage: the stride and other things of the first layer are not those of the others, which keep its width."""
    return [first, *({**first, "stride": 1} for _ in range(count - 1))]


def _conv(out: int, kernel: int, stride: int = 1, **options: Any) -> dict[str, Any]:
    return {"block": "conv", "out": out, "kernel": kernel, "stride": stride, **options}


def _head(classes: int, dropout: float = 0.0, bias: bool = True) -> Layers:
    drop = [{"block": "dropout", "p": dropout}] if dropout else []
    return [{"block": "global_pool"}, *drop, {"block": "linear", "out": classes, "bias": bias}]


def _alexnet(classes: int, grouped: str | None) -> Layers:
    """Krizhevsky et al. 2012 as in Caffe (`grouped`, 227x227), else "one weird trick", as in torchvision.

    torchvision pools adaptively to 6x6 in front of the classifier, which at 224x224 changes nothing.
    """
    if grouped:
        rows = [(96, 11, 4, 0, 1), (256, 5, 1, 2, 2), (384, 3, 1, 1, 1), (384, 3, 1, 1, 2), (256, 3, 1, 1, 2)]
    else:
        rows = [(64, 11, 4, 2, 1), (192, 5, 1, 2, 1), (384, 3, 1, 1, 1), (256, 3, 1, 1, 1), (256, 3, 1, 1, 1)]
    convs = [_conv(o, k, s, padding=p, groups=g, norm="none") for o, k, s, p, g in rows]
    pool = {"block": "max_pool", "kernel": 3, "stride": 2, "padding": 0}
    reduce = [{"block": "lrn"}, pool] if grouped else [pool]
    body = [convs[0], *reduce, convs[1], *reduce, *convs[2:], pool, {"block": "flatten"}]
    drop, hidden = {"block": "dropout", "p": 0.5}, {"block": "linear", "out": 4096, "activation": "relu"}
    dense = [hidden, drop, hidden, drop] if grouped else [drop, hidden, drop, hidden]
    return [*body, *dense, {"block": "linear", "out": classes}]


def _squeezenet(classes: int, version: str, bypass: str | None) -> Layers:
    """Iandola et al. 2016, table 1 and figure 2; no norm, pools that keep the border (Caffe's)."""
    pool = {"block": "max_pool", "kernel": 3, "stride": 2, "padding": 0, "ceil": True}
    kind = {None: "none", "_bypass": "simple", "_complex_bypass": "complex"}[bypass]
    fire = [{"block": "fire", "out": out, "bypass": kind} for out in (128, 128, 256, 256, 384, 384, 512, 512)]
    if version == "1.0":
        stem = _conv(96, 7, 2, norm="none", padding=0)
        body = [stem, pool, *fire[:3], pool, *fire[3:7], pool, fire[7]]
    else:
        stem = _conv(64, 3, 2, norm="none", padding=0)
        body = [stem, pool, *fire[:2], pool, *fire[2:4], pool, *fire[4:]]
    return [*body, {"block": "dropout", "p": 0.5}, _conv(classes, 1, norm="none"), {"block": "global_pool"}]


def _mobilenet_v1(classes: int, width: float) -> Layers:
    """Howard et al. 2017, table 1, with the official code's ReLU6, epsilon and stride of the last layer."""
    common: dict[str, Any] = {"activation": "relu6", "eps": 1e-3}
    stages = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    layers = [_conv(max(8, int(32 * width)), 3, 2, **common)]
    for out, stride in stages:
        scaled = max(8, int(out * width))
        layers.append({"block": "depthwise_separable", "out": scaled, "stride": stride, **common})
    return [*layers, *_head(classes, 0.001)]


def _mobilenet_v2(classes: int, width: float) -> Layers:
    """Sandler et al. 2018, table 2; the last convolution does not shrink."""
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    layers = [_conv(make_divisible(32 * width), 3, 2, activation="relu6")]
    for expansion, out, count, stride in stages:
        block = {"block": "inverted_residual", "out": make_divisible(out * width), "stride": stride}
        layers += _repeat(count, {**block, "expansion": expansion})
    last = make_divisible(1280 * max(1.0, width))
    return [*layers, _conv(last, 1, activation="relu6"), *_head(classes, 0.2)]


MNASNET = {  # kernel, stride, expansion, out, count, squeeze-and-excitation; Tan et al. 2019, figure 7
    "a1": (
        (32, 16),
        [(3, 2, 6, 24, 2, 0), (5, 2, 3, 40, 3, 0.25), (3, 2, 6, 80, 4, 0), (3, 1, 6, 112, 2, 0.25)],
        [(5, 2, 6, 160, 3, 0.25), (3, 1, 6, 320, 1, 0)],
    ),
    "b1": (
        (32, 16),
        [(3, 2, 3, 24, 3, 0), (5, 2, 3, 40, 3, 0), (5, 2, 6, 80, 3, 0), (3, 1, 6, 96, 2, 0)],
        [(5, 2, 6, 192, 4, 0), (3, 1, 6, 320, 1, 0)],
    ),
    "small": (
        (8, 8),
        [(3, 2, 3, 16, 1, 0), (3, 2, 6, 16, 2, 0), (5, 2, 6, 32, 4, 0.25), (3, 1, 6, 32, 3, 0.25)],
        [(5, 2, 6, 88, 3, 0.25), (3, 1, 6, 144, 1, 0)],
    ),
}


def _mnasnet(classes: int, kind: str, width: float = 1.0) -> Layers:
    """Tan et al. 2019 (MnasNet) by the official code: squeeze-and-excitation from the block's input width."""
    (stem, first), early, late = MNASNET[kind]
    eps: dict[str, Any] = {"eps": 1e-3}
    separable = {"block": "depthwise_separable", "out": make_divisible(first * width)}
    layers = [_conv(make_divisible(stem * width), 3, 2, **eps)]
    layers.append({**separable, "activation": "none", "middle": "relu", **eps})
    for kernel, stride, expansion, out, count, se in [*early, *late]:
        block = {"block": "inverted_residual", "out": make_divisible(out * width), "stride": stride}
        options = {"kernel": kernel, "expansion": expansion, "activation": "relu", **eps}
        excited = {"se": se, "se_from": "input"} if se else {}
        layers += _repeat(count, {**block, **options, **excited})
    return [*layers, _conv(1280, 1, **eps), *_head(classes, 0.0 if kind == "small" else 0.2)]


MOBILENET_V3 = {  # kernel, expanded, out, squeeze-and-excitation, h-swish, stride; Howard et al. 2019, tables 1 and 2
    "large": (
        [(3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1)],
        [(5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1)],
        [(3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2)],
        [(5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1)],
        1280,
    ),
    "small": (
        [(3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1)],
        [(5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2)],
        [(5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1)],
        [],
        1024,
    ),
}


def _mobilenet_v3(classes: int, size: str, width: float, rule: str | None) -> Layers:
    """Howard et al. 2019 (MobileNetV3). The width scales the ratio of each expansion (the official code), which gives
    the paper's table 9 if the last hidden layer stays, but grows in the small network above 1; with `_torchvision`
    the width scales the expanded widths and that layer.
    """
    *rows, hidden = MOBILENET_V3[size]
    eps: dict[str, Any] = {"eps": 1e-3}
    layers = [_conv(make_divisible(16 * width), 3, 2, activation="hard_swish", **eps)]
    base, scaled = 16, make_divisible(16 * width)
    for kernel, expanded, out, se, swish, stride in [row for part in rows for row in part]:
        wide = make_divisible(expanded * width if rule else scaled * expanded / base)
        base, scaled = out, make_divisible(out * width)
        block = {"block": "inverted_residual", "out": scaled, "stride": stride, "kernel": kernel, "hidden": wide}
        excited = {"se": 0.25, "se_gate": "hard_sigmoid"} if se else {}
        layers.append({**block, "activation": "hard_swish" if swish else "relu", **excited, **eps})
    last = 6 * scaled if rule else make_divisible(6 * base * width)
    if rule or size == "small":
        hidden = make_divisible(hidden * (width if rule else max(1.0, width)))
    dense = {"block": "linear", "out": hidden, "activation": "hard_swish"}
    pool, *rest = _head(classes, 0.2)
    return [*layers, _conv(last, 1, activation="hard_swish", **eps), pool, dense, *rest]


# Zhang et al. 2018, table 1: the width of stage 2 by groups; the official code's width of the stem by scale
SHUFFLENET_V1 = {"1": 144, "2": 200, "3": 240, "4": 272, "8": 384}
STEMS = {"0.5": 12, "1.0": 24, "1.5": 24, "2.0": 48}


def _shufflenet_v1(classes: int, groups: str, scale: str) -> Layers:
    """Zhang et al. 2018, table 1, scaled as the official code does; the first pointwise convolution is not grouped."""
    out = round(SHUFFLENET_V1[groups] * float(scale))
    stem = 16 if (groups, scale) == ("8", "0.5") else STEMS[scale]
    layers = [_conv(stem, 3, 2), {"block": "max_pool", "kernel": 3, "stride": 2}]
    for i, count in enumerate((4, 8, 4)):
        layers += _repeat(count, {"block": "shuffle_v1", "out": out << i, "stride": 2, "groups": int(groups)})
    layers[2] = {**layers[2], "first_groups": 1}
    return [*layers, *_head(classes, bias=False)]


# Ma et al. 2018, table 5: the widths of stage 2 and of the last convolution by scale
SHUFFLENET_V2 = {"0.5": (48, 1024), "1.0": (116, 1024), "1.5": (176, 1024), "2.0": (244, 2048)}


def _shufflenet_v2(classes: int, scale: str, rule: str | None) -> Layers:
    """Ma et al. 2018 by the official code; `_torchvision` halves the first unit equally and has a last bias."""
    out, last = SHUFFLENET_V2[scale]
    split = {"split": "half"} if rule else {}
    layers = [_conv(24, 3, 2), {"block": "max_pool", "kernel": 3, "stride": 2}]
    for i, count in enumerate((4, 8, 4)):
        layers += _repeat(count, {"block": "shuffle_v2", "out": out << i, "stride": 2, **split})
    dropout = 0.2 if scale == "2.0" and not rule else 0.0
    return [*layers, _conv(last, 1), *_head(classes, dropout, bias=bool(rule))]


def _mobilenext(classes: int, width: float) -> Layers:
    """Zhou et al. 2020 by the official code: the first block of a stage lacks its first depthwise convolution, and
    both where it has no stride; the stages of a single block are whole.
    """
    stages = [(2, 96, 1, 2), (6, 144, 1, 1), (6, 192, 3, 2), (6, 288, 3, 2), (6, 384, 4, 1), (6, 576, 4, 2)]
    layers = [_conv(make_divisible(32 * width), 3, 2, activation="relu6")]
    for reduction, out, count, stride in [*stages, (6, 960, 3, 1)]:
        block = {"block": "sandglass", "out": make_divisible(out * width), "reduction": reduction}
        first = {**block, "stride": stride}
        if count > 1:
            first |= {"first_depthwise": False, "last_depthwise": stride > 1}
        layers += [first, *[block] * (count - 1)]
    last = {"block": "sandglass", "out": make_divisible(1280 * max(1.0, width)), "reduction": 6}
    return [*layers, last, *_head(classes, 0.2)]


def _scaled(family: str, *widths: float) -> list[str]:
    return [f"{family}_{width}" for width in widths]


V1_GROUPS = {"0.5": "138", "1.0": "12348", "1.5": "38", "2.0": "12348"}  # those that divide the widths
FAMILIES: list[tuple[str, Callable[..., Layers], list[str]]] = [  # pattern, layers of (classes, its groups), names
    (r"alexnet(?P<grouped>_grouped)?", _alexnet, ["alexnet", "alexnet_grouped"]),
    (
        r"squeezenet_(?P<version>1\.[01])(?P<bypass>_bypass|_complex_bypass)?",
        _squeezenet,
        ["squeezenet_1.0", "squeezenet_1.1", "squeezenet_1.0_bypass", "squeezenet_1.0_complex_bypass"],
    ),
    (f"mobilenet_v1_{WIDTH}", _mobilenet_v1, _scaled("mobilenet_v1", 1.0, 0.75, 0.5, 0.25)),
    (f"mobilenet_v2_{WIDTH}", _mobilenet_v2, _scaled("mobilenet_v2", 1.4, 1.3, 1.0, 0.75, 0.5, 0.35)),
    (
        f"mnasnet_(?P<kind>a1|b1)_{WIDTH}",
        _mnasnet,
        [*_scaled("mnasnet_a1", 1.4, 1.0, 0.75, 0.5, 0.35), *_scaled("mnasnet_b1", 1.3, 1.0, 0.75, 0.5)],
    ),
    ("mnasnet_(?P<kind>small)", _mnasnet, ["mnasnet_small"]),
    (
        f"mobilenet_v3_(?P<size>large|small)_{WIDTH}(?P<rule>_torchvision)?",
        _mobilenet_v3,
        [
            f"mobilenet_v3_{size}_{width}{rule}"
            for rule in ("", "_torchvision")
            for size in ("large", "small")
            for width in (1.25, 1.0, 0.75, 0.5, 0.35)
            if not (rule and width == 1.0)
        ],
    ),
    (
        f"shufflenet_v1_g(?P<groups>[12348])_(?P<scale>{'|'.join(STEMS)})",
        _shufflenet_v1,
        [f"shufflenet_v1_g{groups}_{scale}" for scale, kinds in V1_GROUPS.items() for groups in kinds],
    ),
    (
        f"shufflenet_v2_(?P<scale>{'|'.join(SHUFFLENET_V2)})(?P<rule>_torchvision)?",
        _shufflenet_v2,
        [f"shufflenet_v2_{scale}{rule}" for rule in ("", "_torchvision") for scale in SHUFFLENET_V2],
    ),
    (f"mobilenext_{WIDTH}", _mobilenext, _scaled("mobilenext", 1.4, 1.0, 0.75, 0.5, 0.35)),
]
