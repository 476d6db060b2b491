"""Reachable range of FLOPs, parameters and memory access of a space, exact and known before any search.

Costs add up along the chain of layers, and a layer's cost depends on the earlier layers only through the shape of its
input. The smallest and largest sums are therefore found layer by layer for every shape that is possible there, without
enumerating the networks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nasspace.architecture import checked_layer
from nasspace.counting import LayerCost, cost, layer_cost
from nasspace.space.space import SMALL, Space, unstrided
from nasspace.space.tree import Parts, Stage, all_walks

COUNTS = ("flops", "params", "memory_access")
MAX_LAYERS = 30_000  # layers counted before giving up the exact range
SAMPLES = 500  # random networks counted instead
Shape = tuple[int, ...]
Range = tuple[tuple[int, int], ...]  # smallest and largest, for each of COUNTS
NOTHING: Range = ((0, 0),) * len(COUNTS)


@dataclass(frozen=True)
class Reachable:
    """Smallest and largest count over a space; of a random sample, not `exact`, for a very large space."""

    flops: tuple[int, int]
    params: tuple[int, int]
    memory_access: tuple[int, int]
    exact: bool


class _TooMany(Exception):
    """The exact range would need too many layers."""


def reachable(space: Space) -> Reachable:
    """Find the range of each count over all networks of the space."""
    try:
        return Reachable(*_Walk(space).ranges(), exact=True)
    except _TooMany:
        rng = random.Random(0)
        costs = [cost(space.sample(rng)) for _ in range(SAMPLES)]
        spans = [(min(values), max(values)) for values in ([getattr(c, n) for c in costs] for n in COUNTS)]
        return Reachable(*spans, exact=False)


class _Walk:
    """One pass over a space's tree for each combination of resolution and width multiplier."""

    def __init__(self, space: Space):
        self.space = space
        self.plan = space.plan
        self.seen = 0

    def ranges(self) -> Range:
        """The range over all combinations of resolution and width multiplier."""
        spans = [self._of_top(top) for top in all_walks(lambda choose: self._top(choose))]
        return _joined(spans)

    def _top(self, choose: Callable) -> dict[str, Any]:
        """Choose resolution and width multiplier."""
        return {key: value.walk(key, choose) for key, value in self.plan.top.items()}

    def _of_top(self, top: dict[str, Any]) -> Range:
        """The range at one resolution and width multiplier."""
        height, width = (top["resolution"],) * 2 if top.get("resolution") else self.plan.input[1:]
        multiplier = top.get("width", 1.0)

        def scale(layer: dict[str, Any]) -> dict[str, Any]:
            """Multiply and round the layer's width."""
            return self.space.scaled_layer(layer, multiplier)

        states = self._stem({(self.plan.input[0], height, width): NOTHING}, min(height, width), scale)
        for stage in self.plan.parts["stages"]:
            states = self._stage(states, stage, scale)
        for part in self.plan.parts["head"]:
            states = self._layer(states, part, dict)
        return _joined(states.values())

    def _stem(self, states: dict[Shape, Range], side: int, scale: Callable) -> dict[Shape, Range]:
        """The states after the stem."""
        parts = self.plan.parts["stem"]
        if side >= SMALL:
            for part in parts:
                states = self._layer(states, part, scale)
            return states
        ends: list[tuple[Shape, Range]] = []  # of every whole stem: which strides are removed depends on all its layers
        for stem in all_walks(lambda choose: [part.walk("", choose) for part in parts]):
            current = states
            for layer in unstrided(stem, side):
                current = self._after(current, [scale(layer)])
            ends.extend(current.items())
        return _merged(ends)

    def _layer(self, states: dict[Shape, Range], part: Parts, scale: Callable) -> dict[Shape, Range]:
        """The states after one layer of the stem or the head."""
        layers = all_walks(lambda choose: part.walk("", choose))
        return self._after(states, [scale(layer) for layer in self._counted(layers)])

    def _stage(self, states: dict[Shape, Range], stage: Stage, scale: Callable) -> dict[Shape, Range]:
        """The states after a stage."""
        ends: list[tuple[Shape, Range]] = []
        per_layer = list(self._counted(all_walks(lambda choose: stage.each.walk("", choose))))
        for once in self._counted(all_walks(lambda choose: stage.direct.walk("", choose))):
            depth, stride = once.pop("depth"), once.pop("stride", 1)
            current = states
            for i in range(depth):
                layers = [scale({**once, **each, "stride": 1 if i else stride}) for each in per_layer]
                current = self._after(current, layers)
            ends.extend(current.items())
        return _merged(ends)

    def _after(self, states: dict[Shape, Range], layers: list[dict[str, Any]]) -> dict[Shape, Range]:
        """The states after one layer that is any of `layers`."""
        ends = []
        for shape, spans in states.items():
            for layer in self._counted(layers):
                counted = layer_cost(checked_layer(layer, shape[0]), shape)
                ends.append((counted.out_shape, _added(spans, counted)))
        return _merged(ends)

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items and raise `_TooMany` after `MAX_LAYERS` in total."""
        for item in items:
            self.seen += 1
            if self.seen > MAX_LAYERS:
                raise _TooMany
            yield item


def _added(spans: Range, counted: LayerCost) -> Range:
    """Add a layer's counts to both ends of each range."""
    counts = [getattr(counted, name) for name in COUNTS]
    return tuple((low + count, high + count) for (low, high), count in zip(spans, counts, strict=True))


def _joined(ranges: Iterable[Range]) -> Range:
    """The smallest range that includes all of `ranges`, for each count."""
    return tuple(
        (min(lows), max(highs)) for lows, highs in (zip(*spans, strict=True) for spans in zip(*ranges, strict=True))
    )


def _merged(ends: list[tuple[Shape, Range]]) -> dict[Shape, Range]:
    """Join the ranges of equal shapes."""
    by_shape: dict[Shape, list[Range]] = {}
    for shape, spans in ends:
        by_shape.setdefault(shape, []).append(spans)
    return {shape: _joined(ranges) for shape, ranges in by_shape.items()}
