"""Outputs of blocks and networks against those of the originals, which wrong variants must not reproduce.

A case of `recorded/values.json` has our layers, the source of the expected outputs, and layers of another function with
about equal counts. A row of `recorded/networks.json` is a network of the zoo. Weights and images come from a
formula, so no random generator matters. `benchmarks/record_*.py` compute the outputs with the originals.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasspace import Architecture, build, zoo

BLOCKS = Path(__file__).parent / "recorded" / "values.json"
NETWORKS = BLOCKS.with_name("networks.json")
TOLERANCE = 1e-4
LEAVES = nn.Conv2d | nn.BatchNorm2d | nn.Linear
VALUES = 16
OTHERS = {  # activation: another one without parameters
    nn.ReLU6: nn.ReLU,
    nn.Hardswish: nn.SiLU,
    nn.Hardsigmoid: nn.Sigmoid,
    nn.Sigmoid: nn.Hardsigmoid,
    nn.ReLU: nn.ReLU6,
    nn.GELU: nn.SiLU,
}
SLOW = ("xception", "resnet50", "inception")


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Values between -1 and 1 without a visible pattern: quadratic residues of the index."""
    index = torch.arange(math.prod(shape))
    return (((37 * index + 11 + 2 * seed) * index + 101 * seed) % 1009 / 504.5 - 1).double().reshape(shape)


def image_of(case: dict[str, Any]) -> Tensor:
    """The formula's images for a case."""
    return numbers(tuple(case["input"]), 0) * case.get("scale", 1)


def fill(leaves: list[nn.Module]) -> None:
    """Set weights and statistics by the position of each layer in the order of execution."""
    for place, leaf in enumerate(leaves, 1):
        weight = numbers(tuple(leaf.weight.shape), place)
        bias = numbers((len(weight),), place + 500)
        if isinstance(leaf, nn.BatchNorm2d):
            leaf.weight.data, leaf.bias.data = 2 + weight, bias
            leaf.running_mean, leaf.running_var = 0.3 * bias, 0.55 - 0.45 * weight
            continue
        leaf.weight.data = weight * math.sqrt(6 / weight[0].numel())
        if leaf.bias is not None:
            leaf.bias.data = 0.5 * bias


def executed(network: nn.Module, image: Tensor) -> list[nn.Module]:
    """The layers with weights in the order of execution."""
    leaves = []
    parts = [part for part in network.modules() if isinstance(part, LEAVES)]
    handles = [part.register_forward_hook(lambda part, *_: leaves.append(part)) for part in parts]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    return leaves


def level(network: nn.Module, image: Tensor) -> None:
    """Scale each layer's weights to outputs of equal standard deviation, within the range of the activations.

    It is 1, or 3 without batch norm, so that some outputs are above 6.
    """
    target = 1 if any(isinstance(part, nn.BatchNorm2d) for part in network.modules()) else 3

    def scaled(part: nn.Module, _: Any, out: Tensor) -> Tensor:
        scale = target / out.std().clamp(min=1e-6)
        for value in part.parameters():
            value.data *= scale
        return out * scale

    parts = [part for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    handles = [part.register_forward_hook(scaled) for part in parts]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()


def summary(out: Tensor) -> dict[str, Any]:
    """The recorded summary of an output: its shape, some values, its sums."""
    flat = out.flatten()
    values = flat[:: max(1, len(flat) // VALUES)][:VALUES]
    sums = [flat.sum().item(), flat.abs().sum().item()]
    return {"shape": list(out.shape), "values": values.tolist(), "sums": sums}


def disagreement(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference of values and sums, relative to the largest value and sum."""
    if found["shape"] != expected["shape"]:
        return math.inf
    pairs = [[torch.tensor(each[key]) for each in (found, expected)] for key in ("values", "sums")]
    return max(((mine - other).abs().max() / other.abs().max()).item() for mine, other in pairs)


def computed(case: dict[str, Any], layers: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of our layers' output."""
    blocks = build(Architecture.of(layers, input=case["input"][1:])).double().eval()
    network, image = nn.Sequential(*blocks), image_of(case)  # a plain chain keeps a 1x1 map
    fill(executed(network, image))
    with torch.no_grad():
        return summary(network(image))


def read(path: Path) -> list[dict[str, Any]]:
    """The records in a file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def zoo_network(row: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """A network of the zoo with the formula's weights, and its images."""
    network = build(zoo.load(row["name"], resolution=row["input"][-1], **row["options"])).double().eval()
    image = image_of(row)
    fill(executed(network, image))
    level(network, image)
    return network, image


def with_other_activation(network: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """The network with one kind of activation replaced."""
    network = copy.deepcopy(network)
    for part in list(network.modules()):
        for name, child in part.named_children():
            if type(child) is kind:
                setattr(part, name, OTHERS[kind]())
    return network


def with_other_epsilon(network: nn.Module) -> nn.Module:
    """The network with the other of the usual epsilons 1e-5 and 1e-3."""
    network = copy.deepcopy(network)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-8 / part.eps
    return network


CASES, ROWS = read(BLOCKS), read(NETWORKS)
WRONG = [(case, wrong) for case in CASES for wrong in case["wrong"]]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_output_is_the_originals(case):
    assert disagreement(computed(case, case["layers"]), case) < TOLERANCE, case["source"]


@pytest.mark.parametrize(("case", "wrong"), WRONG, ids=[f"{case['name']}-{wrong}" for case, wrong in WRONG])
def test_another_function_has_another_output(case, wrong):
    assert disagreement(computed(case, case["wrong"][wrong]), case) > 10 * TOLERANCE


def marked(row: dict[str, Any]) -> Any:
    """A test parameter, marked slow for large networks."""
    slow = [pytest.mark.slow] if any(name in row["name"] for name in SLOW) else []
    return pytest.param(row, marks=slow, id="-".join([row["name"], *row["options"]]))


@torch.no_grad()
@pytest.mark.parametrize("row", [marked(row) for row in ROWS])
def test_a_networks_output_is_the_originals(row):
    network, image = zoo_network(row)
    assert disagreement(summary(network(image)), row) < TOLERANCE, row["source"]
    others = [
        with_other_activation(network, kind) for kind in OTHERS.keys() & {type(part) for part in network.modules()}
    ]
    if any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        others.append(with_other_epsilon(network))
    assert others
    for other in others:
        assert disagreement(summary(other(image)), row) > 10 * TOLERANCE


def test_there_are_records():
    assert len(CASES) >= 20
    assert len(ROWS) >= 20
    assert all(case["source"] and case["wrong"] for case in CASES)
