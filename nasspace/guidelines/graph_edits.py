"""Edits of an exported graph that change no shape: element-wise work removed, parallel convolutions merged."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from nasspace.latency.graph import ARITHMETIC, Convolution, Graph, attribute, layer_index, write_graph

JOINS = ("Concat", "Add")
WINDOW = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}  # attributes of a convolution, and defaults


@dataclass(frozen=True)
class Removable:
    """Removable element-wise work: its kind, layer and nodes, and (tensor, replacement) for its readers."""

    kind: str
    layer: int
    names: frozenset[str]
    rewired: tuple[str, str]


def find_removable(graph: Graph) -> list[Removable]:
    """Find activations, additions of a shortcut, channel shuffles and squeeze-and-excitation on feature maps."""
    return [one for node in graph.nodes if (one := _removable(graph, node)) is not None]


def _removable(graph: Graph, node: Any) -> Removable | None:
    """Return the removable work that ends in a node, or None."""
    out = node.output[0]
    layer = layer_index(node.name)
    if layer is None:
        return None
    if node.op_type == "Transpose":
        return _shuffle(graph, node, layer)
    if not graph.is_feature_map(out):
        return None
    if (root := graph.root(out)) != out:
        last = all(graph.root(one.output[0]) != root for one in graph.consumers[out])
        return Removable("activation", layer, _between(graph, out, root), (out, root)) if last else None
    if node.op_type == "Mul":
        return _excitation(graph, node, layer)
    if node.op_type == "Add":
        return _shortcut(graph, node, layer)
    return None


def _between(graph: Graph, out: str, root: str) -> frozenset[str]:
    """Return the nodes between the tensors `root` and `out`."""
    names, open_ = set(), [out]
    while open_:
        tensor = open_.pop()
        if tensor != root:
            node = graph.producer[tensor]
            names.add(node.name)
            open_ += graph.data_inputs(node)
    return frozenset(names)


def _drop_operand(graph: Graph, kind: str, layer: int, node: Any, dropped: str, kept: str) -> Removable:
    """Remove a node of two operands, of which `kept` takes its place."""
    names = {node.name, *(unused.name for unused in graph.nodes_only_for(dropped, node))}
    return Removable(kind, layer, frozenset(names), (node.output[0], kept))


def _excitation(graph: Graph, node: Any, layer: int) -> Removable | None:
    """Squeeze-and-excitation, a map scaled by one value per channel: remove the gate and its computation."""
    maps = [name for name in graph.data_inputs(node) if graph.is_feature_map(name)]
    gates = [name for name in graph.data_inputs(node) if graph.shapes.get(name, ())[2:] == (1, 1)]
    return _drop_operand(graph, "se", layer, node, gates[0], maps[0]) if len(maps) == len(gates) == 1 else None


def _shortcut(graph: Graph, node: Any, layer: int) -> Removable | None:
    """The sum of two maps: remove the operand that is computed without another convolution."""
    operands = graph.data_inputs(node)
    if len(set(operands)) != 2 or len({graph.shapes.get(name) for name in operands}) != 1:
        return None
    for dropped, kept in (operands, operands[::-1]):
        unused = graph.nodes_only_for(dropped, node)
        kept_computes = any(one.op_type in ARITHMETIC for one in graph.nodes_only_for(kept, node))
        if kept_computes and not any(one.op_type in ARITHMETIC for one in unused):
            return _drop_operand(graph, "add", layer, node, dropped, kept)
    return None


def _shuffle(graph: Graph, node: Any, layer: int) -> Removable | None:
    """A channel shuffle: a transpose between two reshapes."""
    before, after = graph.producer.get(node.input[0]), graph.consumers[node.output[0]]
    if before is None or len(after) != 1 or before.op_type != "Reshape" or after[0].op_type != "Reshape":
        return None
    source, out = before.input[0], after[0].output[0]
    if not graph.is_feature_map(out) or graph.shapes.get(source) != graph.shapes[out]:
        return None
    return Removable("shuffle", layer, frozenset({before.name, node.name, after[0].name}), (out, source))


@dataclass(frozen=True)
class ParallelConvolutions:
    """Convolutions of one layer that read the same tensor and whose results are joined.

    `joined` is the tensor that they end in, `join` the operator ("Concat", "Add"), and `names` the nodes up to it.
    `mergeable` means that one convolution over all their output channels computes the same.
    """

    layer: int
    convolutions: tuple[Convolution, ...]
    join: str
    joined: str
    names: frozenset[str]
    mergeable: bool = field(default=False)


def find_parallel(graph: Graph) -> list[ParallelConvolutions]:
    """Find parallel convolutions, except depthwise ones and branches of several convolutions."""
    sets: dict[tuple, list[Convolution]] = {}
    paths: dict[str, frozenset[str]] = {}
    for one in graph.convolutions():
        if one.depthwise:
            continue
        joined, join, names = _follow_to_join(graph, one)
        if joined:
            sets.setdefault((one.layer, _sliced_from(graph, one.source), joined, join), []).append(one)
            paths[one.name] = names
    return [
        ParallelConvolutions(
            layer,
            tuple(found),
            join,
            joined,
            frozenset().union(*(paths[one.name] for one in found)),
            _is_mergeable(graph, found, join),
        )
        for (layer, _, joined, join), found in sets.items()
        if len(found) > 1
    ]


def _sliced_from(graph: Graph, tensor: str) -> str:
    """Return the tensor of which this one is a slice, else the tensor itself."""
    maker = graph.producer.get(tensor)
    return maker.input[0] if maker is not None and maker.op_type in ("Slice", "Split") else tensor


def _follow_to_join(graph: Graph, one: Convolution) -> tuple[str, str, frozenset[str]]:
    """Return where a convolution's result is joined with others (tensor, operator, nodes); empty if it is not."""
    tensor, join, names = one.out, "", {one.name}
    while len(readers := graph.consumers[tensor]) == 1 and layer_index(readers[0].name) == one.layer:
        node = readers[0]
        if node.op_type in JOINS and join in ("", node.op_type) and len(graph.data_inputs(node)) > 1:
            join = node.op_type
        elif join or graph.root(node.output[0]) != graph.root(tensor):
            break
        names.add(node.name)
        tensor = node.output[0]
    return (tensor, join, frozenset(names)) if join else ("", "", frozenset())


def _is_mergeable(graph: Graph, found: list[Convolution], join: str) -> bool:
    """Whether concatenated convolutions differ only in their weights, so that one convolution can replace them."""
    forms = {(one.source, one.kernel, one.groups, one.map_size, *_window(graph.producer[one.out])) for one in found}
    chains = [_path_to_concat(graph, one) for one in found]
    if join != "Concat" or len(forms) != 1 or found[0].groups != 1 or None in chains:
        return False
    kinds = {tuple(node.op_type for node in chain[:-1]) for chain in chains}
    ends = [chain[-1] for chain in chains]
    inputs = [(chain[-2].output[0] if len(chain) > 1 else one.out) for one, chain in zip(found, chains, strict=True)]
    return len(kinds) == 1 and all(end is ends[0] for end in ends) and list(ends[0].input) == inputs


def _window(node: Any) -> list[tuple[int, ...]]:
    """The strides, pads and dilations of a convolution."""
    return [tuple(attribute(node, name, default)) for name, default in WINDOW.items()]


def _path_to_concat(graph: Graph, one: Convolution) -> list[Any] | None:
    """Return the nodes from a convolution to its Concat, with at most one activation between; else None."""
    chain, tensor = [], one.out
    while len(chain) < 2 and len(readers := graph.consumers[tensor]) == 1:
        chain.append(readers[0])
        if readers[0].op_type == "Concat":
            return chain
        tensor = readers[0].output[0]
    return None


def _merge(graph: Graph, found: ParallelConvolutions) -> tuple[dict[str, str], list[tuple[Any, dict[str, Any]]]]:
    """Merge parallel convolutions into one: replaced tensors, and new nodes with their weights."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    weights = {one.name: one for one in graph.model.graph.initializer}
    nodes = [graph.producer[one.out] for one in found.convolutions]
    new = onnx.NodeProto()
    new.CopyFrom(nodes[0])
    prefix = f"/{found.layer}/merged/{found.joined}"
    arrays = {}
    for i in range(1, len(nodes[0].input)):
        parts = [numpy_helper.to_array(weights[graph.copies.get(n.input[i], n.input[i])]) for n in nodes]
        new.input[i] = f"{prefix}/weight{i}"
        arrays[new.input[i]] = np.concatenate(parts)
    new.name, new.output[0] = f"{prefix}/Conv", f"{prefix}/Conv_output_0"
    added, out = [(new, arrays)], new.output[0]
    for node in _path_to_concat(graph, found.convolutions[0])[:-1]:
        activation = onnx.NodeProto()
        activation.CopyFrom(node)
        activation.name, activation.input[0], activation.output[0] = f"{prefix}/{node.op_type}", out, f"{prefix}/out"
        added, out = [*added, (activation, {})], activation.output[0]
    concat = _path_to_concat(graph, found.convolutions[0])[-1]
    return {concat.output[0]: out}, added


def write_edited(graph: Graph, path: str | PathLike, kind: str, layers: Collection[int]) -> Path:
    """Write the graph without one kind of work in these layers, or with merged convolutions ("parallel")."""
    if kind != "parallel":
        removed = [one for one in find_removable(graph) if one.kind == kind and one.layer in layers]
        return write_graph(graph, path, dict(one.rewired for one in removed))
    rewired, added = {}, []
    for one in find_parallel(graph):
        if one.mergeable and one.layer in layers:
            replaced, nodes = _merge(graph, one)
            rewired |= replaced
            added += nodes
    return write_graph(graph, path, rewired, added)
