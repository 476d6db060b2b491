"""One group at equal FLOPs: published pairs of networks, units, runs of convolutions, and files."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from nasspace import Architecture, Space, blocks, build, cost, zoo
from nasspace.blocks.layers import channel_shuffle
from nasspace.guidelines import counterfactuals, explain, explain_file, groups
from nasspace.guidelines.context import FileContext, NetworkContext
from nasspace.guidelines.counterfactuals import LayerReplacement, OperatorReplacement
from nasspace.guidelines.equal_flops import ALIGNED_TOLERANCE, aligned_width, width_at_flops
from nasspace.guidelines.graph_narrowing import GraphNarrowing
from nasspace.latency.convert import to_onnx
from nasspace.latency.graph import Graph
from nasspace.latency.numbered import write_numbered
from nasspace.latency.profile import Profile, TimedOperator


def pointwise(out, **options):
    return {"block": "conv", "kernel": 1, "out": out, **options}


def equal_times(graph):
    """A profile in which every operator takes 1 ms."""
    operators = tuple(TimedOperator(node.name, node.op_type, 0, 1.0) for node in graph.nodes)
    return Profile(operators, 0.0, float(len(operators)), 1)


@pytest.fixture
def network(tmp_path):
    """The context of an architecture, without a measurement."""

    def make(architecture):
        path = to_onnx(build(architecture), architecture.input, tmp_path / "network.onnx")
        graph = Graph(path)
        return NetworkContext(path, graph, equal_times(graph), architecture)

    return make


@pytest.fixture
def file(tmp_path):
    """The context of a network's ONNX file, without a measurement."""

    def make(module, shape):
        source = to_onnx(module.eval(), shape, tmp_path / "source.onnx")
        path, layers = write_numbered(source, tmp_path / "numbered.onnx", 1)
        graph = Graph(path)
        return FileContext(path, graph, equal_times(graph), len(layers))

    return make


def first(context):
    """The first violation of G2."""
    return next(groups.find_grouped(context))


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_shufflenet_becomes_the_papers_network_of_one_group(count, network, changed):
    """As from column to column of table 1 of ShuffleNet's paper."""
    context = network(zoo.load(f"shufflenet_v1_g{count}_1.0"))
    violation = first(context)
    assert violation.change.startswith(f"groups {count} -> 1 and widths ")
    assert "-> 144:288:576, at the same FLOPs (+" in violation.change
    assert set(violation.layers) == set(range(2, 18))
    assert changed(context, violation.parts).digest == zoo.load("shufflenet_v1_g1_1.0").digest


@pytest.mark.parametrize("name", ["shufflenet_v1_g1_1.0", "shufflenet_v2_0.5", "mobilenet_v2_0.35", "squeezenet_1.1"])
def test_a_network_without_groups_has_no_violation(name, network, file):
    architecture = zoo.load(name, resolution=64)
    assert list(groups.find_grouped(network(architecture))) == []
    assert list(groups.find_grouped(file(build(architecture), architecture.input))) == []


RESNEXT = [{"block": "bottleneck", "out": out, "stride": 2, "groups": 32, "base_width": 4} for out in (256, 512)]
RESNET = [{key: layer[key] for key in ("block", "out", "stride")} for layer in RESNEXT]
STEM = {"block": "conv", "out": 64, "kernel": 7, "stride": 2}


def test_resnext_becomes_resnet(network, changed, file):
    """Groups are inside the units, so only inner widths shrink, as in table 1 of ResNeXt's paper."""
    grouped, plain = (
        Architecture.of([STEM, *units, units[1] | {"stride": 1}, {"block": "linear", "out": 10}], input=(3, 64, 64))
        for units in (RESNEXT, RESNET)
    )
    context = network(grouped)
    violation = first(context)
    assert violation.change == "groups 32 -> 1 in narrower convolutions, at the same FLOPs"
    assert changed(context, violation.parts).digest == plain.digest
    of_file = first(file(build(grouped), grouped.input))
    assert of_file.change.startswith("groups 32 -> 1 and widths 128:256 -> 64:128, at the same FLOPs (")


def test_grouped_units_in_a_searched_network_become_dense(network, changed):
    """V1 and V2 units alternate; the shortcuts and the channel shuffles of the V2 units stay."""
    space, rng = Space.load("shuffle", classes=10), random.Random(1)
    architecture = next(
        one
        for one in iter(lambda: space.sample(rng), None)
        if {4, 8} & {layer.options.get("groups") for layer in one.layers}
        and any(layer.block == "shuffle_v2" for layer in one.layers)
    )
    context = network(architecture)
    for violation in groups.find_grouped(context):
        after = changed(context, violation.parts)
        assert "-> 1" in violation.change
        assert [one.block for one in after.layers] == [one.block for one in architecture.layers]
        assert len(list(network(after).convolutions)) == len(context.convolutions)
        assert all(one.groups == 1 or one.depthwise for one in network(after).convolutions)
        assert after.classes == 10


@pytest.mark.parametrize(
    ("layers", "start"),
    [
        ([pointwise(32), pointwise(32, skip="identity"), pointwise(32, groups=4, skip="identity")], 1),
        ([pointwise(64), {"block": "conv", "out": 64, "groups": 64}, pointwise(64, groups=4)], 3),
        ([pointwise(64, groups=4), {"block": "conv", "out": 64, "groups": 64}, pointwise(24)], 1),
        ([pointwise(32, groups=4, stride=2), {"block": "basic", "out": 32}, {"block": "max_pool"}], 1),
        ([{"block": "shuffle_v1", "out": 48, "stride": 2}, {"block": "flatten"}], 1),
    ],
    ids=["shortcuts before", "depthwise before", "depthwise after", "shortcut after", "flatten"],
)
def test_layers_that_share_a_width_keep_their_operations(layers, start, network, changed):
    layers = [{"block": "conv", "out": 16}, *layers, {"block": "linear", "out": 3}]
    context = network(Architecture.of(layers, input=(3, 16, 16)))
    violation = first(context)
    (part,) = violation.parts
    assert part.start == start
    after = changed(context, violation.parts)
    types = [sorted(node.op_type for node in one.graph.nodes) for one in (context, network(after))]
    shuffles = {"Reshape", "Transpose"}
    assert [one for one in types[1] if one not in shuffles] == [one for one in types[0] if one not in shuffles]
    assert cost(after).flops == pytest.approx(cost(context.architecture).flops, rel=ALIGNED_TOLERANCE + 0.05)


def test_the_classifier_keeps_its_classes(network, changed):
    layers = [{"block": "conv", "out": 32}, pointwise(32, groups=2), pointwise(6, groups=2), {"block": "global_pool"}]
    context = network(Architecture.of(layers, input=(3, 8, 8)))
    assert {changed(context, one.parts).classes for one in groups.find_grouped(context)} == {6}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"block": "inverted_residual", "out": 16, "expansion": 2}, {"block": "global_pool"}),
        ({"block": "basic", "out": 16}, {"block": "basic", "out": 16}),
        (pointwise(16, skip=True), {"block": "shuffle_v2", "out": 16}),
        ({"block": "conv", "out": 16, "groups": 16}, {"block": "flatten"}),
        ({"block": "shuffle_v2", "out": 16, "stride": 2}, {"block": "dropout"}),
    ],
)
def test_a_run_keeps_its_ends_if_other_layers_would_change(before, after, context_of):
    context = context_of(before, *[pointwise(16, groups=4)] * 4, after)
    found = [one for one in groups.find_grouped(context) if "in narrower convolutions" in one.change]
    parts = [part for one in found for part in one.parts if isinstance(part, LayerReplacement)]
    assert {(part.start, len(part.before)) for part in parts} == {(2, 4)}


def test_a_run_keeps_its_ends_if_a_user_block_refuses_the_width(context_of, own_blocks):
    class Wide(nn.Sequential):
        def __init__(self, in_channels, out_channels, stride=1):
            if in_channels < 48:
                raise ValueError("too narrow")
            super().__init__(nn.Conv2d(in_channels, out_channels, 1))

    blocks.register("wide", Wide)
    context = context_of(pointwise(64), *[pointwise(64, groups=8)] * 4, {"block": "wide", "out": 16})
    inside = [one for one in groups.find_grouped(context) if "in narrower convolutions" in one.change]
    assert {(part.start, len(part.before)) for one in inside for part in one.parts} == {(2, 4)}


def test_a_run_and_the_layers_around_it_keep_the_flops(context_of, changed):
    front = {"block": "bottleneck", "out": 64, "base_width": 16}
    context = context_of(front, *[pointwise(64, groups=4)] * 5, {"block": "depthwise_separable", "out": 16})
    found = [one for one in groups.find_grouped(context) if "at their ends" in one.change]
    assert [[(part.start, len(part.before)) for part in one.parts] for one in found] == [[(1, 7)], [(1, 7)]]
    after = changed(context, found[0].parts)
    assert len({layer.out for layer in after.layers[1:7]}) == 1
    assert cost(after).flops == pytest.approx(cost(context.architecture).flops, rel=0.06)


def test_a_grouped_run_gets_one_group_at_the_same_flops(context_of, changed):
    context = context_of(pointwise(64), *[pointwise(64, groups=4)] * 6)
    violation = next(groups.find_grouped(context))
    assert set(violation.layers) == {2, 3, 4, 5, 6, 7}
    after = changed(context, violation.parts)
    assert all(layer.options.get("groups", 1) == 1 for layer in after.layers)
    assert cost(after).flops == pytest.approx(cost(context.architecture).flops, rel=0.06)


@pytest.mark.parametrize(
    "unit",
    [
        {"block": "shuffle_v1", "out": 64, "groups": 4, "stride": 2},
        {"block": "bottleneck", "out": 64, "groups": 8, "base_width": 16},
        {"block": "basic", "out": 64, "groups": 4},
    ],
)
def test_a_grouped_unit_gets_a_narrower_middle_at_the_same_flops(unit, context_of, changed):
    context = context_of(unit)
    violation = next(one for one in groups.find_grouped(context) if "in narrower convolutions" in one.change)
    (part,) = violation.parts
    assert isinstance(part, LayerReplacement)
    assert part.after[0]["groups"] == 1
    after = cost(changed(context, [part])).layers[1]
    assert after.out_shape == cost(context.architecture).layers[1].out_shape
    assert after.flops == pytest.approx(cost(context.architecture).layers[1].flops, rel=0.1)


class Grouped(nn.Module):
    """A user-defined block with groups that no option changes."""

    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride, groups=4)

    def forward(self, x):
        return self.conv(x).relu()


def test_groups_without_an_option_are_compared_as_operators(network, own_blocks):
    blocks.register("grouped", Grouped)
    layers = [{"block": "conv", "out": 32}, {"block": "grouped", "out": 32}, {"block": "linear", "out": 3}]
    violation = first(network(Architecture.of(layers, input=(3, 16, 16))))
    assert [type(part) for part in violation.parts] == [OperatorReplacement]
    assert violation.change == "groups 4 -> 1 in narrower convolutions, at the same FLOPs"


@pytest.mark.parametrize("count", [3, 8])
def test_a_file_gets_the_same_change_as_its_network(count, network, file, tmp_path):
    architecture = zoo.load(f"shufflenet_v1_g{count}_1.0")
    context = file(build(architecture), architecture.input)
    violation = first(context)
    assert violation.change == first(network(architecture)).change
    (part,) = violation.parts
    before, after = part.write(tmp_path, 1)
    assert before == context.path
    graph = GraphNarrowing(after)
    assert graph.grouped == []
    assert graph.target == cost(zoo.load("shufflenet_v1_g1_1.0")).flops
    assert "Transpose" not in {node.op_type for node in graph.graph.nodes}
    outputs = onnxruntime.InferenceSession(str(after)).run(None, {"input": np.ones((1, 3, 224, 224), np.float32)})
    assert outputs[0].shape == (1, 1000)
    assert np.isfinite(outputs[0]).all()
    assert context.changed(violation.parts, (), tmp_path, 1).read_bytes() == after.read_bytes()


@pytest.mark.parametrize("order", ["", "_megvii"])
def test_a_file_without_names_gets_the_same_change(order, tmp_path):
    """Its layers are chains of operators, so that a shuffle may belong to another layer than the groups it mixes."""
    architecture = zoo.load(f"shufflenet_v1_g4_0.25{order}", resolution=64)
    model = onnx.load(to_onnx(build(architecture), architecture.input, tmp_path / "source.onnx"))
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "nameless.onnx")
    narrowing = GraphNarrowing(write_numbered(tmp_path / "nameless.onnx", tmp_path / "numbered.onnx", 1)[0])
    _, after = narrowing.part(narrowing.exact).write(tmp_path, 1)
    assert narrowing.target == cost(architecture).flops
    assert narrowing.flops_at(narrowing.exact, round) == pytest.approx(narrowing.target, rel=0.02)
    assert "Transpose" not in {node.op_type for node in Graph(after).nodes}
    assert GraphNarrowing(after).grouped == []


class Joined(nn.Module):
    """Grouped convolutions between maps that are concatenated, gated, added, or cut."""

    def __init__(self, form: str):
        super().__init__()
        self.form = form
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.wide = nn.Conv2d(24, 40, 1)
        self.first, self.second = (nn.Conv2d(64, 64, 1, groups=8) for _ in range(2))
        self.gate = nn.Conv2d(64, 64, 1)
        self.depthwise = nn.Conv2d(64, 128, 3, padding=1, groups=64)
        self.last = nn.Conv2d(128, 16, 1, groups=4)
        self.head = nn.Linear(16 * 8 * 8, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        x = torch.cat([x, self.wide(x)], 1)
        y = channel_shuffle(self.first(x).relu(), 8)
        if self.form == "gate":
            y = y * self.gate(y.mean((2, 3), keepdim=True)).sigmoid()
        x = x + self.second(y)
        if self.form == "cut":
            x = torch.cat([x[:, 32:], x[:, :32]], 1)
        if self.form == "scaled":
            x = x * torch.ones(1, 64, 1, 1)
        return self.head(self.last(self.depthwise(x)).flatten(1))


@pytest.mark.parametrize("form", ["plain", "gate"])
def test_the_channels_of_a_file_fit_together(form, file, tmp_path):
    context = file(Joined(form), (3, 8, 8))
    violation = first(context)
    assert violation.change.startswith("groups 8, 4 -> 1 and widths 24:64:16 -> ")
    (part,) = violation.parts
    _, after = part.write(tmp_path, 1)
    graph = Graph(after)
    assert sum(one.depthwise for one in graph.convolutions()) == 1
    assert all(one.groups == 1 or one.depthwise for one in graph.convolutions())
    concat = next(node for node in graph.nodes if node.op_type == "Concat")
    parts = [graph.shapes[name][1] for name in concat.input]
    assert sum(parts) == graph.shapes[concat.output[0]][1] < 64
    assert "Transpose" not in {node.op_type for node in graph.nodes}
    assert GraphNarrowing(after).target == pytest.approx(GraphNarrowing(context.path).target, rel=0.1)


@pytest.mark.parametrize("form", ["cut", "scaled"])
def test_maps_that_cannot_shrink_keep_their_width(form, file, tmp_path):
    """A part of the channels is read, or each is multiplied by its own constant."""
    context = file(Joined(form), (3, 8, 8))
    narrowing = GraphNarrowing(context.path)
    second = max(narrowing.grouped, key=lambda one: one.groups * (one.source != narrowing.grouped[0].source))
    assert narrowing._root(second.out) not in narrowing.shrinking
    _, after = narrowing.part(narrowing.exact).write(tmp_path, 1)
    graph = GraphNarrowing(after)
    assert graph.grouped == []
    assert next(graph.graph.shapes[node.output[0]][1] for node in graph.graph.nodes if node.op_type == "Concat") == 64


def test_widths_of_equal_flops():
    def flops(width):
        return 3.0 * width**2 + 5 * width

    for target in (200.0, 5000.0, 80_000.0):
        exact = width_at_flops(flops, target, 512)
        assert flops(math.floor(exact)) <= target <= flops(math.ceil(exact))
        width = aligned_width(exact, flops, target)
        assert width == round(exact) or (width % 4 == 0 and abs(flops(width) / target - 1) <= ALIGNED_TOLERANCE)
    assert width_at_flops(flops, 1.0, 512) == 1


def test_one_finding_names_the_change_of_all_grouped_layers(monkeypatch, tmp_path, shortened):
    """With times in proportion to the values that all operators write."""

    def written(paths, settings, loads=1):
        graphs = map(Graph, paths)
        sizes = [sum(math.prod(graph.shapes[node.output[0]]) for node in graph.nodes) for graph in graphs]
        return [{"ms": size / 1e5, "scatter": 0.001} for size in sizes]

    monkeypatch.setattr(counterfactuals, "measure_in_turn", written)
    monkeypatch.setattr("nasspace.guidelines.explanation.measure_in_turn", written)
    settings = {"seconds": 0.02, "measure": True, "fresh": True}
    architecture = shortened(zoo.load("shufflenet_v1_g8_1.0", resolution=64), most=8)
    found = explain(architecture, **settings)
    (grouped,) = [one for one in found.findings if one.guideline == "G2"]
    assert grouped.change.startswith("groups 8 -> 1 and widths 384:768 -> ")
    assert grouped.saving_ms == pytest.approx(grouped.measured_ms)
    assert grouped.measured_on == "network"
    changed = Architecture.from_json(json.dumps(grouped.architecture))
    assert cost(changed).flops == pytest.approx(cost(architecture).flops, rel=ALIGNED_TOLERANCE)
    of_file = explain_file(to_onnx(build(architecture), architecture.input, tmp_path / "net.onnx"), **settings)
    assert [one.change for one in of_file.findings if one.guideline == "G2"] == [grouped.change]
