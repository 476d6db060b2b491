"""Guideline G4: element-wise operations that are not fused and take time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from nasspace.guidelines.context import Context, Violation
from nasspace.guidelines.graph_edits import find_removable

KINDS = {
    "activation": ("activation(s)", "without these activations"),
    "add": ("added shortcut(s)", "without the shortcut"),
    "shuffle": ("channel shuffle(s)", "without the shuffle"),
    "se": ("squeeze-and-excitation(s)", "without squeeze-and-excitation"),
}


FREE_WHEN_FUSED = {"Relu", "Clip"}  # take no time if fused into the preceding convolution


def find_elementwise(context: Context) -> Iterator[Violation]:
    """Yield a violation for each kind of element-wise work that runs separately or may slow a fused convolution."""
    types = {node.name: node.op_type for node in context.graph.nodes}
    kinds = defaultdict(list)
    for one in find_removable(context.graph):
        if context.is_separate(one.names) or not {types[name] for name in one.names} <= FREE_WHEN_FUSED:
            kinds[one.kind].append(one)
    for kind, found in kinds.items():
        layers = sorted({one.layer for one in found})
        separate = sum(context.is_separate(one.names) for one in found)
        what, change = KINDS[kind]
        text = f"{len(found)} {what}: {separate} run separately, {len(found) - separate} fused into a convolution"
        parts = context.graph_edits(kind, layers)
        names = {name for one in found for name in one.names}
        fused = {other for name in names for other in context.times[name][1]}
        yield replace(
            context.violation("G4", kind, names, layers, text, change, parts), at_most_ms=context.ms(names | fused)
        )
