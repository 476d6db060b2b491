"""One group instead of several in an ONNX file of another program, with fewer channels at equal FLOPs.

Tensors that must have equally many channels, such as those that are added, are a class. The classes that grouped
convolutions read and write shrink in proportion. Where maps are concatenated, one of them takes what is left of the
sum. Channel shuffles between grouped convolutions disappear. New weights are random: only the time matters.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from nasspace.guidelines.equal_flops import Rounding, nearest_width, ratio_at_flops
from nasspace.guidelines.graph_edits import Removable, find_removable
from nasspace.latency import runtimes
from nasspace.latency.graph import ELEMENTWISE, Graph, attribute, layer_index, write_graph

POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "Identity", "Dropout"}
ROWS = {"Flatten", "Reshape", "Squeeze"}  # make a row of values from a map
MATRICES = {"Gemm", "MatMul"}


@dataclass(frozen=True)
class Weighted:
    """A convolution or matrix product with constant weights: its node, input and output tensors, and its size.

    `places` are the positions of its output, `window` the values of a kernel.
    """

    node: Any
    source: str
    out: str
    places: int
    window: int
    groups: int
    depthwise: bool

    def flops(self, c_in: int, c_out: int) -> int:
        """Return multiply-adds with these channels; all but depthwise convolutions have one group."""
        return self.places * self.window * c_out * (1 if self.depthwise else c_in)


@dataclass(frozen=True)
class FileNarrowing:
    """A whole ONNX file with one group in these layers, and `ratio` times as many channels in its shrinking maps."""

    path: Path
    ratio: float
    layers: tuple[int, ...]

    def text(self) -> str:
        """Return the text that identifies the part in the cache."""
        return json.dumps([hashlib.sha256(self.path.read_bytes()).hexdigest(), "one group", self.ratio])

    def write(self, folder: Path, batch_size: int) -> tuple[Path, Path]:
        """Write the ONNX file after the change; the one before it is the file itself."""
        changed = GraphNarrowing(self.path).write(folder / "after.onnx", self.ratio)
        runtimes.check_optimized(changed, batch_size)
        return self.path, changed

    def saved(self, before_ms: float, after_ms: float) -> float:
        """Return the milliseconds saved in the network."""
        return before_ms - after_ms


class GraphNarrowing:
    """The change of a graph to one group; a change is the ratio of channels after it to those before."""

    def __init__(self, path: Path):
        self.path, self.graph = path, Graph(path)
        self._parent: dict[str, str] = {}
        self._fixed: set[str] = set()
        self._concats: list[Any] = []
        self.weighted = [one for one in map(self._weighted, self.graph.nodes) if one is not None]
        self.grouped = [one for one in self.weighted if one.groups > 1 and not one.depthwise]
        shuffles = [one for one in find_removable(self.graph) if one.kind == "shuffle"]
        self._connect({name for one in shuffles for name in one.names})
        self.shuffles = [one for one in shuffles if self._serves_groups(one)]
        for one in shuffles:
            if one in self.shuffles:
                self._join(*one.rewired)
            else:
                self._fixed |= set(one.rewired)

    def _weighted(self, node: Any) -> Weighted | None:
        """Describe a node with constant weights; None for any other."""
        if node.op_type not in {"Conv", *MATRICES} or len(self.graph.data_inputs(node)) != 1:
            return None
        weight, source, out = self._weight_shape(node), *map(self._shape, (node.input[0], node.output[0]))
        if node.op_type in MATRICES:
            known = len(weight) == len(source) == len(out) == 2
            return Weighted(node, node.input[0], node.output[0], 1, 1, 1, False) if known else None
        if not len(weight) == len(source) == len(out) == 4:
            return None
        groups = attribute(node, "group", 1)
        places, window = math.prod(out[2:]), math.prod(weight[2:])
        return Weighted(node, node.input[0], node.output[0], places, window, groups, depthwise=groups > 1 == weight[1])

    def _shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of a tensor; empty if it is unknown."""
        return self.graph.shapes.get(tensor, ())

    def _weight_shape(self, node: Any) -> tuple[int, ...]:
        """Return the shape of a node's constant weight; empty if it has none."""
        name = node.input[1]
        return self._shape(self.graph.copies.get(name, name)) if name in self.graph.constants else ()

    def _connect(self, shuffles: set[str]) -> None:
        """Find the classes of tensors with equally many channels, and those that cannot change."""
        known = {id(one.node): one for one in self.weighted}
        for node in self.graph.nodes:
            if node.name in shuffles:
                continue
            one = known.get(id(node))
            if one is not None and one.depthwise:
                self._join(one.source, one.out)
            elif one is None and self._joins_channels(node):
                self._concats.append(node)
            elif one is None and self._keeps_channels(node):
                for name in self.graph.data_inputs(node):
                    self._join(name, node.output[0])
            elif one is None:
                self._fixed |= {*self.graph.data_inputs(node), *node.output}
        self._fixed |= {*self.graph.outputs, *(one.name for one in self.graph.model.graph.input)}

    def _serves_groups(self, shuffle: Removable) -> bool:
        """Whether a channel shuffle mixes the groups of a convolution that writes or reads its map."""
        out, source = map(self._root, shuffle.rewired)
        groups = {one.groups for one in self.grouped if self._root(one.out) == source or self._root(one.source) == out}
        nodes = (node for node in self.graph.nodes if node.name in shuffle.names and node.op_type == "Transpose")
        return any(not groups.isdisjoint(self._shape(node.input[0])[1:3]) for node in nodes)

    def _joins_channels(self, node: Any) -> bool:
        """Whether a node concatenates the channels of maps."""
        names = (*node.input, *node.output)
        maps = all(name not in self.graph.constants and len(self._shape(name)) == 4 for name in names)
        return node.op_type == "Concat" and attribute(node, "axis") == 1 and maps

    def _keeps_channels(self, node: Any) -> bool:
        """Whether a node's output has the channels of its inputs, whatever they are."""
        out, inputs = self._shape(node.output[0]), list(map(self._shape, self.graph.data_inputs(node)))
        if len(out) < 2 or not inputs or any(len(shape) < 2 or shape[0] != out[0] for shape in inputs):
            return False
        if node.op_type in ROWS:
            return len(out) == 2 and math.prod(inputs[0][1:]) == out[1]
        if node.op_type in POOLS:
            return inputs[0][1] == out[1]
        constants = [self._shape(self.graph.copies.get(n, n)) for n in node.input if n in self.graph.constants]
        scalars = all(math.prod(shape) == 1 for shape in constants)
        return node.op_type in ELEMENTWISE and scalars and all(shape[1] == out[1] for shape in inputs)

    def _root(self, tensor: str) -> str:
        """Return the tensor that stands for the class of a tensor."""
        while (above := self._parent.get(tensor, tensor)) != tensor:
            tensor = above
        return tensor

    def _join(self, one: str, other: str) -> None:
        """Unite two classes under the one with fewer channels: a flat row has a multiple of its map's."""
        roots = sorted({self._root(one), self._root(other)}, key=self._channels)
        self._parent |= dict.fromkeys(roots[1:], roots[0])

    def _channels(self, tensor: str) -> int:
        """Return the present channels of a tensor."""
        return self.graph.shapes[tensor][1]

    @cached_property
    def shrinking(self) -> frozenset[str]:
        """The classes that shrink; empty if a class would have to that cannot."""
        fixed = set(map(self._root, self._fixed))
        for node in self._concats:  # in order, so that what is joined from fixed maps is known to be fixed
            if all(self._root(name) in fixed for name in node.input):
                fixed.add(self._root(node.output[0]))
        found = {self._root(name) for one in self.grouped for name in (one.source, one.out)} - fixed
        while True:
            larger = set(found)
            for node in self._concats:
                out, parts = self._root(node.output[0]), {self._root(name) for name in node.input}
                if parts & larger:
                    larger.add(out)
                elif out in larger:
                    larger |= parts - fixed
            if larger & fixed:
                return frozenset()
            if larger == found:
                return frozenset(found)
            found = larger

    @cached_property
    def maps(self) -> list[int]:
        """The channels of the shrinking maps between layers, in order; of all shrinking maps if none is between."""
        between, inside = {}, {}
        for node in self.graph.nodes:
            for out in node.output:
                if self._root(out) in self.shrinking:
                    inside[self._channels(self._root(out))] = None
                    if any(layer_index(one.name) != layer_index(node.name) for one in self.graph.consumers[out]):
                        between[self._channels(self._root(out))] = None
        return list(between or inside)

    @property
    def narrowest(self) -> int:
        """The channels of the narrowest of these maps."""
        return min(self.maps)

    def classes_at(self, ratio: float, rounding: Rounding = nearest_width) -> dict[str, int] | None:
        """Return the channels of each shrinking class; None if nothing is left for a concatenated map.

        Only the widths of the maps between layers are rounded to what fills vector units.
        """
        found = {}
        for root in self.shrinking:
            channels = self._channels(root)
            found[root] = max(1, (rounding if channels in self.maps else round)(channels * ratio))
        adjusted: set[str] = set()
        joined = {self._root(node.output[0]) for node in self._concats}
        for node in self._concats:
            out, parts = self._root(node.output[0]), [self._root(name) for name in node.input]
            free = [root for root in parts if root in self.shrinking and root not in joined | adjusted]
            total = sum(self.channels_at(name, found) for name in node.input)
            if free:
                found[free[-1]] += self.channels_at(node.output[0], found) - total
                adjusted.add(free[-1])
            elif out in self.shrinking:
                found[out] = total
        sums = ((sum(self.channels_at(n, found) for n in one.input), one.output[0]) for one in self._concats)
        fits = all(total == self.channels_at(out, found) for total, out in sums)
        return found if fits and min(found.values()) > 0 else None

    def channels_at(self, tensor: str, classes: Mapping[str, int]) -> int:
        """Return the channels of a tensor after the change."""
        root = self._root(tensor)
        return classes.get(root, self._channels(root)) * self._channels(tensor) // self._channels(root)

    @cached_property
    def target(self) -> float:
        """The FLOPs of the graph."""
        sizes = ((one, self._channels(one.source), self._channels(one.out)) for one in self.weighted)
        return sum(one.flops(c_in, c_out) // (1 if one.depthwise else one.groups) for one, c_in, c_out in sizes)

    def flops_at(self, ratio: float, rounding: Rounding = nearest_width) -> float:
        """Return the FLOPs after the change; infinity if it is not possible."""
        classes = self.classes_at(ratio, rounding)
        if classes is None:
            return math.inf
        return sum(
            one.flops(self.channels_at(one.source, classes), self.channels_at(one.out, classes))
            for one in self.weighted
        )

    @cached_property
    def exact(self) -> float:
        """The ratio at which the graph has as many FLOPs."""
        return ratio_at_flops(lambda ratio: self.flops_at(ratio, round), self.target)

    def narrower(self, ratio: float) -> str:
        """Describe the widths of the maps before and after the change."""
        classes = self.classes_at(ratio) or {}
        after = {self._channels(root): channels for root, channels in classes.items()}
        return f"widths {':'.join(map(str, self.maps))} -> {':'.join(str(after[one]) for one in self.maps)}"

    def part(self, ratio: float) -> FileNarrowing | None:
        """Return the part of the change; None if nothing is left for a concatenated map."""
        layers = {layer_index(one.node.name) or 0 for one in self.grouped}
        return FileNarrowing(self.path, ratio, tuple(sorted(layers))) if self.classes_at(ratio) else None

    def write(self, path: str | PathLike, ratio: float) -> Path:
        """Write the changed graph."""
        classes = self.classes_at(ratio)
        if classes is None:
            raise LookupError(f"no channels are left for a concatenated map at {ratio} of the channels")
        rewired = dict(one.rewired for one in self.shuffles)
        added = []
        for node, weights in (*self._convolutions(classes), *self._rows(classes)):
            new = f"{node.output[0]}/one_group"
            rewired[node.output[0]] = new
            node.name, node.output[0] = f"{node.name}/one_group", new
            added.append((node, weights))
        return write_graph(self.graph, path, rewired, added)

    def _convolutions(self, classes: Mapping[str, int]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield the nodes with weights whose channels or groups change, with new weights."""
        import numpy as np

        rng = np.random.default_rng(0)
        for one in self.weighted:
            c_in, c_out = (self.channels_at(name, classes) for name in (one.source, one.out))
            now = self._channels(one.source), self._channels(one.out)
            if (c_in, c_out) == now and (one.groups == 1 or one.depthwise):
                continue
            node, shape = _copy(one.node), list(self._weight_shape(one.node))
            if node.op_type == "Conv":
                _set_groups(node, c_in if one.depthwise else 1)
                shape[:2] = c_out, 1 if one.depthwise else c_in
            else:
                flipped = node.op_type == "Gemm" and attribute(node, "transB", 0)
                shape = [c_out, c_in] if flipped else [c_in, c_out]
            scale = math.sqrt(2 * c_out / math.prod(shape) / one.window) if one.depthwise else math.sqrt(2 / c_in)
            weights = {f"{node.name}/weight": (scale * rng.standard_normal(shape)).astype(self._dtype(node.input[1]))}
            if len(node.input) > 2 and node.input[2]:
                weights[f"{node.name}/bias"] = np.zeros(c_out, self._dtype(node.input[2]))
            node.input[1 : 1 + len(weights)] = list(weights)
            yield node, weights

    def _dtype(self, weight: str) -> Any:
        """Return NumPy's type of a weight."""
        import onnx

        name = self.graph.copies.get(weight, weight)
        found = next((one.data_type for one in self.graph.model.graph.initializer if one.name == name), None)
        return onnx.helper.tensor_dtype_to_np_dtype(found or onnx.TensorProto.FLOAT)

    def _rows(self, classes: Mapping[str, int]) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield the reshapes of shrinking maps to rows, which name their number of values."""
        import numpy as np

        removed = {name for one in self.shuffles for name in one.names}
        for node in self.graph.nodes:
            if node.op_type == "Reshape" and node.name not in removed and self._root(node.input[0]) in classes:
                copy = _copy(node)
                copy.input[1] = f"{node.name}/shape"
                values = self.channels_at(node.output[0], classes)
                yield copy, {copy.input[1]: np.array([self.graph.shapes[node.output[0]][0], values], np.int64)}


def _copy(node: Any) -> Any:
    """Return a copy of a node."""
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _set_groups(node: Any, groups: int) -> None:
    """Set the number of groups of a convolution."""
    import onnx

    kept = [one for one in node.attribute if one.name != "group"]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute("group", groups)])
