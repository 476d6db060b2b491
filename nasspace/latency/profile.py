"""ONNX Runtime's profile of a network, mapped to its layers; the times add up to the latency."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from nasspace import temporary
from nasspace.latency.convert import OPSET
from nasspace.latency.graph import ARITHMETIC, Graph, layer_index
from nasspace.latency.runtimes import random_batch

WARM_UP_RUNS = 5
MIN_RUNS = 15
LONGEST, FEWEST = 10, 3  # after LONGEST times the given seconds, FEWEST runs are enough
_END = "_kernel_time"
FOLLOWS = "+"  # suffix of operators that follow the named one


@dataclass(frozen=True)
class TimedOperator:
    """One operator that ONNX Runtime runs: the exported node or tensor it implements, its type, layer and time."""

    source: str
    operator: str
    layer: int
    ms: float


@dataclass(frozen=True)
class Profile:
    """The time of every operator, in order; with `rest_ms` they add up to `total_ms`, the latency.

    The rest is the time between operators: their dispatch, and the call itself.
    """

    operators: tuple[TimedOperator, ...]
    rest_ms: float
    total_ms: float
    runs: int

    def of_layer(self, layer: int) -> float:
        """Return milliseconds of one layer."""
        return sum(one.ms for one in self.operators if one.layer == layer)

    def share(self, ms: float) -> float:
        """Return a time as a share of the latency."""
        return ms / self.total_ms

    def scaled(self, factor: float) -> Profile:
        """Return the profile with all times multiplied by `factor`."""
        operators = tuple(replace(one, ms=factor * one.ms) for one in self.operators)
        return Profile(operators, factor * self.rest_ms, factor * self.total_ms, self.runs)


def profile_onnx(
    path: str | PathLike, layers: int, latency_ms: float, *, threads: int = 1, seconds: float = 0.5
) -> Profile:
    """Profile an ONNX file that was exported from a network of `layers` layers, for about `seconds`.

    The time of an operator is its median over the runs minus the profiler's overhead. If the sum still exceeds
    `latency_ms`, the latency without the profiler, all operators are scaled down by the same factor.
    """
    with temporary.private() as folder:
        numbered = Path(folder) / "numbered.onnx"
        assigned = _assign_layers(_optimize(Path(path), numbered, threads), layers)
        events = _profile_events(numbered, threads, seconds, optimize=False)
    overhead = _profiler_overhead_ms()
    median = {name: statistics.median_grouped(values) / 1e3 for name, values in _durations(events).items()}
    operators = [TimedOperator(*assigned[int(name)], max(0.0, ms - overhead)) for name, ms in median.items()]
    return scale_to_latency(operators, latency_ms, _runs(events))


def _optimize(path: Path, numbered: Path, threads: int) -> list[Any]:
    """Return the nodes of ONNX Runtime's optimized graph, and write it to `numbered` with numbers as names.

    Parts of a function (HardSwish) have no name, so the profile of the original file would be ambiguous.
    """
    import onnx

    _session(path, threads, optimized_model_filepath=str(numbered))
    model = onnx.load(str(numbered))
    nodes = []
    for i, node in enumerate(model.graph.node):
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
        node.name = str(i)
    onnx.save(model, str(numbered))
    return nodes


def scale_to_latency(operators: Iterable[TimedOperator], latency_ms: float, runs: int) -> Profile:
    """Scale operators down if their sum exceeds the latency, and assign the rest of the time."""
    operators = tuple(operators)
    total = sum(one.ms for one in operators)
    scale = min(1.0, latency_ms / total) if total else 1.0
    scaled = tuple(replace(one, ms=one.ms * scale) for one in operators)
    return Profile(scaled, max(0.0, latency_ms - sum(one.ms for one in scaled)), latency_ms, runs)


def _session(path: Path, threads: int, optimize: bool = True, **settings: Any) -> Any:
    """Load a file in ONNX Runtime; `settings` are attributes of `SessionOptions`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _profile_events(path: Path, threads: int, seconds: float, optimize: bool = True) -> list[dict]:
    """Return the events that ONNX Runtime records in the runs after the warm-up."""
    prefix = str(path.with_suffix(""))
    session = _session(path, threads, optimize, enable_profiling=True, profile_file_prefix=prefix)
    described = session.get_inputs()[0]
    feed = {described.name: random_batch(described.shape[0], tuple(described.shape[1:]))}
    start, spent, runs = time.perf_counter(), 0.0, 0
    while spent < seconds or runs < WARM_UP_RUNS + (MIN_RUNS if spent < LONGEST * seconds else FEWEST):
        session.run(None, feed)
        runs, spent = runs + 1, time.perf_counter() - start
    return _after_warm_up(json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")))


def _after_warm_up(events: list[dict]) -> list[dict]:
    """Drop the events of the warm-up runs."""
    ends = [i for i, event in enumerate(events) if event.get("name") == "model_run"]
    return events[ends[WARM_UP_RUNS - 1] + 1 :]


def _runs(events: Iterable[Mapping[str, Any]]) -> int:
    """Count the runs."""
    return sum(event.get("name") == "model_run" for event in events)


def _durations(events: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return microseconds of every run of each node (the profile rounds down, hence 0.5 more)."""
    durations = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_END):
            durations[event["name"].removesuffix(_END)].append(event["dur"] + 0.5)
    return durations


def _assign_layers(nodes: list[Any], layers: int) -> list[tuple[str, str, int]]:
    """Return (exported node or tensor, operator type, layer) for every node that ONNX Runtime runs.

    Some nodes have no exported name. An operator that replaces several exported ones (GELU, a part of HardSwish) is
    named after the one it reads from, with the suffix `FOLLOWS`. A change of the memory layout belongs to the node that
    reads it, or without a reader to the one it reads from. Operators outside all layers belong to the last layer.
    """
    named = [_original_name(node) for node in nodes]
    made_by = {out: i for i, node in enumerate(nodes) for out in node.output}
    read_by = {name: i for i, node in reversed(list(enumerate(nodes))) for name in node.input}
    for i, node in enumerate(nodes):
        if not named[i] and not _reorders(node):
            source = made_by.get(node.input[0])
            while source is not None and _reorders(nodes[source]):
                source = made_by.get(nodes[source].input[0])
            named[i] = "" if source is None else named[source].rstrip(FOLLOWS) + FOLLOWS
    for i, node in reversed(list(enumerate(nodes))):
        named[i] = named[i] or next((named[read_by[out]] for out in node.output if out in read_by), "")
    for i, node in enumerate(nodes):
        named[i] = named[i] or next((named[made_by[name]] for name in node.input if name in made_by), "")
    homes = [layer_index(name) for name in named]
    last = layers - 1
    return [(name, n.op_type, last if h is None else h) for name, n, h in zip(named, nodes, homes, strict=True)]


def _reorders(node: Any) -> bool:
    """Whether a node changes the memory layout."""
    return node.op_type.startswith("Reorder")


def _original_name(node: Any) -> str:
    """Return the exported node or tensor that a node of the optimized graph is named after, else an empty string."""
    names = () if _reorders(node) else (node.name, *node.output)
    return next((name for name in names if name.startswith("/")), "").removesuffix("_nchwc")


@functools.cache
def _profiler_overhead_ms() -> float:
    """Measure the time that the profiler adds to every operator, as the time of an operator that does nothing."""
    import onnx
    from onnx import TensorProto, helper

    names = ["input", *map(str, range(40)), "output"]
    nodes = [helper.make_node("Reshape", [a, "shape"], [b], name=b) for a, b in itertools.pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 2, 2]) for name in ("input", "output")]
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [1, 1, 2, 2])
    graph = helper.make_graph(nodes, "idle", ends[:1], ends[1:], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    with temporary.private() as folder:
        path = Path(folder) / "idle.onnx"
        onnx.save(model, str(path))
        durations = _durations(_profile_events(path, 1, 0.05, optimize=False))
    return statistics.median(map(statistics.median_grouped, durations.values())) / 1e3


def node_times(graph: Graph, profile: Profile) -> dict[str, tuple[float, frozenset[str]]]:
    """Return, for each exported node, the milliseconds of the operator that implements it and all nodes fused into it.

    ONNX Runtime fuses operators (a convolution, the following addition and ReLU) under the name of the last one, so a
    node without its own time belongs to the first node after it that has one.
    """
    seen: dict[str, float] = defaultdict(float)
    for one in profile.operators:
        seen[_node_of(graph, one.source)] += one.ms
    homes: dict[str, str] = {}
    for node in reversed(graph.nodes):
        after = [homes.get(reader.name) for out in node.output for reader in graph.consumers[out]]
        homes[node.name] = node.name if node.name in seen else next((name for name in after if name), "")
    members = defaultdict(set)
    for name, home in homes.items():
        members[home].add(name)
    return {n: (seen[h] if h else 0.0, frozenset(members[h]) if h else frozenset()) for n, h in homes.items()}


def _node_of(graph: Graph, source: str) -> str:
    """Return the exported node of an operator, which is named after the node or its output, with or without suffix."""
    names = {node.name for node in graph.nodes}
    name = source.rstrip(FOLLOWS)
    while name and name not in names and name not in graph.producer:
        name = name.rpartition("/")[0]
    node = graph.producer.get(name)
    if source.endswith(FOLLOWS):
        outs = [name] if node is not None else [out for one in graph.nodes if one.name == name for out in one.output]
        readers = [reader.name for out in outs for reader in graph.consumers[out]]
        return readers[0] if readers else name
    return name if node is None else node.name


def standalone_operators(
    graph: Graph, times: Mapping[str, tuple[float, frozenset[str]]], names: Iterable[str]
) -> dict[frozenset[str], float]:
    """Return the milliseconds of the operators that run nodes, by the exported nodes fused into each operator.

    Nodes that are fused into a convolution are left out: a ReLU there takes no measurable time. The time of a small
    operator can be 0, since the profiler's overhead is subtracted.
    """
    names, types = set(names), {node.name: node.op_type for node in graph.nodes}
    found = {}
    for name in names:
        ms, fused = times[name]
        larger = any(types[other] in ARITHMETIC for other in fused - names)
        if fused and not (larger and types[name] not in ARITHMETIC):
            found[fused] = ms
    return found
