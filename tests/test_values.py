"""Blocks by value: the outputs of the originals, and wrong spellings that must not give them.

A case of `recorded/values.json` has our layers, the source of the expected outputs and layers that count as much or
nearly so but are another function. Weights and images come from a formula, so that no random generator matters.
`benchmarks/record_values.py` computes the outputs by the originals.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nasspace import Architecture, build

RECORD = Path(__file__).parent / "recorded" / "values.json"
TOLERANCE = 1e-4
LEAVES = nn.Conv2d | nn.BatchNorm2d | nn.Linear
VALUES = 16


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Values between -1 and 1 without a pattern: quadratic residues of their index."""
    index = torch.arange(math.prod(shape))
    return (((37 * index + 11 + 2 * seed) * index + 101 * seed) % 1009 / 504.5 - 1).double().reshape(shape)


def picture(case: dict[str, Any]) -> Tensor:
    return numbers(tuple(case["input"]), 0) * case.get("scale", 1)


def fill(leaves: list[nn.Module]) -> None:
    """Weights and statistics by the place of each layer in the order of execution."""
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
    """The layers with weights, in the order in which they run."""
    leaves = []
    parts = [part for part in network.modules() if isinstance(part, LEAVES)]
    handles = [part.register_forward_hook(lambda part, *_: leaves.append(part)) for part in parts]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    return leaves


def summary(out: Tensor) -> dict[str, Any]:
    """What is recorded of an output: its shape, some values, its sums."""
    flat = out.flatten()
    values = flat[:: max(1, len(flat) // VALUES)][:VALUES]
    sums = [flat.sum().item(), flat.abs().sum().item()]
    return {"shape": list(out.shape), "values": values.tolist(), "sums": sums}


def disagreement(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference of the values and of the sums, relative to the largest value and sum."""
    if found["shape"] != expected["shape"]:
        return math.inf
    pairs = [[torch.tensor(each[key]) for each in (found, expected)] for key in ("values", "sums")]
    return max(((mine - other).abs().max() / other.abs().max()).item() for mine, other in pairs)


def of_ours(case: dict[str, Any], layers: list[dict[str, Any]]) -> dict[str, Any]:
    blocks = build(Architecture.of(layers, input=case["input"][1:])).double().eval()
    network, image = nn.Sequential(*blocks), picture(case)  # a plain chain: a 1x1 map stays one
    fill(executed(network, image))
    with torch.no_grad():
        return summary(network(image))


CASES = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else []
WRONG = [(case, wrong) for case in CASES for wrong in case["wrong"]]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_original_value(case):
    assert disagreement(of_ours(case, case["layers"]), case) < TOLERANCE, case["source"]


@pytest.mark.parametrize(("case", "wrong"), WRONG, ids=[f"{case['name']}-{wrong}" for case, wrong in WRONG])
def test_another_function_shows(case, wrong):
    assert disagreement(of_ours(case, case["wrong"][wrong]), case) > 10 * TOLERANCE


def test_there_are_cases():
    assert len(CASES) >= 20
    assert all(case["source"] and case["wrong"] for case in CASES)
