"""G3: convolutions side by side, or small ones on end, where one could be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from nasspace.guidelines.context import NetworkContext, Violation, nearest_width
from nasspace.guidelines.counterfactuals import OperatorReplacement, Operators, Part
from nasspace.guidelines.graph_edits import ParallelConvolutions, find_parallel
from nasspace.latency.graph import Convolution


def find_fragments(subject: NetworkContext) -> Iterator[Violation]:
    """G3: convolutions side by side, or 1x1 convolutions on end, in one layer."""
    found = find_parallel(subject.graph)
    whole = [one for one in found if one.whole]
    if whole:
        layers = sorted({one.layer for one in whole})
        parts = subject.graph_edits("parallel", layers)
        change = "one convolution that does the same"
        yield _side_by_side(subject, "merged", whole, change, parts)
    if rest := [one for one in found if not one.whole]:
        parts = [
            _single_convolution(one.convolutions, one.join, subject.ms(one.names), _has_activations(subject, one))
            for one in rest
        ]
        yield _side_by_side(subject, "parallel", rest, "one convolution of the same FLOPs", parts)
    if series := list(_find_series(subject)):
        names = {one.name for chain in series for one in chain}
        text = f"up to {max(map(len, series))} 1x1 convolutions of one width on end in a layer, {len(names)} in all"
        parts = [_single_convolution(chain, "chain", subject.ms(one.name for one in chain)) for chain in series]
        layers = {chain[0].layer for chain in series}
        change = "one convolution of the same FLOPs, wider"
        yield subject.violation("G3", "series", names, layers, text, change, parts)


def _side_by_side(
    subject: NetworkContext, kind: str, found: list[ParallelConvolutions], change: str, parts: Iterable[Part]
) -> Violation:
    most = max(len(one.convolutions) for one in found)
    text = f"{sum(len(one.convolutions) for one in found)} convolutions side by side, up to {most} in a layer"
    names = {name for one in found for name in one.names}
    layers = {one.layer for one in found}
    return subject.violation("G3", kind, names, layers, text, change, parts)


def _has_activations(subject: NetworkContext, one: ParallelConvolutions) -> bool:
    """Whether something stands between the convolutions and where they are joined."""
    readers = [reader for conv in one.convolutions for reader in subject.graph.consumers[conv.out]]
    return any(reader.op_type != one.join for reader in readers)


def _find_series(subject: NetworkContext) -> Iterator[list[Convolution]]:
    """Chains of at least two dense 1x1 convolutions of one width, each read by the next alone, in one layer."""
    chain: list[Convolution] = []
    for one in (*subject.convolutions, None):
        fits = one is not None and one.kernel == one.groups == one.stride == 1 and one.c_in == one.c_out
        if fits and chain and subject.graph.root(one.source) == chain[-1].out and one.layer == chain[-1].layer:
            chain.append(one)
            continue
        if len(chain) > 1:
            yield chain
        chain = [one] if fits else []


def _single_convolution(
    found: Iterable[Convolution], form: str, time_ms: float, activated: bool = False
) -> OperatorReplacement:
    """One convolution of the FLOPs of several: of the largest kernel, and where they are added or on end, wider."""
    before = Operators(tuple((one.c_in, one.c_out, one.kernel, one.groups) for one in found), form, activated)
    c_in, c_out, _, _ = before.convolutions[0]
    kernel = max(one[2] for one in before.convolutions)
    if form == "Concat" and len({one[0] for one in before.convolutions}) == 1:
        after = (c_in, max(1, round(before.flops / (c_in * kernel**2))), kernel, 1)
    else:
        scale = math.sqrt(before.flops / (c_in * c_out * kernel**2))
        after = (nearest_width(c_in * scale), nearest_width(c_out * scale), kernel, 1)
    return OperatorReplacement(before, Operators((after,), activated=activated), next(iter(found)).map_size, time_ms)
