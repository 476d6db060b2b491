"""GoogLeNet (Inception v1), Inception v3 and v4, Inception-ResNet v2."""

from __future__ import annotations

from typing import Any

from nasspace.zoo.parts import Family, Layers, conv, head

AUXILIARY = "(?P<auxiliary>_auxiliary)?"
EPS = 1e-3  # of the official code and of the originals that the networks are compared with
GOOGLENET = {  # Szegedy et al. 2015, table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj
    3: [(64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)],
    4: [
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ],
    5: [(256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)],
}


def _googlenet(classes: int, auxiliary: str | None) -> Layers:
    """Szegedy et al. 2015, table 1, with batch norm and 3x3 for 5x5 convolutions, as in torchvision.

    `_auxiliary` adds the classifiers after modules 4a and 4d (section 5).
    """
    pool = {"block": "max_pool", "kernel": 3, "stride": 2, "padding": 0, "ceil": True}
    stages = {3: pool, 4: pool, 5: {**pool, "kernel": 2}}
    body = [layer for number, first in stages.items() for layer in (first, *map(_v1, GOOGLENET[number]))]
    if auxiliary:
        after = [3 + 1 + place for place in (1, 4)]  # stage 3 has three layers, stage 4 begins with a pooling
        for place in reversed(after):
            body.insert(place, {"block": "auxiliary", "classes": classes})
    return [_conv(64, 7, 2), pool, _conv(64, 1), _conv(192, 3), *body, *head(classes, 0.4)]


def _v1(widths: tuple[int, ...]) -> dict[str, Any]:
    """A module of GoogLeNet from its row of table 1."""
    straight, squeeze_3x3, expand_3x3, squeeze_5x5, expand_5x5, pool = widths
    out = straight + expand_3x3 + expand_5x5 + pool
    squeeze = {"squeeze_3x3": squeeze_3x3, "squeeze_5x5": squeeze_5x5}
    return _module("inception_v1", out, out, **squeeze, expand_3x3=expand_3x3, expand_5x5=expand_5x5, pool=pool) | {
        "kernel": 3
    }


def _inception_v3(classes: int, auxiliary: str | None) -> Layers:
    """Szegedy et al. 2016, table 1, with the widths of the official code, as in torchvision.

    `_auxiliary` adds the classifier before the second reduction (figure 8).
    """
    first = [_a(256, 48, 64, pool=32), _a(288, 48, 64, pool=64), _a(288, 48, 64, pool=64)]
    middle = [_c(768, width, width, 192, pool=192) for width in (128, 160, 160, 192)]
    squeeze = {"squeeze_short": 384, "squeeze_long": 448, "middle": 384}
    last = [_module("inception_e", 2048, 2048, **squeeze, expand_short=768, expand_long=768, pool=192)] * 2
    if auxiliary:
        middle.append({"block": "auxiliary", "classes": classes, "size": 5, "hidden": 768, "p": 0.0, "weight": 0.4})
    reductions = _b(288, 768, 64, 96, 96), _d(768, 1280, 192, 192, 192, 192)
    return [*_stem(), *first, reductions[0], *middle, reductions[1], *last, *head(classes, 0.5)]


def _inception_v4(classes: int) -> Layers:
    """Szegedy et al. 2017, figures 3 to 9."""
    entry = [
        _b(64, 160, 0, 0, 0) | {"pool_first": True},
        _d(0, 192, 64, 64, 64, 96) | {"pool": False, "stride": 1},
        _b(192, 384, 0, 0, 0),
    ]
    first = _a(384, 64, 96, pool=96) | {"kernel": 3}
    middle = _c(1024, 192, 224, 256, pool=128)
    squeeze = {"squeeze_short": 384, "squeeze_long": 384, "middle": 512}
    last = _module("inception_e", 1536, 1536, **squeeze, expand_short=512, expand_long=512, pool=256)
    body = [*[first] * 4, _b(384, 1024, 192, 224, 256), *[middle] * 7, _d(1024, 1536, 192, 256, 320, 320)]
    modules = [*body, *[last | {"factorized": True}] * 3]
    return [*_entry(), *entry, *map(_without_border, modules), *head(classes, 0.2)]


def _inception_resnet_v2(classes: int) -> Layers:
    """Szegedy et al. 2017, figures 15 to 19, with the stem and the widths of the official code, as in timm."""
    first = _module("inception_resnet_a", 320, 320, squeeze=32, middle=48, expand=64)
    middle = _module("inception_resnet_b", 1088, 1088, straight=192, squeeze=128, middle=160, expand=192)
    last = _module("inception_resnet_b", 2080, 2080, straight=192, squeeze=192, middle=224, expand=256)
    last |= {"kernel": 3, "scale": 0.2}
    widths = {"squeeze": 256, "expand_short": 288, "middle": 288, "expand_long": 320}
    halve = _reduction("inception_resnet_d", 1088, 2080, **widths)
    body = [_without_border(_a(320, 48, 64, pool=64)), *[first] * 10, _b(320, 1088, 256, 256, 384), *[middle] * 20]
    end = [halve, *[last] * 9, last | {"scale": 1.0, "activation": "none"}, _conv(1536, 1)]
    return [*_stem(), *body, *end, *head(classes, 0.2)]


def _entry() -> Layers:
    """The first three convolutions of Inception v3 and v4."""
    return [_conv(32, 3, 2, padding=0), _conv(32, 3, padding=0), _conv(64, 3)]


def _stem() -> Layers:
    """The layers of Inception v3 before the first module."""
    pool = {"block": "max_pool", "kernel": 3, "stride": 2, "padding": 0}
    return [*_entry(), pool, _conv(80, 1), _conv(192, 3, padding=0), pool]


def _conv(out: int, kernel: int, stride: int = 1, **options: Any) -> dict[str, Any]:
    """A convolution with the networks' epsilon."""
    return conv(out, kernel, stride, eps=EPS, **options)


def _module(block: str, out: int, whole: int, **widths: int) -> dict[str, Any]:
    """A module whose options are given as widths, of which it takes the shares in `whole` channels."""
    return {"block": block, "out": out, "eps": EPS, **{option: width / whole for option, width in widths.items()}}


def _reduction(block: str, width: int, out: int, **widths: int) -> dict[str, Any]:
    """A module that halves the map of `width` channels; its shares are those of the channels that it adds."""
    return _module(block, out, out - width, **widths) | {"stride": 2, "padding": 0}


def _a(out: int, squeeze: int, expand: int, pool: int) -> dict[str, Any]:
    """Inception-A with 64, 96 and 96 channels in its longest branch."""
    return _module(
        "inception_a", out, out, squeeze_5x5=squeeze, expand_5x5=expand, squeeze_3x3=64, expand_3x3=96, pool=pool
    )


def _b(width: int, out: int, squeeze: int, middle: int, expand: int) -> dict[str, Any]:
    """The first reduction."""
    return _reduction("inception_b", width, out, squeeze=squeeze, middle=middle, expand=expand)


def _c(out: int, squeeze: int, middle: int, expand: int, pool: int) -> dict[str, Any]:
    """Inception with 1x7 and 7x1."""
    widths = {"squeeze": squeeze, "middle": middle, "expand_short": expand, "expand_long": expand}
    return _module("inception_c", out, out, **widths, pool=pool)


def _d(width: int, out: int, short: int, squeeze: int, middle: int, expand: int) -> dict[str, Any]:
    """The second reduction."""
    widths = {"squeeze_3x3": short, "squeeze_7x7": squeeze, "middle_7x7": middle, "expand_7x7": expand}
    return _reduction("inception_d", width, out, **widths)


def _without_border(layer: dict[str, Any]) -> dict[str, Any]:
    """A module that averages as timm's do: without the zeros around the map."""
    averages = layer["block"] in ("inception_a", "inception_c", "inception_e")
    return layer | {"count_border": False} if averages else layer


FAMILIES = [
    Family("googlenet", f"googlenet{AUXILIARY}", _googlenet, ("googlenet",), "inception", stem=2),
    Family(
        "inception", f"inception_v3{AUXILIARY}", _inception_v3, ("inception_v3",), "inception", resolution=299, stem=4
    ),
    Family("inception", "inception_v4", _inception_v4, ("inception_v4",), "inception", resolution=299, stem=0),
    Family(
        "inception",
        "inception_resnet_v2",
        _inception_resnet_v2,
        ("inception_resnet_v2",),
        "inception",
        resolution=299,
        stem=4,
    ),
]
