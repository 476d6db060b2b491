"""The reachable range of FLOPs, parameters and memory access of a space, exactly and before any search.

Costs add up along the chain, and a layer's cost depends only on what stands before it through the shape of the map.
So the smallest and largest sums are found stage by stage, over the shapes that can stand between two stages,
without walking through the networks themselves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nasspace.architecture import checked_layer
from nasspace.counting import LayerCost, cost, layer_cost
from nasspace.space.space import SMALL, Space, unstrided
from nasspace.space.tree import Parts, Stage, every

COUNTS = ("flops", "params", "memory_access")
MOST = 30_000  # layers looked at before the exact way is given up
SAMPLE = 500
Shape = tuple[int, ...]
Range = tuple[tuple[int, int], ...]  # smallest and largest, for each of COUNTS
NOTHING: Range = ((0, 0),) * len(COUNTS)


@dataclass(frozen=True)
class Reachable:
    """Smallest and largest count over a space; not `exact` for a very large one, where they are of a sample."""

    flops: tuple[int, int]
    params: tuple[int, int]
    memory_access: tuple[int, int]
    exact: bool


class _TooMany(Exception):
    """The exact way would look at too many layers."""


def reachable(space: Space) -> Reachable:
    """The range of each count over every network of the space."""
    try:
        return Reachable(*_Walk(space).ranges(), exact=True)
    except _TooMany:
        rng = random.Random(0)
        costs = [cost(space.sample(rng)) for _ in range(SAMPLE)]
        spans = [(min(values), max(values)) for values in ([getattr(c, n) for c in costs] for n in COUNTS)]
        return Reachable(*spans, exact=False)


class _Walk:
    """One pass over a space's plan, for each combination of resolution and width."""

    def __init__(self, space: Space):
        self.space = space
        self.plan = space.plan
        self.looked_at = 0

    def ranges(self) -> Range:
        spans = [self._of_top(top) for top in every(lambda choose: self._top(choose))]
        return _joined(spans)

    def _top(self, choose: Callable) -> dict[str, Any]:
        return {key: value.walk(key, choose) for key, value in self.plan.top.items()}

    def _of_top(self, top: dict[str, Any]) -> Range:
        height, width = (top["resolution"],) * 2 if top.get("resolution") else self.plan.input[1:]
        multiplier = top.get("width", 1.0)

        def settle(layer: dict[str, Any]) -> dict[str, Any]:
            return self.space.settled_layer(layer, multiplier)

        states = self._stem({(self.plan.input[0], height, width): NOTHING}, min(height, width), settle)
        for stage in self.plan.parts["stages"]:
            states = self._stage(states, stage, settle)
        for part in self.plan.parts["head"]:
            states = self._layer(states, part, dict)
        return _joined(states.values())

    def _stem(self, states: dict[Shape, Range], side: int, settle: Callable) -> dict[Shape, Range]:
        parts = self.plan.parts["stem"]
        if side >= SMALL:
            for part in parts:
                states = self._layer(states, part, settle)
            return states
        ends: list[tuple[Shape, Range]] = []  # of every whole stem: which strides go depends on all of its layers
        for stem in every(lambda choose: [part.walk("", choose) for part in parts]):
            current = states
            for layer in unstrided(stem, side):
                current = self._after(current, [settle(layer)])
            ends.extend(current.items())
        return _merged(ends)

    def _layer(self, states: dict[Shape, Range], part: Parts, settle: Callable) -> dict[Shape, Range]:
        layers = every(lambda choose: part.walk("", choose))
        return self._after(states, [settle(layer) for layer in self._counted(layers)])

    def _stage(self, states: dict[Shape, Range], stage: Stage, settle: Callable) -> dict[Shape, Range]:
        ends: list[tuple[Shape, Range]] = []
        anew = list(self._counted(every(lambda choose: stage.each.walk("", choose))))
        for once in self._counted(every(lambda choose: stage.direct.walk("", choose))):
            depth, stride = once.pop("depth"), once.pop("stride", 1)
            current = states
            for i in range(depth):
                layers = [settle({**once, **each, "stride": 1 if i else stride}) for each in anew]
                current = self._after(current, layers)
            ends.extend(current.items())
        return _merged(ends)

    def _after(self, states: dict[Shape, Range], layers: list[dict[str, Any]]) -> dict[Shape, Range]:
        """The states behind one layer that is any of `layers`."""
        ends = []
        for shape, spans in states.items():
            for layer in self._counted(layers):
                counted = layer_cost(checked_layer(layer, shape[0]), shape)
                ends.append((counted.out_shape, _added(spans, counted)))
        return _merged(ends)

    def _counted(self, things: Iterable[Any]) -> Iterator[Any]:
        for thing in things:
            self.looked_at += 1
            if self.looked_at > MOST:
                raise _TooMany
            yield thing


def _added(spans: Range, counted: LayerCost) -> Range:
    counts = [getattr(counted, name) for name in COUNTS]
    return tuple((low + count, high + count) for (low, high), count in zip(spans, counts, strict=True))


def _joined(ranges: Iterable[Range]) -> Range:
    """The ranges that hold all of `ranges`."""
    return tuple(
        (min(lows), max(highs)) for lows, highs in (zip(*spans, strict=True) for spans in zip(*ranges, strict=True))
    )


def _merged(ends: list[tuple[Shape, Range]]) -> dict[Shape, Range]:
    by_shape: dict[Shape, list[Range]] = {}
    for shape, spans in ends:
        by_shape.setdefault(shape, []).append(spans)
    return {shape: _joined(ranges) for shape, ranges in by_shape.items()}
