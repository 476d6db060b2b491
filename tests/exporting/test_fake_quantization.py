"""Int8 files as networks that can be trained: equal outputs before and after a training, with every block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from nasspace import blocks
from nasspace.architecture import Architecture
from nasspace.errors import InputError
from nasspace.exporting.fake_quantization import QuantizedNetwork, straight_through
from nasspace.latency.convert import to_onnx
from nasspace.latency.quantization import Scheme, calibrated
from nasspace.network import build
from tests.exporting.test_export import HEADS, OPTIONS

SIDE = 12
ROUNDING = (
    0.02  # mean difference over the largest output; sums in another order, as on other processors, round to other
)
# levels: 0.003 on an AMD EPYC, 0.0074 on an Intel Xeon with AMX; the networks before and after a training differ by 0.2


def every_third_block(first: int) -> Architecture:
    """A network with a third of the library's blocks except `lrn`, at their defaults and with options."""
    own = [name for name in blocks.known() if blocks.get(name).cls.__module__.startswith("nasspace.blocks.")]
    layers = [
        {"block": "conv", "out": 8, "activation": name} for name in ("silu", "gelu", "elu", "hard_swish", "relu6")
    ]
    for name in own[first::3]:
        if name not in (*HEADS, "lrn"):
            layers += [{"block": name}, *({"block": name, "out": 8, **each} for each in OPTIONS.get(name, [{}]))]
    layers += [{"block": "max_pool", "stride": 2}, {"block": "shuffle_v2", "out": 16, "stride": 2}]
    layers += [{"block": "global_pool", "out": 12}, {"block": "flatten"}, {"block": "linear", "out": 5}]
    return Architecture.of(layers, input=(2, SIDE, SIDE))


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 2, SIDE, SIDE), dtype=np.float32)


@pytest.fixture(scope="module", params=range(3))
def source(request, tmp_path_factory):
    """The network as ONNX; norms have statistics and weights of their own, so that no two biases are equal."""
    network = build(every_third_block(request.param))
    generator = torch.Generator().manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.bias, std=0.3, generator=generator)
            torch.nn.init.uniform_(norm.weight, 0.5, 2, generator=generator)
            norm.momentum = None
    with torch.no_grad():
        network.train()(torch.from_numpy(images(64)))
    return to_onnx(network, (2, SIDE, SIDE), tmp_path_factory.mktemp("onnx") / "all.onnx", dynamic_batch=True)


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_block_computes_what_the_file_computes(per_channel, source, tmp_path):
    scheme = Scheme(per_channel)
    with calibrated(source, images(16)) as calibration:
        path = calibration.quantize(tmp_path / "int8.onnx", scheme)
        network = QuantizedNetwork(path, calibration.prepared)
        assert difference(network, path) < ROUNDING
        optimizer = torch.optim.SGD(network.parameters(), 0.05)
        for seed in range(2):
            torch.nn.functional.cross_entropy(
                network(torch.from_numpy(images(16, seed))), torch.arange(16) % 5
            ).backward()
            assert all(weight.grad is not None for weight in network.weights)
            optimizer.step()
            optimizer.zero_grad()
        again = calibration.with_weights(network.tensors()).quantize(tmp_path / "trained.onnx", scheme)
        assert difference(network, again) < ROUNDING
        assert difference(QuantizedNetwork(path, calibration.prepared), again) > 5 * ROUNDING


def difference(network: QuantizedNetwork, path: Path) -> float:
    """The mean difference of the outputs from the file's, divided by the largest output.

    ONNX Runtime's own optimizations round some operators to the next level, which a network of 50 layers multiplies.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"input": images(64, 7)})[0]
    with torch.inference_mode():
        found = network(torch.from_numpy(images(64, 7))).numpy()
    return float(np.abs(found - expected).mean() / np.abs(expected).max())


def plain(*layers: dict) -> Architecture:
    head = [{"block": "global_pool"}, {"block": "linear", "out": 5}]
    return Architecture.of([*layers, *head], input=(2, SIDE, SIDE))


def simulated(network: torch.nn.Module, tmp_path: Path) -> tuple[QuantizedNetwork, Path]:
    """An int8 file of a network, and the network that simulates it."""
    source = to_onnx(network, (2, SIDE, SIDE), tmp_path / "net.onnx", dynamic_batch=True)
    with calibrated(source, images(16)) as calibration:
        path = calibration.quantize(tmp_path / "int8.onnx", Scheme())
        return QuantizedNetwork(path, calibration.prepared), path


def test_constants_that_the_exporter_shares_are_trained_together(tmp_path):
    layer = {"block": "conv", "out": 8, "norm": "none"}
    network, path = simulated(build(plain(layer, layer)), tmp_path)  # all biases are 0, and equal ones are shared
    assert len(network.names) == len(set(network.names)) == 5
    assert difference(network, path) < ROUNDING


def test_a_bias_that_does_not_fit_at_the_scale_of_its_weights_has_a_larger_scale(tmp_path):
    model = build(plain({"block": "conv", "out": 8, "norm": "none"}))
    convolution = next(part for part in model.modules() if isinstance(part, torch.nn.Conv2d))
    with torch.no_grad():
        convolution.weight[0] *= 1e-9
        convolution.bias[:] = 1
    network, path = simulated(model, tmp_path)
    assert difference(network, path) < ROUNDING


def test_an_operator_that_cannot_be_simulated_is_named(tmp_path):
    with pytest.raises(InputError, match="the operator Pow cannot be trained in int8"):
        simulated(build(plain({"block": "conv", "out": 8}, {"block": "lrn"})), tmp_path)


def test_a_network_that_computes_something_else_is_refused(tmp_path):
    network, path = simulated(build(plain({"block": "conv", "out": 8})), tmp_path)
    network.check(path, images(32))
    with torch.no_grad():
        network.weights[0].neg_()
    with pytest.raises(InputError, match="of its decisions"):
        network.check(path, images(32))
    with pytest.raises(InputError, match=r"cannot be trained in int8 \("):
        network.check(path, images(32)[:, :1])


def test_gradients_pass_rounding():
    values = torch.tensor([0.24, 0.26, -1.1], requires_grad=True)
    rounded = straight_through(values, torch.tensor(0.5))
    assert rounded.tolist() == [0.0, 0.5, -1.0]
    (rounded * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert values.grad.tolist() == [1.0, 2.0, 3.0]
