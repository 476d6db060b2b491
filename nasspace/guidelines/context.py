"""What is known of a network before its guidelines are looked at, and what goes against one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nasspace import blocks
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.guidelines.counterfactuals import GraphEdit, Part, Surroundings, layer_dicts
from nasspace.latency.graph import Convolution, Graph
from nasspace.latency.profile import Profile, node_times, standalone_ms

LONGEST_EDIT = 4
MIN_SHARE = 0.005  # of the network's time
FLOPS_TOLERANCE = 0.05  # "the same FLOPs" is within this of them, so that a width can be a multiple of 16, 8 or 4


@dataclass(frozen=True)
class Violation:
    """What goes against a guideline in some layers, the time that it takes now, and the parts of its change.

    `at_most_ms` is the time of all operators that ONNX Runtime joined to it, where that is more.
    """

    guideline: str
    kind: str
    layers: tuple[int, ...]
    text: str
    change: str
    time_ms: float
    parts: tuple[Part, ...]
    at_most_ms: float = 0.0


@dataclass(frozen=True)
class NetworkContext:
    """A network with all that was found out about it: its graph and its profile."""

    architecture: Architecture
    graph: Graph
    profile: Profile

    @cached_property
    def times(self) -> dict[str, tuple[float, frozenset[str]]]:
        return node_times(self.graph, self.profile)

    @cached_property
    def layers(self) -> list[dict[str, Any]]:
        return layer_dicts(self.architecture)

    @cached_property
    def in_shapes(self) -> list[tuple[int, ...]]:
        return [one.in_shape for one in cost(self.architecture).layers]

    @cached_property
    def convolutions(self) -> list[Convolution]:
        return self.graph.convolutions()

    def ms(self, names: Iterable[str]) -> float:
        return standalone_ms(self.graph, self.times, names)

    def is_measurable(self, one: Convolution) -> bool:
        """Whether a convolution takes enough time to be worth a measurement of its own."""
        return self.profile.share(self.ms([one.name])) >= MIN_SHARE

    def slowest_first(self, layers: Iterable[int]) -> tuple[int, ...]:
        """Layers, the one that takes most time in front."""
        return tuple(sorted(set(layers), key=lambda layer: (-self.profile.of_layer(layer), layer)))

    def surroundings(self, start: int, stop: int) -> Surroundings:
        """The layers on both sides of `start` to `stop`: next to them a part costs what it does in the network.

        In front of the first one stands a 1x1 convolution, where in the network there is one more layer: what is added
        to the input of a file is not in ONNX Runtime's own layout of maps, and so on from one addition to the next.
        """
        first = max(0, start - 1)
        lead = self.layers[first:start]
        if first > 0 and len(self.in_shapes[first]) == 3:
            lead = [{"block": "conv", "kernel": 1, "out": self.in_shapes[first][0]}, *lead]
        tail = self.layers[stop : stop + 1]
        if not tail or self.architecture.layers[stop].out is None or blocks.get(tail[0]["block"]).flattens:
            tail = []
        return Surroundings(tuple(lead), tuple(tail), self.in_shapes[first])

    def graph_edits(self, kind: str, layers: Iterable[int]) -> list[GraphEdit]:
        """The parts of a change in these layers: up to `STRETCH` on end in one, for each acts on the next."""
        stretches: list[list[int]] = []
        for layer in sorted(layers):
            if stretches and layer == stretches[-1][-1] + 1 and len(stretches[-1]) < LONGEST_EDIT:
                stretches[-1].append(layer)
            else:
                stretches.append([layer])
        return [
            GraphEdit(tuple(self.layers[i] for i in one), kind, self.surroundings(one[0], one[-1] + 1))
            for one in stretches
        ]

    def violation(
        self,
        guideline: str,
        kind: str,
        names: Iterable[str],
        layers: Iterable[int],
        text: str,
        change: str,
        parts: Iterable[Part],
    ) -> Violation:
        """What the operators `names` in `layers` do against a guideline."""
        return Violation(guideline, kind, self.slowest_first(layers), text, change, self.ms(names), tuple(parts))


def nearest_width(width: float) -> int:
    """A whole width of about the same FLOPs, which grow with its square: a multiple of 16, 8 or 4 where one is near.

    >>> near(63.7), near(52.0), near(17.6)
    (64, 52, 18)
    """
    for divisor in (16, 8, 4):
        rounded = max(1, round(width / divisor)) * divisor
        if abs(rounded**2 / width**2 - 1) <= FLOPS_TOLERANCE:
            return rounded
    return max(1, round(width))


def next_multiple_of_16(width: float) -> int:
    """The next multiple of 16, at which vector units are full: more FLOPs, and often less time.

    >>> above(56), above(64)
    (64, 64)
    """
    return 16 * math.ceil(width / 16)


ROUNDINGS = {nearest_width: "the same FLOPs", next_multiple_of_16: "more FLOPs, of a width that is a multiple of 16"}


def format_size(sizes: Iterable[int]) -> str:
    return "x".join(map(str, sizes))
