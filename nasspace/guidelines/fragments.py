"""Guideline G3: parallel branches or convolutions, or consecutive small ones, where one would do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.errors import InputError
from nasspace.guidelines.context import Context, Violation
from nasspace.guidelines.counterfactuals import LayerReplacement, OperatorReplacement, Operators, Part
from nasspace.guidelines.equal_flops import aligned_width, nearest_width, width_at_flops
from nasspace.guidelines.graph_edits import ParallelConvolutions, find_parallel
from nasspace.guidelines.runs import WIDEST, flops_of
from nasspace.latency.graph import Convolution, layer_index

BRANCHES = 3  # so many begin at one map in a module of branches; a unit with a shortcut has two
BRANCH_STARTS = frozenset({"Conv", "MaxPool", "AveragePool"})
Shape = tuple[int, ...]


def find_fragments(context: Context) -> Iterator[Violation]:
    """Yield violations by branches, parallel convolutions, or consecutive 1x1 convolutions, in one layer."""
    yield from _find_branches(context)
    found = find_parallel(context.graph)
    mergeable = [one for one in found if one.mergeable]
    if mergeable:
        layers = sorted({one.layer for one in mergeable})
        parts = context.graph_edits("parallel", layers)
        change = "one equivalent convolution"
        yield _parallel_violation(context, "merged", mergeable, change, parts)
    if rest := [one for one in found if not one.mergeable]:
        parts = [
            _single_convolution(one.convolutions, one.join, context.ms(one.names), _has_activations(context, one))
            for one in rest
        ]
        yield _parallel_violation(context, "parallel", rest, "one convolution of the same FLOPs", parts)
    if series := list(_find_series(context)):
        names = {one.name for chain in series for one in chain}
        most = max(map(len, series))
        text = f"up to {most} consecutive 1x1 convolutions of equal width in a layer, {len(names)} in total"
        parts = [_single_convolution(chain, "chain", context.ms(one.name for one in chain)) for chain in series]
        layers = {chain[0].layer for chain in series}
        change = "one wider convolution of the same FLOPs"
        yield context.violation("G3", "series", names, layers, text, change, parts)


def _find_branches(context: Context) -> Iterator[Violation]:
    """Yield the violation by layers of at least `BRANCHES` branches that one branch of equal FLOPs can replace."""
    counts: dict[int, int] = {}
    for tensor, readers in context.graph.consumers.items():
        starts = [layer_index(node.name) for node in readers if node.op_type in BRANCH_STARTS]
        for layer in {one for one in starts if one is not None and starts.count(one) >= BRANCHES}:
            if context.graph.is_feature_map(tensor):
                counts[layer] = max(counts.get(layer, 0), starts.count(layer))
    parts = {layer: part for layer in counts if context.in_shapes and (part := _one_branch(context, layer))}
    if parts:
        names = {node.name for node in context.graph.nodes if layer_index(node.name) in parts}
        replaced = [counts[layer] for layer in parts]
        text = f"{sum(replaced)} branches in modules, up to {max(replaced)} in a layer"
        change = "one branch, of 1x1 and 3x3 convolutions with the same FLOPs"
        yield context.violation("G3", "branches", names, parts, text, change, parts.values())


def _one_branch(context: Context, layer: int) -> LayerReplacement | None:
    """Replace a layer by a 1x1 and a 3x3 convolution of equal FLOPs; None where they cannot have its output's shape."""
    before, in_shape = context.layers[layer], context.in_shapes[layer]
    target, out_shape = flops_of([before], in_shape), _out_shape([before], in_shape)
    for padding in (1, 0):  # modules that halve the map may have none

        def branch(width: int, padding: int = padding) -> list[dict[str, Any]]:
            """The two convolutions, the first one of this width."""
            last = {"kernel": 3, "stride": before.get("stride", 1), "padding": padding}
            return [
                {"block": "conv", "kernel": 1, "out": width},
                {"block": "conv", "out": out_shape[0], **last},
            ]

        if _out_shape(branch(1), in_shape) != out_shape:
            continue
        exact = width_at_flops(lambda width: flops_of(branch(width), in_shape), target, WIDEST)
        width = aligned_width(exact, lambda width: flops_of(branch(width), in_shape), target)
        surroundings = context.surroundings(layer, layer + 1)
        return LayerReplacement(layer, (before,), tuple(branch(width)), surroundings)
    return None


def _out_shape(layers: Iterable[Mapping[str, Any]], in_shape: Shape) -> Shape:
    """The output shape of layers; empty if they do not run on this input."""
    try:
        return cost(Architecture.of(layers, input=in_shape)).layers[-1].out_shape
    except InputError:
        return ()


def _parallel_violation(
    context: Context, kind: str, found: list[ParallelConvolutions], change: str, parts: Iterable[Part]
) -> Violation:
    """Return the violation by parallel convolutions."""
    most = max(len(one.convolutions) for one in found)
    text = f"{sum(len(one.convolutions) for one in found)} parallel convolutions, up to {most} in a layer"
    names = {name for one in found for name in one.names}
    layers = {one.layer for one in found}
    return context.violation("G3", kind, names, layers, text, change, parts)


def _has_activations(context: Context, one: ParallelConvolutions) -> bool:
    """Whether another operator is between the convolutions and their join."""
    readers = [reader for conv in one.convolutions for reader in context.graph.consumers[conv.out]]
    return any(reader.op_type != one.join for reader in readers)


def _find_series(context: Context) -> Iterator[list[Convolution]]:
    """Yield chains of at least two dense 1x1 convolutions of equal width in one layer."""
    chain: list[Convolution] = []
    for one in (*context.convolutions, None):
        fits = one is not None and one.kernel == one.groups == one.stride == 1 and one.c_in == one.c_out
        if fits and chain and context.graph.root(one.source) == chain[-1].out and one.layer == chain[-1].layer:
            chain.append(one)
            continue
        if len(chain) > 1:
            yield chain
        chain = [one] if fits else []


def _single_convolution(
    found: Iterable[Convolution], form: str, time_ms: float, activated: bool = False
) -> OperatorReplacement:
    """Return the replacement by one convolution of equal FLOPs: the largest kernel, wider for sums and chains."""
    before = Operators(tuple((one.c_in, one.c_out, one.kernel, one.groups) for one in found), form, activated)
    c_in, c_out, _, _ = before.convolutions[0]
    kernel = max(one[2] for one in before.convolutions)
    if form == "Concat" and len({one[0] for one in before.convolutions}) == 1:
        after = (c_in, max(1, round(before.flops / (c_in * kernel**2))), kernel, 1)
    else:
        scale = math.sqrt(before.flops / (c_in * c_out * kernel**2))
        after = (nearest_width(c_in * scale), nearest_width(c_out * scale), kernel, 1)
    return OperatorReplacement(before, Operators((after,), activated=activated), next(iter(found)).map_size, time_ms)
