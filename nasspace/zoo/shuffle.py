"""ShuffleNet V1 and V2."""

from __future__ import annotations

import math

from nasspace.errors import InputError
from nasspace.zoo.parts import MAX_POOL, Family, Layers, conv, head, repeat

SCALE = r"(?P<scale>\d+(?:\.\d+)?)"
MEGVII = {"shuffle": "megvii"}  # order of channels of the official code's weights
UNITS = (4, 8, 4)  # in stages 2, 3 and 4
V1_WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}  # of stage 2 by groups: Zhang et al. 2018, table 1
V1_SCALES = (0.25, 0.5, 1.0, 1.5, 2.0)
V2_WIDTHS = {0.5: (48, 1024), 1.0: (116, 1024), 1.5: (176, 1024), 2.0: (244, 2048)}  # Ma et al. 2018, table 5


def _shufflenet_v1(classes: int, groups: str, scale: str, order: str | None) -> Layers:
    """Zhang et al. 2018, table 1, scaled as the official code does; the first pointwise convolution is not grouped.

    `_megvii` takes the official code's order of channels. Widths of stage 2: `_v1_width`; of the stem: `_v1_stem`.
    """
    share = float(scale)
    if not V1_SCALES[0] <= share <= V1_SCALES[-1]:
        raise InputError(f"the scale must be from {V1_SCALES[0]} to {V1_SCALES[-1]}")
    out, ordered = _v1_width(int(groups), share), MEGVII if order else {}
    layers = [conv(_v1_stem(int(groups), share), 3, 2), MAX_POOL]
    for i, count in enumerate(UNITS):
        layers += repeat(count, {"block": "shuffle_v1", "out": out << i, "stride": 2, "groups": int(groups), **ordered})
    layers[2] = {**layers[2], "first_groups": 1}
    return [*layers, *head(classes, bias=False)]


def _v1_width(groups: int, scale: float) -> int:
    """The width of stage 2: the scaled one, rounded to a multiple of 4 x groups, which a unit needs.

    The paper reports accuracies and multiply-adds at scales whose widths do not divide (2 and 4 groups at 0.25 and
    0.5), but not the widths it used. Of two multiples equally near, the lower is taken with 2 groups and the higher
    with 4, which comes nearest to the published counts. At 0.5 (38M): 96 gives 35.7M and 104 40.9M; 144 gives 40.7M
    and 128 33.4M. At 1.5 (292M, of 3 groups): 296 gives 293.7M, 416 295.1M. At 0.25 (13M): 48 gives 12.6M, 64 12.3M.
    """
    unit = 4 * groups
    multiple = V1_WIDTHS[groups] * scale / unit
    return unit * max(1, math.floor(multiple + 0.5) if groups == 4 else math.ceil(multiple - 0.5))


def _v1_stem(groups: int, scale: float) -> int:
    """The width of the stem: 12 below scale 1, 24 below 2, 48 at 2, as in the official code from scale 0.5.

    The groups must divide it: with 8 it is 16 from scale 0.5 (official code) and 8 below. The networks at 0.25,
    whose widths are not published, then have 13.2M, 12.6M, 13.3M, 12.3M and 12.4M multiply-adds with 1, 2, 3, 4 and 8
    groups; 13M are published. A stem of 6 would give 11.0M, one of 16 with 8 groups 15.7M.
    """
    stem = 12 if scale < 1 else 24 if scale < 2 else 48
    if stem % groups:
        return 16 if scale >= 0.5 else 8
    return stem


def _shufflenet_v2(classes: int, scale: str, rule: str | None) -> Layers:
    """Ma et al. 2018 by the official code; `_torchvision` halves the first unit equally and has a last bias.

    `_megvii` takes the official code's order of channels.
    """
    if float(scale) not in V2_WIDTHS:
        raise InputError(f"the paper's scales are {', '.join(map(str, V2_WIDTHS))}")
    out, last = V2_WIDTHS[float(scale)]
    options = {None: {}, "_torchvision": {"split": "half"}, "_megvii": MEGVII}[rule]
    layers = [conv(24, 3, 2), MAX_POOL]
    for i, count in enumerate(UNITS):
        layers += repeat(count, {"block": "shuffle_v2", "out": out << i, "stride": 2, **options})
    bias = rule == "_torchvision"
    dropout = 0.2 if float(scale) == 2 and not bias else 0.0
    return [*layers, conv(last, 1), *head(classes, dropout, bias)]


FAMILIES = [
    Family(
        "shufflenet_v1",
        f"shufflenet_v1_g(?P<groups>[12348])_{SCALE}(?P<order>_megvii)?",
        _shufflenet_v1,
        tuple(f"shufflenet_v1_g{groups}_{scale}" for scale in V1_SCALES for groups in V1_WIDTHS),
        "shufflenet",
        stem=2,
    ),
    Family(
        "shufflenet_v2",
        f"shufflenet_v2_{SCALE}(?P<rule>_torchvision|_megvii)?",
        _shufflenet_v2,
        tuple(f"shufflenet_v2_{scale}{rule}" for rule in ("", "_torchvision") for scale in V2_WIDTHS),
        "shufflenet",
        stem=2,
    ),
]
