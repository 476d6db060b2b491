"""GhostNet at any width multiplier, MobileNetV4's convolutional networks, FasterNet and StarNet."""

from __future__ import annotations

from typing import Any

from nasspace.blocks.layers import make_divisible
from nasspace.zoo.parts import WIDTH, Family, Layers, at_any_width, at_widths, conv, head, repeat

GHOSTNET = [  # kernel, expanded, out, squeeze-and-excitation, stride; Han et al. 2020, table 1
    *[(3, 16, 16, 0, 1), (3, 48, 24, 0, 2), (3, 72, 24, 0, 1), (5, 72, 40, 0.25, 2), (5, 120, 40, 0.25, 1)],
    *[(3, 240, 80, 0, 2), (3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1)],
    *[(3, 480, 112, 0.25, 1), (3, 672, 112, 0.25, 1), (5, 672, 160, 0.25, 2)],
    *[(5, 960, 160, 0, 1), (5, 960, 160, 0.25, 1), (5, 960, 160, 0, 1), (5, 960, 160, 0.25, 1)],
]


def _ghostnet(classes: int, width: float) -> Layers:
    """Han et al. 2020, table 1: widths are multiples of 4; the hidden linear layer keeps its width."""
    layers = [conv(make_divisible(16 * width, 4), 3, 2)]
    for kernel, expanded, out, se, stride in GHOSTNET:
        widths = {"out": make_divisible(out * width, 4), "hidden": make_divisible(expanded * width, 4)}
        excited = {"se": se} if se else {}
        layers.append({"block": "ghost_bottleneck", **widths, "kernel": kernel, "stride": stride, **excited})
    pool, *rest = head(classes, 0.2)
    dense = {"block": "linear", "out": 1280, "activation": "relu"}
    return [*layers, conv(make_divisible(960 * width, 4), 1), pool, dense, *rest]


Bottleneck = tuple[int, int, int, int, int, int]  # first kernel, kernel, stride, expansion, out, count
MOBILENET_V4: dict[str, list[Bottleneck]] = {  # Qin et al. 2024, the tables of its appendix, by timm's code
    "small": [
        *[(5, 5, 2, 3, 96, 1), (0, 3, 1, 2, 96, 4), (3, 0, 1, 4, 96, 1)],
        *[(3, 3, 2, 6, 128, 1), (5, 5, 1, 4, 128, 1), (0, 5, 1, 4, 128, 1), (0, 5, 1, 3, 128, 1), (0, 3, 1, 4, 128, 2)],
    ],
    "medium": [
        *[(3, 5, 2, 4, 80, 1), (3, 3, 1, 2, 80, 1)],
        *[(3, 5, 2, 6, 160, 1), (3, 3, 1, 4, 160, 2), (3, 5, 1, 4, 160, 1), (3, 3, 1, 4, 160, 1)],
        *[(3, 0, 1, 4, 160, 1), (0, 0, 1, 2, 160, 1), (3, 0, 1, 4, 160, 1)],
        *[(5, 5, 2, 6, 256, 1), (5, 5, 1, 4, 256, 1), (3, 5, 1, 4, 256, 2), (0, 0, 1, 4, 256, 1), (3, 0, 1, 4, 256, 1)],
        *[(3, 5, 1, 2, 256, 1), (5, 5, 1, 4, 256, 1), (0, 0, 1, 4, 256, 2), (5, 0, 1, 2, 256, 1)],
    ],
    "large": [
        *[(3, 5, 2, 4, 96, 1), (3, 3, 1, 4, 96, 1)],
        *[(3, 5, 2, 4, 192, 1), (3, 3, 1, 4, 192, 3), (3, 5, 1, 4, 192, 1), (5, 3, 1, 4, 192, 5), (3, 0, 1, 4, 192, 1)],
        *[(5, 5, 2, 4, 512, 1), (5, 5, 1, 4, 512, 3), (5, 0, 1, 4, 512, 1), (5, 3, 1, 4, 512, 1), (5, 0, 1, 4, 512, 2)],
        *[(5, 3, 1, 4, 512, 1), (5, 5, 1, 4, 512, 1), (5, 0, 1, 4, 512, 3)],
    ],
}
MOBILENET_V4_HEADS = {"small": (224, 0.3), "medium": (256, 0.2), "large": (384, 0.2)}  # resolution, dropout


def _mobilenet_v4(classes: int, size: str) -> Layers:
    """Qin et al. 2024 (MobileNetV4) with timm's epsilon, 1e-5: the official code's is 1e-6 or 1e-3, by network."""
    if size == "small":
        layers = [conv(32, 3, 2), conv(32, 3, 2), conv(32, 1), conv(96, 3, 2), conv(64, 1)]
    else:
        stem = conv(32 if size == "medium" else 24, 3, 2)
        layers = [stem, {"block": "fused_inverted_bottleneck", "out": 48, "stride": 2}]
    for first_kernel, kernel, stride, expansion, out, count in MOBILENET_V4[size]:
        block: dict[str, Any] = {"block": "universal_inverted_bottleneck", "out": out, "stride": stride}
        kernels = {"first_kernel": first_kernel, "kernel": kernel}
        layers += repeat(count, {**block, **kernels, "expansion": expansion})
    pool, *rest = head(classes, MOBILENET_V4_HEADS[size][1])
    return [*layers, conv(960, 1), pool, conv(1280, 1), *rest]


FASTERNET = {  # width of the first stage, units of the stages, activation; Chen et al. 2023, its table of variants
    "t0": (40, (1, 2, 8, 2), "gelu"),
    "t1": (64, (1, 2, 8, 2), "gelu"),
    "t2": (96, (1, 2, 8, 2), "relu"),
    "s": (128, (1, 2, 13, 2), "relu"),
}


def _fasternet(classes: int, size: str) -> Layers:
    """Chen et al. 2023: the first unit of a stage has its patch embedding or merging."""
    width, depths, activation = FASTERNET[size]
    layers: Layers = []
    for i, count in enumerate(depths):
        unit = {"block": "fasternet", "out": width << i, "stride": 2 if i else 4, "activation": activation}
        layers += repeat(count, unit)
    pool, *rest = head(classes)
    return [*layers, pool, {"block": "linear", "out": 1280, "bias": False, "activation": activation}, *rest]


STARNET = {  # width of the first stage, units of the stages; Ma et al. 2024, its table of variants
    "1": (24, (2, 2, 8, 3)),
    "2": (32, (1, 2, 6, 2)),
    "3": (32, (2, 2, 8, 4)),
    "4": (32, (3, 3, 12, 5)),
}


def _starnet(classes: int, size: str) -> Layers:
    """Ma et al. 2024: the first unit of a stage has its 3x3 convolution."""
    width, depths = STARNET[size]
    layers = [conv(32, 3, 2, bias=True, activation="relu6")]
    for i, count in enumerate(depths):
        layers += repeat(count, {"block": "starnet", "out": width << i, "stride": 2})
    return [*layers, {"block": "batch_norm"}, *head(classes)]


FAMILIES = [
    Family("ghostnet", f"ghostnet_{WIDTH}", at_any_width(_ghostnet), at_widths("ghostnet", 1.0, 1.3, 0.5), "pytorch"),
    *(
        Family(
            "mobilenet_v4",
            f"mobilenet_v4_conv_(?P<size>{size})",
            _mobilenet_v4,
            (f"mobilenet_v4_conv_{size}",),
            "mobilenet_v4",
            resolution,
        )
        for size, (resolution, _) in MOBILENET_V4_HEADS.items()
    ),
    Family(
        "fasternet",
        "fasternet_(?P<size>t0|t1|t2|s)",
        _fasternet,
        tuple(f"fasternet_{size}" for size in FASTERNET),
        "fasternet",
        stem=0,
    ),
    Family("starnet", "starnet_s(?P<size>[1-4])", _starnet, tuple(f"starnet_s{size}" for size in STARNET), "starnet"),
]
