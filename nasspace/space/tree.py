"""The tree of a space: its fixed values and its choices.

Every node can be walked (calling `choose(name, options)` for each choice that is reached), counted and listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Choose = Callable[[str, Sequence[Any]], Any]  # choose(name, options) returns one of the options


@dataclass(frozen=True)
class Value:
    """One value, or a choice among several."""

    options: tuple[Any, ...]

    def walk(self, name: str, choose: Choose) -> Any:
        """Return the value; call `choose` if there are several."""
        return self.options[0] if len(self.options) == 1 else choose(name, self.options)

    def size(self) -> int:
        """Number of options."""
        return len(self.options)

    def choices(self, name: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """The name and options of the choice, if it is one."""
        if len(self.options) > 1:
            yield name, self.options


@dataclass(frozen=True)
class Alternative:
    """A block with its options; `label` distinguishes alternatives with the same block."""

    block: str
    label: str
    options: dict[str, Value]


@dataclass(frozen=True)
class Blocks:
    """One block, or a choice among several, each with its own options."""

    alternatives: tuple[Alternative, ...]

    def walk(self, prefix: str, choose: Choose) -> dict[str, Any]:
        """Return the chosen block and its options; the choice among blocks is by index."""
        index = Value(tuple(range(len(self.alternatives)))).walk(f"{prefix}.block", choose)
        chosen = self.alternatives[index]
        options = {key: value.walk(f"{prefix}.{chosen.label}.{key}", choose) for key, value in chosen.options.items()}
        return {"block": chosen.block, **options}

    def size(self) -> int:
        """Number of combinations of a block and its options."""
        return sum(math.prod(value.size() for value in each.options.values()) for each in self.alternatives)

    def choices(self, prefix: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """The names and options of the choice among blocks and of those in the options of each."""
        yield from Value(tuple(range(len(self.alternatives)))).choices(f"{prefix}.block")
        for alternative in self.alternatives:
            for key, value in alternative.options.items():
                yield from value.choices(f"{prefix}.{alternative.label}.{key}")

    def labels(self, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The labels of the choice among blocks, whose options are indices."""
        if len(self.alternatives) > 1:
            yield f"{prefix}.block", tuple(alternative.label for alternative in self.alternatives)


@dataclass(frozen=True)
class Parts:
    """The keys of a layer or a stage in the order of the file: `block`, `out`, `stride`, options."""

    parts: dict[str, Value | Blocks]

    def walk(self, prefix: str, choose: Choose) -> dict[str, Any]:
        """Return the layer as a dictionary."""
        result: dict[str, Any] = {}
        for key in self.parts:
            result |= self.walk_key(key, prefix, choose)
        return result

    def walk_key(self, key: str, prefix: str, choose: Choose) -> dict[str, Any]:
        """Return the values of one key: one value, or a block and its options."""
        part = self.parts[key]
        return part.walk(prefix, choose) if isinstance(part, Blocks) else {key: part.walk(f"{prefix}.{key}", choose)}

    def size(self) -> int:
        """Number of combinations of all choices."""
        return math.prod(part.size() for part in self.parts.values())

    def choices(self, prefix: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """The names and options of all choices."""
        for key, part in self.parts.items():
            yield from part.choices(prefix if isinstance(part, Blocks) else f"{prefix}.{key}")

    def labels(self, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The labels of all choices among blocks."""
        for part in self.parts.values():
            if isinstance(part, Blocks):
                yield from part.labels(prefix)


@dataclass(frozen=True)
class Stage:
    """A stage: `direct` is chosen once (including `depth`), `each` separately for every layer."""

    direct: Parts
    each: Parts
    order: tuple[str, ...]

    def walk(self, prefix: str, choose: Choose) -> list[dict[str, Any]]:
        """Return the layers; only the first has the stage's stride."""
        once: dict[str, Any] = {}
        per_layer: list[dict[str, Any]] = []
        for key in self._in_order():
            if key == "each":
                per_layer = [self.each.walk(f"{prefix}.{i}", choose) for i in range(once["depth"])]
            else:
                once |= self.direct.walk_key(key, prefix, choose)
        depth, stride = once.pop("depth"), once.pop("stride", 1)
        layers = [once | (per_layer[i] if per_layer else {}) for i in range(depth)]
        return [{**layer, "stride": 1 if i else stride} for i, layer in enumerate(layers)]

    def _in_order(self) -> Iterator[str]:
        """The keys in the order of the file, but `depth` before `each`, whose number of layers it gives."""
        if "each" in self.order and self.order.index("each") < self.order.index("depth"):
            yield "depth"
            yield from (key for key in self.order if key != "depth")
        else:
            yield from self.order

    @property
    def depths(self) -> tuple[Any, ...]:
        """The options of the number of layers."""
        depth = self.direct.parts["depth"]
        assert isinstance(depth, Value), "the parser allows numbers only"
        return depth.options

    def size(self) -> int:
        """Number of combinations of all choices over all depths."""
        depths = self.depths
        direct = math.prod(part.size() for key, part in self.direct.parts.items() if key != "depth")
        return direct * sum(self.each.size() ** depth for depth in depths)

    def choices(self, prefix: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """The names and options of all choices, those of every layer of the deepest stage among them."""
        for key in self._in_order():
            if key == "each":
                for i in range(max(self.depths)):
                    yield from self.each.choices(f"{prefix}.{i}")
            else:
                yield from Parts({key: self.direct.parts[key]}).choices(prefix)

    def labels(self, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The labels of all choices among blocks."""
        yield from self.direct.labels(prefix)
        for i in range(max(self.depths)):
            yield from self.each.labels(f"{prefix}.{i}")


@dataclass(frozen=True)
class ChosenLayers:
    """The result of one walk: layers as dictionaries, with widths not yet multiplied and rounded.

    `resolution` is None where the space has no such choice; the first `stem` layers of `body` are the stem.
    """

    resolution: int | None
    width: float
    stem: int
    body: list[dict[str, Any]]
    head: list[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """A whole space, with the keys of the file in their `order`.

    `top` holds `resolution` and `width`, `parts` the layers of `stem` and `head` and the `stages`.
    """

    name: str
    description: str
    input: tuple[int, int, int]
    divisor: int
    top: dict[str, Value]
    parts: Mapping[str, Sequence[Any]]  # `stages`: Stage; else Parts
    order: tuple[str, ...]

    def walk(self, choose: Choose) -> ChosenLayers:
        """Make all choices in the order of the file."""
        top: dict[str, Any] = {}
        walked: dict[str, list[dict[str, Any]]] = {}
        for key in self.order:
            if key in self.top:
                top[key] = self.top[key].walk(key, choose)
            else:
                walked[key] = self._layers(key, choose)
        stem = walked.get("stem", [])
        body = stem + walked["stages"]
        return ChosenLayers(top.get("resolution"), top.get("width", 1.0), len(stem), body, walked["head"])

    def _layers(self, key: str, choose: Choose) -> list[dict[str, Any]]:
        """The layers of the stem, the stages or the head."""
        layers: list[dict[str, Any]] = []
        for i, part in enumerate(self.parts[key]):
            walked = part.walk(f"{key}.{i}", choose)
            layers.extend(walked if isinstance(walked, list) else [walked])
        return layers

    def size(self) -> int:
        """Number of complete sequences of choices."""
        parts = [part for parts in self.parts.values() for part in parts]
        return math.prod(part.size() for part in (*self.top.values(), *parts))

    def choices(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """The names and options of every choice that some walk reaches, in the order of the file."""
        for key in self.order:
            if key in self.top:
                yield from self.top[key].choices(key)
            else:
                for i, part in enumerate(self.parts[key]):
                    yield from part.choices(f"{key}.{i}")

    def labels(self) -> dict[str, tuple[str, ...]]:
        """The labels of every choice among blocks, by its name."""
        named = (part.labels(f"{key}.{i}") for key, parts in self.parts.items() for i, part in enumerate(parts))
        return {name: labels for found in named for name, labels in found}


def all_walks(walk: Callable[[Choose], Any]) -> Iterator[Any]:
    """Call `walk` for every sequence of choices, in lexicographic order, and yield what it returns."""
    path: list[tuple[int, int]] = []  # index and number of options of each choice made
    while True:
        depth = 0

        def choose(name: str, options: Sequence[Any]) -> Any:
            nonlocal depth
            if depth == len(path):
                path.append((0, len(options)))
            depth += 1
            return options[path[depth - 1][0]]

        yield walk(choose)
        while path and path[-1][0] + 1 == path[-1][1]:
            path.pop()
        if not path:
            return
        path[-1] = (path[-1][0] + 1, path[-1][1])
