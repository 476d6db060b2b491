"""The plan of a space: what is fixed and what is a choice, as a tree that can be walked, counted and listed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Choose = Callable[[str, Sequence[Any]], Any]


@dataclass(frozen=True)
class Value:
    """One value or a choice among several."""

    options: tuple[Any, ...]

    def walk(self, name: str, choose: Choose) -> Any:
        return self.options[0] if len(self.options) == 1 else choose(name, self.options)

    def size(self) -> int:
        return len(self.options)

    def choices(self, name: str) -> Iterator[tuple[str, tuple]]:
        if len(self.options) > 1:
            yield name, self.options


@dataclass(frozen=True)
class Alternative:
    """A block with its options; `label` tells two alternatives of one block apart."""

    block: str
    label: str
    options: dict[str, Value]


@dataclass(frozen=True)
class Blocks:
    """One block or a choice among several, each with options of its own."""

    alternatives: tuple[Alternative, ...]

    def walk(self, prefix: str, choose: Choose) -> dict[str, Any]:
        index = Value(tuple(range(len(self.alternatives)))).walk(f"{prefix}.block", choose)
        taken = self.alternatives[index]
        options = {key: value.walk(f"{prefix}.{taken.label}.{key}", choose) for key, value in taken.options.items()}
        return {"block": taken.block, **options}

    def size(self) -> int:
        return sum(math.prod(value.size() for value in taken.options.values()) for taken in self.alternatives)

    def choices(self, prefix: str) -> Iterator[tuple[str, tuple]]:
        yield from Value(tuple(range(len(self.alternatives)))).choices(f"{prefix}.block")
        for taken in self.alternatives:
            for key, value in taken.options.items():
                yield from value.choices(f"{prefix}.{taken.label}.{key}")

    def labels(self, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """What the options of the choice among blocks are called; its options are their positions."""
        if len(self.alternatives) > 1:
            yield f"{prefix}.block", tuple(taken.label for taken in self.alternatives)


@dataclass(frozen=True)
class Parts:
    """A layer's or a stage's parts in the order of the file: `block`, `out`, `stride`, options."""

    parts: dict[str, Value | Blocks]

    def walk(self, prefix: str, choose: Choose) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key in self.parts:
            result |= self.one(key, prefix, choose)
        return result

    def one(self, key: str, prefix: str, choose: Choose) -> dict[str, Any]:
        part = self.parts[key]
        return part.walk(prefix, choose) if isinstance(part, Blocks) else {key: part.walk(f"{prefix}.{key}", choose)}

    def size(self) -> int:
        return math.prod(part.size() for part in self.parts.values())

    def choices(self, prefix: str) -> Iterator[tuple[str, tuple]]:
        for key, part in self.parts.items():
            yield from part.choices(prefix if isinstance(part, Blocks) else f"{prefix}.{key}")

    def labels(self, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        for part in self.parts.values():
            if isinstance(part, Blocks):
                yield from part.labels(prefix)


@dataclass(frozen=True)
class Stage:
    """A stage: parts chosen once (`depth` among them), and parts chosen anew for each layer."""

    direct: Parts
    each: Parts
    order: tuple[str, ...]

    def walk(self, prefix: str, choose: Choose) -> list[dict[str, Any]]:
        once: dict[str, Any] = {}
        anew: list[dict[str, Any]] = []
        for key in self._in_order():
            if key == "each":
                anew = [self.each.walk(f"{prefix}.{i}", choose) for i in range(once["depth"])]
            else:
                once |= self.direct.one(key, prefix, choose)
        depth, stride = once.pop("depth"), once.pop("stride", 1)
        layers = [once | (anew[i] if anew else {}) for i in range(depth)]
        return [{**layer, "stride": 1 if i else stride} for i, layer in enumerate(layers)]

    def _in_order(self) -> Iterator[str]:
        """The keys in the order of the file, but the depth before the layers that it makes."""
        if "each" in self.order and self.order.index("each") < self.order.index("depth"):
            yield "depth"
            yield from (key for key in self.order if key != "depth")
        else:
            yield from self.order

    def size(self) -> int:
        depths = self.direct.parts["depth"].options
        direct = math.prod(part.size() for key, part in self.direct.parts.items() if key != "depth")
        return direct * sum(self.each.size() ** depth for depth in depths)

    def choices(self, prefix: str) -> Iterator[tuple[str, tuple]]:
        for key in self._in_order():
            if key == "each":
                for i in range(max(self.direct.parts["depth"].options)):
                    yield from self.each.choices(f"{prefix}.{i}")
            else:
                yield from Parts({key: self.direct.parts[key]}).choices(prefix)

    def labels(self, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield from self.direct.labels(prefix)
        for i in range(max(self.direct.parts["depth"].options)):
            yield from self.each.labels(f"{prefix}.{i}")


@dataclass(frozen=True)
class Planned:
    """What one walk chose: the layers as dictionaries, `stem` of them in the stem, widths not yet settled."""

    resolution: int | None
    width: float
    stem: int
    body: list[dict[str, Any]]
    head: list[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """A whole space; `order` is that of the file's keys."""

    name: str
    description: str
    input: tuple[int, int, int]
    divisor: int
    top: dict[str, Value]
    parts: dict[str, list[Parts] | list[Stage]]
    order: tuple[str, ...]

    def walk(self, choose: Choose) -> Planned:
        """Choose everything, in the order of the file."""
        top: dict[str, Any] = {}
        walked: dict[str, list[dict[str, Any]]] = {}
        for key in self.order:
            if key in self.top:
                top[key] = self.top[key].walk(key, choose)
            else:
                walked[key] = self._layers(key, choose)
        stem = walked.get("stem", [])
        body = stem + walked["stages"]
        return Planned(top.get("resolution"), top.get("width", 1.0), len(stem), body, walked["head"])

    def _layers(self, key: str, choose: Choose) -> list[dict[str, Any]]:
        layers: list[dict[str, Any]] = []
        for i, part in enumerate(self.parts[key]):
            walked = part.walk(f"{key}.{i}", choose)
            layers.extend(walked if isinstance(walked, list) else [walked])
        return layers

    def size(self) -> int:
        """The number of complete sequences of choices."""
        parts = [part for parts in self.parts.values() for part in parts]
        return math.prod(part.size() for part in (*self.top.values(), *parts))

    def choices(self) -> Iterator[tuple[str, tuple]]:
        """Every choice that some walk reaches, with its options, in the order of the file."""
        for key in self.order:
            if key in self.top:
                yield from self.top[key].choices(key)
            else:
                for i, part in enumerate(self.parts[key]):
                    yield from part.choices(f"{key}.{i}")

    def labels(self) -> dict[str, tuple[str, ...]]:
        """The names of the blocks that each choice among blocks has, in the order of its options."""
        named = (part.labels(f"{key}.{i}") for key, parts in self.parts.items() for i, part in enumerate(parts))
        return {name: labels for found in named for name, labels in found}


def every(walk: Callable[[Choose], Any]) -> Iterator[Any]:
    """What `walk` gives for every sequence of choices, in order: an odometer whose last wheel that can, turns."""
    path: list[tuple[int, int]] = []  # the index taken and the number of options, for each choice made
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
