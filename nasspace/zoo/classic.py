"""AlexNet, SqueezeNet, Xception, ResNet and ResNeXt."""

from __future__ import annotations

from typing import Any

from nasspace.errors import InputError
from nasspace.zoo.parts import MAX_POOL, Family, Layers, conv, head, repeat

RESNETS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
BASIC = (18, 34)  # depths with basic units; the others have bottlenecks


def _alexnet(classes: int, grouped: str | None = None) -> Layers:
    """Krizhevsky et al. 2012 as in Caffe (`grouped`, 227x227), else "one weird trick", as in torchvision.

    torchvision averages the map to 6x6 before the classifier, which changes nothing at 224x224.
    """
    if grouped:
        rows = [(96, 11, 4, 0, 1), (256, 5, 1, 2, 2), (384, 3, 1, 1, 1), (384, 3, 1, 1, 2), (256, 3, 1, 1, 2)]
    else:
        rows = [(64, 11, 4, 2, 1), (192, 5, 1, 2, 1), (384, 3, 1, 1, 1), (256, 3, 1, 1, 1), (256, 3, 1, 1, 1)]
    convs = [conv(o, k, s, padding=p, groups=g, norm="none") for o, k, s, p, g in rows]
    pool = {"block": "max_pool", "kernel": 3, "stride": 2, "padding": 0}
    reduce = [{"block": "lrn"}, pool] if grouped else [pool]
    average = [] if grouped else [{"block": "avg_pool", "size": 6}]
    body = [convs[0], *reduce, convs[1], *reduce, *convs[2:], pool, *average, {"block": "flatten"}]
    drop, hidden = {"block": "dropout", "p": 0.5}, {"block": "linear", "out": 4096, "activation": "relu"}
    dense = [hidden, drop, hidden, drop] if grouped else [drop, hidden, drop, hidden]
    return [*body, *dense, {"block": "linear", "out": classes}]


def _squeezenet(classes: int, version: str, bypass: str | None) -> Layers:
    """Iandola et al. 2016, table 1 and figure 2; no norm, pools that keep the border (Caffe)."""
    pool = {"block": "max_pool", "kernel": 3, "stride": 2, "padding": 0, "ceil": True}
    kind = {None: "none", "_bypass": "simple", "_complex_bypass": "complex"}[bypass]
    fire = [{"block": "fire", "out": out, "bypass": kind} for out in (128, 128, 256, 256, 384, 384, 512, 512)]
    if version == "1.0":
        stem = conv(96, 7, 2, norm="none", padding=0)
        body = [stem, pool, *fire[:3], pool, *fire[3:7], pool, fire[7]]
    else:
        stem = conv(64, 3, 2, norm="none", padding=0)
        body = [stem, pool, *fire[:2], pool, *fire[2:4], pool, *fire[4:]]
    return [*body, {"block": "dropout", "p": 0.5}, conv(classes, 1, norm="none"), {"block": "global_pool"}]


def _xception(classes: int) -> Layers:
    """Chollet 2017, figure 5.

    The last two separable convolutions, which ReLU follows, are two layers each. Epsilon is PyTorch's, as in timm's
    port; the original's framework has 1e-3 by default.
    """
    entry = [_module(out, repeats=2, stride=2, first_relu=out != 128) for out in (128, 256, 728)]
    middle = [_module(728, repeats=3)] * 8
    leave = _module(1024, repeats=2, stride=2, grow="last")
    stem = [conv(32, 3, 2, padding=0), conv(64, 3, padding=0)]
    return [*stem, *entry, *middle, leave, *_separable(1024, 1536), *_separable(1536, 2048), *head(classes, 0.5)]


def _module(out: int, **options: Any) -> dict[str, Any]:
    """A module of separable convolutions."""
    return {"block": "xception", "out": out, **options}


def _separable(width: int, out: int) -> Layers:
    """3x3 depthwise -> 1x1, BN, ReLU, as two layers."""
    return [conv(width, 3, groups=width, norm="none", bias=False, activation="none"), conv(out, 1)]


def _resnet(classes: int, depth: str, se: str | None, form: str | None) -> Layers:
    """He et al. 2016, table 1; `se_` Hu et al. 2018; `_v1` as printed, else torchvision's stride in the 3x3 (v1.5).

    The official SE-ResNet-50 (`se_resnet50_v1`) pools without padding and keeps the border.
    """
    if form and int(depth) in BASIC:
        raise InputError("a network of basic units has no first 1x1 convolution that could have the stride")
    pool = {**MAX_POOL, "padding": 0, "ceil": True} if se and form else MAX_POOL
    options = {"se": 1 / 16} if se else {}
    return _stages(classes, int(depth), pool, **options, **({"stride_at": "1x1"} if form else {}))


def _resnext(classes: int, depth: str, groups: str, width: str) -> Layers:
    """Xie et al. 2017, table 1: `groups` paths of `width` channels in the first stage."""
    if not (int(groups) and int(width)):
        raise InputError("groups and width must be above 0")
    return _stages(classes, int(depth), MAX_POOL, groups=int(groups), base_width=int(width))


def _stages(classes: int, depth: int, pool: dict[str, Any], **options: Any) -> Layers:
    """A whole ResNet whose units have these options."""
    block, least = ("basic", 64) if depth in BASIC else ("bottleneck", 256)
    layers = [conv(64, 7, 2), pool]
    for i, count in enumerate(RESNETS[depth]):
        layers += repeat(count, {"block": block, "out": least << i, "stride": 2 if i else 1, **options})
    return [*layers, *head(classes)]


FAMILIES = [
    Family("alexnet", "alexnet", _alexnet, ("alexnet",), "alexnet", stem=0),
    Family(
        "alexnet", "alexnet(?P<grouped>_grouped)", _alexnet, ("alexnet_grouped",), "alexnet", resolution=227, stem=0
    ),
    Family(
        "squeezenet",
        r"squeezenet_(?P<version>1\.[01])(?P<bypass>(?<=1\.0)_bypass|(?<=1\.0)_complex_bypass)?",
        _squeezenet,
        ("squeezenet_1.0", "squeezenet_1.1", "squeezenet_1.0_bypass", "squeezenet_1.0_complex_bypass"),
        "squeezenet",
    ),
    Family("xception", "xception", _xception, ("xception",), "xception", resolution=299, stem=2),
    Family(
        "resnet",
        "(?P<se>se_)?resnet(?P<depth>18|34|50|101|152)(?P<form>_v1)?",
        _resnet,
        ("resnet18", "resnet34", "resnet50", "resnet50_v1", "resnet101", "se_resnet50", "se_resnet50_v1"),
        "resnet",
        stem=2,
    ),
    Family(
        "resnext",
        r"resnext(?P<depth>50|101|152)_(?P<groups>\d{1,3})x(?P<width>\d{1,3})d",
        _resnext,
        ("resnext50_32x4d", "resnext101_32x8d"),
        "resnet",
        stem=2,
    ),
]
