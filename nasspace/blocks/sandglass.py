"""MobileNeXt's sandglass block."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nasspace.blocks.layers import conv_bn, depthwise_bn, make_divisible, share_of
from nasspace.blocks.options import Kernel, Reduction, Share


class Sandglass(nn.Module):
    """kxk depthwise, BN, ReLU6 -> 1x1 to hidden, BN -> 1x1, BN, ReLU6 -> kxk depthwise, BN [+ input]. MobileNeXt.

    hidden = input width // reduction, but at least a sixth of the output width rounded up to a multiple of 16
    (the official code). `identity` is the identity tensor multiplier: the share of the channels that the
    shortcut is added to, where the shape stays; 0 for no shortcut. `first_depthwise` and `last_depthwise` leave
    one out, as the official code does at the start of stages; the last one stays where it carries the stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        reduction: Reduction = 6,
        identity: Share = 1.0,
        first_depthwise: bool = True,
        last_depthwise: bool = True,
    ):
        super().__init__()
        resolved = Sandglass.resolve(
            in_channels,
            out_channels,
            stride,
            kernel=kernel,
            reduction=reduction,
            identity=identity,
            first_depthwise=first_depthwise,
            last_depthwise=last_depthwise,
        )
        hidden = resolved["hidden"]
        layers = [conv_bn(in_channels, hidden), conv_bn(hidden, out_channels, activation="relu6")]
        if first_depthwise:
            layers.insert(0, depthwise_bn(in_channels, kernel, 1, "relu6"))
        if resolved["last_depthwise"]:
            layers.append(depthwise_bn(out_channels, kernel, stride))
        self.residual = nn.Sequential(*layers)
        self.added = resolved["added"]  # channels that the shortcut is added to

    @staticmethod
    def resolve(
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        kernel: int,
        reduction: int,
        identity: float,
        first_depthwise: bool,
        last_depthwise: bool,
        **_: Any,
    ) -> dict[str, Any]:
        """The hidden width, the channels that the shortcut is added to, the depthwise convolutions that exist."""
        same = stride == 1 and in_channels == out_channels
        last_depthwise = last_depthwise or stride > 1
        return {
            "reduction": None,
            "hidden": _hidden(in_channels, out_channels, reduction),
            "identity": None if same else 1.0,
            "added": share_of(out_channels, identity) if same else 0,
            "last_depthwise": last_depthwise,
            "kernel": kernel if first_depthwise or last_depthwise else 3,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        out = self.residual(x)
        if self.added == x.shape[1]:
            return x + out
        if self.added:
            first, rest = out[:, : self.added], out[:, self.added :]
            return torch.cat([x[:, : self.added] + first, rest], 1)
        return out


def _hidden(in_channels: int, out_channels: int, reduction: int) -> int:
    """The reduced input width, or more for a much wider output."""
    hidden = in_channels // reduction
    return make_divisible(math.ceil(out_channels / 6), 16) if hidden < out_channels / 6 else hidden


BLOCKS = {"sandglass": Sandglass}
