"""A search space: a YAML in which a list is a choice and everything else is fixed."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from nasspace import files
from nasspace.architecture import Architecture
from nasspace.blocks.layers import make_divisible
from nasspace.documents import Document
from nasspace.errors import InputError
from nasspace.space import parser
from nasspace.space.tree import Choose, Planned, every

SMALL = 64  # at a deployment resolution below this the strides of the stem may become 1 ...
SMALLEST_MAP = 14  # ... the last one first, while the map after the stem would be smaller than this


class Space:
    """Every network that a space's YAML describes.

    `Space.load` reads one by name or path, `Space(document)` takes one that is read already. `classes`,
    `channels` and `resolution` come from the task: the data's classes and channels, the deployment's resolution
    (None: as the file says; several: a choice among them).
    """

    def __init__(
        self,
        document: Document,
        *,
        classes: int = 10,
        resolution: int | tuple[int, ...] | None = None,
        channels: int | None = None,
    ):
        self.document = document
        self.classes = classes
        self.resolution = resolution
        self.channels = channels
        self.plan = parser.read(document, classes, resolution, channels)
        self.name = self.plan.name
        if fault := files.unfit_name(self.name):
            raise document.error(("name",), fault)
        self.description = self.plan.description

    @classmethod
    def load(
        cls,
        name: str | os.PathLike,
        classes: int = 10,
        resolution: int | None = None,
        channels: int | None = None,
    ) -> Space:
        """The space of a name or path; what is wrong in it is an `InputError` with file, line and remedy."""
        path = files.find("spaces", name)
        return cls(files.load_yaml(path), classes=classes, resolution=resolution, channels=channels)

    @classmethod
    def from_text(cls, text: str, source: str = "", **task: Any) -> Space:
        """The space in a YAML text; `task` is `classes`, `resolution`, `channels`."""
        return cls(files.parse_yaml(text, source), **task)

    @property
    def size(self) -> int:
        """How many complete sequences of choices there are; what is not reached does not multiply."""
        return self.plan.size()

    @cached_property
    def options(self) -> dict[str, tuple]:
        """Every choice that some network reaches, with its options, in the order of the file."""
        return dict(self.plan.choices())

    def architecture(self, choose: Choose) -> Architecture:
        """The network for which `choose(name, options)` picks one of the options of every list reached."""
        made: dict[str, Any] = {}

        def remember(name: str, options: Sequence[Any]) -> Any:
            option = choose(name, options)
            if option not in options:
                raise InputError(f"{name}: {option!r} is not one of {list(options)}")
            made[name] = option
            return option

        planned = self.plan.walk(remember)
        return self._settled(planned, made)

    def sample(self, rng: random.Random) -> Architecture:
        """A random network: every choice uniform among its options."""
        return self.architecture(lambda name, options: rng.choice(options))

    def replay(self, choices: Mapping[str, Any]) -> Architecture:
        """The network of recorded choices; one that is missing takes the nearest like one, else the first."""
        return self.architecture(lambda name, options: _recalled(name, options, choices))

    def enumerate(self) -> Iterator[Architecture]:
        """Every network once, by digest: fewer than `size` where two sequences of choices give one."""
        seen = set()
        for architecture in every(self.architecture):
            if architecture.digest not in seen:
                seen.add(architecture.digest)
                yield architecture

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        """Every other network that one changed choice gives, each once.

        Choices that the change newly reaches (a deeper stage) take the option of the nearest layer that has them.
        """
        if architecture.choices is None:
            raise InputError(f"{architecture.name or architecture.digest}: not made by a space, so it has no choices")
        seen = {architecture.digest}
        for name, option in architecture.choices.items():
            for other in self.options[name]:
                if other == option:
                    continue
                neighbour = self.replay({**architecture.choices, name: other})
                if neighbour.digest not in seen:
                    seen.add(neighbour.digest)
                    yield neighbour

    def _settled(self, planned: Planned, choices: Mapping[str, Any]) -> Architecture:
        """Widths settled, stem strides of small inputs removed, the head completed."""
        height, width = (planned.resolution,) * 2 if planned.resolution else self.plan.input[1:]
        stem = unstrided(planned.body[: planned.stem], min(height, width))
        layers = [self.settled_layer(layer, planned.width) for layer in (*stem, *planned.body[planned.stem :])]
        return Architecture.of(
            [*layers, *planned.head],
            input=(self.plan.input[0], height, width),
            classes=self.classes,
            choices=dict(choices),
            document=self.document,
        )

    def settled_layer(self, layer: Mapping[str, Any], width: float) -> dict[str, Any]:
        """A chosen layer with its width multiplied and rounded."""
        settled = dict(layer)
        if "out" in layer:
            settled["out"] = make_divisible(layer["out"] * width, self.plan.divisor)
        return settled

    def __repr__(self) -> str:
        return f"Space({self.name!r}, {math.log10(self.size):.1f} decades)"


def unstrided(stem: Sequence[Mapping[str, Any]], side: int) -> list[dict[str, Any]]:
    """The stem's layers with as many strides removed as an input of `side` pixels needs, the last one first.

    A stride stays where the map after the stem has 14 pixels or more all the same; from 64 pixels all stay.

    >>> stem = [{"stride": 2}, {"stride": 2}]
    >>> [[layer["stride"] for layer in unstrided(stem, side)] for side in (64, 63, 32, 28, 26)]
    [[2, 2], [2, 2], [2, 1], [2, 1], [1, 1]]
    """
    layers = [dict(layer) for layer in stem]
    if side >= SMALL:
        return layers
    for layer in reversed(layers):
        if _map_after(layers, side) >= SMALLEST_MAP:
            break
        if "stride" in layer:
            layer["stride"] = 1
    return layers


def _map_after(layers: Sequence[Mapping[str, Any]], side: int) -> int:
    for layer in layers:
        side = -(-side // layer.get("stride", 1))
    return side


def _recalled(name: str, options: Sequence[Any], choices: Mapping[str, Any]) -> Any:
    """The recorded option; else that of the same choice in the nearest earlier layer; else the first."""
    if name in choices and choices[name] in options:
        return choices[name]
    parts = name.split(".")
    if len(parts) > 3 and parts[0] == "stages" and parts[2].isdigit():
        for layer in range(int(parts[2]) - 1, -1, -1):
            like = ".".join([*parts[:2], str(layer), *parts[3:]])
            if like in choices and choices[like] in options:
                return choices[like]
    return options[0]
