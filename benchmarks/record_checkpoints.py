"""Compute `tests/recorded/checkpoints.json`: layers of the originals' checkpoints, outputs with weights of a formula.

    python benchmarks/record_checkpoints.py FOLDER

needs what `originals.py` does. The formula and the form of the file stand in `tests/training/test_pretrained.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from originals import Pair, values
from originals_list import pairs
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "training"))
import test_pretrained as checkpoints

WANTED = {  # one of each naming and family: a network of the zoo, and the start of its source in `originals_list`
    "torchvision": "alexnet squeezenet_1.0 resnet18 resnet50 resnext50_32x4d mobilenet_v2_0.35 mobilenet_v3_small_1.0 "
    "mobilenet_v3_large_0.5_torchvision mnasnet_b1_0.5 shufflenet_v2_0.5_torchvision googlenet inception_v3",
    "timm": "xception se_resnet50 se_resnet50_v1 mobilenet_v1_1.0 mobilenet_v2_1.4 mnasnet_b1_1.0 mnasnet_a1_0.5 "
    "mnasnet_small mobilenet_v3_small_0.75 efficientnet_lite0 inception_v4 inception_resnet_v2 repvgg_a0 mobileone_s4 "
    "ghostnet_0.5 mobilenet_v4_conv_small mobilenet_v4_conv_medium fasternet_t0 starnet_s1",
    "official": "shufflenet_v1_g3_0.5_megvii shufflenet_v2_0.5_megvii mobilenext_0.35",
}
LARGE = ("shufflenet_v1", "shufflenet_v2_0.5_megvii", "alexnet")  # pool a map of fixed size, or flatten it


def wanted(pair: Pair) -> bool:
    """Whether a pair is recorded."""
    return any(pair.name in names.split() and pair.source.startswith(start) for start, names in WANTED.items())


@torch.no_grad()
def record(name: str, source: str, network: nn.Module, resolution: int) -> dict[str, Any]:
    """The layers of a network's checkpoint in its order, and the summary of its output."""
    layers = checkpoints.described(network.state_dict())
    weights = checkpoints.formula(layers)
    for key, tensor in network.double().eval().state_dict().items():
        tensor.copy_(weights[key])
    image = values.numbers((1, 3, resolution, resolution), 0)
    return {
        "name": name,
        "source": source,
        "resolution": resolution,
        "layers": layers,
        **values.summary(network(image)),
    }


def main(folder: str) -> None:
    torch.set_num_threads(1)
    records = []
    for pair in pairs(Path(folder)):
        if wanted(pair) and not pair.options:
            network = pair.original()
            epsilons = {part.eps for part in network.modules() if isinstance(part, nn.BatchNorm2d)}
            print(pair.name, pair.source, *sorted(epsilons), flush=True)
            side = 224 if pair.name.startswith(LARGE) else 75 if pair.name.startswith("inception") else 64
            records.append(record(pair.name, pair.source, network, side))
    checkpoints.write(records)


if __name__ == "__main__":
    main(*sys.argv[1:])
