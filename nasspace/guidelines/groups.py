"""Guideline G2: grouped convolutions, against one group at equal FLOPs.

With one group the same FLOPs allow fewer channels: `groups 8 -> 1` is the change of all grouped layers at once. Which
widths shrink depends on what the groups are between. If they are between the maps that pass from layer to layer
(ShuffleNet V1), these shrink, from the first grouped layer to the last, and everything inside the units with them, as
from column to column of ShuffleNet's table 1. If they are inside the units (ResNeXt), the inner widths shrink, as in
ResNeXt's table 1. Where both are possible, both are compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from nasspace.guidelines.context import Context, Violation, format_size
from nasspace.guidelines.counterfactuals import LayerReplacement, OperatorReplacement, Operators, Part
from nasspace.guidelines.equal_flops import (
    ALIGNED_TOLERANCE,
    ROUNDINGS,
    Rounding,
    aligned_ratios,
    aligned_width,
    width_at_flops,
)
from nasspace.guidelines.runs import equalized, find_runs, flops_of, run_variants
from nasspace.latency.graph import Convolution

NARROWING = {"shuffle_v1": "bottleneck", "bottleneck": "base_width", "basic": "base_width"}
WIDEST_BASE = 1024  # limit of `base_width`
MORE_FLOPS = 0.3  # limit of what multiples of 16 may add to the FLOPs of a network, as a share
Change = tuple[tuple[Part, ...], str]  # parts, and words for what changes besides the groups


def find_grouped(context: Context) -> Iterator[Violation]:
    """Yield violations of G2: grouped convolutions that are not depthwise; each has another change to one group."""
    found = [one for one in context.convolutions if one.groups > 1 and not one.depthwise]
    if not found:
        return
    layers = {one.layer for one in found}
    worst = max(found, key=lambda one: context.ms([one.name]))
    text = (
        f"{len(found)} grouped convolution(s), such as {worst.c_in}:{worst.c_out} in {worst.groups} groups on "
        f"{format_size(worst.map_size)}: memory access grows with the number of groups at equal FLOPs"
    )
    names = {one.name for one in found}
    groups = ", ".join(map(str, sorted({one.groups for one in found}, reverse=True)))
    seen = set()
    for parts, where in _changes(context, found):
        if (key := tuple(part.text() for part in parts)) not in seen:
            seen.add(key)
            yield context.violation("G2", "groups", names, layers, text, f"groups {groups} -> 1{where}", parts)


def _changes(context: Context, found: list[Convolution]) -> Iterator[Change]:
    """Yield the changes of whole layers, and without any the one that compares operators."""
    changes = [*_throughout(context, found), *_inside(context, found)]
    whole = [one for one in changes if not any(isinstance(part, OperatorReplacement) for part in one[0])]
    yield from whole or changes


def _throughout(context: Context, found: list[Convolution]) -> Iterator[Change]:
    """Yield the changes that narrow the maps between layers."""
    if (narrowing := context.narrowing(found)) is None:
        return
    for ratio in aligned_ratios(narrowing.exact, narrowing.narrowest, narrowing.flops_at, narrowing.target):
        part, more = narrowing.part(ratio), narrowing.flops_at(ratio) / narrowing.target - 1
        if part is not None and -ALIGNED_TOLERANCE <= more <= MORE_FLOPS:
            flops = "the same FLOPs" if more <= ALIGNED_TOLERANCE else "more FLOPs"
            yield (part,), f" and {narrowing.narrower(ratio)}, at {flops} ({more:+.1%})"


def _inside(context: Context, found: list[Convolution]) -> Iterator[Change]:
    """Yield changes that keep the maps between units: narrower runs of convolutions, units, and operators alone."""
    layers = {one.layer for one in found}
    covered = {layer for start, stop in find_runs(context.layers, layers) for layer in range(start, stop)}
    dense = _ungrouped_units(context, layers - covered)
    isolated = [one for one in found if one.layer not in covered | dense.keys() and context.is_measurable(one)]
    for (runs, where), (rounding, flops) in product(run_variants(context, layers, layers), ROUNDINGS.items()):
        operators = (_ungrouped(one, context.ms([one.name]), rounding) for one in isolated)
        parts = (*(equalized(context, run, rounding) for run in runs), *dense.values(), *operators)
        yield parts, f" in narrower convolutions{where or ','} at {flops}"


def _ungrouped(one: Convolution, time_ms: float, rounding: Rounding) -> OperatorReplacement:
    """Compare with one group at equal FLOPs: both widths divided by the root of the groups (the paper's table 2)."""
    c_in, c_out = (rounding(width / math.sqrt(one.groups)) for width in (one.c_in, one.c_out))
    before = ((one.c_in, one.c_out, one.kernel, one.groups), (one.c_out, one.c_in, one.kernel, one.groups))
    after = ((c_in, c_out, one.kernel, 1), (c_out, c_in, one.kernel, 1))
    return OperatorReplacement(Operators(before), Operators(after), one.map_size, time_ms)


@dataclass(frozen=True)
class AlikeUnits:
    """Units of one block with an option for their inner width, and equal values of it; all get another one."""

    context: Context
    layers: tuple[int, ...]
    option: str

    def ungrouped(self) -> dict[int, LayerReplacement]:
        """Replace each unit by one of one group; together they have equal FLOPs."""
        target = self._flops([self.context.layers[layer] for layer in self.layers])
        widest = self._narrowest if self.option == "bottleneck" else WIDEST_BASE
        width = aligned_width(width_at_flops(self._flops_at, target, widest), self._flops_at, target)
        found = {}
        for layer in self.layers:
            before, surroundings = self.context.layers[layer], self.context.surroundings(layer, layer + 1)
            found[layer] = LayerReplacement(layer, (before,), (self._with_width(layer, width),), surroundings)
        return found

    @property
    def _narrowest(self) -> int:
        return min(self.context.layers[layer]["out"] for layer in self.layers)

    def _with_width(self, layer: int, width: int) -> dict[str, Any]:
        """Return a unit with one group; a `bottleneck` is relative, and `width` then that of the narrowest unit."""
        kept = {key: value for key, value in self.context.layers[layer].items() if key != "first_groups"}
        return kept | {"groups": 1, self.option: width / self._narrowest if self.option == "bottleneck" else width}

    def _flops_at(self, width: int) -> float:
        return self._flops([self._with_width(layer, width) for layer in self.layers])

    def _flops(self, units: Iterable[Mapping[str, Any]]) -> float:
        """Return the FLOPs of all units."""
        return sum(flops_of([unit], self.context.in_shapes[i]) for unit, i in zip(units, self.layers, strict=True))


def _ungrouped_units(context: Context, layers: Iterable[int]) -> dict[int, LayerReplacement]:
    """Replace units with an option for their inner width by one group and narrower ones at equal FLOPs."""
    alike = defaultdict(list)
    for layer in sorted(layers):
        unit = context.layers[layer]
        if (option := NARROWING.get(unit["block"])) is not None:
            alike[option, unit["block"], unit.get("groups"), unit.get(option)].append(layer)
    found: dict[int, LayerReplacement] = {}
    for (option, *_), members in alike.items():
        found |= AlikeUnits(context, tuple(members), option).ungrouped()
    return found
