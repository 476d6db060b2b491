"""Converted networks compute the same, and the caller's network is not changed."""

from __future__ import annotations

import math
from collections import Counter

import onnx
import onnx.numpy_helper
import pytest
import torch
from torch import nn

from nasspace import zoo
from nasspace.architecture import Architecture
from nasspace.data.loading import load_data
from nasspace.errors import InputError
from nasspace.latency import convert
from nasspace.network import build
from nasspace.training.settings import Fidelity, TrainingSettings
from nasspace.training.trainer import normalized, train

SHAPE = (3, 32, 32)
LAYERS = {
    "plain": [{"block": "conv", "out": 8, "stride": 2}],
    "depthwise": [{"block": "depthwise_separable", "out": 16, "stride": 2}],
    "inverted": [{"block": "inverted_residual", "out": 12, "activation": "hard_swish", "se": 0.25}],
    "sandglass": [{"block": "conv", "out": 24}, {"block": "sandglass", "out": 24}],
    "shuffle_v1": [{"block": "conv", "out": 24}, {"block": "shuffle_v1", "out": 24, "groups": 3}],
    "shuffle_v2": [{"block": "conv", "out": 24}, {"block": "shuffle_v2", "out": 48, "stride": 2}],
    "branches": [{"block": "repvgg", "out": 16, "groups": 3}, {"block": "mobileone", "branches": 2}],
    "fire": [{"block": "conv", "out": 16}, {"block": "fire", "out": 32}, {"block": "max_pool"}],
}


class Residual(nn.Module):
    """Convolution and norm on a branch, a convolution used twice, and a norm that follows no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.convolution, self.after = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.twice, self.twice_after = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        x = x + self.after(self.convolution(self.norm(x)))
        return self.twice_after(self.twice(x)) + self.twice(x)


class Untraceable(Residual):
    """A branch on a value, as in users' code; the child inside can still be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU())

    def forward(self, x):
        return self.child(x) if x.sum() > 1e9 else self.child(-x)


def trained(model: nn.Module) -> nn.Module:
    """Give every batch norm nontrivial statistics and weights, as training does."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 2, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return model


def network(name: str) -> nn.Module:
    layers = [*LAYERS[name], {"block": "global_pool"}, {"block": "linear", "out": 7}]
    return trained(build(Architecture.of(layers, input=SHAPE)))


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", LAYERS)
def test_onnx_equals_pytorch_and_has_no_batch_norm_after_a_convolution(name, tmp_path):
    model = network(name)
    path = convert.to_onnx(model, SHAPE, tmp_path / "new" / "network.onnx")
    assert convert.largest_difference(model, path, SHAPE) < 1e-4
    assert [entry.name for entry in path.parent.iterdir()] == ["network.onnx"]
    graph = onnx.load(path).graph
    assert [graph.input[0].name, graph.output[0].name] == ["input", "output"]
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


@pytest.mark.parametrize("name", LAYERS)
def test_folded_network_computes_the_same_without_batch_norm(name):
    model, image = network(name), torch.randn(2, *SHAPE)
    folded = convert.fold_batch_norm(model, SHAPE)
    torch.testing.assert_close(folded(image), model.eval()(image), rtol=1e-4, atol=1e-4)
    assert norms(model) > 0 == norms(folded)


@torch.no_grad()
def test_a_trained_network_decides_the_same_when_its_blocks_are_folded():
    data = load_data("digits", resolution=8)
    layers = [*LAYERS["branches"], {"block": "global_pool"}, {"block": "linear", "out": 10}]
    model = build(Architecture.of(layers, input=(1, 8, 8)))
    with torch.enable_grad():
        found = train(model, data, Fidelity(resolution=8, epochs=2), TrainingSettings(batch_size=32))
    images = normalized(data.validation.pixels, data)
    folded = convert.deployed(model)
    assert len(folded.state_dict()) < len(model.state_dict()) / 3
    decisions = folded(images).argmax(1)
    assert torch.equal(decisions, model.eval()(images).argmax(1))
    assert (decisions == data.validation.labels).float().mean() == pytest.approx(found.accuracy)


@pytest.mark.parametrize(("module", "left"), [(Residual, 2), (Untraceable, 3)])
def test_only_foldable_batch_norms_are_folded(module, left):
    model, image = trained(module()).eval(), torch.randn(2, *SHAPE)
    folded = convert.fold_batch_norm(model)
    torch.testing.assert_close(folded(image), model(image), rtol=1e-4, atol=1e-4)
    assert norms(folded) == left


def test_folding_that_changes_the_outputs_is_undone(monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "fuse_conv_bn_eval", lambda convolution, norm: convolution)
    assert norms(convert.fold_batch_norm(network("plain"), SHAPE)) == norms(network("plain"))


@pytest.mark.parametrize("mode", [True, False])
def test_the_callers_network_is_not_changed(mode, tmp_path):
    model = network("branches").train(mode)
    model[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    path = convert.to_onnx(model, SHAPE, tmp_path / "network.onnx")
    convert.fold_batch_norm(model, SHAPE)
    convert.largest_difference(model, path, SHAPE)
    assert [module.training for module in model.modules()] == modes
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_batch_size_is_fixed_or_dynamic(tmp_path):
    model = network("plain")
    fixed = convert.to_onnx(model, SHAPE, tmp_path / "fixed.onnx", batch_size=4)
    free = convert.to_onnx(model, SHAPE, tmp_path / "free.onnx", dynamic_batch=True)
    sizes = [onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0] for path in (fixed, free)]
    assert sizes[0].dim_value == 4
    assert sizes[1].dim_param == "batch"
    assert convert.largest_difference(model, fixed, SHAPE) < 1e-4
    assert convert.largest_difference(model, free, SHAPE) < 1e-4


def test_a_wrong_file_differs(tmp_path):
    path = convert.to_onnx(network("plain"), SHAPE, tmp_path / "network.onnx")
    other = build(Architecture.of([{"block": "conv", "out": 7}, {"block": "global_pool"}], input=SHAPE), seed=3)
    assert convert.largest_difference(other, path, SHAPE) > 0.1
    with torch.no_grad():
        other[0].get_parameter(next(name for name, _ in other[0].named_parameters())).fill_(float("nan"))
    assert convert.largest_difference(other, path, SHAPE) == float("inf")


def test_errors_name_the_place(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        convert.to_onnx(network("plain"), SHAPE, tmp_path / "file" / "network.onnx")
    with pytest.raises(InputError, match="no such file"):
        convert.largest_difference(network("plain"), tmp_path / "none.onnx", SHAPE)

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match=r"network\.onnx.*No space left"):
        convert.to_onnx(network("plain"), SHAPE, tmp_path / "network.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_network_that_onnx_cannot_represent_is_an_input_error(tmp_path):
    class Eigenvalues(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x)

    with pytest.raises(InputError, match=r"linalg_eigvals.*eager"):
        convert.to_onnx(Eigenvalues(), SHAPE, tmp_path / "network.onnx")


def operators(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node if node.op_type != "Constant")


SMALL = {  # one network of each family; AlexNet's adaptive pooling needs more than a 1x1 map
    "alexnet": 64,
    "squeezenet_1.0_complex_bypass": 64,
    "xception_cifar": 32,
    "resnet18_cifar": 32,
    "se_resnet50": 32,
    "resnext50_32x4d_cifar": 32,
    "googlenet": 32,
    "inception_v3_cifar": 32,
    "mobilenet_v1_0.25": 32,
    "mobilenet_v2_0.35": 32,
    "mnasnet_a1_0.35": 32,
    "mnasnet_small": 32,
    "efficientnet_lite0": 32,
    "mobilenet_v3_small_0.35": 32,
    "repvgg_a0": 32,
    "mobileone_s0": 32,
    "mobilenet_v4_conv_medium": 32,
    "ghostnet_0.5": 32,
    "fasternet_t0": 32,
    "starnet_s1": 32,
    "mobilenext_0.35": 32,
    "mobilenext_1.0_identity_1_2": 32,
    "shufflenet_v1_g3_0.25": 32,
    "shufflenet_v1_g8_0.25": 32,
    "shufflenet_v2_0.5": 32,
    "shufflenet_v2_0.5_torchvision": 32,
    "shufflenet_v2_0.5_megvii": 32,
}


def test_every_family_of_the_zoo_is_covered():
    assert {zoo.family_of(name) for name in SMALL} == {zoo.family_of(name) for name in zoo.names()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant folding")  # of the ONNX exporter, at lrn
@pytest.mark.parametrize("name", SMALL)
def test_a_dynamic_batch_gives_pytorchs_outputs_with_the_same_operators(name, shortened, tmp_path):
    """`largest_difference` runs batches of 1 and of 3."""
    architecture = shortened(zoo.load(name, resolution=SMALL[name], classes=7))
    model = build(architecture)
    fixed = convert.to_onnx(model, architecture.input, tmp_path / "fixed.onnx")
    free = convert.to_onnx(model, architecture.input, tmp_path / "free.onnx", dynamic_batch=True)
    assert convert.largest_difference(model, free, architecture.input) < 1e-4
    assert operators(free) == operators(fixed), "a batch that is computed costs time"
    found = onnx.load(free).graph
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in found.initializer}
    reshapes = [constants[node.input[1]] for node in found.node if node.op_type == "Reshape"]
    assert all(shape[0] == 0 for shape in reshapes), "ONNX Runtime fuses less after -1"


class Folding(nn.Module):
    """A reshape that changes the batch: pairs of channels become images and back."""

    def forward(self, x):
        pairs = x.reshape(-1, 2, *map(int, x.shape[2:]))
        return (pairs * pairs.amax((1, 2, 3), keepdim=True)).reshape(-1, math.prod(map(int, x.shape[1:])))


def test_a_reshape_that_changes_the_batch_stays(tmp_path):
    shape = (4, 6, 6)
    path = convert.to_onnx(Folding(), shape, tmp_path / "free.onnx", dynamic_batch=True)
    assert convert.largest_difference(Folding(), path, shape) < 1e-4


def test_metadata_is_written_as_given(tmp_path):
    about = {"classes": '["a\\n\\udcff"]', "digest": "0123"}
    path = convert.to_onnx(network("plain"), SHAPE, tmp_path / "network.onnx", metadata=about)
    assert {one.key: one.value for one in onnx.load(path).metadata_props} == about
    assert convert.largest_difference(network("plain"), path, SHAPE) < 1e-4
