"""Guideline G1: 1x1 convolutions of unequal widths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from nasspace.guidelines.context import Context, Violation, format_size
from nasspace.guidelines.counterfactuals import OperatorReplacement, Operators
from nasspace.guidelines.equal_flops import ROUNDINGS, Rounding
from nasspace.guidelines.graph_edits import find_parallel
from nasspace.guidelines.runs import equalized, run_variants
from nasspace.latency.graph import Convolution

UNEQUAL_RATIO = 2.0  # ratio of widths above which a 1x1 convolution is reported


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
    pointwise = [one for one in context.convolutions if one.kernel == one.groups == 1 and one.name not in fragments]
    found = _unequal(pointwise)
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
    for (runs, where), (rounding, flops) in product(run_variants(context, layers, ()), ROUNDINGS.items()):
        covered = {layer for run in runs for layer in run.layers}
        isolated = [one for one in found if one.layer not in covered and context.is_measurable(one)]
        replaced = [equalized(context, run, rounding) for run in runs]
        operators = [_equal_widths(one, context.ms([one.name]), rounding) for one in isolated]
        widths = [*(part.after[0]["out"] for part in replaced), *(part.after.convolutions[0][0] for part in operators)]
        change = f"equal widths{where} at {flops}" + (f", such as {widths[0]}" if widths else "")
        yield context.violation("G1", "widths", names, layers, text, change, (*replaced, *operators))


def _unequal(pointwise: list[Convolution]) -> list[Convolution]:
    """Return the convolutions of unequal widths: a ratio of 2 counts only if another one leads back.

    Without one, the width just grows from stage to stage. The paper's table 1 has pairs of 1:2.
    """
    pairs = {(one.c_in, one.c_out) for one in pointwise}
    return [
        one
        for one in pointwise
        if _ratio(one) > UNEQUAL_RATIO or (_ratio(one) == UNEQUAL_RATIO and (one.c_out, one.c_in) in pairs)
    ]


def _ratio(one: Convolution) -> float:
    """Return the ratio of a convolution's widths, at least 1."""
    return max(one.c_in, one.c_out) / min(one.c_in, one.c_out)


def _equal_widths(one: Convolution, time_ms: float, rounding: Rounding) -> OperatorReplacement:
    """Compare a pair of convolutions between two widths with a pair of equal width (the paper's table 1)."""
    width = rounding(math.sqrt(one.c_in * one.c_out))
    before = Operators(((one.c_in, one.c_out, 1, 1), (one.c_out, one.c_in, 1, 1)))
    return OperatorReplacement(before, Operators(((width, width, 1, 1),) * 2), one.map_size, time_ms)
