"""The profile: every operator belongs to a layer, and the shares add up."""

from __future__ import annotations

import random
from pathlib import Path

import onnxruntime
import pytest

from nasspace import Architecture, Space, build, files, zoo
from nasspace.latency import profile
from nasspace.latency.convert import to_onnx
from nasspace.latency.graph import Graph, layer_index
from nasspace.latency.profile import TimedOperator, node_times, profile_onnx, scale_to_latency, standalone_operators

BRIEF = 0.01


def profiled(architecture: Architecture, folder: Path) -> tuple[Graph, profile.Profile]:
    path = to_onnx(build(architecture), architecture.input, folder / "network.onnx")
    return Graph(path), profile_onnx(path, len(architecture.layers), 100.0, seconds=BRIEF)


def assert_all_mapped(architecture: Architecture, folder: Path) -> None:
    graph, found = profiled(architecture, folder)
    assert sum(found.of_layer(i) for i in range(len(architecture.layers))) + found.rest_ms == pytest.approx(100, 1e-9)
    assert sum(found.share(one.ms) for one in found.operators) + found.share(found.rest_ms) == pytest.approx(
        1, abs=1e-6
    )
    for one in found.operators:
        assert layer_index(one.source) in (one.layer, None), one
    busy = {one.layer for one in graph.convolutions()}
    assert busy <= {one.layer for one in found.operators}, "a layer with a convolution has operators of its own"
    types = {node.name: node.op_type for node in graph.nodes}
    for name, (ms, joined) in node_times(graph, found).items():
        assert types[name] != "Conv" or (joined and ms >= 0), f"{name} is missing in the profile"


def test_a_slower_machine_takes_longer_everywhere():
    taken = profile.Profile((TimedOperator("/0/Conv", "Conv", 0, 3.0),), 1.0, 4.0, 20).scaled(1.5)
    assert (taken.operators[0].ms, taken.rest_ms, taken.total_ms, taken.runs) == (4.5, 1.5, 6.0, 20)


def families() -> list[str]:
    return [family.members[0] for family in zoo.FAMILIES]


@pytest.mark.slow
@pytest.mark.parametrize("name", families())
def test_every_operator_of_each_family_is_mapped(name, shortened, tmp_path):
    assert_all_mapped(shortened(zoo.load(name, resolution=96, classes=10)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(files.names("spaces")))
def test_every_operator_of_samples_of_each_space_is_mapped(name, tmp_path):
    space, rng = Space.load(name, classes=10, resolution=64), random.Random(name)
    for _ in range(3):
        assert_all_mapped(space.sample(rng), tmp_path)


@pytest.mark.parametrize("activation", ["relu", "relu6", "hard_swish", "silu", "gelu", "elu", "sigmoid"])
def test_activations_are_mapped_to_their_own_layer(activation, tmp_path):
    layer = {"block": "conv", "out": 16, "kernel": 1, "activation": activation}
    architecture = Architecture.of([layer, layer, layer, {"block": "linear", "out": 3}], input=(3, 16, 16))
    assert_all_mapped(architecture, tmp_path)
    _, found = profiled(architecture, tmp_path)
    operators = [
        sorted(o.operator for o in found.operators if o.layer == i and "Reorder" not in o.operator) for i in (1, 2)
    ]
    assert operators[0] == operators[1], "equal layers have equal operators"


def test_the_numbered_file_equals_the_original(tmp_path):
    import numpy as np

    architecture = zoo.load("mobilenet_v3_small_1.0", resolution=32, classes=10)
    path = to_onnx(build(architecture), architecture.input, tmp_path / "network.onnx")
    profile._optimize(path, tmp_path / "numbered.onnx", 1)
    image = np.random.default_rng(0).standard_normal((1, *architecture.input), dtype=np.float32)
    outs = []
    for one, optimize in ((path, True), (tmp_path / "numbered.onnx", False)):
        outs.append(profile._session(one, 1, optimize).run(None, {"input": image})[0])
    assert isinstance(profile._session(path, 1), onnxruntime.InferenceSession)
    np.testing.assert_allclose(*outs, rtol=1e-5, atol=1e-6)


def test_operators_and_the_rest_add_up_to_the_latency():
    operators = [TimedOperator("/0/Conv", "Conv", 0, 3.0), TimedOperator("/1/Relu", "Relu", 1, 1.0)]
    slower = scale_to_latency(operators, 5.0, 10)
    assert (slower.of_layer(0), slower.of_layer(1), slower.rest_ms) == (3.0, 1.0, 1.0)
    faster = scale_to_latency(operators, 2.0, 10)
    assert (faster.of_layer(0), faster.of_layer(1), faster.rest_ms) == (1.5, 0.5, 0.0)
    assert scale_to_latency([], 2.0, 1).rest_ms == 2.0


def test_warm_up_is_dropped_and_durations_are_by_node():
    events = []
    for run in range(profile.WARM_UP_RUNS + 2):
        events.append({"cat": "Node", "name": "7_kernel_time", "dur": 100 if run < profile.WARM_UP_RUNS else 10 + run})
        events.append({"cat": "Node", "name": "7_fence_before", "dur": 1})
        events.append({"cat": "Session", "name": "model_run", "dur": 1000})
    kept = profile._after_warm_up(events)
    assert profile._runs(kept) == 2
    assert profile._durations(kept) == {"7": [15.5, 16.5]}


def test_a_relu_fused_into_a_convolution_is_no_separate_operator(tmp_path):
    architecture = Architecture.of(
        [
            {"block": "conv", "out": 16},
            {"block": "conv", "out": 16, "activation": "elu"},
            {"block": "linear", "out": 2},
        ],
        input=(3, 16, 16),
    )
    graph, found = profiled(architecture, tmp_path)
    times = node_times(graph, found)
    names = {node.op_type: node.name for node in graph.nodes}
    assert standalone_operators(graph, times, [names["Relu"]]) == {}
    assert standalone_operators(graph, times, [names["Elu"]]) == {frozenset({names["Elu"]}): times[names["Elu"]][0]}
    everything = standalone_operators(graph, times, times)
    assert sum(everything.values()) == pytest.approx(sum(one.ms for one in found.operators))
