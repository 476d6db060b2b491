"""Runs of plain convolutions whose widths change together."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nasspace.architecture import Architecture
from nasspace.counting import cost, operations
from nasspace.errors import InputError
from nasspace.guidelines.counterfactuals import LayerReplacement
from nasspace.guidelines.equal_flops import Rounding, next_multiple_of_16, width_at_flops

if TYPE_CHECKING:
    from nasspace.guidelines.context import Context

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


def run_variants(
    context: Context, selected: set[int], bound: Collection[int]
) -> Iterator[tuple[list[ConvolutionRun], str]]:
    """Yield the runs among the `selected` layers and words for the change: with fixed outer widths, then changed ones.

    With fixed outer widths the first and the last convolution stay unequal, and the layers around the run keep the cost
    of wide maps.
    """
    runs = [ConvolutionRun(start, stop, start, stop) for start, stop in find_runs(context.layers, selected)]
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
        kinds_of(one, shape) for one in (before, *(_with_width(context, run, wider + i) for i in (0, 1)))
    )
    around = [i - run.first for i in run.layers if not run.start <= i < run.stop]
    return bool(even and odd) and all(current[i] == even[i] == odd[i] for i in around)


def kinds_of(layers: Iterable[Mapping[str, Any]], in_shape: tuple[int, ...]) -> list[list[str]]:
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


def equalized(context: Context, run: ConvolutionRun, rounding: Rounding) -> LayerReplacement:
    """Replace a run by one width and one group at equal FLOPs; its input and output widths stay."""
    before, shape = context.layers[run.first : run.last], context.in_shapes[run.first]
    target = flops_of(before, shape)
    exact = width_at_flops(lambda width: flops_of(_with_width(context, run, width), shape), target, WIDEST)
    after = _with_width(context, run, rounding(exact))
    unextended = replace(run, first=run.start, last=run.stop)
    if run != unextended and math.isinf(flops_of(after, shape)):  # a layer around it does not accept this width
        return equalized(context, unextended, rounding)
    return LayerReplacement(run.first, tuple(before), tuple(after), context.surroundings(run.first, run.last))


def find_runs(layers: list[dict[str, Any]], selected: set[int]) -> Iterator[tuple[int, int]]:
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


def flops_of(layers: Iterable[Mapping[str, Any]], in_shape: tuple[int, ...]) -> float:
    """Return the FLOPs of layers; infinity if a block does not accept the widths."""
    try:
        return cost(Architecture.of(layers, input=in_shape)).flops
    except InputError:
        return math.inf
