"""SqueezeNet's fire module."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from nasspace.blocks.layers import conv_relu, share_of
from nasspace.blocks.options import Norm, Ratio, Share


class Fire(nn.Module):
    """1x1 to squeeze x out, ReLU -> concat(1x1, ReLU | 3x3, ReLU) [+ bypass]. SqueezeNet, section 3.2.

    `expand_3x3` is the share of 3x3 filters (pct3x3); the 1x1 part comes first. `bypass` adds the input:
    `simple` where the width stays, `complex` also through a 1x1 convolution where it changes. All convolutions
    have a bias and no norm, as in the paper. With `norm: bn` none has a bias, not even the bypass, whose bias
    the batch norm of the next layer would cancel. The paper strides by max pooling between modules, so a stride
    puts a 3x3 max pooling in front.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        squeeze: Ratio = 0.125,
        expand_3x3: Share = 0.5,
        bypass: Literal["none", "simple", "complex"] = "none",
        norm: Norm = "none",
    ):
        super().__init__()
        resolved = Fire.resolve(
            in_channels, out_channels, stride, squeeze=squeeze, expand_3x3=expand_3x3, bypass=bypass
        )
        squeezed, wide = resolved["squeezed"], resolved["wide"]
        self.pool = nn.MaxPool2d(3, stride, 1) if stride > 1 else nn.Identity()
        self.squeeze = conv_relu(in_channels, squeezed, norm=norm)
        parts = [(out_channels - wide, 1), (wide, 3)]
        self.expand = nn.ModuleList(conv_relu(squeezed, width, kernel, norm=norm) for width, kernel in parts if width)
        self.bypass = {
            "none": lambda: None,
            "simple": nn.Identity,
            "complex": lambda: nn.Conv2d(in_channels, out_channels, 1, bias=norm == "none"),
        }[resolved["bypass"]]()

    @staticmethod
    def resolve(
        in_channels: int, out_channels: int, stride: int, *, squeeze: float, expand_3x3: float, bypass: str, **_: Any
    ) -> dict[str, Any]:
        """The widths of the squeeze layer and of the 3x3 part, and the bypass that exists at these widths."""
        if bypass != "none" and in_channels == out_channels:
            bypass = "simple"
        elif bypass == "simple":
            bypass = "none"
        return {
            "squeeze": None,
            "squeezed": max(1, share_of(out_channels, squeeze)),
            "expand_3x3": None,
            "wide": share_of(out_channels, expand_3x3),
            "bypass": bypass,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        x = self.pool(x)
        squeezed = self.squeeze(x)
        out = torch.cat([expand(squeezed) for expand in self.expand], 1)
        return out if self.bypass is None else self.bypass(x) + out


BLOCKS = {"fire": Fire}
