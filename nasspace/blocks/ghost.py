"""GhostNet's bottleneck of ghost modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nasspace.blocks.layers import SqueezeExcite, conv_bn, depthwise_bn, expanded_width, make_divisible
from nasspace.blocks.options import Activation, Factor, Gate, Kernel, Reduction, Share, Width


class GhostBottleneck(nn.Module):
    """Ghost module to hidden, act [-> kxk depthwise, BN] [-> SE] -> linear ghost module; + input. GhostNet, figure 3.

    A ghost module (figure 2) computes 1/`ratio` of its channels by a 1x1 convolution, and the others from these by a
    depthwise convolution of `cheap_kernel`; with a ratio of 1 all by the 1x1 convolution. hidden = expansion x input
    width, or given as `hidden`. The kxk depthwise convolution exists at a stride only. SE's inner width is
    make_divisible(se x hidden, 4). Where the shape changes, the input passes kxk depthwise, BN -> 1x1, BN.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        expansion: Factor = 6.0,
        hidden: Width | None = None,
        ratio: Reduction = 2,
        cheap_kernel: Kernel = 3,
        activation: Activation = "relu",
        se: Share = 0.0,
        se_gate: Gate = "hard_sigmoid",
    ):
        super().__init__()
        hidden = expanded_width(in_channels, expansion, hidden)
        layers: list[nn.Module] = [_Ghost(in_channels, hidden, ratio, cheap_kernel, activation)]
        if stride > 1:
            layers.append(depthwise_bn(hidden, kernel, stride))
        if se:
            layers.append(SqueezeExcite(hidden, _squeezed(hidden, se), se_gate))
        layers.append(_Ghost(hidden, out_channels, ratio, cheap_kernel, "none"))
        self.residual = nn.Sequential(*layers)
        same = in_channels == out_channels and stride == 1
        projection = [] if same else [depthwise_bn(in_channels, kernel, stride), conv_bn(in_channels, out_channels)]
        self.shortcut = nn.Sequential(*projection)

    @staticmethod
    def resolve(
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        kernel: int,
        expansion: float,
        hidden: int | None,
        ratio: int,
        cheap_kernel: int,
        se: float,
        **_: Any,
    ) -> dict[str, Any]:
        """The hidden width, the inner width of squeeze-and-excitation, the defaults of options that do nothing."""
        hidden = expanded_width(in_channels, expansion, hidden)
        same = in_channels == out_channels and stride == 1
        return {
            "expansion": None,
            "hidden": hidden,
            "kernel": 3 if same else kernel,
            "cheap_kernel": 3 if ratio == 1 else cheap_kernel,
            **({"se": None, "squeezed": _squeezed(hidden, se)} if se else {"se_gate": "hard_sigmoid"}),
        }

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        return self.residual(x) + self.shortcut(x)


class _Ghost(nn.Module):
    """1x1 to a part of the channels, BN, act; a depthwise convolution of these, BN, act gives the others."""

    def __init__(self, in_channels: int, out_channels: int, ratio: int, kernel: int, activation: str):
        super().__init__()
        self.out_channels = out_channels
        intrinsic = -(-out_channels // ratio)  # rounded up; channels beyond the width are cut off
        self.primary = conv_bn(in_channels, intrinsic, activation=activation)
        self.cheap = None
        if ratio > 1:
            self.cheap = conv_bn(intrinsic, intrinsic * (ratio - 1), kernel, 1, intrinsic, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H, W)."""
        out = self.primary(x)
        if self.cheap is not None:
            out = torch.cat([out, self.cheap(out)], 1)
        return out if out.shape[1] == self.out_channels else out[:, : self.out_channels]


def _squeezed(hidden: int, se: float) -> int:
    """The inner width of squeeze-and-excitation."""
    return make_divisible(se * hidden, 4)


BLOCKS = {"ghost_bottleneck": GhostBottleneck}
