"""Guidelines G1 and G2: 1x1 convolutions of unequal widths, and grouped convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from nasspace.architecture import Architecture
from nasspace.counting import cost, operations
from nasspace.errors import InputError
from nasspace.guidelines.context import ROUNDINGS, Context, Violation, format_size, next_multiple_of_16
from nasspace.guidelines.counterfactuals import LayerReplacement, OperatorReplacement, Operators
from nasspace.guidelines.graph_edits import find_parallel
from nasspace.latency.graph import Convolution

Rounding = Callable[[float], int]
UNEQUAL_RATIO = 2.0  # ratio of widths above which a 1x1 convolution is reported
WIDEST = 4096  # limit of channels in the search for equal FLOPs


@dataclass(frozen=True)
class ConvolutionRun:
    """Consecutive plain convolutions of one kind, layers `start` to `stop`, and the layers that change with them.

    `first` is `start`, or one less if the output of the preceding layer may also change its width; `last` is `stop`, or
    one more if the following layer accepts another input width.
    """

    start: int
    stop: int
    first: int
    last: int

    @property
    def layers(self) -> range:
        """The layers that change."""
        return range(self.first, self.last)


def memory_access(map_size: tuple[int, int], c_in: int, c_out: int) -> tuple[int, float]:
    """Return the MAC of a 1x1 convolution and its lower bound at equal FLOPs B = hw c1 c2: 2 sqrt(hw B) + B / hw.

    >>> memory_access((56, 56), 128, 128)
    (819200, 819200.0)
    """
    places = math.prod(map_size)
    flops = places * c_in * c_out
    return places * (c_in + c_out) + c_in * c_out, 2 * math.sqrt(places * flops) + flops / places


def find_unequal_widths(context: Context) -> Iterator[Violation]:
    """Yield violations of G1: 1x1 convolutions whose widths differ."""
    fragments = {one.name for found in find_parallel(context.graph) for one in found.convolutions}
    found = [
        one
        for one in context.convolutions
        if one.kernel == one.groups == 1 and one.name not in fragments and _ratio(one) > UNEQUAL_RATIO
    ]
    if not found:
        return
    layers = {one.layer for one in found}
    worst = max(found, key=lambda one: context.ms([one.name]))
    access, bound = memory_access(worst.map_size, worst.c_in, worst.c_out)
    text = (
        f"{len(found)} 1x1 convolution(s) with unequal widths, such as {worst.c_in}:{worst.c_out} on "
        f"{format_size(worst.map_size)}: memory access {access:,}, with equal widths it would be {bound:,.0f}"
    )
    names = {one.name for one in found}
    for (runs, where), (rounding, flops) in product(_run_variants(context, layers, ()), ROUNDINGS.items()):
        covered = {layer for run in runs for layer in run.layers}
        isolated = [one for one in found if one.layer not in covered and context.is_measurable(one)]
        replaced = [_equalized(context, run, rounding) for run in runs]
        operators = [_equal_widths(one, context.ms([one.name]), rounding) for one in isolated]
        widths = [*(part.after[0]["out"] for part in replaced), *(part.after.convolutions[0][0] for part in operators)]
        change = f"equal widths{where} at {flops}" + (f", such as {widths[0]}" if widths else "")
        yield context.violation("G1", "widths", names, layers, text, change, (*replaced, *operators))


def _ratio(one: Convolution) -> float:
    """Return the ratio of a convolution's widths, at least 1."""
    return max(one.c_in, one.c_out) / min(one.c_in, one.c_out)


def _equal_widths(one: Convolution, time_ms: float, rounding: Rounding) -> OperatorReplacement:
    """Compare a pair of convolutions between two widths with a pair of equal width (the paper's table 1)."""
    width = rounding(math.sqrt(one.c_in * one.c_out))
    before = Operators(((one.c_in, one.c_out, 1, 1), (one.c_out, one.c_in, 1, 1)))
    return OperatorReplacement(before, Operators(((width, width, 1, 1),) * 2), one.map_size, time_ms)


def _run_variants(
    context: Context, selected: set[int], bound: Collection[int]
) -> Iterator[tuple[list[ConvolutionRun], str]]:
    """Yield the runs among the `selected` layers and words for the change: with fixed outer widths, then changed ones.

    With fixed outer widths the first and the last convolution stay unequal, and the layers around the run keep the cost
    of wide maps.
    """
    runs = [ConvolutionRun(start, stop, start, stop) for start, stop in _find_runs(context.layers, selected)]
    yield runs, ""
    if (extended := _extended(context, runs, bound)) != runs:
        yield extended, ", also of the maps at their ends,"


def _extended(context: Context, runs: list[ConvolutionRun], bound: Collection[int]) -> list[ConvolutionRun]:
    """Extend each run by the layers around it, except those that are `bound` or cannot change their width."""
    fixed = {*bound, *(layer for run in runs for layer in run.layers)}
    found = []
    for run in runs:
        if run.start - 1 not in fixed and _may_change(context, longer := replace(run, first=run.start - 1)):
            run = longer
        if run.stop not in fixed and _may_change(context, longer := replace(run, last=run.stop + 1)):
            run = longer
        fixed.update(run.layers)  # a layer between two runs belongs to one of them
        found.append(run)
    return found


def _may_change(context: Context, run: ConvolutionRun) -> bool:
    """Whether the layers around a run have the same operations at another width (no shortcut lost or projected)."""
    before = context.layers[max(0, run.first) : run.last]
    if run.first < 0 or run.last >= len(context.layers) or any("out" not in layer for layer in before):
        return False
    shape = context.in_shapes[run.first]
    wider = next_multiple_of_16(1 + max(shape[0], *(layer["out"] for layer in before)))
    current, even, odd = (
        _kinds(one, shape) for one in (before, *(_with_width(context, run, wider + i) for i in (0, 1)))
    )
    around = [i - run.first for i in run.layers if not run.start <= i < run.stop]
    return bool(even and odd) and all(current[i] == even[i] == odd[i] for i in around)


def _kinds(layers: Iterable[Mapping[str, Any]], in_shape: tuple[int, ...]) -> list[list[str]]:
    """Return the kinds of operations of each layer; an empty list if a layer does not accept the widths."""
    try:
        architecture = Architecture.of(layers, input=in_shape)
        shapes = [one.in_shape for one in cost(architecture).layers]
    except InputError:
        return []
    pairs = zip(architecture.layers, shapes, strict=True)
    return [[one.kind for one in operations(layer, shape)] for layer, shape in pairs]


def _with_width(context: Context, run: ConvolutionRun, width: int) -> list[dict[str, Any]]:
    """Return the layers of a run with one width for all maps between them, and one group for its convolutions."""
    layers = [dict(context.layers[i]) for i in run.layers]
    for layer in layers[run.start - run.first : run.stop - run.first]:
        layer.pop("groups", None)
    return [*({**layer, "out": width} for layer in layers[:-1]), layers[-1]]


def _equalized(context: Context, run: ConvolutionRun, rounding: Rounding) -> LayerReplacement:
    """Replace a run by one width and one group at equal FLOPs; its input and output widths stay."""
    before, shape = context.layers[run.first : run.last], context.in_shapes[run.first]
    target = _flops(before, shape)
    low, high = 1, WIDEST
    while low < high:  # FLOPs grow with the width
        middle = (low + high) // 2
        enough = _flops(_with_width(context, run, middle), shape) >= target
        low, high = (low, middle) if enough else (middle + 1, high)
    above, below = (_flops(_with_width(context, run, max(1, width)), shape) for width in (low, low - 1))
    fraction = (above - target) / (above - below) if below < above < math.inf else 0.0
    after = _with_width(context, run, rounding(low - fraction))
    unextended = replace(run, first=run.start, last=run.stop)
    if run != unextended and math.isinf(_flops(after, shape)):  # a layer around it does not accept this width
        return _equalized(context, unextended, rounding)
    return LayerReplacement(run.first, tuple(before), tuple(after), context.surroundings(run.first, run.last))


def _find_runs(layers: list[dict[str, Any]], selected: set[int]) -> Iterator[tuple[int, int]]:
    """Yield the longest (start, stop) of at least three consecutive `selected` layers of the same kind."""
    start = 0
    for stop in range(1, len(layers) + 1):
        if stop < len(layers) and {start, stop} <= selected and _same_kind(layers[start], layers[stop]):
            continue
        if stop - start >= 3 and start in selected:
            yield start, stop
        start = stop


def _same_kind(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two layers are plain convolutions of stride 1 that differ only in width and groups."""
    forms = [{key: v for key, v in layer.items() if key not in ("out", "groups")} for layer in (one, other)]
    plain = all(layer["block"] == "conv" and layer.get("stride", 1) == 1 for layer in (one, other))
    return plain and forms[0] == forms[1]


def find_grouped(context: Context) -> Iterator[Violation]:
    """Yield violations of G2: grouped convolutions that are not depthwise."""
    found = [one for one in context.convolutions if one.groups > 1 and not one.depthwise]
    if not found:
        return
    layers = {one.layer for one in found}
    covered = {layer for start, stop in _find_runs(context.layers, layers) for layer in range(start, stop)}
    dense = {layer: part for layer in layers - covered if (part := _ungrouped_unit(context, layer)) is not None}
    isolated = [one for one in found if one.layer not in covered | dense.keys() and context.is_measurable(one)]
    worst = max(found, key=lambda one: context.ms([one.name]))
    text = (
        f"{len(found)} grouped convolution(s), such as {worst.c_in}:{worst.c_out} in {worst.groups} groups on "
        f"{format_size(worst.map_size)}: memory access grows with the number of groups at equal FLOPs"
    )
    names = {one.name for one in found}
    for (runs, where), (rounding, flops) in product(_run_variants(context, layers, layers), ROUNDINGS.items()):
        operators = (_ungrouped(one, context.ms([one.name]), rounding) for one in isolated)
        parts = (*(_equalized(context, run, rounding) for run in runs), *dense.values(), *operators)
        change = f"one group in narrower convolutions{where or ','} at {flops}"
        yield context.violation("G2", "groups", names, layers, text, change, parts)


def _ungrouped(one: Convolution, time_ms: float, rounding: Rounding) -> OperatorReplacement:
    """Compare with one group at equal FLOPs: both widths divided by the root of the groups (the paper's table 2)."""
    c_in, c_out = (rounding(width / math.sqrt(one.groups)) for width in (one.c_in, one.c_out))
    before = ((one.c_in, one.c_out, one.kernel, one.groups), (one.c_out, one.c_in, one.kernel, one.groups))
    after = ((c_in, c_out, one.kernel, 1), (c_out, c_in, one.kernel, 1))
    return OperatorReplacement(Operators(before), Operators(after), one.map_size, time_ms)


NARROWING = {"shuffle_v1": "bottleneck", "bottleneck": "base_width", "basic": "base_width"}


def _ungrouped_unit(context: Context, layer: int) -> LayerReplacement | None:
    """Replace a unit with an option for its inner width by one group and the inner width of equal FLOPs."""
    before = context.layers[layer]
    option = NARROWING.get(before["block"])
    if option is None:
        return None
    plain = {key: value for key, value in before.items() if key not in ("groups", "first_groups")} | {"groups": 1}
    shape = context.in_shapes[layer]
    target = _flops([before], shape)
    options = [width / before["out"] for width in range(1, before["out"] + 1)]
    options = options if option == "bottleneck" else list(range(1, 1025))
    low, high = 0, len(options) - 1
    while low < high:  # FLOPs grow with the width
        middle = (low + high) // 2
        low, high = (
            (middle + 1, high) if _flops([{**plain, option: options[middle]}], shape) < target else (low, middle)
        )
    return LayerReplacement(
        layer, (before,), ({**plain, option: options[low]},), context.surroundings(layer, layer + 1)
    )


def _flops(layers: Iterable[Mapping[str, Any]], in_shape: tuple[int, ...]) -> float:
    """Return the FLOPs of layers; infinity if a block does not accept the widths."""
    try:
        return cost(Architecture.of(layers, input=in_shape)).flops
    except InputError:
        return math.inf
