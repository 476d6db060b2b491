"""Measured networks compute what PyTorch computes: blocks at odd map sizes, and every runtime before measuring."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from nasspace import blocks, zoo
from nasspace.architecture import Architecture
from nasspace.errors import InputError
from nasspace.latency import benchmark, convert, remote, runtimes, subprocess_benchmark
from nasspace.latency.benchmark import measure_latency
from nasspace.latency.cache import LatencyCache
from nasspace.network import build

SHAPE = (3, 15, 15)
HEAD = [{"block": "global_pool"}, {"block": "linear", "out": 4}]
OPTIONS = [  # of blocks, where their own defaults do not reach the arithmetic on shapes
    *({"block": "avg_pool", "size": size} for size in (1, 2, 3, 4, 6, 7)),
    *({"block": f"{kind}_pool", "kernel": 3, "stride": 2, "ceil": True} for kind in ("max", "avg")),
    {"block": "sandglass", "out": 12, "identity": 0.5},
    {"block": "inverted_residual", "out": 12, "stride": 2, "skip": "pool"},
    {"block": "shuffle_v1", "out": 48, "stride": 2, "groups": 3},
    {"block": "shuffle_v2", "out": 24, "split": "half"},
]
PLAIN = [{"block": name, "out": 24, "stride": stride} for name in blocks.known() for stride in (1, 2)]


class Ceiling(nn.Module):
    """Returns half of the rows, rounded up; with a traced size the quotient is rounded down."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x):
        x = self.conv(x)
        return x[:, :, : -(-x.shape[2] // 2)].mean((2, 3))


def architecture() -> Architecture:
    return Architecture.of([{"block": "conv", "out": 8, "stride": 2}, *HEAD], input=SHAPE)


@pytest.mark.filterwarnings("ignore:Constant folding")  # of the ONNX exporter, at lrn
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@pytest.mark.parametrize("layer", [*PLAIN, *OPTIONS], ids=lambda layer: " ".join(map(str, layer.values())))
def test_every_block_computes_the_same_in_onnx_at_odd_maps(layer, dynamic, tmp_path):
    first = {"block": "conv", "out": 24}
    last = [] if blocks.get(layer["block"]).flattens or layer["block"] == "linear" else HEAD
    for side in (5, 11, 13):
        one = Architecture.of([first, layer, *(last or HEAD[1:])], input=(3, side, side))
        model = build(one)
        path = convert.to_onnx(model, one.input, tmp_path / "network.onnx", dynamic_batch=dynamic)
        assert convert.largest_difference(model, path, one.input) < 1e-4, side


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant folding")
def test_alexnet_is_alexnet_at_192_pixels(tmp_path):
    """A division of traced shapes rounded the other way there."""
    one = zoo.load("alexnet", resolution=192, classes=10)
    model = build(one)
    path = convert.to_onnx(model, one.input, tmp_path / "network.onnx")
    assert convert.largest_difference(model, path, one.input, batches=1) < 1e-4


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-int8"])
def test_a_runtime_with_wrong_outputs_is_not_measured(runtime, tmp_path, monkeypatch):
    """The network is one that ONNX computes wrong."""
    cache = LatencyCache(tmp_path / "latency.db")
    monkeypatch.setattr(benchmark, "measure", lambda *_, **__: pytest.fail("it must not be measured"))
    with pytest.raises(
        InputError, match=r"--runtime onnxruntime: its outputs differ from PyTorch's .*--runtime eager"
    ) as one:
        measure_latency(architecture(), runtime, model=Ceiling(), cache=cache)
    assert len(str(one.value)) < 300


def test_the_same_network_is_measured_in_a_correct_runtime(tmp_path):
    cache = LatencyCache(tmp_path / "latency.db")
    assert measure_latency(architecture(), "eager", model=Ceiling(), seconds=0.02, cache=cache).rounds >= 12
    even = Architecture.of([*HEAD], input=(3, 16, 16))
    assert measure_latency(even, model=Ceiling(), seconds=0.02, cache=cache).rounds >= 12


def test_outputs_are_compared_for_new_measurements_only(tmp_path, monkeypatch):
    compared, real = [], runtimes.check_outputs
    monkeypatch.setattr(runtimes, "check_outputs", lambda *arguments: compared.append(arguments) or real(*arguments))
    monkeypatch.setattr(runtimes.timing, "CONTENTION_RATIO", 1e9)
    monkeypatch.setattr(benchmark, "STEAL_LIMIT", 1e9)
    for _ in range(3):
        measure_latency(architecture(), seconds=0.02, cache=LatencyCache(tmp_path / "latency.db"))
    assert len(compared) == 1


class Loaded:
    """A loaded network with fixed outputs."""

    name, batch_size, input, tolerance = "made up", 2, SHAPE, 1e-3

    def __init__(self, outputs) -> None:
        self.outputs = lambda batch: np.asarray(outputs(batch), dtype=np.float32)


class Sum(nn.Module):
    def forward(self, x):
        return x.sum((1, 2, 3))[:, None] * torch.tensor([[1.0, 2.0]])


def sums(batch) -> np.ndarray:
    return batch.sum((1, 2, 3))[:, None] * np.array([[1.0, 2.0]])


@pytest.mark.parametrize(
    "outputs",
    [
        lambda batch: 1.01 * sums(batch),
        lambda batch: -sums(batch),
        lambda batch: sums(batch)[:, ::-1],
        lambda batch: sums(batch)[::-1],
        lambda batch: sums(batch)[:, :1],
        lambda batch: sums(batch)[:1],
        lambda batch: np.full((2, 2), np.nan),
    ],
)
def test_wrong_outputs_are_refused(outputs):
    with pytest.raises(InputError, match="--runtime made up: its outputs differ from PyTorch's"):
        runtimes.check_outputs(Loaded(outputs), Sum())


def test_outputs_within_the_tolerance_are_accepted():
    runtimes.check_outputs(Loaded(lambda batch: sums(batch) * (1 + 5e-4)), Sum())
    loose = Loaded(lambda batch: 2 * sums(batch))
    loose.tolerance = None
    runtimes.check_outputs(loose, Sum())
    overflowing = nn.Sequential(Sum(), nn.Threshold(1e9, float("inf")))
    runtimes.check_outputs(Loaded(lambda batch: sums(batch)), overflowing)


def test_files_for_another_device_are_compared_before_they_are_sent(tmp_path, monkeypatch):
    hello = {"machine": {"processor": "abacus", "cores": 1}, "versions": {"python": "3.11"}}
    connection = SimpleNamespace(hello=hello, ask=lambda *_: pytest.fail("it must not be sent"))
    there = remote.RemoteDevice("ssh://board")
    monkeypatch.setitem(vars(there), "_connection", connection)
    with pytest.raises(InputError, match="its outputs differ from PyTorch's"):
        there.measure_latency(architecture(), model=Ceiling(), cache=LatencyCache(tmp_path / "latency.db"))


def test_exported_folders_are_compared_too(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    one = architecture()
    (tmp_path / "architecture.json").write_text(one.to_json())
    save_file(build(one).state_dict(), tmp_path / "weights.safetensors")
    assert subprocess_benchmark.measure_folders([tmp_path], "eager", seconds=0.02)[0].rounds >= 12
    monkeypatch.setattr(runtimes.Eager, "outputs", lambda self, batch: np.zeros((1, 4), np.float32))
    with pytest.raises(InputError, match=r"--runtime eager: its outputs differ from PyTorch's .*--runtime onnxruntime"):
        subprocess_benchmark.measure_folders([tmp_path], "eager", seconds=0.02)
