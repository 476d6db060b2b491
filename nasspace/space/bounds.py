"""Reachable layers of a space, and its range of FLOPs, parameters and memory access, exact and before any search.

Costs add up along the chain of layers, and a layer's cost depends on the earlier layers only through the shape of its
input. The smallest and largest sums are therefore found layer by layer for every shape that is possible there, without
enumerating the networks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nasspace.architecture import Architecture, Layer, checked_layer
from nasspace.counting import LayerCost, cost, layer_cost
from nasspace.errors import InputError
from nasspace.space.space import SMALL, Space, unstrided
from nasspace.space.tree import Parts, Stage, all_walks

COUNTS = ("flops", "params", "memory_access")
MAX_LAYERS = 30_000  # layers counted before giving up the exact range
SAMPLES = 500  # random networks counted instead
MOST_PLACED = 1_000_000  # layers visited before a list of all is refused
Shape = tuple[int, ...]
Range = tuple[tuple[int, int], ...]  # smallest and largest, for each of COUNTS
Scale = Callable[[dict[str, Any]], dict[str, Any]]  # multiply and round a layer's width
NOTHING: Range = ((0, 0),) * len(COUNTS)


@dataclass(frozen=True)
class Reachable:
    """Smallest and largest count over a space; of a random sample, not `exact`, for a very large space."""

    flops: tuple[int, int]
    params: tuple[int, int]
    memory_access: tuple[int, int]
    exact: bool


@dataclass(frozen=True)
class PlacedLayer:
    """A layer at its place (`stem.0`, `stages.1.2`: stage and layer in it, `head.0`), on an input of `in_shape`."""

    place: str
    layer: Layer
    in_shape: Shape


class _TooMany(Exception):
    """The exact range would need too many layers."""


def reachable(space: Space) -> Reachable:
    """Find the range of each count over all networks of the space."""
    try:
        flops, params, memory_access = _Walk(space, MAX_LAYERS).ranges()
        return Reachable(flops, params, memory_access, exact=True)
    except _TooMany:
        rng = random.Random(0)
        costs = [cost(space.sample(rng)) for _ in range(SAMPLES)]
        spans = ((min(values), max(values)) for values in ([getattr(c, n) for c in costs] for n in COUNTS))
        flops, params, memory_access = spans
        return Reachable(flops, params, memory_access, exact=False)


def reachable_layers(space: Space) -> list[PlacedLayer]:
    """Find every layer that some network of the space has, each once, with every input shape that it can have.

    There are far fewer than networks, since a layer depends on earlier ones only through its input's shape. A space
    with too many raises `InputError`.
    """
    walk = _Walk(space, MOST_PLACED)
    try:
        walk.ranges()
    except _TooMany:
        remedy = "choose `out` once for a stage instead of under `each`, or give fewer options"
        raise InputError(f"{space.name}: more than {MOST_PLACED:,} different layers; {remedy}") from None
    return list(walk.placed)


def placed_layers(space: Space, architecture: Architecture) -> list[PlacedLayer]:
    """The layers of one of the space's networks at their places.

    A network without recorded choices is matched with the space; one that is not in it raises `InputError`.
    """
    if architecture.choices is None:
        architecture = space.replay(space.choices_of(architecture))
    choices = architecture.choices or {}
    places = [f"stem.{i}" for i in range(len(space.plan.parts.get("stem", ())))]
    for i, stage in enumerate(space.plan.parts["stages"]):
        places += [f"stages.{i}.{j}" for j in range(choices.get(f"stages.{i}.depth", stage.depths[0]))]
    places += [f"head.{i}" for i in range(len(space.plan.parts["head"]))]
    if len(places) != len(architecture.layers):
        raise InputError(f"{architecture.name or architecture.digest}: not a network of the space '{space.name}'")
    shapes = [architecture.input, *(layer.out_shape for layer in cost(architecture).layers)]
    return [PlacedLayer(*each) for each in zip(places, architecture.layers, shapes[:-1], strict=True)]


class _Walk:
    """One pass over a space's tree for each combination of resolution and width multiplier."""

    def __init__(self, space: Space, limit: float):
        self.space = space
        self.plan = space.plan
        self.limit = limit
        self.seen = 0
        self.placed: dict[PlacedLayer, None] = {}  # in the order of the walk

    def ranges(self) -> Range:
        """The range over all combinations of resolution and width multiplier."""
        spans = [self._of_top(top) for top in all_walks(lambda choose: self._top(choose))]
        return _joined(spans)

    def _top(self, choose: Callable[..., Any]) -> dict[str, Any]:
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
        for i, stage in enumerate(self.plan.parts["stages"]):
            states = self._stage(states, stage, scale, f"stages.{i}")
        for i, part in enumerate(self.plan.parts["head"]):
            states = self._layer(states, part, dict, f"head.{i}")
        return _joined(states.values())

    def _stem(self, states: dict[Shape, Range], side: int, scale: Scale) -> dict[Shape, Range]:
        """The states after the stem."""
        parts = self.plan.parts["stem"]
        if side >= SMALL:
            for i, part in enumerate(parts):
                states = self._layer(states, part, scale, f"stem.{i}")
            return states
        ends: list[tuple[Shape, Range]] = []  # of every whole stem: which strides are removed depends on all its layers
        for stem in all_walks(lambda choose: [part.walk("", choose) for part in parts]):
            current = states
            for i, layer in enumerate(unstrided(stem, side)):
                current = self._after(current, [scale(layer)], f"stem.{i}")
            ends.extend(current.items())
        return _merged(ends)

    def _layer(self, states: dict[Shape, Range], part: Parts, scale: Scale, place: str) -> dict[Shape, Range]:
        """The states after one layer of the stem or the head."""
        layers = all_walks(lambda choose: part.walk("", choose))
        return self._after(states, [scale(layer) for layer in self._counted(layers)], place)

    def _stage(self, states: dict[Shape, Range], stage: Stage, scale: Scale, place: str) -> dict[Shape, Range]:
        """The states after a stage."""
        ends: list[tuple[Shape, Range]] = []
        per_layer = list(self._counted(all_walks(lambda choose: stage.each.walk("", choose))))
        for once in self._counted(all_walks(lambda choose: stage.direct.walk("", choose))):
            depth, stride = once.pop("depth"), once.pop("stride", 1)
            current = states
            for i in range(depth):
                layers = [scale({**once, **each, "stride": 1 if i else stride}) for each in per_layer]
                current = self._after(current, layers, f"{place}.{i}")
            ends.extend(current.items())
        return _merged(ends)

    def _after(self, states: dict[Shape, Range], layers: list[dict[str, Any]], place: str) -> dict[Shape, Range]:
        """The states after the layer at `place`, which is any of `layers`."""
        ends = []
        for shape, spans in states.items():
            for layer in self._counted(layers):
                checked = checked_layer(layer, shape[0])
                self.placed[PlacedLayer(place, checked, shape)] = None
                counted = layer_cost(checked, shape)
                ends.append((counted.out_shape, _added(spans, counted)))
        return _merged(ends)

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items and raise `_TooMany` after `limit` in total."""
        for item in items:
            self.seen += 1
            if self.seen > self.limit:
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
