"""One suite for all runtimes; registering a new one tests it."""

from __future__ import annotations

import importlib.util
import os
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from nasspace import zoo
from nasspace.architecture import Architecture
from nasspace.errors import InputError
from nasspace.latency import convert, quantization, runtimes
from nasspace.latency.runtimes import RUNTIMES, CalibratedModel, pytorch
from nasspace.network import build

SHAPE = (3, 16, 16)
OPTIONAL = {"ncnn": ("ncnn", "pnnx")}
TOLERANCE = {"ncnn": 0.002}  # of the largest output, where it is not float32's 1e-4: 16 bits kept
COSINE = 0.998  # at least, between an image's outputs in int8 and PyTorch's
LAYERS = {
    "conv": [{"block": "conv", "out": 24, "activation": "hard_swish"}, {"block": "max_pool"}],
    "depthwise": [{"block": "depthwise_separable", "out": 16, "stride": 2}],
    "inverted": [{"block": "inverted_residual", "out": 12, "activation": "hard_swish", "se": 0.25}],
    "sandglass": [{"block": "conv", "out": 24}, {"block": "sandglass", "out": 24}],
    "shuffle_v1": [{"block": "conv", "out": 24}, {"block": "shuffle_v1", "out": 24, "groups": 3}],
    "shuffle_v2": [{"block": "conv", "out": 24}, {"block": "shuffle_v2", "out": 48, "stride": 2}],
    "fire": [{"block": "conv", "out": 16}, {"block": "fire", "out": 32}, {"block": "max_pool"}],
    "xception": [{"block": "conv", "out": 16}, {"block": "xception", "out": 32, "stride": 2}],
    "bottleneck": [{"block": "conv", "out": 16}, {"block": "bottleneck", "out": 64}, {"block": "basic", "out": 32}],
    "lrn": [{"block": "conv", "out": 16, "norm": "none", "bias": True}, {"block": "lrn"}, {"block": "avg_pool"}],
}
COMPILED = ("inverted", "shuffle_v1", "lrn")  # each takes seconds


def installed(name: str) -> bool:
    return all(importlib.util.find_spec(package) for package in OPTIONAL.get(name, ()))


def needs(name: str, *, slow: tuple[str, ...] = ("compile",)) -> pytest.param:
    skip = pytest.mark.skipif(not installed(name), reason=f"pip install 'nasspace[{name}]'")
    return pytest.param(name, marks=[skip, pytest.mark.slow] if name in slow else skip)


NAMES = [needs(name) for name in RUNTIMES]
PAIRS = [
    pytest.param(*one.values, family, marks=one.marks)
    for one in NAMES
    for family in (COMPILED if one.values == ("compile",) else LAYERS)
]


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def agrees(name: str, found: np.ndarray, expected: np.ndarray) -> bool:
    """Compare outputs (N, classes) with PyTorch's: within the format's precision, in int8 by direction."""
    if name.endswith("int8"):
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        return bool(((found * expected).sum(1) > COSINE * lengths).all())
    return bool(np.abs(found - expected).max() < TOLERANCE.get(name, 1e-4) * np.abs(expected).max())


def with_statistics(model: nn.Module) -> nn.Module:
    """Give batch norms nontrivial statistics, so that folding matters."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_a_runtime_loads_and_runs_a_network_without_changing_it(name):
    model = small().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    network = RUNTIMES[name](2, 3).load(model, SHAPE)
    network.run()
    assert (network.name, network.device, network.threads, network.batch_size) == (name, "cpu", 2, 3)
    assert network.input == SHAPE
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    found = runtimes.versions(name)
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # PyPI's metadata has no +cu124
    assert set(found) == {*network.libraries, "nasspace"}
    assert "unknown" not in found.values()


@pytest.mark.parametrize(("name", "family"), PAIRS)
def test_outputs_are_pytorchs(name, family):
    layers = [*LAYERS[family], {"block": "global_pool"}, {"block": "linear", "out": 7}]
    model = with_statistics(build(Architecture.of(layers, input=SHAPE))).eval()
    images = quantization.digit_images(SHAPE, 4)
    found = RUNTIMES[name](1, 4).load(model, SHAPE).outputs(images)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert agrees(name, found, expected)


@pytest.mark.parametrize("name", [needs(name) for name in RUNTIMES if name != "compile"])
def test_a_published_network_gives_pytorchs_outputs(name):
    architecture = zoo.load("shufflenet_v2_0.5", resolution=64, classes=10)
    model = with_statistics(build(architecture)).eval()
    images = quantization.digit_images(architecture.input, 1)
    found = RUNTIMES[name]().load(model, architecture.input).outputs(images)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    assert agrees(name, found, expected)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "tpu"])
@pytest.mark.parametrize("name", NAMES)
def test_an_unavailable_device_is_named(name, device):
    if RUNTIMES[name].uses_accelerator and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("this machine has such a device")
    with pytest.raises(InputError, match=device):
        RUNTIMES[name](device=device).load(small(), SHAPE)


@pytest.mark.parametrize("name", ["eager", "torchscript"])
@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_a_run_ends_when_the_device_has_finished(name, device, monkeypatch):
    done, kind = [], device.partition(":")[0]
    monkeypatch.setattr(torch.cuda if kind == "cuda" else torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(getattr(torch, kind), "synchronize", lambda *which: done.append(which))
    finish = pytorch.synchronizer(device)
    network = RUNTIMES[name]().load(small(), SHAPE)
    model, network._finish = network._model, finish
    network._model = lambda batch: (done.append("model"), model(batch))[1]
    network.run()
    assert done == ["model", (device,) if kind == "cuda" else ()]


def test_an_unknown_runtime_is_named_with_the_nearest():
    with pytest.raises(InputError, match="'onnxruntim' is not a runtime; did you mean 'onnxruntime'"):
        runtimes.get("onnxruntim")


class Elsewhere(runtimes.Eager):
    name = "elsewhere"


class WithoutRun:
    name, libraries, uses_accelerator, needs_calibration, load = "without_run", (), False, False, None


@pytest.fixture
def entry_points(monkeypatch, tmp_path):
    """Runtimes of another installed package."""
    metadata = tmp_path / "other-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    values = {
        **{"elsewhere": f"{__name__}:Elsewhere", "without_run": f"{__name__}:WithoutRun", "eager": "nowhere:Eager"},
        **{"broken": "no_such_module:Runtime", "function": "json:loads", "renamed": f"{__name__}:Elsewhere"},
    }
    points = "".join(f"{name} = {value}\n" for name, value in values.items())
    (metadata / "entry_points.txt").write_text(f"[{runtimes.ENTRY_POINTS}]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    runtimes._entry_points.cache_clear()
    yield
    monkeypatch.undo()
    runtimes._entry_points.cache_clear()


def test_runtimes_by_entry_point(entry_points):
    assert runtimes.get("elsewhere") is Elsewhere
    assert runtimes.get("eager") is runtimes.Eager
    assert runtimes.known()[: len(RUNTIMES)] == [*RUNTIMES]
    with pytest.raises(InputError, match="did you mean 'elsewhere'"):
        runtimes.get("elswhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "runtime 'broken' of no_such_module:Runtime fails to load: No module named"),
        ("function", "json:loads is not a class with name = 'function'"),
        ("renamed", "Elsewhere is not a class with name = 'renamed'"),
        ("without_run", "WithoutRun has no run; see docs/plugins.md"),
    ],
)
def test_a_runtime_that_cannot_be_used_is_named(entry_points, name, message):
    with pytest.raises(InputError, match=message):
        runtimes.get(name)


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_missing_package_is_reported_with_its_install_command(name, monkeypatch):
    for package in OPTIONAL[name]:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=rf"pip install 'nasspace\[{name}\]'"):
        RUNTIMES[name]()


def test_a_missing_compiler_is_reported_with_its_remedy():
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    with (  # monkeypatch would hide the setting for good when it takes itself back
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(InputError, match=r"C\+\+ compiler.*apt-get install g\+\+"),
    ):
        RUNTIMES["compile"]()
    cpp_builder.cpp_compiler_search.cache_clear()


@pytest.mark.parametrize("name", ["eager", "torchscript"])
def test_pytorchs_threads_are_restored_after_a_measurement(name):
    network = RUNTIMES[name](threads=2).load(small(), SHAPE)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with network.configured():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["eager", "torchscript"])
def test_pytorch_runs_without_batch_norm_and_no_files(name, tmp_path):
    network = RUNTIMES[name]().load(small(), SHAPE)
    assert "BatchNorm" not in str(network._model)
    assert "batch_norm" not in str(getattr(network._model, "graph", ""))
    with pytest.raises(InputError, match="onnxruntime"):
        RUNTIMES[name]().load(tmp_path / "network.onnx")


def test_an_onnx_file_determines_its_shape_and_batch(tmp_path):
    fixed = convert.to_onnx(small(), SHAPE, tmp_path / "fixed.onnx", batch_size=2)
    free = convert.to_onnx(small(), SHAPE, tmp_path / "free.onnx", dynamic_batch=True)
    assert RUNTIMES["onnxruntime"](1, None).load(fixed).batch_size == 2
    assert RUNTIMES["onnxruntime"](1, None).load(free).batch_size == 1
    loaded = RUNTIMES["onnxruntime"](1, 5).load(str(free))
    loaded.run()
    assert (loaded.batch_size, loaded.input) == (5, SHAPE)
    with pytest.raises(InputError, match=r"fixed\.onnx: was exported for a batch of 2, not 3"):
        RUNTIMES["onnxruntime"](1, 3).load(fixed)


def test_int8_is_calibrated_on_the_given_images():
    model, images = small().eval(), quantization.digit_images(SHAPE, 8)
    narrow = RUNTIMES["onnxruntime-int8"](1, 8).load(CalibratedModel(model, images / 4), SHAPE).outputs(images)
    wide = RUNTIMES["onnxruntime-int8"](1, 8).load(CalibratedModel(model, images), SHAPE).outputs(images)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    assert np.abs(wide - expected).max() < np.abs(narrow - expected).max() / 4


@pytest.mark.parametrize("content", [None, b"", b"not a network", b"\x08\x08\x12\x00"])
def test_a_missing_or_broken_file_is_one_clear_error(content, tmp_path):
    path = tmp_path / "network.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"network\.onnx: ") as caught:
        RUNTIMES["onnxruntime"]().load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="Linux tells how long threads waited")
def test_the_time_waited_for_a_core_grows():
    before = runtimes.CLOCKS.queue()
    time.sleep(0.01)
    assert runtimes.CLOCKS.queue() >= before


@pytest.mark.parametrize("name", [needs(name, slow=tuple(RUNTIMES)) for name in RUNTIMES if name != "compile"])
def test_a_trained_network_classifies_as_in_pytorch(name):
    from nasspace.data.loading import load_data
    from nasspace.training.trainer import Fidelity, TrainingSettings, normalized, train

    data = load_data("digits", resolution=16)
    layers = [{"block": "conv", "out": 16, "stride": 2}, *LAYERS["inverted"], *LAYERS["shuffle_v2"]]
    model = build(
        Architecture.of([*layers, {"block": "global_pool"}, {"block": "linear", "out": 10}], input=(1, 16, 16))
    )
    assert train(model, data, Fidelity(resolution=16, epochs=6), TrainingSettings()).accuracy > 0.8
    calibrating, images = (
        normalized(part.pixels, data).numpy() for part in (data.train.at(torch.arange(32)), data.validation)
    )
    found = RUNTIMES[name](1, len(images)).load(CalibratedModel(model, calibrating), images.shape[1:]).outputs(images)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(images)).argmax(1).numpy()
    assert (found.argmax(1) == expected).mean() > 0.97
