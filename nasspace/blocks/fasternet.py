"""FasterNet's unit: a convolution of a part of the channels, and two pointwise ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nasspace.blocks.layers import activation_layers, expanded_width, share_of
from nasspace.blocks.options import Activation, Factor, Kernel, Ratio


class FasterNet(nn.Module):
    """[Patch merging ->] kxk on a part of the channels -> 1x1 to hidden, BN, act -> 1x1; + the unit's input. FasterNet.

    Figure 4 of the paper. The kxk convolution reads and writes the share `partial` of the channels, the first ones; the
    others pass (section 3.2). hidden = expansion x output width. Where the shape changes, a patch merging comes first,
    as at the start of the paper's stages: a stride x stride convolution of patches that do not overlap, BN. It drops
    rows and columns that do not fill a patch, and fills up a map that is smaller than one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        partial: Ratio = 0.25,
        expansion: Factor = 2.0,
        activation: Activation = "relu",
    ):
        super().__init__()
        resolved = FasterNet.resolve(in_channels, out_channels, stride, partial=partial, expansion=expansion)
        mixed, hidden = resolved["mixed"], resolved["hidden"]
        same = in_channels == out_channels and stride == 1
        self.merge = nn.Sequential(*([] if same else [_PatchMerging(in_channels, out_channels, stride)]))
        self.widths = [mixed, out_channels - mixed]
        self.partial = nn.Conv2d(mixed, mixed, kernel, padding=kernel // 2, bias=False)
        self.pointwise = nn.Sequential(
            nn.Conv2d(out_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            *activation_layers(activation),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
        )

    @staticmethod
    def resolve(
        in_channels: int, out_channels: int, stride: int, *, partial: float, expansion: float, **_: Any
    ) -> dict[str, Any]:
        """The width of the kxk convolution, and the hidden width."""
        return {
            "partial": None,
            "mixed": max(1, share_of(out_channels, partial)),
            "expansion": None,
            "hidden": expanded_width(out_channels, expansion, None),
        }

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H // stride, W // stride), each side at least 1."""
        x = self.merge(x)
        if not self.widths[1]:
            return x + self.pointwise(self.partial(x))
        mixed, passed = x.split(self.widths, 1)
        return x + self.pointwise(torch.cat([self.partial(mixed), passed], 1))


class _PatchMerging(nn.Module):
    """size x size convolution of patches that do not overlap, BN."""

    def __init__(self, in_channels: int, out_channels: int, size: int):
        super().__init__()
        self.size = size
        self.reduction = nn.Conv2d(in_channels, out_channels, size, size, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H // size, W // size), each side at least 1."""
        missing = [max(0, self.size - int(side)) for side in x.shape[2:]]  # plain numbers while tracing, too
        if any(missing):
            x = functional.pad(x, (0, missing[1], 0, missing[0]))
        return self.norm(self.reduction(x))


BLOCKS = {"fasternet": FasterNet}
