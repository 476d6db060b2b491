"""RepVGG and MobileOne, which are plain chains of convolutions for inference."""

from __future__ import annotations

from nasspace.zoo.parts import Family, Layers, head, repeat

WIDTHS = (64, 128, 256, 512)  # of the stages, times a multiplier
WIDEST_STEM = 64
REPVGG_UNITS = {"a": (2, 4, 14, 1), "b": (4, 6, 16, 1)}
REPVGG = {  # multipliers of the stages 1 to 3 and of stage 4; Ding et al. 2021, table 2
    **{"a0": (0.75, 2.5), "a1": (1, 2.5), "a2": (1.5, 2.75)},
    **{"b0": (1, 2.5), "b1": (2, 4), "b2": (2.5, 5), "b3": (3, 5)},
}
MOBILEONE_UNITS = (2, 8, 10, 1)
MOBILEONE = {  # multipliers of the four stages, branches; Vasu et al. 2023, tables 2 and 3
    "s0": ((0.75, 1, 1, 2), 4),
    "s1": ((1.5, 1.5, 2, 2.5), 1),
    "s2": ((1.5, 2, 2.5, 4), 1),
    "s3": ((2, 2.5, 3, 4), 1),
    "s4": ((3, 3.5, 3.5, 4), 1),
}
EXCITED = {"s4": (0, 0, 5, 1)}  # the last units of each stage with squeeze-and-excitation


def _repvgg(classes: int, kind: str, groups: str | None) -> Layers:
    """Ding et al. 2021 by the official code; with `g2` or `g4` every second layer is in groups."""
    narrow, last = REPVGG[kind]
    multipliers = (narrow, narrow, narrow, last)
    layers = _stem(multipliers[0])
    for width, multiplier, count in zip(WIDTHS, multipliers, REPVGG_UNITS[kind[0]], strict=True):
        layers += repeat(count, {"block": "repvgg", "out": int(width * multiplier), "stride": 2})
    if groups:
        layers[2::2] = [{**layer, "groups": int(groups)} for layer in layers[2::2]]
    return [*layers, *head(classes)]


def _mobileone(classes: int, size: str) -> Layers:
    """Vasu et al. 2023 by the official code, whose stem has one branch at every size."""
    multipliers, branches = MOBILEONE[size]
    layers = _stem(multipliers[0])
    excited = EXCITED.get(size, (0, 0, 0, 0))
    for width, multiplier, count, last in zip(WIDTHS, multipliers, MOBILEONE_UNITS, excited, strict=True):
        block = {"block": "mobileone", "out": int(width * multiplier), "branches": branches}
        stage = repeat(count, {**block, "stride": 2})
        plain = count - last
        layers += [*stage[:plain], *({**layer, "se": 1 / 16} for layer in stage[plain:])]
    return [*layers, *head(classes)]


def _stem(multiplier: float) -> Layers:
    """The first layer: MobileOne's is that of RepVGG."""
    return [{"block": "repvgg", "out": min(WIDEST_STEM, int(WIDTHS[0] * multiplier)), "stride": 2}]


FAMILIES = [
    Family(
        "repvgg",
        "repvgg_(?P<kind>a[0-2]|b[0-3])(?:g(?P<groups>[24]))?",
        _repvgg,
        tuple(f"repvgg_{name}" for name in ("a0", "a1", "a2", "b0", "b1", "b1g4", "b2", "b2g4", "b3", "b3g4")),
        "repvgg",
    ),
    Family(
        "mobileone", "mobileone_(?P<size>s[0-4])", _mobileone, tuple(f"mobileone_{s}" for s in MOBILEONE), "mobileone"
    ),
]
