"""ONNX files of other programs with their nodes named by layers, as files that nasspace writes have them.

The exporters of PyTorch name the module that a node comes from, one in the node's name, the other in its metadata. A
layer is a module at the depth where the network is a list: `features.3`, `layer1.0`. In a file without such names, a
layer ends where a single tensor is left, as soon as it has an operation with weights.
"""

from __future__ import annotations

import ast
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasspace.errors import InputError, first_line
from nasspace.latency import runtimes
from nasspace.latency.graph import ARITHMETIC, ELEMENTWISE, Graph

SCOPES = "pkg.torch.onnx.name_scopes"  # key of a node's metadata, which PyTorch's newer exporter writes
LARGE = 0.15  # share of the operations with weights above which a module is shown by its parts
NO_LAYER = {*ELEMENTWISE, "BatchNormalization", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Dropout"}


@dataclass(frozen=True)
class FileLayer:
    """A layer of a file: its name, multiply-adds, and the elements that its operations with weights read and write."""

    block: str
    flops: int
    memory_access: int


def write_numbered(source: Path, path: Path, batch_size: int) -> tuple[Path, list[FileLayer]]:
    """Write an ONNX file with numbered layers in its names, batch norm folded and a fixed batch; return its layers.

    Raises `InputError` for a file that ONNX Runtime cannot run, or whose input is not one batch of images of fixed
    size.
    """
    import onnx

    if not source.is_file():
        raise InputError(f"{source}: {'is a folder' if source.is_dir() else 'there is no such file'}")
    runtimes.OnnxRuntime(1, batch_size).load(source)
    try:
        model = onnx.load(str(source))
        if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
            raise InputError(f"{source}: has branches or loops of its own (If, Loop), which have no layers")
        scopes = {name: _scope(node) for node in model.graph.node for name in (node.name, *node.output)}
        optimized = _optimized(model, path.with_name("optimized.onnx"), batch_size)
        graph = Graph(optimized)
    except InputError:
        raise
    except Exception as error:  # of ONNX and ONNX Runtime, which share no base class
        raise InputError(f"{source}: its graph cannot be read ({first_line(error)[:200]})") from error
    homes, names = _layers(graph, scopes)
    onnx.save(_renamed(graph, homes), str(path))
    return path, _counted(Graph(path), homes, names)


def _optimized(model: Any, path: Path, batch_size: int) -> Path:
    """Fix the batch, and let ONNX Runtime fold constants and batch norm."""
    import onnx
    import onnxruntime

    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if dimensions and not dimensions[0].dim_value:
            dimensions[0].Clear()
            dimensions[0].dim_value = batch_size
    del model.graph.value_info[:]
    fixed = path.with_name("fixed.onnx")
    onnx.save(model, str(fixed))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(fixed), options, providers=["CPUExecutionProvider"])
    return path


def _scope(node: Any) -> tuple[str, ...]:
    """The modules that a node comes from, the outermost first; empty if the file does not say."""
    written = next((one.value for one in node.metadata_props if one.key == SCOPES), None)
    if written is not None:
        try:
            scopes = ast.literal_eval(written)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return ()
        return tuple(str(one) for one in scopes[1:-1]) if isinstance(scopes, list | tuple) else ()
    return tuple(node.name.split("/")[1:-1]) if node.name.startswith("/") else ()


def _layers(graph: Graph, scopes: dict[str, tuple[str, ...]]) -> tuple[list[int], list[str]]:
    """The layer of each node, and the name of each layer."""
    named = ((node.name, *node.output) for node in graph.nodes)  # a fused operator may keep one name only
    found = [next((scopes[name] for name in names if scopes.get(name)), ()) for names in named]
    if sum(map(bool, found)) < len(found) / 2:
        return _chains(graph)
    keys = _cut(found, [node.op_type in ARITHMETIC for node in graph.nodes])
    for i, key in enumerate(keys):
        keys[i] = key or (keys[i - 1] if i else next((other for other in keys if other), ("network",)))
    solid = {key for key, node in zip(keys, graph.nodes, strict=True) if node.op_type not in NO_LAYER}
    for i, key in enumerate(keys):  # a ReLU of its own belongs to the layer before it
        keys[i] = key if key in solid or not i else keys[i - 1]
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return [order[key] for key in keys], [_label(key) for key in order]


def _label(key: Sequence[str]) -> str:
    """The name of a module: the names of those around it are left out where its own repeats them.

    >>> _label(("features", "features.3")), _label(("3",)), _label(("inception3a", "branch1"))
    ('features.3', '3', 'inception3a.branch1')
    """
    label = ""
    for part in key:
        label = part if not label or part.startswith(f"{label}.") else f"{label}.{part}"
    return label


def _cut(scopes: Sequence[tuple[str, ...]], weighted: Sequence[bool]) -> list[tuple[str, ...]]:
    """Cut the path of each node where its module has at most `LARGE` of the operations with weights, or no parts.

    >>> _cut([("features", "features.0"), ("features", "features.1"), ("head",)], [True, True, True])
    [('features', 'features.0'), ('features', 'features.1'), ('head',)]
    """
    limit = max(1.0, LARGE * sum(weighted))
    keys: list[tuple[str, ...]] = [()] * len(scopes)

    def cut(members: Iterable[int], depth: int) -> None:
        modules: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for i in members:
            modules[scopes[i][:depth]].append(i)
        for key, found in modules.items():
            has_parts = len(key) == depth and any(len(scopes[i]) > depth for i in found)
            if has_parts and sum(weighted[i] for i in found) > limit:
                cut(found, depth + 1)
            else:
                for i in found:
                    keys[i] = key

    cut(range(len(scopes)), 1)
    return keys


def _chains(graph: Graph) -> tuple[list[int], list[str]]:
    """Layers of a file without names: a new one starts where one tensor is alive and the last one has weights."""
    last = {name: i for i, node in enumerate(graph.nodes) for name in graph.data_inputs(node)}
    alive: set[str] = set()
    homes, layer, has_weights = [], 0, False
    for i, node in enumerate(graph.nodes):
        starts = node.op_type in ARITHMETIC and has_weights and len(alive) <= 1
        layer, has_weights = layer + starts, node.op_type in ARITHMETIC or (has_weights and not starts)
        homes.append(layer)
        alive = {name for name in (*alive, *node.output) if last.get(name, -1) > i}
    operators: dict[int, list[str]] = defaultdict(list)
    for home, node in zip(homes, graph.nodes, strict=True):
        operators[home].append(node.op_type)
    return homes, [_operators(operators[i]) for i in range(layer + 1)]


def _operators(kinds: Iterable[str]) -> str:
    """The operators of a layer as its name.

    >>> _operators(["Conv", "Relu", "Conv", "Add"])
    'Conv x2, Relu, Add'
    """
    return ", ".join(kind if count == 1 else f"{kind} x{count}" for kind, count in Counter(kinds).items())


def _renamed(graph: Graph, homes: Sequence[int]) -> Any:
    """The graph with names of nodes and tensors that start with the number of their layer."""
    model, kept = graph.model, set(graph.outputs)
    home_of = {id(node): home for node, home in zip(graph.nodes, homes, strict=True)}
    new: dict[str, str] = {}
    for i, node in enumerate(model.graph.node):
        if id(node) not in home_of:  # a constant
            continue
        prefix = f"/{home_of[id(node)]}/{node.op_type}_{i}"
        node.name = prefix
        for j, out in enumerate(node.output):
            if out and out not in kept:
                new[out] = f"{prefix}_output_{j}"
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    del model.graph.value_info[:]
    return model


def _counted(graph: Graph, homes: Sequence[int], names: Sequence[str]) -> list[FileLayer]:
    """The layers with their counts for one image."""
    flops, access = [0] * len(names), [0] * len(names)
    for node, home in zip(graph.nodes, homes, strict=True):
        weight = graph.shapes.get(graph.copies.get(node.input[1], node.input[1])) if len(node.input) > 1 else None
        source, out = graph.shapes.get(node.input[0]), graph.shapes.get(node.output[0])
        if node.op_type not in ARITHMETIC or not (weight and source and out):
            continue
        per_output = source[-1] if node.op_type in ("Gemm", "MatMul") else math.prod(weight[1:])
        sizes = [math.prod(shape[1:]) for shape in (source, out)]
        flops[home] += sizes[node.op_type != "ConvTranspose"] * per_output  # whose weight is applied to every input
        access[home] += sum(sizes) + math.prod(weight)
    return [FileLayer(_text(name), *counts) for name, *counts in zip(names, flops, access, strict=True)]


def _text(name: str) -> str:
    """A name of a file's author on one line, at most 60 characters."""
    return re.sub(r"\s+", " ", name)[:60]
