"""Fixtures: small profiled networks, and networks with some layers changed."""

from __future__ import annotations

import pytest

from nasspace import Architecture, build
from nasspace.guidelines.context import NetworkContext
from nasspace.latency.convert import to_onnx
from nasspace.latency.graph import Graph
from nasspace.latency.profile import profile_onnx


@pytest.fixture
def context_of(tmp_path):
    """A profiled network of a 3x3 convolution to 16 channels and the given layers."""

    def make(*layers):
        architecture = Architecture.of(
            [{"block": "conv", "out": 16}, *layers, {"block": "linear", "out": 3}], input=(3, 16, 16)
        )
        path = to_onnx(build(architecture), architecture.input, tmp_path / "network.onnx")
        profiled = profile_onnx(path, len(architecture.layers), 0.01, seconds=0.01)
        return NetworkContext(path, Graph(path), profiled, architecture)

    return make


@pytest.fixture
def changed():
    """Return the architecture of a context with the changed layers."""

    def make(context, parts):
        layers = list(context.layers)
        for part in parts:
            layers[part.start : part.start + len(part.before)] = part.after
        return Architecture.of(layers, input=context.architecture.input)

    return make
