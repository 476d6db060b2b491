"""One suite for every runtime."""

from __future__ import annotations

import os
import time

import pytest
import torch
from torch import nn

from nasspace.errors import InputError
from nasspace.latency import convert, runtimes
from nasspace.latency.runtimes import RUNTIMES

SHAPE = (3, 16, 16)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("name", RUNTIMES)
def test_runtime_loads_and_runs_a_network_and_leaves_it_alone(name):
    model = small().train()
    threads = torch.get_num_threads()
    network = RUNTIMES[name](2, 3).load(model, SHAPE)
    network.run()
    assert (network.name, network.device, network.threads, network.batch_size) == (name, "cpu", 2, 3)
    assert network.input == SHAPE
    assert model.training
    assert torch.get_num_threads() == threads
    found = runtimes.versions(name)
    assert found["torch"] == torch.__version__
    assert set(found) == {*network.libraries, "nasspace"}


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "tpu"])
@pytest.mark.parametrize("name", RUNTIMES)
def test_a_device_that_is_not_here_is_named(name, device):
    if name == "eager" and device != "tpu" and (torch.cuda.is_available() or torch.backends.mps.is_available()):
        pytest.skip("this machine has such a device")
    with pytest.raises(InputError, match=device):
        RUNTIMES[name](device=device).load(small(), SHAPE)


def test_an_unknown_runtime_is_named_with_the_nearest():
    with pytest.raises(InputError, match="'onnxruntim' is not a runtime; did you mean 'onnxruntime'"):
        runtimes.get("onnxruntim")


def test_eager_has_its_threads_while_it_is_measured_only():
    network = RUNTIMES["eager"](threads=2).load(small(), SHAPE)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with network.ready():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_eager_runs_no_files(tmp_path):
    with pytest.raises(InputError, match="onnxruntime"):
        RUNTIMES["eager"]().load(tmp_path / "network.onnx")


def test_onnx_file_gives_its_own_shape_and_batch(tmp_path):
    fixed = convert.to_onnx(small(), SHAPE, tmp_path / "fixed.onnx", batch_size=2)
    free = convert.to_onnx(small(), SHAPE, tmp_path / "free.onnx", dynamic_batch=True)
    assert RUNTIMES["onnxruntime"](1, None).load(fixed).batch_size == 2
    assert RUNTIMES["onnxruntime"](1, None).load(free).batch_size == 1
    loaded = RUNTIMES["onnxruntime"](1, 5).load(str(free))
    loaded.run()
    assert (loaded.batch_size, loaded.input) == (5, SHAPE)
    with pytest.raises(InputError, match=r"fixed\.onnx: was exported for a batch of 2, not 3"):
        RUNTIMES["onnxruntime"](1, 3).load(fixed)


@pytest.mark.parametrize("content", [None, b"", b"not a network", b"\x08\x08\x12\x00"])
def test_a_missing_or_broken_file_is_one_clear_error(content, tmp_path):
    path = tmp_path / "network.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"network\.onnx: ") as caught:
        RUNTIMES["onnxruntime"]().load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="Linux tells how long threads waited")
def test_the_time_threads_wait_for_a_core_grows():
    before = runtimes._queue_seconds()
    time.sleep(0.01)
    assert runtimes._queue_seconds() >= before
