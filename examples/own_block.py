"""Add a block: register a module, use it in a space, count it, and run a network of it.

python examples/own_block.py
"""

from __future__ import annotations

import random
from typing import Literal

import torch
from torch import Tensor, nn

import nasspace


class GatedConv(nn.Module):
    """kernel x kernel convolution, batch norm, times the sigmoid (or hard sigmoid) of a 1x1 convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        kernel: int = 3,
        gate: Literal["sigmoid", "hard_sigmoid"] = "sigmoid",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.gate = nn.Conv2d(in_channels, out_channels, 1, stride)
        self.squash = nn.Sigmoid() if gate == "sigmoid" else nn.Hardsigmoid()

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.conv(image)) * self.squash(self.gate(image))


SPACE = """
name: gated
input: [3, 32, 32]
stem:
  - {block: conv, out: 16}
stages:
  - depth: [1, 2]
    out: [16, 32]
    stride: 2
    each:
      block:
        - gated_conv: {kernel: [3, 5], gate: [sigmoid, hard_sigmoid]}
        - shuffle_v2
"""


def main() -> None:
    nasspace.blocks.register("gated_conv", GatedConv)
    space = nasspace.Space.from_text(SPACE, "gated.yaml", classes=10)
    print(f"{space.size} sequences of choices")
    architecture = space.sample(random.Random(0))
    cost = nasspace.cost(architecture)
    print(f"{architecture.digest}: {cost.flops:,} multiply-adds, {cost.params:,} parameters")
    for layer in architecture.layers:
        print(f"  {layer.block}, {layer.out} channels, {dict(layer.options)}")
    network = nasspace.build(architecture).eval()
    print(tuple(network(torch.rand(1, *architecture.input)).shape))


if __name__ == "__main__":
    main()
