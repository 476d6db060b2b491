"""An exported network as a graph of operators, with the layer that each operator belongs to.

The exporter names every node by the module that it comes from (`/3/branch/branch.0/Conv`), and a network is a chain of
layers, so the first number of a name is the index of the layer. Everything is read from the ONNX file and nothing from
the blocks' code, so that it works for user-defined blocks too.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

ELEMENTWISE = frozenset(
    """Abs Add Ceil Clip Div Elu Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu Log Mish Mul Neg PRelu Pow
    Reciprocal Relu Selu Sigmoid Softplus Sqrt Sub Tanh ThresholdedRelu""".split()  # noqa: SIM905
)
ARITHMETIC = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose"})
_LAYER = re.compile(r"/(\d+)/")


@dataclass(frozen=True)
class Convolution:
    """One convolution of a layer; `map_size` is (height, width) of its output, `source` and `out` name tensors."""

    layer: int
    name: str
    source: str
    out: str
    c_in: int
    c_out: int
    groups: int
    kernel: int
    stride: int
    map_size: tuple[int, int]

    @property
    def depthwise(self) -> bool:
        """Whether each group has one input channel."""
        return 1 < self.groups == self.c_in

    @property
    def flops(self) -> int:
        """Multiply-adds at batch 1."""
        return math.prod(self.map_size) * self.c_in * self.c_out * self.kernel**2 // self.groups


def layer_index(name: str) -> int | None:
    """Return the layer index at the start of the name of a node or tensor, or None.

    >>> layer_index("/12/branch/branch.0/Conv"), layer_index("/Flatten"), layer_index("ReorderInput_token_3")
    (12, None, None)
    """
    found = _LAYER.match(name)
    return int(found[1]) if found else None


class Graph:
    """The nodes of an ONNX file in order, with the shape, producer and consumers of each tensor."""

    def __init__(self, path: str | PathLike) -> None:
        import onnx

        self.model = onnx.load(str(path))
        graph = self.model.graph
        copies = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
        weights = {one.name for one in graph.initializer}
        self.copies = {out: source for out, source in copies.items() if source in weights}
        constants = [node.output[0] for node in graph.node if node.op_type == "Constant"]
        self.constants = weights | self.copies.keys() | set(constants)
        self.nodes = [node for node in graph.node if not set(node.output) & self.constants]
        self.producer = {out: node for node in self.nodes for out in node.output}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.consumers[name].append(node)
        self.outputs = [one.name for one in graph.output]
        self.shapes = _shapes(onnx.shape_inference.infer_shapes(self.model).graph)
        self.root = cache(self._root)

    def data_inputs(self, node: Any) -> list[str]:
        """Return the inputs of a node that are not constants."""
        return [name for name in node.input if name and name not in self.constants]

    def is_feature_map(self, tensor: str) -> bool:
        """Whether a tensor is a feature map of more than one position."""
        shape = self.shapes.get(tensor, ())
        return len(shape) == 4 and math.prod(shape[2:]) > 1

    def _root(self, tensor: str) -> str:
        """Return the tensor of equal shape and layer of which `tensor` is an element-wise function, else `tensor`."""
        node = self.producer.get(tensor)
        if node is None or node.op_type not in ELEMENTWISE:
            return tensor
        roots = {self.root(name) if self._same_layer(name, node) else name for name in self.data_inputs(node)}
        root = roots.pop() if len(roots) == 1 else tensor
        return root if self.shapes.get(root) == self.shapes.get(tensor) else tensor

    def _same_layer(self, tensor: str, node: Any) -> bool:
        """Whether a tensor is produced in the layer of a node."""
        maker = self.producer.get(tensor)
        return maker is not None and layer_index(maker.name) == layer_index(node.name)

    def convolutions(self) -> list[Convolution]:
        """Return every convolution with a square kernel on a feature map of more than one position, in order."""
        return [
            _convolution(self, node)
            for node in self.nodes
            if node.op_type == "Conv" and self.is_feature_map(node.output[0]) and _is_square(self, node)
        ]

    def nodes_only_for(self, tensor: str, reader: Any) -> list[Any]:
        """Return the nodes that become unused if `reader` no longer reads `tensor`."""
        dead: list[Any] = []
        open_ = [(tensor, reader)]
        while open_:
            name, last = open_.pop()
            node = self.producer.get(name)
            readers = [one for one in self.consumers[name] if one is not last and one not in dead]
            if node is None or readers or name in self.outputs or node in dead:
                continue
            dead.append(node)
            open_ += [(source, node) for source in self.data_inputs(node)]
        return dead


def _shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor."""
    shapes = {one.name: tuple(one.dims) for one in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
    return shapes


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """Return one attribute of a node as plain values."""
    import onnx

    found = [one for one in node.attribute if one.name == name]
    return onnx.helper.get_attribute_value(found[0]) if found else default


def _is_square(graph: Graph, node: Any) -> bool:
    """Whether a convolution has a square kernel, two-dimensional."""
    weight = graph.shapes.get(graph.copies.get(node.input[1], node.input[1]), ())
    return len(weight) == 4 and weight[2] == weight[3]


def _convolution(graph: Graph, node: Any) -> Convolution:
    """Describe a node of type Conv."""
    weight, out = graph.shapes[graph.copies.get(node.input[1], node.input[1])], graph.shapes[node.output[0]]
    groups = attribute(node, "group", 1)
    return Convolution(
        layer=layer_index(node.name) or 0,
        name=node.name,
        source=node.input[0],
        out=node.output[0],
        c_in=weight[1] * groups,
        c_out=weight[0],
        groups=groups,
        kernel=max(weight[2:]),
        stride=max(attribute(node, "strides", [1])),
        map_size=(out[2], out[3]),
    )


def write_graph(
    graph: Graph, path: str | PathLike, rewired: Mapping[str, str], added: Iterable[tuple[Any, Mapping[str, Any]]] = ()
) -> Path:
    """Write the graph with the tensors in `rewired` replaced by others wherever they are read, without unused nodes.

    `added` holds new nodes, each with its new weights (arrays by name). Outputs of the graph keep their names.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    added = list(added)
    nodes = [*model.graph.node, *(node for node, _ in added)]
    for node in nodes:
        node.input[:] = [_resolve(rewired, name) for name in node.input]
    for _, weights in added:
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    nodes += [helper.make_node("Identity", [_resolve(rewired, o)], [o]) for o in graph.outputs if o in rewired]
    makers = {out: node for node in nodes for out in node.output}
    makers |= {node.output[0]: node for node in nodes if node.op_type == "Identity" and node.output[0] in graph.outputs}
    del model.graph.node[:]
    model.graph.node.extend(_reachable_nodes(makers, graph.outputs))
    del model.graph.value_info[:]
    used = {name for node in model.graph.node for name in node.input}
    weights = [one for one in model.graph.initializer if one.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)
    onnx.save(model, str(path))
    return Path(path)


def _resolve(rewired: Mapping[str, str], name: str) -> str:
    """Follow replacements to the final tensor."""
    while name in rewired:
        name = rewired[name]
    return name


def _reachable_nodes(makers: Mapping[str, Any], outputs: Iterable[str]) -> list[Any]:
    """Return the nodes that the outputs depend on, in topological order."""
    ordered: list[Any] = []
    seen: set[int] = set()
    open_ = [(makers[name], False) for name in outputs]
    while open_:
        node, visited = open_.pop()
        if visited:
            ordered.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            open_.append((node, True))
            open_ += [(makers[name], False) for name in node.input if name in makers]
    return ordered
