"""A block: the Ghost module of GhostNet (Han et al. 2020, section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class Ghost(nn.Module):
    """kernel x kernel convolution to 1/ratio of the channels; a depthwise 3x3 convolution of these gives the rest."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        kernel: Literal[1, 3, 5] = 1,
        ratio: Literal[2, 3, 4] = 2,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        primary = -(-out_channels // ratio)  # rounded up: what is too much is cut off
        self.primary = nn.Sequential(
            nn.Conv2d(in_channels, primary, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(primary),
            nn.ReLU(),
        )
        cheap = primary * (ratio - 1)
        self.cheap = nn.Sequential(
            nn.Conv2d(primary, cheap, 3, padding=1, groups=primary, bias=False), nn.BatchNorm2d(cheap), nn.ReLU()
        )

    def forward(self, image: Tensor) -> Tensor:
        first = self.primary(image)
        return torch.cat([first, self.cheap(first)], 1)[:, : self.out_channels]
