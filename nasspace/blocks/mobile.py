"""The MobileNet family: depthwise separable convolution and the inverted residual."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from nasspace.blocks.layers import (
    EPSILON,
    SqueezeExcite,
    conv_bn,
    depthwise_bn,
    expanded_width,
    make_divisible,
    possible_skip,
    resolved_se,
    skip_layer,
    squeezed_width,
)
from nasspace.blocks.options import Activation, Epsilon, Factor, Gate, Kernel, Share, Skip, Width


class DepthwiseSeparable(nn.Module):
    """kxk depthwise, BN, middle [-> SE] -> 1x1, BN, activation [+ input]. MobileNet (V1), figure 3.

    `middle` is the activation between the two, by default `activation`; MnasNet's SepConv has `relu` in
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
        resolved = DepthwiseSeparable.resolve(
            in_channels, out_channels, stride, activation=activation, middle=middle, se=se, skip=skip
        )
        self.depthwise = depthwise_bn(in_channels, kernel, stride, resolved["middle"], eps)
        if se:
            self.depthwise.append(SqueezeExcite(in_channels, resolved["squeezed"]))
        self.pointwise = conv_bn(in_channels, out_channels, activation=activation, eps=eps)
        self.shortcut = skip_layer(resolved["skip"], stride)

    @staticmethod
    def resolve(
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        activation: str,
        middle: str | None,
        se: float,
        skip: str,
        **_: Any,
    ) -> dict[str, Any]:
        """The activation in the middle, the inner width of squeeze-and-excitation, the skip that can exist."""
        return {
            "middle": middle or activation,
            "skip": possible_skip(skip, in_channels, out_channels, stride),
            **resolved_se(in_channels, se),
        }

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        out = self.pointwise(self.depthwise(x))
        return out if self.shortcut is None else self.shortcut(x) + out


class InvertedResidual(nn.Module):
    """1x1 to hidden, BN, act -> kxk depthwise, BN, act [-> SE] -> 1x1, BN (linear) [+ input]. MobileNetV2, table 1.

    hidden = expansion x input width, or given as `hidden`; where it equals the input width there is no first
    1x1 (MobileNetV2's t = 1). SE's inner width is int(se x input width) with `se_from: input` (MnasNet) or
    make_divisible(se x hidden, 8) with `se_from: expanded` (MobileNetV3). The skip exists where the width stays:
    `identity` at stride 1, `pool` (MnasNet: 3x3 average pooling) at every stride. `linear: false` puts the activation
    after the last 1x1 as well (MobileNetV2, figure 6a).
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
        linear: bool = True,
        eps: Epsilon = EPSILON,
    ):
        super().__init__()
        resolved = InvertedResidual.resolve(
            in_channels,
            out_channels,
            stride,
            expansion=expansion,
            hidden=hidden,
            activation=activation,
            se=se,
            se_from=se_from,
            skip=skip,
            linear=linear,
        )
        hidden = resolved["hidden"]
        layers: list[nn.Module] = []
        if hidden != in_channels:
            layers.append(conv_bn(in_channels, hidden, activation=activation, eps=eps))
        layers.append(depthwise_bn(hidden, kernel, stride, activation, eps))
        if se:
            layers.append(SqueezeExcite(hidden, resolved["squeezed"], se_gate))
        layers.append(conv_bn(hidden, out_channels, activation="none" if linear else activation, eps=eps))
        self.residual = nn.Sequential(*layers)
        self.shortcut = skip_layer(resolved["skip"], stride)

    @staticmethod
    def resolve(
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        expansion: float,
        hidden: int | None,
        activation: str,
        se: float,
        se_from: str,
        skip: str,
        linear: bool,
        **_: Any,
    ) -> dict[str, Any]:
        """The hidden width, the inner width of squeeze-and-excitation, the skip that can exist.

        Without an activation, every bottleneck is linear.
        """
        hidden = expanded_width(in_channels, expansion, hidden)
        if se:
            squeezed = squeezed_width(in_channels, se) if se_from == "input" else make_divisible(se * hidden)
            excitation = {"se": None, "se_from": None, "squeezed": squeezed}
        else:
            excitation = {"se_from": "expanded", "se_gate": "sigmoid"}  # the defaults: without `se` they do nothing
        skip = possible_skip(skip, in_channels, out_channels, stride)
        linear = linear or activation == "none"
        return {"expansion": None, "hidden": hidden, "skip": skip, "linear": linear, **excitation}

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        out = self.residual(x)
        return out if self.shortcut is None else self.shortcut(x) + out


class ExpandedResidual(nn.Module):
    """1x1 to hidden, BN (linear) -> 1x1, BN, act -> kxk depthwise, BN, act [+ input]. MobileNetV2, figure 6b.

    The inverted residual cut at its widest map: a chain of these units computes what a chain of inverted residuals
    does, but for the shortcut, which is between expansions here and between bottlenecks there. hidden = out /
    expansion. `skip` adds the input where the shape stays.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        expansion: Factor = 6.0,
        activation: Activation = "relu6",
        skip: Skip = "identity",
        eps: Epsilon = EPSILON,
    ):
        super().__init__()
        resolved = ExpandedResidual.resolve(in_channels, out_channels, stride, expansion=expansion, skip=skip)
        self.residual = nn.Sequential(
            conv_bn(in_channels, resolved["hidden"], eps=eps),
            conv_bn(resolved["hidden"], out_channels, activation=activation, eps=eps),
            depthwise_bn(out_channels, kernel, stride, activation, eps),
        )
        self.shortcut = skip_layer(resolved["skip"], stride)

    @staticmethod
    def resolve(
        in_channels: int, out_channels: int, stride: int, *, expansion: float, skip: str, **_: Any
    ) -> dict[str, Any]:
        """The hidden width, and the skip that can exist."""
        hidden = max(1, round(out_channels / expansion))
        return {
            "expansion": None,
            "hidden": hidden,
            "skip": possible_skip(skip, in_channels, out_channels, stride),
        }

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        out = self.residual(x)
        return out if self.shortcut is None else self.shortcut(x) + out


BLOCKS = {
    "depthwise_separable": DepthwiseSeparable,
    "inverted_residual": InvertedResidual,
    "expanded_residual": ExpandedResidual,
}
