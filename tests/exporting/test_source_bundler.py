"""Bundled source of blocks: of the library and of users, with clashing names, and what is refused."""

from __future__ import annotations

import ast
import importlib
import random
import sys
import textwrap

import onnx
import pytest
import torch

from nasspace import blocks, files
from nasspace.architecture import Architecture
from nasspace.blocks import registry
from nasspace.counting import cost
from nasspace.errors import InputError
from nasspace.exporting.export import export
from nasspace.exporting.model_source import model_source
from nasspace.exporting.module_source import ModuleText
from nasspace.exporting.source_bundler import bundle
from nasspace.exporting.weights import read_safetensors
from nasspace.network import Network, build
from nasspace.space.space import Space

USER_BLOCKS = '''
"""A user's blocks."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from nasspace.blocks.layers import EPSILON as EPS
from nasspace.blocks.layers import conv_bn as make
from nasspace.blocks.mobile import InvertedResidual

from .{helpers} import Gate, scaled

Width = Annotated[int, Field(ge=1)]
# How much the middle is wider.
FACTOR, ROUND = 1.5, 4  # found by trying
LATER = dict(one=1)


def _hidden(channels: int) -> int:
    """Another `_hidden` than the library's."""
    return int(channels * FACTOR) // ROUND * ROUND or math.floor(ROUND)


class Conv(nn.Module):
    """Another `Conv` than the library's."""

    def __init__(self, channels: Width, hidden: "int" = 3, kind: Literal["a", "b"] | None = None) -> None:
        super().__init__()
        Conv.made = True
        self.first = make(channels, _hidden(channels), 1, eps=EPS)
        self.second = nn.Conv2d(_hidden(channels), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


class Own(InvertedResidual):
    """conv -> gate, next to the library's inverted residual."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, kernel: Width = 3, note: str = "x"):
        super().__init__(in_channels, out_channels, stride, kernel=kernel)
        self.conv = Conv(out_channels)
        self.gate = Gate(out_channels)
        self.scales = [scaled(i) for i in range(2)]

    @staticmethod
    def resolve(in_channels, out_channels, stride, **_):
        return {{"note": str(LATER)}}

    def forward(self, x: Tensor) -> Tensor:
        _hidden = super().forward(x)  # a local name like a global one
        return self.gate(self.conv(_hidden)) * sum(scale * 1.0 for scale in self.scales)
'''
HELPERS = """
from torch import nn

FACTOR = 0.5


class Gate(nn.Sequential):
    def __init__(self, channels):
        super().__init__(nn.Conv2d(channels, channels, 1), nn.Sigmoid())


def scaled(number):
    return number * FACTOR + (scaled(number - 1) if number else 0)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write modules of a user's package and register one of its classes, until the end of the test."""
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_{tmp_path.name.rstrip('0123456789')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()

    def add(block: str, source: str, cls: str = "Own", helpers: str = ""):
        (tmp_path / name / f"{block}_helpers.py").write_text(textwrap.dedent(helpers))
        (tmp_path / name / f"{block}.py").write_text(textwrap.dedent(source))
        module = importlib.import_module(f"{name}.{block}")
        blocks.register(block, getattr(module, cls))
        return module

    yield add
    for loaded in [key for key in sys.modules if key.partition(".")[0] == name]:
        del sys.modules[loaded]


def network_of(block: str, **options) -> Architecture:
    """A user's block between library blocks whose helpers have the same names as the user's."""
    layers = [
        {"block": "conv", "out": 8},
        {"block": "sandglass", "out": 8},
        {"block": block, "out": 8, **options},
        {"block": "linear", "out": 3},
    ]
    return Architecture.of(layers, input=(1, 8, 8))


def run(source: str) -> dict:
    """Execute a program; returns its namespace."""
    space = {"__name__": "model", "__file__": "model.py"}
    exec(compile(source, "model.py", "exec"), space)
    return space


@pytest.mark.slow
def test_a_users_block_is_exported(package, tmp_path):
    package("gated", USER_BLOCKS.format(helpers="gated_helpers"), helpers=HELPERS)
    result = export(network_of("gated", kernel=5), tmp_path / "net")
    assert result.ok


def test_clashing_names_are_renamed_and_the_rest_is_copied(package):
    package("gated_too", USER_BLOCKS.format(helpers="gated_too_helpers"), helpers=HELPERS)
    source = model_source(network_of("gated_too"))
    for part in (
        "# How much the middle is wider.\n",
        "# found by trying",
        "class Conv_gated_too(",
        "Conv_gated_too.made",
    ):
        assert part in source
    for part in ("def _hidden(", "def _hidden_gated_too(", "_hidden = super().forward(x)"):
        assert part in source
    for part in ("pydantic", "Annotated", "Literal", "nasspace", "EPS,", "make("):
        assert part not in source
    assert 'return {"note": str(LATER)}' in source
    assert 'hidden: "int" = 3, kind: str | None = None' in source
    assert source.count("import torch.nn.functional as F") == 1
    assert source.count("def scaled(") == source.count("EPSILON = ") == 1


def test_the_bundled_network_equals_the_built_one(package):
    package("gated_three", USER_BLOCKS.format(helpers="gated_three_helpers"), helpers=HELPERS)
    network = build(network_of("gated_three")).eval()
    model = run(model_source(network_of("gated_three")))["Model"]()
    model.load_state_dict(network.state_dict())
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model.eval()(images), network(images))


TWO_BRANCHES = """
import copy
from torch import nn

class Own(nn.Module):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.one, self.other = (nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) for _ in range(2))

    def forward(self, x):
        return self.one(x) + self.other(x)

    def folded(self):
        whole = copy.deepcopy(self.one)
        whole.weight = nn.Parameter(self.one.weight + self.other.weight)
        return whole
"""


def test_blocks_that_fold_are_counted_exported_and_loaded_folded(package, tmp_path):
    package("two_branches", TWO_BRANCHES)
    layers = [{"block": "repvgg", "out": 8}, {"block": "two_branches", "out": 6}, {"block": "linear", "out": 3}]
    architecture = Architecture.of(layers, input=(1, 8, 8))
    counted = [(layer.flops, layer.params) for layer in cost(architecture).layers]
    assert counted == [(64 * 8 * 9, 8 * 9 + 8), (64 * 8 * 6, 8 * 6), (6 * 3, 6 * 3 + 3)]
    result = export(architecture, tmp_path / "net")
    assert result.ok
    operators = [node.op_type for node in onnx.load(result.folder / "model.onnx").graph.node]
    assert operators.count("Conv") == 2
    assert "Add" not in operators
    assert read_safetensors(result.folder / "weights.safetensors").keys() == build(architecture).state_dict().keys()
    assert "| Parameters | 149 with its blocks folded" in (result.folder / "README.md").read_text()
    path = str(result.folder / "model.py")
    program = run((result.folder / "model.py").read_text().replace("__file__", repr(path)))
    loaded = program["load"]()
    assert isinstance(loaded, program["Model"])
    assert sum(parameter.numel() for parameter in loaded.parameters()) == cost(architecture).params


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(files.names("spaces")))
def test_networks_of_every_space_are_bundled(name):
    space = Space.load(name, classes=7, resolution=32)
    for seed in range(3):
        architecture = space.sample(random.Random(seed))
        network = build(architecture, seed=seed).eval()
        model = run(model_source(architecture))["Model"]()
        model.load_state_dict(network.state_dict())
        images = torch.rand(2, *architecture.input, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            assert torch.equal(model.eval()(images), network(images))


BLOCK = """
import torch
from torch import nn
{imports}

class Own(nn.Module):
    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride)

    def forward(self, x):
        {body}
        return self.conv(x)
"""


@pytest.mark.parametrize(
    ("imports", "body", "message"),
    [
        ("import numpy as np", "np.zeros(1)", "line 4, imports numpy, which is neither"),
        ("from numpy import zeros", "zeros(1)", "imports numpy, which is neither"),
        ("", "import numpy", "imports numpy inside a function"),
        ("from nasspace.blocks import layers", "layers.conv_bn", "imports a whole module"),
        ("import nasspace.errors", "nasspace.errors", "imports a whole module"),
        ("try:\n    SIZE = 1\nexcept OSError:\n    SIZE = 2", "SIZE", "'SIZE' of .* is bound by no plain statement"),
        ("SIZE = 1\nSIZE = 2", "SIZE", "'SIZE' of .* is bound more than once"),
    ],
)
def test_other_libraries_are_refused_as_source_and_exported_as_onnx(package, tmp_path, request, imports, body, message):
    name = f"foreign_{request.node.callspec.indices['imports']}"
    package(name, BLOCK.format(imports=imports, body=body))
    with pytest.raises(InputError, match=f"block '{name}' cannot be written into model.py: .*{message}.*--format onnx"):
        export(network_of(name), tmp_path / "net")
    assert not (tmp_path / "net").exists()
    if body == "np.zeros(1)":
        result = export(network_of(name), tmp_path / "net", formats=["onnx", "torch"])
        assert result.ok
        assert "model.py" not in result.files


@pytest.mark.parametrize("parameter", ["stride", "stride: int", "stride=1", "stride=2"])
def test_the_stride_is_written_unless_it_is_the_default(package, tmp_path, request, parameter):
    name = f"stride_{request.node.callspec.indices['parameter']}"
    source = f"""
    from torch import nn

    class Own(nn.Conv2d):
        def __init__(self, in_channels, out_channels, {parameter}):
            super().__init__(in_channels, out_channels, 1, stride)
    """
    package(name, source)
    for stride in (1, 2):
        result = export(network_of(name, stride=stride), tmp_path / f"net-{stride}", formats=["source"])
        assert "model.py" in result.files
        assert result.ok


def test_a_class_without_a_file_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    space: dict = {"__name__": "typed_in"}
    exec(BLOCK.format(imports="", body=""), space)
    blocks.register("typed", space["Own"])
    with pytest.raises(InputError, match="block 'typed' cannot be written"):
        bundle(["typed"], Network, {})

    class Inner(torch.nn.Module):
        def __init__(self, in_channels, out_channels, stride=1):
            super().__init__()

    blocks.register("inner", Inner)
    with pytest.raises(InputError, match="not a class at the top level"):
        bundle(["inner"], Network, {})


@pytest.mark.parametrize("name", blocks.known())
def test_every_block_is_bundled_alone(name):
    """Its free names are Python's, PyTorch's or the standard library's."""
    bundled = bundle([name], Network, {})
    source = "from __future__ import annotations\n" + "\n".join([*bundled.imports, *bundled.definitions])
    space = run(source)
    assert issubclass(space[bundled.names[name]], torch.nn.Module)
    tree = ast.parse(source)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    local = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    local |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert used - local - set(space) - set(space["__builtins__"]) == set()
    assert not {"pydantic", "nasspace"} & set(ast.dump(tree).replace("'", " ").split())


def test_statements_and_uses_of_a_module():
    text = ModuleText(sys.modules["nasspace.blocks.layers"])
    assert text.edited(text.statement("EPSILON"), []).startswith("EPSILON = 1e-5")
    assert dict(text.uses(text.statement("activation_layers"))).keys() == {"activation_layers", "ACTIVATIONS"}
