"""Compute `tests/recorded/networks.json` with the originals: a network of each family, with weights by a formula.

    python benchmarks/record_networks.py FOLDER

needs what `record_values.py` does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from originals import executed, values
from originals_list import pairs
from record_values import EPS, write
from torch import nn

WITH_EPS = (
    "mobilenet_v1",
    "mobilenet_v3",
    "mnasnet",
    "efficientnet_lite",
)  # their official code's epsilon, which most packages lack
RECORDED = """
squeezenet_1.0_bypass squeezenet_1.0_complex_bypass squeezenet_1.1 xception resnet18 resnet50 resnet50_v1 se_resnet50_v1
mobilenet_v1_0.25 mobilenet_v2_0.35 mnasnet_b1_0.5 mnasnet_a1_0.5 mnasnet_small mobilenet_v3_small_1.0
mobilenet_v3_large_0.75 mobilenet_v3_large_0.5_torchvision shufflenet_v1_g3_1.0 shufflenet_v1_g3_0.5_megvii
shufflenet_v2_0.5_torchvision shufflenet_v2_1.0 shufflenet_v2_1.0_megvii mobilenext_0.35 mobilenext_0.5
googlenet inception_v3 inception_v4 inception_resnet_v2
repvgg_a0 repvgg_b1g4 mobileone_s0 mobileone_s4
efficientnet_lite2 ghostnet_0.5 mobilenet_v4_conv_small mobilenet_v4_conv_medium fasternet_t0 fasternet_t2 starnet_s1
"""


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The first pair of each name in RECORDED."""
    names = set(RECORDED.split())
    for pair in pairs(folder):
        if pair.name not in names:
            continue
        names.remove(pair.name)
        side = 75 if pair.name.startswith("inception") else 64  # the smallest of Inception v3
        row = {"name": pair.name, "options": pair.options, "source": pair.source, "input": [1, 3, side, side]}
        image, network = values.image_of(row), adaptive(pair.original()).double().eval()
        leaves = executed(network, image, pair.late)
        for leaf in leaves:
            if isinstance(leaf, nn.BatchNorm2d) and pair.name.startswith(WITH_EPS):
                leaf.eps = EPS
        values.fill(leaves)
        values.level(network, image)
        with torch.no_grad():
            yield {**row, **values.summary(network(image))}


def adaptive(network: nn.Module) -> nn.Module:
    """The last pooling over whatever the map's size is, where it is fixed to that of 224x224."""
    for part in list(network.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.AvgPool2d) and child.kernel_size in (7, 13):
                setattr(part, name, nn.AdaptiveAvgPool2d(1))
    return network


if __name__ == "__main__":
    torch.set_num_threads(1)  # threads that wait for each other make small layers many times slower
    write(values.NETWORKS, list(rows(Path(sys.argv[1]))))
