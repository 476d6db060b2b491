"""ONNX files of other programs: their layers, counts, and explanation are those of the same network of the zoo."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from nasspace import InputError, build, cli, cost, guidelines, zoo
from nasspace.guidelines.graph_edits import find_parallel
from nasspace.latency.convert import to_onnx
from nasspace.latency.graph import Graph
from nasspace.latency.numbered import SCOPES, write_numbered

ZOO = (
    "mobilenet_v2_1.0",
    "shufflenet_v1_g3_1.0",
    "squeezenet_1.1",
    "mobilenet_v3_small_1.0",
    "resnet18",
    "mnasnet_a1_0.5",
)


class Unit(nn.Module):
    """Two convolutions with batch norm and a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.bn1(self.conv1(x)))))


class Own(nn.Module):
    """A network as people write it: a stem, two stages, and a head."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.stage1 = nn.Sequential(*(Unit(8) for _ in range(3)))
        self.pool = nn.MaxPool2d(2)
        self.stage2 = nn.Sequential(*(Unit(8) for _ in range(4)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.stage2(self.pool(self.stage1(x))).mean((2, 3)))


LAYERS = ["conv1", *(f"stage1.{i}" for i in range(3)), "pool", *(f"stage2.{i}" for i in range(4)), "fc"]


@pytest.fixture
def own(tmp_path) -> Path:
    return to_onnx(Own().eval(), (3, 32, 32), tmp_path / "own.onnx", dynamic_batch=True)


@pytest.mark.parametrize("name", ZOO)
def test_a_file_has_the_layers_and_counts_of_its_network(name, tmp_path):
    architecture = zoo.load(name, resolution=64)
    source = to_onnx(build(architecture), architecture.input, tmp_path / "net.onnx", dynamic_batch=True)
    _, layers = write_numbered(source, tmp_path / "numbered.onnx", 1)
    counted = cost(architecture)
    assert sum(layer.flops for layer in layers) == counted.flops
    assert sum(layer.memory_access for layer in layers) == counted.memory_access
    own = [layer for layer in counted.layers if layer.block != "dropout"]  # which a file does not have
    assert [layer.flops for layer in layers] == [layer.flops for layer in own]


def test_layers_are_modules_where_the_network_is_a_list(own, tmp_path):
    path, layers = write_numbered(own, tmp_path / "numbered.onnx", 2)
    assert [layer.block for layer in layers] == LAYERS
    graph = onnx.load(path).graph
    assert {node.name.split("/")[1] for node in graph.node} <= {str(i) for i in range(len(LAYERS))}
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


def test_modules_are_also_read_from_metadata(own, tmp_path):
    """As PyTorch's newer exporter writes them."""
    model = onnx.load(own)
    for i, node in enumerate(model.graph.node):
        scopes = node.name.split("/")[1:-1]
        node.metadata_props.add(key=SCOPES, value=str(["", *scopes, "operation"]))
        node.name = f"node_{i}"
    onnx.save(model, own)
    assert [layer.block for layer in write_numbered(own, tmp_path / "n.onnx", 1)[1]] == LAYERS


def test_without_names_layers_end_where_one_tensor_is_left(own, tmp_path):
    model = onnx.load(own)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, own)
    _, layers = write_numbered(own, tmp_path / "n.onnx", 1)
    assert [layer.block for layer in layers][:2] == ["Conv, Relu", "Conv x2, Relu x2, Add"]
    assert sum("Add" in layer.block for layer in layers) == 7
    units = [places * 8 * 8 * (9 + 1) for places in (16 * 16, 8 * 8)]
    assert [layer.flops for layer in layers if "Add" in layer.block] == [*3 * units[:1], *4 * units[1:]]


def test_an_explanation_of_a_file_is_that_of_its_network(tmp_path, shortened, own):
    architecture = shortened(zoo.load("shufflenet_v2_0.5", resolution=64))
    source = to_onnx(build(architecture), architecture.input, tmp_path / "net.onnx")
    settings = {"seconds": 0.02, "fresh": True}
    found, expected = guidelines.explain_file(source, **settings), guidelines.explain(architecture, **settings)
    assert [(row.layer, row.flops) for row in found.time] == [(row.layer, row.flops) for row in expected.time]
    assert found.input == expected.input == architecture.input
    assert sum(row.share for row in found.time) == pytest.approx(1)
    measured = guidelines.explain_file(own, seconds=0.05, measure=True)
    assert [row.block for row in measured.time] == [*LAYERS, "rest"]


def test_the_command_explains_files_and_functions(own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["explain", "own.onnx", "--seconds", "0.05", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["name"], document["digest"], document["input"]) == ("own.onnx", None, [3, 32, 32])
    assert document["time"][1]["block"] == "stage1.0"
    (tmp_path / "nets_of_mine.py").write_text("from torch import nn\n\ndef make():\n    return nn.Conv2d(3, 4, 3)\n")
    assert cli.run(["explain", "nets_of_mine:make", "--resolution", "32", "--seconds", "0.05"]) == 0
    assert "nets_of_mine:make" in capsys.readouterr().out
    assert cli.run(["explain", "none.onnx"]) == 2
    assert cli.run(["explain", "own.onnx", "--resolution", "64"]) == 2
    assert "leave --resolution out" in capsys.readouterr().err


def test_an_edit_of_a_file_is_measured_in_the_whole_file(tmp_path, shortened):
    """A channel shuffle between large maps takes long enough to be found."""
    architecture = shortened(zoo.load("shufflenet_v1_g8_1.0", resolution=96), most=5)
    source = to_onnx(build(architecture), architecture.input, tmp_path / "net.onnx")
    found = guidelines.explain_file(source, seconds=0.05, measure=True, fresh=True)
    on = {finding.kind: finding.measured_on for finding in found.findings}
    assert on
    assert all(where in ("network", "operators", "network and operators") for where in on.values())


class Branches(nn.Module):
    """Parallel convolutions that look alike but compute other things, joined."""

    def __init__(self, **windows):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.branches = nn.ModuleList(nn.Conv2d(8, 8, **window) for window in windows.values())

    def forward(self, x):
        x = self.stem(x)
        return torch.cat([branch(x) for branch in self.branches], 1)


@pytest.mark.parametrize(
    "windows",
    [
        {"wide": {"kernel_size": (1, 3), "padding": (0, 1)}, "tall": {"kernel_size": (3, 1), "padding": (1, 0)}},
        {"near": {"kernel_size": 3, "padding": 1}, "far": {"kernel_size": 3, "padding": 2, "dilation": 2}},
    ],
    ids=["as in Inception", "as in ASPP"],
)
def test_convolutions_of_other_windows_are_not_merged(windows, tmp_path):
    source = to_onnx(Branches(**windows).eval(), (3, 16, 16), tmp_path / "net.onnx")
    path, _ = write_numbered(source, tmp_path / "numbered.onnx", 1)
    assert not any(found.mergeable for found in find_parallel(Graph(path)))
    assert guidelines.explain_file(source, seconds=0.05).time


def test_a_sequence_of_large_modules_is_shown_by_their_parts(tmp_path):
    backbone = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(9)))
    source = to_onnx(nn.Sequential(backbone, nn.Conv2d(3, 2, 1)).eval(), (3, 16, 16), tmp_path / "net.onnx")
    _, layers = write_numbered(source, tmp_path / "numbered.onnx", 1)
    assert len(layers) == 10


def test_a_transposed_convolution_counts_its_input(tmp_path):
    layers = [nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 8, 2, 2)]
    source = to_onnx(nn.Sequential(*layers).eval(), (3, 16, 16), tmp_path / "net.onnx")
    _, found = write_numbered(source, tmp_path / "numbered.onnx", 1)
    assert [layer.flops for layer in found] == [16 * 16 * 3 * 4, 16 * 16 * 4 * 8 * 2 * 2]


@pytest.mark.parametrize("case", ["no file", "not ONNX", "truncated", "two inputs", "any size", "branches"])
def test_what_cannot_be_explained_is_one_message(case, own, tmp_path):
    bad = tmp_path / "bad.onnx"
    if case == "not ONNX":
        bad.write_bytes(b"no")
    elif case == "truncated":
        bad.write_bytes(own.read_bytes()[:-500])
    elif case != "no file":
        write_bad(case, bad)
    with pytest.raises(InputError, match=r"bad\.onnx"):
        guidelines.explain_file(bad, seconds=0.05)


def write_bad(case: str, path: Path) -> None:
    """Write a file that is valid, but no network of one image."""
    side = "side" if case == "any size" else 8
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, side, side]) for name in ("x", "y")]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3, side, side])
    nodes = [helper.make_node("Relu", ["x"], ["out"])]
    if case == "two inputs":
        nodes = [helper.make_node("Add", ["x", "y"], ["out"])]
    if case == "branches":
        branch = helper.make_graph([helper.make_node("Relu", ["x"], ["inner"])], "branch", [], [
            helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1, 3, 8, 8])
        ])  # fmt: skip
        nodes = [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["yes"], to=TensorProto.BOOL),
            helper.make_node("If", ["yes"], ["out"], then_branch=branch, else_branch=branch),
        ]
    graph = helper.make_graph(nodes, "bad", inputs if case == "two inputs" else inputs[:1], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
