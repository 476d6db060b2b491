"""`Space`: a search space, read from a YAML in which a list is a choice and everything else is fixed."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from nasspace import blocks, files
from nasspace.architecture import Architecture
from nasspace.blocks.layers import make_divisible
from nasspace.documents import Document
from nasspace.errors import InputError
from nasspace.space import matching, parser
from nasspace.space.tree import Choose, ChosenLayers, all_walks

SMALL = 64  # below this deployment resolution, strides of the stem may become 1
SMALLEST_MAP = 14  # they do, the last one first, while the map after the stem would be smaller than this


class Space:
    """All networks that a space's YAML describes.

    `Space.load` reads a space by name or path; `Space(document)` takes a parsed document. `classes`, `channels` and
    `resolution` describe the task: classes and channels of the data, and the deployment resolution (None: the file's;
    several: a choice among them).
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
        name: str | os.PathLike[str],
        classes: int = 10,
        resolution: int | None = None,
        channels: int | None = None,
    ) -> Space:
        """Load a space by name or path; an `InputError` names file, line and remedy of a mistake in it."""
        path = files.find("spaces", name)
        return cls(files.load_yaml(path), classes=classes, resolution=resolution, channels=channels)

    @classmethod
    def from_text(cls, text: str, source: str = "", **task: Any) -> Space:
        """Read a space from a YAML text; `task` is `classes`, `resolution`, `channels`."""
        return cls(files.parse_yaml(text, source), **task)

    @property
    def size(self) -> int:
        """Number of complete sequences of choices; a choice that is not reached does not multiply."""
        return self.plan.size()

    @cached_property
    def options(self) -> dict[str, tuple[Any, ...]]:
        """The options of every choice that some network reaches, in the order of the file."""
        return dict(self.plan.choices())

    def architecture(self, choose: Choose) -> Architecture:
        """Create the network for which `choose(name, options)` returns an option of every choice that is reached."""
        choices: dict[str, Any] = {}

        def record(name: str, options: Sequence[Any]) -> Any:
            """Call `choose`, check the option and keep it."""
            option = choose(name, options)
            if option not in options:
                raise InputError(f"{name}: {option!r} is not one of {list(options)}")
            choices[name] = option
            return option

        return self._assembled(self.plan.walk(record), choices)

    def sample(self, rng: random.Random) -> Architecture:
        """Sample a network; every choice is uniform among its options."""
        return self.architecture(lambda name, options: rng.choice(options))

    def replay(self, choices: Mapping[str, Any]) -> Architecture:
        """Create the network of recorded choices; a missing one is that of an earlier layer, else the first option."""
        return self.architecture(lambda name, options: _recalled(name, options, choices))

    def choices_of(self, architecture: Architecture) -> dict[str, Any]:
        """Find choices with which the space creates the network; one that is not in it raises `InputError`."""
        return matching.choices_of(self, architecture)

    def enumerate(self) -> Iterator[Architecture]:
        """Yield every network once, by digest: fewer than `size` if different choices give the same network."""
        seen = set()
        for architecture in all_walks(self.architecture):
            if architecture.digest not in seen:
                seen.add(architecture.digest)
                yield architecture

    def neighbors(self, architecture: Architecture) -> Iterator[Architecture]:
        """Yield every network that differs in one choice, each once.

        Choices that only the neighbor reaches (a deeper stage) are copied from the nearest earlier layer.
        """
        if architecture.choices is None:
            raise InputError(
                f"{architecture.name or architecture.digest}: not created by a space, so it has no choices"
            )
        seen = {architecture.digest}
        for name, option in architecture.choices.items():
            for other in self.options[name]:
                if other == option:
                    continue
                neighbor = self.replay({**architecture.choices, name: other})
                if neighbor.digest not in seen:
                    seen.add(neighbor.digest)
                    yield neighbor

    def _assembled(self, chosen: ChosenLayers, choices: Mapping[str, Any]) -> Architecture:
        """Create the architecture: remove strides of the stem for small inputs, multiply and round widths."""
        height, width = (chosen.resolution,) * 2 if chosen.resolution else self.plan.input[1:]
        stem = self.scaled_stem(chosen.body[: chosen.stem], min(height, width), chosen.width)
        layers = stem + [self.scaled_layer(layer, chosen.width) for layer in chosen.body[chosen.stem :]]
        return Architecture.of(
            [*layers, *chosen.head],
            input=(self.plan.input[0], height, width),
            classes=self.classes,
            choices=dict(choices),
            document=self.document,
        )

    def scaled_stem(self, stem: Sequence[Mapping[str, Any]], side: int, width: float) -> list[dict[str, Any]]:
        """Remove strides that an input of `side` pixels does not need, and scale each layer."""
        return [self.scaled_layer(layer, width) for layer in unstrided(stem, side)]

    def scaled_layer(self, layer: Mapping[str, Any], width: float) -> dict[str, Any]:
        """Multiply a layer's `out` by the width multiplier and round it to the divisor; set an auxiliary's classes."""
        scaled = dict(layer)
        if blocks.get(layer["block"]).classifies:
            scaled["classes"] = self.classes
        if "out" in layer:
            scaled["out"] = make_divisible(layer["out"] * width, self.plan.divisor)
        return scaled

    def __repr__(self) -> str:
        return f"Space({self.name!r}, {math.log10(self.size):.1f} decades)"


def unstrided(stem: Sequence[Mapping[str, Any]], side: int) -> list[dict[str, Any]]:
    """Remove as many strides from the stem as an input of `side` pixels needs, the last one first.

    Strides remain if the map after the stem has at least 14 pixels; from 64 pixels on, all remain.

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
    """Side of the map after the layers."""
    for layer in layers:
        side = -(-side // layer.get("stride", 1))
    return side


def _recalled(name: str, options: Sequence[Any], choices: Mapping[str, Any]) -> Any:
    """Return the recorded option, else that of the same choice in the nearest earlier layer, else the first."""
    if name in choices and choices[name] in options:
        return choices[name]
    parts = name.split(".")
    if len(parts) > 3 and parts[0] == "stages" and parts[2].isdigit():
        for layer in range(int(parts[2]) - 1, -1, -1):
            same = ".".join([*parts[:2], str(layer), *parts[3:]])
            if same in choices and choices[same] in options:
                return choices[same]
    return options[0]
