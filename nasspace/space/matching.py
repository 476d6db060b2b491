"""The choices of a network whose description has none: a space's tree matched with its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nasspace.architecture import Architecture, canonical, checked_layer
from nasspace.errors import InputError
from nasspace.space.tree import Choose, Stage, all_walks

if TYPE_CHECKING:
    from nasspace.space.space import Space

Choices = dict[str, Any]
Layers = Sequence[dict[str, Any]]


def choices_of(space: Space, architecture: Architecture) -> Choices:
    """Choices with which the space creates the network; `InputError` if it is not in the space.

    Where different choices give the same network, any of them.
    """
    for top, walked in _recorded(lambda choose: {key: part.walk(key, choose) for key, part in space.plan.top.items()}):
        found = _Match(space, architecture, walked.get("width", 1.0)).choices()
        if found is not None and space.replay({**top, **found}).digest == architecture.digest:
            return {**top, **found}
    raise InputError(f"{architecture.name or architecture.digest}: not a network of the space '{space.name}'")


def _recorded(walk: Callable[[Choose], Any]) -> Iterator[tuple[Choices, Any]]:
    """Every sequence of choices, and what `walk` returns for it."""

    def recording(choose: Choose) -> tuple[Choices, Any]:
        """Call `walk` and keep its choices."""
        choices: Choices = {}

        def record(name: str, options: Sequence[Any]) -> Any:
            choices[name] = choose(name, options)
            return choices[name]

        return choices, walk(record)

    return all_walks(recording)


class _Match:
    """A search for choices, part by part from the stem to the head, for one width multiplier."""

    def __init__(self, space: Space, architecture: Architecture, width: float):
        self.space = space
        self.layers = architecture.layers
        self.side = min(architecture.input[1:])
        self.channels = (architecture.input[0], *(layer.out for layer in self.layers))
        self.width = width

    def choices(self) -> Choices | None:
        """The choices of the whole network, without those at the top of the space."""
        parts = self.space.plan.parts
        stem = parts.get("stem", ())
        walk = _recorded(lambda choose: [part.walk(f"stem.{i}", choose) for i, part in enumerate(stem)])
        for choices, layers in walk:
            if self._fit(self.space.scaled_stem(layers, self.side, self.width), 0):
                rest = self._stages(0, len(layers))
                if rest is not None:
                    return {**choices, **rest}
        return None

    def _stages(self, number: int, start: int) -> Choices | None:
        """The choices from a stage on, whose first layer is number `start`."""
        stages = self.space.plan.parts["stages"]
        if number == len(stages):
            return self._head(0, start)
        for choices, depth in self._stage(stages[number], f"stages.{number}", start):
            rest = self._stages(number + 1, start + depth)
            if rest is not None:
                return {**choices, **rest}
        return None

    def _stage(self, stage: Stage, prefix: str, start: int) -> Iterator[tuple[Choices, int]]:
        """Choices with which the stage has the layers from `start` on, and its depth."""
        for choices, once in _recorded(lambda choose: stage.direct.walk(prefix, choose)):
            depth, stride = once.pop("depth"), once.pop("stride", 1)
            for i in range(depth):
                own = self._each(stage, f"{prefix}.{i}", {**once, "stride": 1 if i else stride}, start + i)
                if own is None:
                    break
                choices |= own
            else:
                yield choices, depth

    def _each(self, stage: Stage, prefix: str, once: dict[str, Any], number: int) -> Choices | None:
        """The choices of one layer of a stage."""
        for choices, layer in _recorded(lambda choose: stage.each.walk(prefix, choose)):
            if self._fit([self.space.scaled_layer({**once, **layer}, self.width)], number):
                return choices
        return None

    def _head(self, number: int, start: int) -> Choices | None:
        """The choices from a layer of the head on."""
        head = self.space.plan.parts["head"]
        if number == len(head):
            return {} if start == len(self.layers) else None
        for choices, layer in _recorded(lambda choose: head[number].walk(f"head.{number}", choose)):
            if self._fit([layer], start):
                rest = self._head(number + 1, start + 1)
                if rest is not None:
                    return {**choices, **rest}
        return None

    def _fit(self, layers: Layers, start: int) -> bool:
        """Whether the network has these layers from `start` on."""
        if start + len(layers) > len(self.layers):
            return False
        for number, given in enumerate(layers, start):
            layer, own = checked_layer(given, self.channels[number]), self.layers[number]
            same = (layer.block, layer.out, layer.stride) == (own.block, own.out, own.stride)
            if not same or canonical(layer, self.channels[number]) != canonical(own, self.channels[number]):
                return False
        return True
