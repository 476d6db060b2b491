"""G4: element-wise work that takes time of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from nasspace.guidelines.context import NetworkContext, Violation
from nasspace.guidelines.graph_edits import find_removable

KINDS = {
    "activation": ("activation(s)", "without these activations"),
    "add": ("added shortcut(s)", "without the shortcut"),
    "shuffle": ("channel shuffle(s)", "without the shuffle"),
    "se": ("squeeze-and-excitation(s)", "without squeeze-and-excitation"),
}


FREE_WHEN_FUSED = {"Relu", "Clip"}  # joined to the convolution in front they take no time


def find_elementwise(subject: NetworkContext) -> Iterator[Violation]:
    """G4, a kind at a time: what runs on its own, and what may slow down the convolution that it is joined to."""
    types = {node.name: node.op_type for node in subject.graph.nodes}
    kinds = defaultdict(list)
    for one in find_removable(subject.graph):
        if subject.ms(one.names) > 0 or not {types[name] for name in one.names} <= FREE_WHEN_FUSED:
            kinds[one.kind].append(one)
    for kind, found in kinds.items():
        layers = sorted({one.layer for one in found})
        apart = sum(subject.ms(one.names) > 0 for one in found)
        what, change = KINDS[kind]
        text = f"{len(found)} {what}: {apart} run on their own, {len(found) - apart} joined to a convolution"
        parts = subject.graph_edits(kind, layers)
        names = {name for one in found for name in one.names}
        joined = {other for name in names for other in subject.times[name][1]}
        yield replace(
            subject.violation("G4", kind, names, layers, text, change, parts), at_most_ms=subject.ms(names | joined)
        )
