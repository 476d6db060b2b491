"""The profiled network that the guidelines examine, and the violations that they report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nasspace import blocks
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.guidelines.counterfactuals import (
    FileEdit,
    GraphEdit,
    LayerReplacement,
    Part,
    Surroundings,
    changed_architecture,
    layer_dicts,
    write_changed_network,
)
from nasspace.guidelines.graph_narrowing import FileNarrowing, GraphNarrowing
from nasspace.guidelines.narrowing import LayerNarrowing
from nasspace.latency.graph import Convolution, Graph, layer_index
from nasspace.latency.profile import Profile, node_times, standalone_operators

LONGEST_EDIT = 4  # layers in one part of a graph edit
MIN_SHARE = 0.005  # share of the network's time above which a convolution is measured separately


@dataclass(frozen=True)
class Violation:
    """A violation of a guideline in some layers: the time of its operators and the parts of the proposed change.

    `at_most_ms` also includes the operators that ONNX Runtime fused with them, if that is more.
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
class Context(ABC):
    """A network in ONNX with its graph and its profile."""

    path: Path
    graph: Graph
    profile: Profile

    @property
    @abstractmethod
    def layers(self) -> Sequence[Mapping[str, Any]]:
        """The layers as dictionaries; one without a `block` that a replacement could be made of has an empty one."""

    @property
    @abstractmethod
    def in_shapes(self) -> Sequence[tuple[int, ...]]:
        """The input shape of every layer; empty if no layer can be replaced."""

    @abstractmethod
    def surroundings(self, start: int, stop: int) -> Surroundings:
        """Return the neighbors of layers `start` to `stop`, next to which a part costs as much as in the network."""

    @abstractmethod
    def graph_edits(self, kind: str, layers: Iterable[int]) -> Sequence[GraphEdit | FileEdit]:
        """Return the parts of a graph edit in these layers."""

    @abstractmethod
    def narrowing(self, grouped: Sequence[Convolution]) -> LayerNarrowing | GraphNarrowing | None:
        """Return the change of grouped convolutions to one group with narrower maps; None if it is not possible."""

    @abstractmethod
    def changed(self, parts: Iterable[Part], layers: Iterable[int], folder: Path, batch_size: int) -> Path | None:
        """Write the whole network with the applicable changes; None if none is applicable."""

    def changed_architecture(self, parts: Sequence[Part]) -> Architecture | None:
        """Return the changed network if its change is one of layers, else None."""
        return None

    @cached_property
    def times(self) -> dict[str, tuple[float, frozenset[str]]]:
        """Milliseconds and fused nodes of every exported node (see `node_times`)."""
        return node_times(self.graph, self.profile)

    @cached_property
    def convolutions(self) -> list[Convolution]:
        """The convolutions on feature maps, in order."""
        return self.graph.convolutions()

    def ms(self, names: Iterable[str]) -> float:
        """Return milliseconds of nodes, counting each fused operator once (see `standalone_operators`)."""
        return sum(standalone_operators(self.graph, self.times, names).values())

    def is_separate(self, names: Iterable[str]) -> bool:
        """Whether an operator runs for nodes, instead of being fused into a convolution or optimized away."""
        return bool(standalone_operators(self.graph, self.times, names))

    def is_measurable(self, one: Convolution) -> bool:
        """Whether a convolution takes enough time to be measured separately."""
        return self.profile.share(self.ms([one.name])) >= MIN_SHARE

    def slowest_first(self, layers: Iterable[int]) -> tuple[int, ...]:
        """Sort layers by time, the slowest first."""
        return tuple(sorted(set(layers), key=lambda layer: (-self.profile.of_layer(layer), layer)))

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
        """Return a violation by the operators `names` in `layers`."""
        return Violation(guideline, kind, self.slowest_first(layers), text, change, self.ms(names), tuple(parts))


@dataclass(frozen=True)
class NetworkContext(Context):
    """A network of the library's blocks: its layers can be measured alone, and with other options."""

    architecture: Architecture

    @cached_property
    def layers(self) -> list[dict[str, Any]]:
        """The layers as dictionaries."""
        return layer_dicts(self.architecture)

    @cached_property
    def in_shapes(self) -> list[tuple[int, ...]]:
        """The input shape of every layer."""
        return [one.in_shape for one in cost(self.architecture).layers]

    def surroundings(self, start: int, stop: int) -> Surroundings:
        """Return the neighbors of layers `start` to `stop`, next to which a part costs as much as in the network.

        If more layers precede them in the network, a 1x1 convolution is put first: the input of a file is not in ONNX
        Runtime's internal memory layout, and additions would carry that layout from one shortcut to the next.
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
        """Return the parts of a graph edit, each of up to `LONGEST_EDIT` consecutive layers, which interact."""
        runs: list[list[int]] = []
        for layer in sorted(layers):
            if runs and layer == runs[-1][-1] + 1 and len(runs[-1]) < LONGEST_EDIT:
                runs[-1].append(layer)
            else:
                runs.append([layer])
        return [
            GraphEdit(tuple(self.layers[i] for i in one), kind, self.surroundings(one[0], one[-1] + 1)) for one in runs
        ]

    def narrowing(self, grouped: Sequence[Convolution]) -> LayerNarrowing | None:
        """Return the change to one group with narrower maps if groups are between the layers, not inside them."""
        if not any(self._reads_another_layer(one) for one in grouped):
            return None
        layers = {one.layer for one in grouped}
        return LayerNarrowing(self, min(layers), max(layers) + 1).settled()

    def _reads_another_layer(self, one: Convolution) -> bool:
        """Whether a convolution reads a map of another layer."""
        maker = self.graph.producer.get(self.graph.root(one.source))
        return maker is None or layer_index(maker.name) != one.layer

    def changed_architecture(self, parts: Sequence[Part]) -> Architecture | None:
        """Return the changed network if its change is one of layers, else None."""
        of_layers = all(isinstance(part, LayerReplacement) for part in parts)
        return changed_architecture(self.architecture, parts) if of_layers else None

    def changed(self, parts: Iterable[Part], layers: Iterable[int], folder: Path, batch_size: int) -> Path | None:
        """Write the whole network with the applicable changes; None if none is applicable."""
        return write_changed_network(self.path, parts, layers, folder, self.architecture, batch_size)


@dataclass(frozen=True)
class FileContext(Context):
    """An ONNX file of another program, of which only the operators are known.

    A graph edit and a change to one group are measured in the whole file; other convolutions are measured alone.
    """

    count: int

    @cached_property
    def layers(self) -> list[dict[str, Any]]:
        """A dictionary without a block for each layer."""
        return [{"block": ""} for _ in range(self.count)]

    @property
    def in_shapes(self) -> list[tuple[int, ...]]:
        """None: no layer can be replaced."""
        return []

    def surroundings(self, start: int, stop: int) -> Surroundings:
        """Raise LookupError: the layers of a file cannot be built."""
        raise LookupError(f"layers {start} to {stop} are known as operators only")

    def graph_edits(self, kind: str, layers: Iterable[int]) -> list[FileEdit]:
        """Return one edit of the whole file."""
        return [FileEdit(self.path, kind, tuple(sorted(layers)))]

    def narrowing(self, grouped: Sequence[Convolution]) -> GraphNarrowing | None:
        """Return the change to one group with fewer channels; None if no channels can shrink."""
        found = GraphNarrowing(self.path)
        return found if found.shrinking else None

    def changed(self, parts: Iterable[Part], layers: Iterable[int], folder: Path, batch_size: int) -> Path | None:
        """Write the edited file; None without a graph edit."""
        for part in parts:
            if isinstance(part, FileEdit | FileNarrowing):
                return part.write(folder, batch_size)[1]
        return None


def format_size(sizes: Iterable[int]) -> str:
    """Format sizes as in 56x56."""
    return "x".join(map(str, sizes))
