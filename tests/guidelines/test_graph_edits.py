"""Removable and mergeable operators are found in a graph, and the edited graph still runs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from nasspace import Architecture, blocks, build, zoo
from nasspace.guidelines.graph_edits import find_parallel, find_removable, write_edited
from nasspace.latency.convert import to_onnx
from nasspace.latency.graph import Graph


class Branches(nn.Module):
    """Parallel 1x1 convolutions, concatenated or added."""

    def __init__(self, in_channels, out_channels, stride=1, *, count: int = 2, join: str = "concat"):
        super().__init__()
        width = out_channels // count if join == "concat" else out_channels
        self.parts = nn.ModuleList(nn.Conv2d(in_channels, width, 1, stride) for _ in range(count))
        self.join = join

    def forward(self, x):
        found = [part(x).relu() for part in self.parts]
        return torch.cat(found, 1) if self.join == "concat" else sum(found[1:], found[0])


@pytest.fixture
def graph_of(tmp_path):
    """The graph and file of a 3x3 convolution to 16 channels and the given layers."""

    def make(*layers):
        architecture = Architecture.of(
            [{"block": "conv", "out": 16}, *layers, {"block": "linear", "out": 3}], input=(3, 16, 16)
        )
        path = to_onnx(build(architecture), architecture.input, tmp_path / "network.onnx")
        return Graph(path), path

    return make


def output(path):
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16), dtype=np.float32)
    return onnxruntime.InferenceSession(str(path)).run(None, {"input": image})[0]


LAYERS = {
    "se": ({"block": "conv", "out": 16, "se": 0.25}, "se"),
    "a shortcut": ({"block": "conv", "out": 16, "skip": "identity"}, "add"),
    "a pooled shortcut": ({"block": "inverted_residual", "out": 16, "stride": 2, "skip": "pool"}, "add"),
    "a shuffle": ({"block": "shuffle_v2", "out": 16}, "shuffle"),
    "silu": ({"block": "conv", "out": 16, "activation": "silu"}, "activation"),
    "gelu": ({"block": "conv", "out": 16, "activation": "gelu"}, "activation"),
}


@pytest.mark.parametrize(("layer", "kind"), LAYERS.values(), ids=LAYERS)
def test_element_wise_work_is_found_and_removed(layer, kind, graph_of, tmp_path):
    graph, _ = graph_of(layer)
    found = [one for one in find_removable(graph) if one.layer == 1 and one.kind == kind]
    assert found
    changed = write_edited(graph, tmp_path / "changed.onnx", kind, {1})
    assert output(changed).shape == (1, 3)
    left = Graph(changed)
    assert not {name for one in found for name in one.names} & {node.name for node in left.nodes}
    assert not [one for one in find_removable(left) if one.layer == 1 and one.kind == kind]


def test_a_projected_shortcut_cannot_be_removed(graph_of):
    graph, _ = graph_of({"block": "basic", "out": 32, "stride": 2})
    assert [one.kind for one in find_removable(graph) if one.layer == 1] == ["activation", "activation"]


def test_only_the_given_layers_change(graph_of, tmp_path):
    layer = {"block": "conv", "out": 16, "se": 0.25}
    graph, _ = graph_of(layer, layer)
    left = Graph(write_edited(graph, tmp_path / "changed.onnx", "se", {2}))
    assert [one.layer for one in find_removable(left) if one.kind == "se"] == [1]


@pytest.mark.parametrize("count", [2, 4])
def test_concatenated_branches_become_one_equivalent_convolution(count, graph_of, tmp_path, own_blocks):
    blocks.register("branches", Branches)
    layer = {"block": "branches", "out": 16, "count": count}
    graph, path = graph_of(layer, layer)
    assert [(len(one.convolutions), one.mergeable) for one in find_parallel(graph)] == [(count, True)] * 2
    changed = write_edited(graph, tmp_path / "changed.onnx", "parallel", {1, 2})
    assert Counter(node.op_type for node in Graph(changed).nodes)["Conv"] == 3
    np.testing.assert_allclose(output(changed), output(path), rtol=1e-4, atol=1e-6)


def test_added_branches_or_different_kernels_are_not_merged(graph_of, own_blocks):
    blocks.register("branches", Branches)
    graph, _ = graph_of({"block": "branches", "out": 16, "count": 3, "join": "add"}, {"block": "fire", "out": 16})
    assert [(one.join, len(one.convolutions), one.mergeable) for one in find_parallel(graph)] == [
        ("Add", 3, False),
        ("Concat", 2, False),
    ]


def test_convolutions_are_read_with_their_shapes(graph_of):
    graph, _ = graph_of({"block": "shuffle_v1", "out": 48, "groups": 2, "stride": 2})
    found = [one for one in graph.convolutions() if one.layer == 1]
    assert [(one.c_in, one.c_out, one.groups, one.kernel, one.stride, one.depthwise) for one in found] == [
        (16, 12, 2, 1, 1, False),
        (12, 12, 12, 3, 2, True),
        (12, 32, 2, 1, 1, False),
    ]
    assert found[-1].map_size == (8, 8)
    assert found[-1].flops == 64 * 12 * 32 // 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shufflenet_v2_0.5", "mobilenet_v3_small_1.0", "xception", "resnet18"])
def test_each_kind_can_be_removed_from_published_networks(name, tmp_path):
    architecture = zoo.load(name, resolution=64, classes=10)
    graph = Graph(to_onnx(build(architecture), architecture.input, tmp_path / "network.onnx"))
    for kind in {one.kind for one in find_removable(graph)}:
        changed = write_edited(graph, tmp_path / f"{kind}.onnx", kind, set(range(len(architecture.layers))))
        session = onnxruntime.InferenceSession(str(changed))
        assert session.run(None, {"input": np.zeros((1, 3, 64, 64), np.float32)})[0].shape == (1, 10)
