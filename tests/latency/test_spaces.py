"""Networks of every shipped space as ONNX files: equal outputs."""

from __future__ import annotations

import random

import pytest

from nasspace import Space, build, files
from nasspace.latency.convert import largest_difference, to_onnx


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(files.names("spaces")))
def test_networks_of_each_space_give_equal_outputs_in_onnx(name, tmp_path):
    space = Space.load(name, classes=10, resolution=64)
    rng = random.Random(name)
    for i in range(4):
        architecture = space.sample(rng)
        model = build(architecture, seed=i).eval()
        path = tmp_path / f"{i}.onnx"
        to_onnx(model, architecture.input, path)
        assert largest_difference(model, path, architecture.input, seed=i) < 1e-4, architecture.to_json()
