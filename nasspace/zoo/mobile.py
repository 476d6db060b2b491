"""MobileNet V1 to V3, MnasNet, MobileNeXt, at any width multiplier, and EfficientNet-Lite."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from nasspace.blocks.layers import make_divisible
from nasspace.errors import InputError
from nasspace.zoo.parts import WIDTH, Family, Layers, at_any_width, at_widths, conv, head, repeat

WHOLE = Fraction(1)
FINEST = 64  # identity multipliers are fractions with denominators up to this


def _mobilenet_v1(classes: int, width: float) -> Layers:
    """Howard et al. 2017, table 1, with the official code's ReLU6, epsilon and stride of the last layer."""
    common: dict[str, Any] = {"activation": "relu6", "eps": 1e-3}
    stages = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    layers = [conv(max(8, int(32 * width)), 3, 2, **common)]
    for out, stride in stages:
        scaled = max(8, int(out * width))
        layers.append({"block": "depthwise_separable", "out": scaled, "stride": stride, **common})
    return [*layers, *head(classes, 0.001)]


def _mobilenet_v2(classes: int, width: float) -> Layers:
    """Sandler et al. 2018, table 2; the last convolution does not shrink."""
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    layers = [conv(make_divisible(32 * width), 3, 2, activation="relu6")]
    for expansion, out, count, stride in stages:
        block = {"block": "inverted_residual", "out": make_divisible(out * width), "stride": stride}
        layers += repeat(count, {**block, "expansion": expansion})
    last = make_divisible(1280 * max(1.0, width))
    return [*layers, conv(last, 1, activation="relu6"), *head(classes, 0.2)]


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
    layers = [conv(make_divisible(stem * width), 3, 2, **eps)]
    layers.append({**separable, "activation": "none", "middle": "relu", **eps})
    for kernel, stride, expansion, out, count, se in [*early, *late]:
        block = {"block": "inverted_residual", "out": make_divisible(out * width), "stride": stride}
        options = {"kernel": kernel, "expansion": expansion, "activation": "relu", **eps}
        excited = {"se": se, "se_from": "input"} if se else {}
        layers += repeat(count, {**block, **options, **excited})
    return [*layers, conv(1280, 1, **eps), *head(classes, 0.0 if kind == "small" else 0.2)]


EFFICIENTNET_LITE = {  # width and depth multipliers, resolution, dropout: the official code's
    "0": (1.0, 1.0, 224, 0.2),
    "1": (1.0, 1.1, 240, 0.2),
    "2": (1.1, 1.2, 260, 0.3),
    "3": (1.2, 1.4, 280, 0.3),
    "4": (1.4, 1.8, 300, 0.3),
}


def _efficientnet_lite(classes: int, size: str) -> Layers:
    """EfficientNet (Tan & Le 2019, table 1) without squeeze-and-excitation, with ReLU6: official `lite0` to `lite4`.

    The multipliers change neither the stem and the last convolution, nor the depth of the first and the last stage.
    """
    width, depth, _, dropout = EFFICIENTNET_LITE[size]
    stages = [(3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4)]
    deeper = [(*stage, math.ceil(count * depth)) for *stage, count in stages]
    common: dict[str, Any] = {"activation": "relu6", "eps": 1e-3}
    layers = [conv(32, 3, 2, **common)]
    for kernel, stride, expansion, out, count in [(3, 1, 1, 16, 1), *deeper, (3, 1, 6, 320, 1)]:
        block = {"block": "inverted_residual", "out": make_divisible(out * width), "stride": stride}
        layers += repeat(count, {**block, "kernel": kernel, "expansion": expansion, **common})
    return [*layers, conv(1280, 1, **common), *head(classes, dropout)]


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
    """Howard et al. 2019 (MobileNetV3).

    The width scales the ratio of each expansion (the official code). That gives the paper's table 9 if the last hidden
    layer keeps its width, except in the small network, where it grows above 1. With `_torchvision` the width scales
    the expanded widths and that layer.
    """
    *rows, hidden = MOBILENET_V3[size]
    eps: dict[str, Any] = {"eps": 1e-3}
    layers = [conv(make_divisible(16 * width), 3, 2, activation="hard_swish", **eps)]
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
    pool, *rest = head(classes, 0.2)
    return [*layers, conv(last, 1, activation="hard_swish", **eps), pool, dense, *rest]


def _mobilenext(classes: int, width: float, identity: Fraction = WHOLE) -> Layers:
    """Zhou et al. 2020 by the official code.

    The first block of a stage lacks its first depthwise convolution, and both where it has no stride; stages of a
    single block are whole, without a shortcut. `identity` is the identity tensor multiplier. Widths are multiples of 8,
    at 0.1 of 4. At widths near 0.1 a stage may be as wide as the previous one. The official code then makes its first
    block like the others: whole, with a shortcut, and without the stride.
    """
    divisor = 4 if width == 0.1 else 8
    stages = [(2, 96, 1, 2), (6, 144, 1, 1), (6, 192, 3, 2), (6, 288, 3, 2), (6, 384, 4, 1), (6, 576, 4, 2)]
    channels = make_divisible(32 * width, divisor)
    layers = [conv(channels, 3, 2, activation="relu6")]
    added = {} if identity == WHOLE else {"identity": float(identity)}
    for reduction, out, count, stride in [*stages, (6, 960, 3, 1)]:
        before, channels = channels, make_divisible(out * width, divisor)
        block = {"block": "sandglass", "out": channels, "reduction": reduction}
        first = {**block, "stride": stride}
        if count == 1 and before == channels:
            first |= {"identity": 0.0}
        elif count > 1 and before == channels:
            first = {**block, **added}
        elif count > 1:
            first |= {"first_depthwise": False, "last_depthwise": stride > 1}
        layers += [first, *[{**block, **added}] * (count - 1)]
    last = {"block": "sandglass", "out": make_divisible(1280 * max(1.0, width), divisor), "reduction": 6}
    return [*layers, last, *head(classes, 0.2)]


def _multiplied(classes: int, width: float, divisor: str | None, identity: Any = None) -> Layers:
    """MobileNeXt with the identity multiplier as a number, as text such as '1/2', or as the divisor in its name."""
    named = Fraction(1, max(1, int(divisor))) if divisor else None
    share = (named or WHOLE) if identity is None else _share(identity)
    if not Fraction(1, FINEST) <= share <= 1 or divisor == "0":
        raise InputError(f"the identity multiplier must be from 1/{FINEST} to 1, such as 1/2")
    if named not in (None, share):
        raise InputError(f"its name has an identity multiplier of {named}, the option {share}; leave one out")
    return _mobilenext(classes, width, share)


def _share(value: Any) -> Fraction:
    """Convert a number or text to a fraction of small numbers; 0 for anything else."""
    try:
        return Fraction(0 if isinstance(value, bool) else value).limit_denominator(FINEST)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        return Fraction(0)


FAMILIES = [
    Family(
        "mobilenet_v1",
        f"mobilenet_v1_{WIDTH}",
        at_any_width(_mobilenet_v1),
        at_widths("mobilenet_v1", 1.0, 0.75, 0.5, 0.25),
        "mobilenet_v1",
    ),
    Family(
        "mobilenet_v2",
        f"mobilenet_v2_{WIDTH}",
        at_any_width(_mobilenet_v2),
        at_widths("mobilenet_v2", 1.0, 1.4, 1.3, 0.75, 0.5, 0.35),
        "mobilenet_v2",
    ),
    Family(
        "mnasnet",
        f"mnasnet_(?P<kind>a1|b1)_{WIDTH}",
        at_any_width(_mnasnet),
        (*at_widths("mnasnet_a1", 1.0, 1.4, 0.75, 0.5, 0.35), *at_widths("mnasnet_b1", 1.0, 1.3, 0.75, 0.5)),
        "mnasnet",
    ),
    Family("mnasnet_small", "mnasnet_(?P<kind>small)", _mnasnet, ("mnasnet_small",), "mnasnet"),
    *(
        Family(
            "efficientnet_lite",
            f"efficientnet_lite(?P<size>{size})",
            _efficientnet_lite,
            (f"efficientnet_lite{size}",),
            "mnasnet",
            resolution,
        )
        for size, (_, _, resolution, _) in EFFICIENTNET_LITE.items()
    ),
    Family(
        "mobilenet_v3",
        f"mobilenet_v3_(?P<size>large|small)_{WIDTH}(?P<rule>_torchvision)?",
        at_any_width(_mobilenet_v3),
        tuple(
            f"mobilenet_v3_{size}_{width}{rule}"
            for rule in ("", "_torchvision")
            for size in ("large", "small")
            for width in (1.0, 1.25, 0.75, 0.5, 0.35)
            if not (rule and width == 1.0)
        ),
        "mobilenet_v3",
    ),
    Family(
        "mobilenext",
        rf"mobilenext_{WIDTH}(?:_identity_1_(?P<divisor>\d+))?",
        at_any_width(_multiplied),
        (
            *at_widths("mobilenext", 1.0, 1.4, 0.75, 0.5, 0.35),
            *(f"mobilenext_1.0_identity_1_{divisor}" for divisor in (2, 3, 6)),
        ),
        "mobilenext",
        options=("identity",),
    ),
]
