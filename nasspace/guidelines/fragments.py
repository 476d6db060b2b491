"""Guideline G3: parallel convolutions, or consecutive small ones, where one would do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from nasspace.guidelines.context import Context, Violation
from nasspace.guidelines.counterfactuals import OperatorReplacement, Operators, Part
from nasspace.guidelines.equal_flops import nearest_width
from nasspace.guidelines.graph_edits import ParallelConvolutions, find_parallel
from nasspace.latency.graph import Convolution


def find_fragments(context: Context) -> Iterator[Violation]:
    """Yield violations by parallel convolutions, or consecutive 1x1 convolutions, in one layer."""
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
