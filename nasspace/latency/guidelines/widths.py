"""G1 and G2: 1x1 convolutions of unequal widths, and convolutions in groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from nasspace.architecture import Architecture
from nasspace.counting import layer_cost
from nasspace.errors import InputError
from nasspace.latency.guidelines.graph import Convolution
from nasspace.latency.guidelines.subject import ROUNDINGS, Subject, Violation, times
from nasspace.latency.guidelines.surgery import parallels
from nasspace.latency.guidelines.whatifs import Layers, Operators, Pattern

Rounding = Callable[[float], int]
UNEQUAL = 2.0  # a 1x1 convolution is spoken of from a larger ratio of its widths on


def memory_access(map_size: tuple[int, int], c_in: int, c_out: int) -> tuple[int, float]:
    """MAC of a 1x1 convolution and its lower bound at the same FLOPs B = hw c1 c2: 2 sqrt(hw B) + B / hw.

    >>> memory_access((56, 56), 128, 128)
    (819200, 819200.0)
    """
    places = math.prod(map_size)
    flops = places * c_in * c_out
    return places * (c_in + c_out) + c_in * c_out, 2 * math.sqrt(places * flops) + flops / places


def unequal(subject: Subject) -> Iterator[Violation]:
    """G1: 1x1 convolutions whose widths differ."""
    fragments = {one.name for found in parallels(subject.graph) for one in found.convolutions}
    found = [
        one
        for one in subject.convolutions
        if one.kernel == one.groups == 1 and one.name not in fragments and _ratio(one) > UNEQUAL
    ]
    if not found:
        return
    layers = {one.layer for one in found}
    covered = _covered(subject, layers)
    alone = [one for one in found if one.layer not in covered and subject.is_seen(one)]
    worst = max(found, key=lambda one: subject.ms([one.name]))
    access, bound = memory_access(worst.map_size, worst.c_in, worst.c_out)
    text = (
        f"{len(found)} 1x1 convolution(s) of unequal widths, such as {worst.c_in}:{worst.c_out} on "
        f"{times(worst.map_size)}: memory access {access:,}, at equal widths it could be {bound:,.0f}"
    )
    names = {one.name for one in found}
    for rounding, flops in ROUNDINGS.items():
        parts = (*_runs(subject, layers, rounding), *(_equal(one, subject.ms([one.name]), rounding) for one in alone))
        change = f"equal widths at {flops}, such as {rounding(math.sqrt(worst.c_in * worst.c_out))}"
        yield subject.violation("G1", "widths", names, layers, text, change, parts)


def _covered(subject: Subject, wanted: set[int]) -> set[int]:
    """The layers that stand in a run which is changed as a whole."""
    return {layer for start, stop in _stretches(subject.layers, wanted) for layer in range(start, stop)}


def _ratio(one: Convolution) -> float:
    return max(one.c_in, one.c_out) / min(one.c_in, one.c_out)


def _equal(one: Convolution, time_ms: float, rounding: Rounding) -> Pattern:
    """Forth and back between the two widths, against the same between equal ones (the paper's table 1)."""
    width = rounding(math.sqrt(one.c_in * one.c_out))
    before = Operators(((one.c_in, one.c_out, 1, 1), (one.c_out, one.c_in, 1, 1)))
    return Pattern(before, Operators(((width, width, 1, 1),) * 2), one.map_size, time_ms)


def _runs(subject: Subject, wanted: set[int], rounding: Rounding) -> Iterator[Layers]:
    """Three or more `conv` layers on end, at one stride and kernel: their inner widths made equal, groups left out.

    The first input and the last output stay, and so do the FLOPs: with n layers of inner width c they are
    (first + last) c + (n - 2) c² for each place of the map.
    """
    for start, stop in _stretches(subject.layers, wanted):
        before = subject.layers[start:stop]
        widths = [subject.in_shapes[start][0], *(layer["out"] for layer in before)]
        groups = [layer.get("groups", 1) for layer in before]
        flops = sum(a * b / g for (a, b), g in zip(pairwise(widths), groups, strict=True))
        inner = rounding(_inner_width(len(before), widths[0] + widths[-1], flops))
        outs = [inner] * (len(before) - 1) + [widths[-1]]
        plain = [{key: value for key, value in layer.items() if key != "groups"} for layer in before]
        after = [{**layer, "out": out} for layer, out in zip(plain, outs, strict=True)]
        yield Layers(start, tuple(before), tuple(after), subject.around(start, stop))


def _inner_width(count: int, ends: int, flops: float) -> float:
    """The width c at which ends x c + (count - 2) c² are the FLOPs."""
    inner = count - 2
    return (math.sqrt(ends**2 + 4 * inner * flops) - ends) / (2 * inner)


def _stretches(layers: list[dict[str, Any]], wanted: set[int]) -> Iterator[tuple[int, int]]:
    """The longest stretches (start, stop) of at least three layers on end that are `wanted` and alike."""
    start = 0
    for stop in range(1, len(layers) + 1):
        if stop < len(layers) and {start, stop} <= wanted and _alike(layers[start], layers[stop]):
            continue
        if stop - start >= 3 and start in wanted:
            yield start, stop
        start = stop


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two layers are plain convolutions of one kind at stride 1."""
    forms = [{key: v for key, v in layer.items() if key not in ("out", "groups")} for layer in (one, other)]
    plain = all(layer["block"] == "conv" and layer.get("stride", 1) == 1 for layer in (one, other))
    return plain and forms[0] == forms[1]


def grouped(subject: Subject) -> Iterator[Violation]:
    """G2: convolutions in groups that are not depthwise."""
    found = [one for one in subject.convolutions if one.groups > 1 and not one.depthwise]
    if not found:
        return
    layers = {one.layer for one in found}
    covered = _covered(subject, layers)
    dense = {layer: part for layer in layers - covered if (part := _dense(subject, layer)) is not None}
    alone = [one for one in found if one.layer not in covered | dense.keys() and subject.is_seen(one)]
    worst = max(found, key=lambda one: subject.ms([one.name]))
    text = (
        f"{len(found)} convolution(s) in groups, such as {worst.c_in}:{worst.c_out} in {worst.groups} groups on "
        f"{times(worst.map_size)}: memory access grows with the groups at the same FLOPs"
    )
    names = {one.name for one in found}
    for rounding, flops in ROUNDINGS.items():
        narrower = (_narrower(one, subject.ms([one.name]), rounding) for one in alone)
        parts = (*_runs(subject, layers, rounding), *dense.values(), *narrower)
        change = f"one group in narrower convolutions, at {flops}"
        yield subject.violation("G2", "groups", names, layers, text, change, parts)


def _narrower(one: Convolution, time_ms: float, rounding: Rounding) -> Pattern:
    """The same FLOPs in one group: both widths divided by the root of the groups (the paper's table 2)."""
    c_in, c_out = (rounding(width / math.sqrt(one.groups)) for width in (one.c_in, one.c_out))
    before = ((one.c_in, one.c_out, one.kernel, one.groups), (one.c_out, one.c_in, one.kernel, one.groups))
    after = ((c_in, c_out, one.kernel, 1), (c_out, c_in, one.kernel, 1))
    return Pattern(Operators(before), Operators(after), one.map_size, time_ms)


NARROWING = {"shuffle_v1": "bottleneck", "bottleneck": "base_width", "basic": "base_width"}


def _dense(subject: Subject, layer: int) -> Layers | None:
    """A unit that has an option for its inner width: one group, and the inner width of the same FLOPs."""
    before = subject.layers[layer]
    option = NARROWING.get(before["block"])
    if option is None:
        return None
    plain = {key: value for key, value in before.items() if key not in ("groups", "first_groups")} | {"groups": 1}
    shape, wanted = (
        subject.in_shapes[layer],
        layer_cost(subject.architecture.layers[layer], subject.in_shapes[layer]).flops,
    )
    options = [width / before["out"] for width in range(1, before["out"] + 1)]
    options = options if option == "bottleneck" else list(range(1, 1025))
    low, high = 0, len(options) - 1
    while low < high:  # FLOPs grow with the width
        middle = (low + high) // 2
        low, high = (middle + 1, high) if _flops({**plain, option: options[middle]}, shape) < wanted else (low, middle)
    return Layers(layer, (before,), ({**plain, option: options[low]},), subject.around(layer, layer + 1))


def _flops(layer: Mapping[str, Any], in_shape: tuple[int, ...]) -> float:
    try:
        return layer_cost(Architecture.of([layer], input=in_shape).layers[0], in_shape).flops
    except InputError:  # wider than a block can be
        return math.inf
