"""The key of the cache: independent of weights, dependent on the graph, and None for unknown code."""

from __future__ import annotations

import ast
import copy
import functools
import random
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import nasspace
from nasspace import Space, blocks, build, zoo
from nasspace.architecture import Architecture
from nasspace.errors import InputError
from nasspace.latency import benchmark, layerwise, runtimes
from nasspace.latency.benchmark import measure_latency
from nasspace.latency.cache import LatencyCache
from nasspace.latency.conditions import KEYS, Conditions, network_digest

SHAPE = (3, 16, 16)
HEAD = [{"block": "global_pool"}, {"block": "linear", "out": 4}]


def architecture(width: int = 8) -> Architecture:
    return Architecture.of([{"block": "conv", "out": width, "stride": 2}, *HEAD], input=SHAPE)


def test_conditions_are_frozen_and_comparable():
    found = Conditions.on_this_machine("0123", "onnxruntime", threads=2, input=SHAPE)
    assert len(found.json_fields()) == len(KEYS) == 8
    with pytest.raises(FrozenInstanceError):
        found.threads = 1
    with pytest.raises(InputError, match="not a runtime"):
        Conditions.on_this_machine("0123", "onnxruntme")


def test_the_cache_is_only_used_with_conditions():
    """No module of the package builds keys in another way."""
    for path in Path(nasspace.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            keys = (
                {key.value for key in node.keys if isinstance(key, ast.Constant)}
                if isinstance(node, ast.Dict)
                else set()
            )
            assert not {"digest", "runtime", "versions", "machine"} <= keys, path


@pytest.mark.parametrize("space", ["mixed", "fire", "sandglass", "mobile", "resnext"])
def test_a_built_network_has_the_architectures_digest_whatever_its_weights(space):
    draw = random.Random(0)
    for seed in range(3):
        one = Space.load(space, classes=10).sample(draw)
        model = build(one, seed=seed)
        assert network_digest(one, model) == network_digest(one) == one.digest
        assert network_digest(one, copy.deepcopy(model).eval()) == one.digest


@pytest.mark.parametrize("name", ["alexnet", "xception_cifar", "shufflenet_v2_0.5_megvii", "mobilenet_v3_small_0.35"])
def test_a_published_network_has_its_digest(name):
    one = zoo.load(name)
    assert network_digest(one, build(one)) == one.digest


def changed(change: str) -> nn.Module:
    """Return a network of the architecture with one change."""
    model = build(architecture())
    convolution = model[0].layers[0]
    if change == "another width":
        return build(architecture(16))
    if change == "a layer more":
        model.append(nn.Softmax(1))
    if change == "another activation":
        model[0].layers[2] = nn.Hardswish()
    if change == "another stride":
        convolution.stride = (1, 1)
    if change == "another type of numbers":
        model.double()
    if change == "no bias":
        model[2].linear.bias = None
    if change == "another padding":
        convolution.padding_mode = "reflect"
    return model


KNOWN = ["another width", "a layer more", "another activation", "another stride", "another type of numbers", "no bias"]


@pytest.mark.parametrize("change", [*KNOWN, "another padding"])
def test_another_graph_has_another_digest(change):
    found = network_digest(architecture(), changed(change))
    assert found is not None
    assert found != architecture().digest
    assert found == network_digest(architecture(), changed(change)) == network_digest(architecture(32), changed(change))
    others = [network_digest(architecture(), changed(other)) for other in KNOWN if other != change]
    assert found not in others


class Own(nn.Module):
    """A user's module, whose settings do not describe its `forward`."""

    def forward(self, x):
        return x


def unknown_network(how: str) -> nn.Module:
    model = build(architecture())
    convolution = model[0].layers[0]
    if how == "a user's class":
        model.append(Own())
    if how == "a hook":
        model[1].register_forward_hook(lambda *_: None)
    if how == "a hook before":
        convolution.register_forward_pre_hook(lambda *_: None)
    if how == "a replaced forward":
        convolution.forward = functools.partial(nn.Conv2d.forward, convolution)
    if how == "a function as a setting":
        model[0].between = torch.relu
    if how == "parametrized":
        parametrizations.weight_norm(convolution)
    if how == "pruned":
        prune.random_unstructured(convolution, "weight", 0.5)
    if how == "compiled":
        return torch.jit.trace(convolution, torch.zeros(1, *SHAPE), check_trace=False)
    return model


UNTOLD = [
    *("a user's class", "a hook", "a hook before", "a replaced forward", "a function as a setting"),
    *("parametrized", "pruned", "compiled"),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", UNTOLD)
def test_unknown_code_has_no_digest(how):
    assert network_digest(architecture(), unknown_network(how)) is None


def test_a_registered_user_block_has_the_architectures_digest(own_blocks):
    class Twice(nn.Module):
        def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
            super().__init__()
            self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1)

        def forward(self, x):
            return 2 * self.conv(x)

    blocks.register("twice", Twice)
    one = Architecture.of([{"block": "twice", "out": 8}, *HEAD], input=SHAPE)
    assert network_digest(one, build(one, seed=3)) == one.digest
    other = build(one)
    other[0] = Own()
    assert network_digest(one, other) is None


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """`measure_latency` with its own cache, and the networks that it actually measured."""
    cache, seen, real = LatencyCache(tmp_path / "latency.db"), [], benchmark.measure

    def measure(networks, **options):
        seen.append(networks["network"])
        found = real(networks, reference=options["reference"], seconds=0.01)
        return {"network": found["network"]}

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(
        benchmark, "cached_latency", lambda key, cache: cache.get(key) and benchmark.Latency.from_json(cache.get(key))
    )
    return lambda model=None: measure_latency(architecture(), model=model, cache=cache, runtime="eager"), seen


def test_two_models_given_for_one_architecture_do_not_share_a_latency(measured):
    find, seen = measured
    find()
    find(build(architecture(), seed=5))
    assert len(seen) == 1, "weights do not matter"
    find(changed("another width"))
    assert len(seen) == 2
    find(changed("another width"))
    assert len(seen) == 2, "cached under its own digest"
    find(unknown_network("a user's class"))
    find(unknown_network("a user's class"))
    assert len(seen) == 4, "not cached"
    find()
    assert len(seen) == 4, "the architecture's own entry is not replaced"


def test_the_layers_of_another_model_are_not_those_of_the_architecture(monkeypatch, tmp_path):
    cache, one = LatencyCache(tmp_path / "latency.db"), architecture()
    latency = measure_latency(one, seconds=0.05, cache=cache)
    monkeypatch.setattr(layerwise, "_profile_layers", lambda architecture, model, latency: [float(len(model))] * 3)
    assert layerwise.measure_layers(one, build(one), latency, cache=cache) == [3.0] * 3
    assert layerwise.measure_layers(one, changed("a layer more"), latency, cache=cache) == [4.0] * 3
    assert layerwise.measure_layers(one, build(one, seed=1), latency, cache=cache) == [3.0] * 3
    for _ in range(2):
        longer = unknown_network("a user's class")
        longer.append(nn.Identity())
        assert layerwise.measure_layers(one, longer, latency, cache=cache) == [5.0] * 3


def test_calibrated_models_have_the_digest_of_their_network(monkeypatch, tmp_path):
    import numpy as np

    cache, one = LatencyCache(tmp_path / "latency.db"), architecture()

    def measured(*_, **__):
        raise AssertionError("what is in the cache is measured again")

    monkeypatch.setattr(benchmark, "measure", measured)
    images = np.zeros((4, *SHAPE), np.float32)
    key = Conditions.on_this_machine(one.digest, "onnxruntime-int8", input=SHAPE)
    document = real_document()
    cache.put(key, {**document, "runtime": "onnxruntime-int8"})
    calibrated = runtimes.CalibratedModel(build(one), images)
    assert measure_latency(one, "onnxruntime-int8", model=calibrated, cache=cache).runtime == "onnxruntime-int8"


def real_document() -> dict:
    """Return a document in the form of `Latency.to_json`."""
    from nasspace.latency.conditions import machine

    times = {"median_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "reference_usual_ms": 2.0}
    lists = {"samples_ms": [1.0, 1.1, 0.9, 1.0], "reference_ms": [2.0, 2.1, 1.9, 2.0], "input": list(SHAPE)}
    counts = {"threads": 1, "batch_size": 1, "rounds": 4, "contended": False}
    texts = {"runtime": "onnxruntime", "device": "cpu", "measured_at": "2026-11-27T12:00:00+00:00"}
    return {**times, **lists, **counts, **texts, "machine": machine(), "versions": {"torch": "2"}}
