"""The MobileNet family: depthwise separable convolution and the inverted residual."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from nasspace.blocks.layers import EPSILON, SqueezeExcite, conv_bn, depthwise_bn, make_divisible, share_of
from nasspace.blocks.options import Activation, Epsilon, Factor, Gate, Kernel, Share, Width


class DepthwiseSeparable(nn.Module):
    """kxk depthwise, BN, middle -> 1x1, BN, activation. MobileNet (V1), figure 3.

    `middle` is the activation between the two, as `activation` unless given; MnasNet's SepConv has `relu` in
    the middle and `none` at the end. `skip` adds the input where the shape stays.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        activation: Activation = "relu",
        middle: Activation | None = None,
        skip: bool = False,
        eps: Epsilon = EPSILON,
    ):
        super().__init__()
        self.depthwise = depthwise_bn(in_channels, kernel, stride, middle or activation, eps)
        self.pointwise = conv_bn(in_channels, out_channels, activation=activation, eps=eps)
        self.skip = skip and stride == 1 and in_channels == out_channels

    @staticmethod
    def settle(in_channels: int, out_channels: int, stride: int, options: dict) -> dict:
        possible = stride == 1 and in_channels == out_channels
        return {"middle": options["middle"] or options["activation"], "skip": options["skip"] and possible}

    def forward(self, x: Tensor) -> Tensor:
        out = self.pointwise(self.depthwise(x))
        return x + out if self.skip else out


class InvertedResidual(nn.Module):
    """1x1 to hidden, BN, act -> kxk depthwise, BN, act [-> SE] -> 1x1, BN (linear) [+ input]. MobileNetV2, table 1.

    hidden = expansion x input width, or given as `hidden`; where it equals the input width there is no first
    1x1 (MobileNetV2's t = 1). SE's inner width is int(se x input width) with `se_from: input` (MnasNet) or
    make_divisible(se x hidden, 8) with `se_from: expanded` (MobileNetV3). The skip exists where the width stays:
    `identity` at stride 1, `pool` (MnasNet: 3x3 average pooling) at every stride.
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
        activation: Activation = "relu6",
        se: Share = 0.0,
        se_from: Literal["input", "expanded"] = "expanded",
        se_gate: Gate = "sigmoid",
        skip: Literal["identity", "pool", "none"] = "identity",
        eps: Epsilon = EPSILON,
    ):
        super().__init__()
        hidden = _hidden(in_channels, expansion, hidden)
        layers: list[nn.Module] = []
        if hidden != in_channels:
            layers.append(conv_bn(in_channels, hidden, activation=activation, eps=eps))
        layers.append(depthwise_bn(hidden, kernel, stride, activation, eps))
        if se:
            layers.append(SqueezeExcite(hidden, _squeezed(in_channels, hidden, se, se_from), se_gate))
        layers.append(conv_bn(hidden, out_channels, eps=eps))
        self.residual = nn.Sequential(*layers)
        skip = _skip(in_channels, out_channels, stride, skip)
        self.shortcut = {
            "identity": nn.Identity,
            "pool": lambda: nn.AvgPool2d(3, stride, 1),
            "none": lambda: None,
        }[skip]()

    @staticmethod
    def settle(in_channels: int, out_channels: int, stride: int, options: dict) -> dict:
        hidden = _hidden(in_channels, options["expansion"], options["hidden"])
        se = {"se_from": "expanded", "se_gate": "sigmoid"}
        if options["se"]:
            squeezed = _squeezed(in_channels, hidden, options["se"], options["se_from"])
            se = {"se": None, "se_from": None, "squeezed": squeezed}
        skip = _skip(in_channels, out_channels, stride, options["skip"])
        return {"expansion": None, "hidden": hidden, "skip": skip, **se}

    def forward(self, x: Tensor) -> Tensor:
        out = self.residual(x)
        return out if self.shortcut is None else self.shortcut(x) + out


def _hidden(in_channels: int, expansion: float | None, hidden: int | None) -> int:
    return hidden or max(1, round(in_channels * expansion))


def _squeezed(in_channels: int, hidden: int, se: float, se_from: str) -> int:
    """The inner width of squeeze-and-excitation."""
    return max(1, share_of(in_channels, se)) if se_from == "input" else make_divisible(se * hidden)


def _skip(in_channels: int, out_channels: int, stride: int, skip: str) -> str:
    if in_channels != out_channels or (skip == "identity" and stride != 1):
        return "none"
    return skip


BLOCKS = {"depthwise_separable": DepthwiseSeparable, "inverted_residual": InvertedResidual}
