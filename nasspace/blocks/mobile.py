"""The MobileNet family: depthwise separable convolution and the inverted residual."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from nasspace.blocks.layers import (
    EPSILON,
    SqueezeExcite,
    conv_bn,
    depthwise_bn,
    make_divisible,
    possible_skip,
    skipped,
    squeezed_width,
)
from nasspace.blocks.options import Activation, Epsilon, Factor, Gate, Kernel, Share, Skip, Width


class DepthwiseSeparable(nn.Module):
    """kxk depthwise, BN, middle [-> SE] -> 1x1, BN, activation [+ input]. MobileNet (V1), figure 3.

    `middle` is the activation between the two, as `activation` unless given; MnasNet's SepConv has `relu` in
    the middle and `none` at the end. `se` is the ratio of squeeze-and-excitation to the input width. `skip` adds
    the input where the width stays: `identity` (or true) at stride 1, `pool` (3x3 average pooling) at every stride.
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
        se: Share = 0.0,
        skip: Skip = "none",
        eps: Epsilon = EPSILON,
    ):
        super().__init__()
        self.depthwise = depthwise_bn(in_channels, kernel, stride, middle or activation, eps)
        if se:
            self.depthwise.append(SqueezeExcite(in_channels, squeezed_width(in_channels, se)))
        self.pointwise = conv_bn(in_channels, out_channels, activation=activation, eps=eps)
        self.shortcut = skipped(possible_skip(skip, in_channels, out_channels, stride), stride)

    @staticmethod
    def settle(in_channels: int, out_channels: int, stride: int, options: dict) -> dict:
        se = {"se": None, "squeezed": squeezed_width(in_channels, options["se"])} if options["se"] else {}
        skip = possible_skip(options["skip"], in_channels, out_channels, stride)
        return {"middle": options["middle"] or options["activation"], "skip": skip, **se}

    def forward(self, x: Tensor) -> Tensor:
        out = self.pointwise(self.depthwise(x))
        return out if self.shortcut is None else self.shortcut(x) + out


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
        skip: Skip = "identity",
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
        self.shortcut = skipped(possible_skip(skip, in_channels, out_channels, stride), stride)

    @staticmethod
    def settle(in_channels: int, out_channels: int, stride: int, options: dict) -> dict:
        hidden = _hidden(in_channels, options["expansion"], options["hidden"])
        se = {"se_from": "expanded", "se_gate": "sigmoid"}
        if options["se"]:
            squeezed = _squeezed(in_channels, hidden, options["se"], options["se_from"])
            se = {"se": None, "se_from": None, "squeezed": squeezed}
        skip = possible_skip(options["skip"], in_channels, out_channels, stride)
        return {"expansion": None, "hidden": hidden, "skip": skip, **se}

    def forward(self, x: Tensor) -> Tensor:
        out = self.residual(x)
        return out if self.shortcut is None else self.shortcut(x) + out


def _hidden(in_channels: int, expansion: float | None, hidden: int | None) -> int:
    return hidden or max(1, round(in_channels * expansion))


def _squeezed(in_channels: int, hidden: int, se: float, se_from: str) -> int:
    """The inner width of squeeze-and-excitation."""
    return squeezed_width(in_channels, se) if se_from == "input" else make_divisible(se * hidden)


BLOCKS = {"depthwise_separable": DepthwiseSeparable, "inverted_residual": InvertedResidual}
