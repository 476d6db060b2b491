"""G1 and G2: 1x1 convolutions of unequal widths, and convolutions in groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from nasspace.architecture import Architecture
from nasspace.counting import cost, layer_cost, operations
from nasspace.errors import InputError
from nasspace.guidelines.context import ROUNDINGS, NetworkContext, Violation, format_size, next_multiple_of_16
from nasspace.guidelines.counterfactuals import LayerReplacement, OperatorReplacement, Operators
from nasspace.guidelines.graph_edits import find_parallel
from nasspace.latency.graph import Convolution

Rounding = Callable[[float], int]
UNEQUAL_RATIO = 2.0  # a 1x1 convolution is spoken of from a larger ratio of its widths on
WIDEST = 4096  # channels of a run's maps


@dataclass(frozen=True)
class ConvolutionRun:
    """Plain convolutions of one kind on end, layers `start` to `stop`, and the layers where their widths are met.

    `first` is `start`, or the layer in front if its output may have another width, too; `last` is `stop`, or behind
    the layer that reads the output if that may.
    """

    start: int
    stop: int
    first: int
    last: int

    @property
    def layers(self) -> range:
        return range(self.first, self.last)


def memory_access(map_size: tuple[int, int], c_in: int, c_out: int) -> tuple[int, float]:
    """MAC of a 1x1 convolution and its lower bound at the same FLOPs B = hw c1 c2: 2 sqrt(hw B) + B / hw.

    >>> memory_access((56, 56), 128, 128)
    (819200, 819200.0)
    """
    places = math.prod(map_size)
    flops = places * c_in * c_out
    return places * (c_in + c_out) + c_in * c_out, 2 * math.sqrt(places * flops) + flops / places


def find_unequal_widths(subject: NetworkContext) -> Iterator[Violation]:
    """G1: 1x1 convolutions whose widths differ."""
    fragments = {one.name for found in find_parallel(subject.graph) for one in found.convolutions}
    found = [
        one
        for one in subject.convolutions
        if one.kernel == one.groups == 1 and one.name not in fragments and _ratio(one) > UNEQUAL_RATIO
    ]
    if not found:
        return
    layers = {one.layer for one in found}
    worst = max(found, key=lambda one: subject.ms([one.name]))
    access, bound = memory_access(worst.map_size, worst.c_in, worst.c_out)
    text = (
        f"{len(found)} 1x1 convolution(s) of unequal widths, such as {worst.c_in}:{worst.c_out} on "
        f"{format_size(worst.map_size)}: memory access {access:,}, at equal widths it could be {bound:,.0f}"
    )
    names = {one.name for one in found}
    for (together, where), (rounding, flops) in product(_run_variants(subject, layers, ()), ROUNDINGS.items()):
        covered = {layer for run in together for layer in run.layers}
        alone = [one for one in found if one.layer not in covered and subject.is_measurable(one)]
        on_end = [_equalized(subject, run, rounding) for run in together]
        patterns = [_equal_widths(one, subject.ms([one.name]), rounding) for one in alone]
        widths = [*(part.after[0]["out"] for part in on_end), *(part.after.convolutions[0][0] for part in patterns)]
        change = f"equal widths{where} at {flops}" + (f", such as {widths[0]}" if widths else "")
        yield subject.violation("G1", "widths", names, layers, text, change, (*on_end, *patterns))


def _ratio(one: Convolution) -> float:
    return max(one.c_in, one.c_out) / min(one.c_in, one.c_out)


def _equal_widths(one: Convolution, time_ms: float, rounding: Rounding) -> OperatorReplacement:
    """Forth and back between the two widths, against the same between equal ones (the paper's table 1)."""
    width = rounding(math.sqrt(one.c_in * one.c_out))
    before = Operators(((one.c_in, one.c_out, 1, 1), (one.c_out, one.c_in, 1, 1)))
    return OperatorReplacement(before, Operators(((width, width, 1, 1),) * 2), one.map_size, time_ms)


def _run_variants(
    subject: NetworkContext, wanted: set[int], bound: Collection[int]
) -> Iterator[tuple[list[ConvolutionRun], str]]:
    """The `wanted` layers on end, their outer widths kept; and, where they may change, not kept; how to say so.

    Kept ends leave the first and the last convolution as unequal as they are wide, and the layers around the run with
    what wide maps cost them.
    """
    kept = [ConvolutionRun(start, stop, start, stop) for start, stop in _find_runs(subject.layers, wanted)]
    yield kept, ""
    if (free := _extended(subject, kept, bound)) != kept:
        yield free, ", of the maps at their ends as well,"


def _extended(subject: NetworkContext, runs: list[ConvolutionRun], bound: Collection[int]) -> list[ConvolutionRun]:
    """The same with the layers around each run, but for those that are `bound` or whose widths must stay."""
    fixed = {*bound, *(layer for run in runs for layer in run.layers)}
    found = []
    for run in runs:
        if run.start - 1 not in fixed and _may_change(subject, longer := replace(run, first=run.start - 1)):
            run = longer
        if run.stop not in fixed and _may_change(subject, longer := replace(run, last=run.stop + 1)):
            run = longer
        fixed.update(run.layers)  # a layer between two runs is counted with one of them
        found.append(run)
    return found


def _may_change(subject: NetworkContext, run: ConvolutionRun) -> bool:
    """Whether the layers around a run do the same at another width: no shortcut goes, none becomes a convolution."""
    before = subject.layers[max(0, run.first) : run.last]
    if run.first < 0 or run.last >= len(subject.layers) or any("out" not in layer for layer in before):
        return False
    shape = subject.in_shapes[run.first]
    wider = next_multiple_of_16(1 + max(shape[0], *(layer["out"] for layer in before)))
    now, even, odd = (_kinds(one, shape) for one in (before, *(_with_width(subject, run, wider + i) for i in (0, 1))))
    around = [i - run.first for i in run.layers if not run.start <= i < run.stop]
    return bool(even and odd) and all(now[i] == even[i] == odd[i] for i in around)


def _kinds(layers: Iterable[Mapping[str, Any]], in_shape: tuple[int, ...]) -> list[list[str]]:
    """The operations of each layer; none at all where a layer cannot have these widths."""
    try:
        architecture = Architecture.of(layers, input=in_shape)
        shapes = [one.in_shape for one in cost(architecture).layers]
    except InputError:
        return []
    pairs = zip(architecture.layers, shapes, strict=True)
    return [[one.kind for one in operations(layer, shape)] for layer, shape in pairs]


def _with_width(subject: NetworkContext, run: ConvolutionRun, width: int) -> list[dict[str, Any]]:
    """The layers of a run with all maps between them of one width, and its convolutions in one group."""
    layers = [dict(subject.layers[i]) for i in run.layers]
    for layer in layers[run.start - run.first : run.stop - run.first]:
        layer.pop("groups", None)
    return [*({**layer, "out": width} for layer in layers[:-1]), layers[-1]]


def _equalized(subject: NetworkContext, run: ConvolutionRun, rounding: Rounding) -> LayerReplacement:
    """A run of one width in one group at the same FLOPs; the first input and the last output stay."""
    before, shape = subject.layers[run.first : run.last], subject.in_shapes[run.first]
    wanted = _flops(before, shape)
    low, high = 1, WIDEST
    while low < high:  # FLOPs grow with the width
        middle = (low + high) // 2
        enough = _flops(_with_width(subject, run, middle), shape) >= wanted
        low, high = (low, middle) if enough else (middle + 1, high)
    more, less = (_flops(_with_width(subject, run, max(1, width)), shape) for width in (low, low - 1))
    between = (more - wanted) / (more - less) if less < more < math.inf else 0.0
    after = _with_width(subject, run, rounding(low - between))
    kept = replace(run, first=run.start, last=run.stop)
    if run != kept and math.isinf(_flops(after, shape)):  # a layer around it cannot have this very width
        return _equalized(subject, kept, rounding)
    return LayerReplacement(run.first, tuple(before), tuple(after), subject.surroundings(run.first, run.last))


def _find_runs(layers: list[dict[str, Any]], wanted: set[int]) -> Iterator[tuple[int, int]]:
    """The longest stretches (start, stop) of at least three layers on end that are `wanted` and alike."""
    start = 0
    for stop in range(1, len(layers) + 1):
        if stop < len(layers) and {start, stop} <= wanted and _same_kind(layers[start], layers[stop]):
            continue
        if stop - start >= 3 and start in wanted:
            yield start, stop
        start = stop


def _same_kind(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two layers are plain convolutions of one kind at stride 1."""
    forms = [{key: v for key, v in layer.items() if key not in ("out", "groups")} for layer in (one, other)]
    plain = all(layer["block"] == "conv" and layer.get("stride", 1) == 1 for layer in (one, other))
    return plain and forms[0] == forms[1]


def find_grouped(subject: NetworkContext) -> Iterator[Violation]:
    """G2: convolutions in groups that are not depthwise."""
    found = [one for one in subject.convolutions if one.groups > 1 and not one.depthwise]
    if not found:
        return
    layers = {one.layer for one in found}
    covered = {layer for start, stop in _find_runs(subject.layers, layers) for layer in range(start, stop)}
    dense = {layer: part for layer in layers - covered if (part := _ungrouped_unit(subject, layer)) is not None}
    alone = [one for one in found if one.layer not in covered | dense.keys() and subject.is_measurable(one)]
    worst = max(found, key=lambda one: subject.ms([one.name]))
    text = (
        f"{len(found)} convolution(s) in groups, such as {worst.c_in}:{worst.c_out} in {worst.groups} groups on "
        f"{format_size(worst.map_size)}: memory access grows with the groups at the same FLOPs"
    )
    names = {one.name for one in found}
    for (together, where), (rounding, flops) in product(_run_variants(subject, layers, layers), ROUNDINGS.items()):
        narrower = (_ungrouped(one, subject.ms([one.name]), rounding) for one in alone)
        parts = (*(_equalized(subject, run, rounding) for run in together), *dense.values(), *narrower)
        change = f"one group in narrower convolutions{where or ','} at {flops}"
        yield subject.violation("G2", "groups", names, layers, text, change, parts)


def _ungrouped(one: Convolution, time_ms: float, rounding: Rounding) -> OperatorReplacement:
    """The same FLOPs in one group: both widths divided by the root of the groups (the paper's table 2)."""
    c_in, c_out = (rounding(width / math.sqrt(one.groups)) for width in (one.c_in, one.c_out))
    before = ((one.c_in, one.c_out, one.kernel, one.groups), (one.c_out, one.c_in, one.kernel, one.groups))
    after = ((c_in, c_out, one.kernel, 1), (c_out, c_in, one.kernel, 1))
    return OperatorReplacement(Operators(before), Operators(after), one.map_size, time_ms)


NARROWING = {"shuffle_v1": "bottleneck", "bottleneck": "base_width", "basic": "base_width"}


def _ungrouped_unit(subject: NetworkContext, layer: int) -> LayerReplacement | None:
    """A unit that has an option for its inner width: one group, and the inner width of the same FLOPs."""
    before = subject.layers[layer]
    option = NARROWING.get(before["block"])
    if option is None:
        return None
    plain = {key: value for key, value in before.items() if key not in ("groups", "first_groups")} | {"groups": 1}
    shape = subject.in_shapes[layer]
    wanted = layer_cost(subject.architecture.layers[layer], shape).flops
    options = [width / before["out"] for width in range(1, before["out"] + 1)]
    options = options if option == "bottleneck" else list(range(1, 1025))
    low, high = 0, len(options) - 1
    while low < high:  # FLOPs grow with the width
        middle = (low + high) // 2
        low, high = (
            (middle + 1, high) if _flops([{**plain, option: options[middle]}], shape) < wanted else (low, middle)
        )
    return LayerReplacement(
        layer, (before,), ({**plain, option: options[low]},), subject.surroundings(layer, layer + 1)
    )


def _flops(layers: Iterable[Mapping[str, Any]], in_shape: tuple[int, ...]) -> float:
    try:
        return cost(Architecture.of(layers, input=in_shape)).flops
    except InputError:  # wider than a block can be, or of a width that it cannot have
        return math.inf
