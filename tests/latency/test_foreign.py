"""Networks of other programs on the meter: ONNX files and functions that return an `nn.Module`."""

from __future__ import annotations

import json

import pytest

import nasspace
from nasspace import InputError, build, cli, zoo
from nasspace.latency import foreign
from nasspace.latency.convert import to_onnx

HOW = {"seconds": 0.05, "latency_device": "local"}
MODULE = """
import torch
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))

def nothing():
    return 3

def dense():
    return nn.Linear(3, 3)

def two():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 3)

        def forward(self, x, y):
            return self.conv(x) + y

    return Two()

def exits():
    raise SystemExit(0)

def talks():
    print("hello")
    return network()

def broken():
    raise RuntimeError("no weights here")
"""


def scored(architecture):
    """Accuracy and latency that rise with FLOPs."""
    flops = nasspace.cost(architecture).flops
    return {"accuracy": flops / 1e8, "latency": flops / 1e6}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a file of each kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_networks.py").write_text(MODULE)
    to_onnx(build(zoo.load("mobilenet_v2_0.35", resolution=32)).eval(), (3, 32, 32), tmp_path / "net.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("a.onnx", True), ("package.part:function", True), ("own:network", True)),
        *(
            ("study:7", False),
            ("study:front", False),
            ("study:recommended", False),
            ("mobilenet_v2_1.0", False),
            ("a/b:7", False),
            ("x.json", False),
        ),
    ],
)
def test_what_is_foreign(text, expected):
    assert foreign.is_foreign(text) == expected


def test_a_file_and_a_function_are_measured(folder):
    found = foreign.measure("net.onnx", **HOW)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert tuple(found.input) == (3, 32, 32)
    own = foreign.measure("own_networks:network", resolution=40, **HOW)
    assert tuple(own.input) == (1, 40, 40)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("none.onnx", "none.onnx: there is no such file"),
        ("bad.onnx", "bad.onnx"),
        ("own_networks:missing", "own_networks:missing: AttributeError"),
        ("no_such_module:network", "no_such_module:network: there is no module"),
        ("own_networks:nothing", "own_networks:nothing: returned a int, not an nn.Module"),
        ("own_networks:broken", "own_networks:broken: RuntimeError: no weights here"),
        ("own_networks:dense", "has no convolution"),
        ("own_networks:exits", "own_networks:exits: SystemExit: 0"),
        ("own_networks:two", "own_networks:two, with images of 1x224x224: TypeError: .*forward"),
        ("folder.onnx", "folder.onnx: is a folder"),
    ],
)
def test_what_cannot_be_measured_is_one_message(folder, text, message):
    (folder / "bad.onnx").write_bytes(b"no")
    (folder / "folder.onnx").mkdir()
    with pytest.raises(InputError, match=message):
        foreign.measure(text, **HOW)


def test_a_size_is_refused_for_a_file(folder):
    with pytest.raises(InputError, match="an ONNX file has a size of its own; leave --resolution out"):
        foreign.measure("net.onnx", resolution=64, **HOW)


def test_what_a_function_prints_is_not_in_the_document(folder, capsys):
    assert cli.run(["latency", "own_networks:talks", "--resolution", "32", "--seconds", "0.05", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["median_ms"] > 0
    assert "hello" in captured.err


def test_the_command_compares_with_a_front(folder, capsys):
    text = "input: [3, 32, 32]\nstages: [{depth: [1, 2], out: [8, 16], stride: 2, block: inverted_residual}]\n"
    nasspace.search(
        nasspace.Space.from_text(text, "s.yaml"), evaluator=scored, trials=4, study="earlier", sampler="random"
    )
    arguments = ["latency", "net.onnx", "--beside", "earlier", "--seconds", "0.05"]
    assert cli.run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    members = found["beside"]["front"]
    assert members == sorted(members, key=lambda row: row["latency_ms"])
    assert members
    for row in members:
        assert row["times_as_fast"] == pytest.approx(found["median_ms"] / row["latency_ms"], rel=0.01, abs=1e-3)
    assert cli.run(arguments) == 0
    assert "times as fast" in capsys.readouterr().out
    for refused in (["--runtime", "eager"], ["--cached"], ["--beside", "nothing"]):
        assert cli.run([*arguments, *refused]) == 2
        assert capsys.readouterr().err.count("\n") <= 3
