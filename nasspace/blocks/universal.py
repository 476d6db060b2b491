"""MobileNetV4's universal and fused inverted bottlenecks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nasspace.blocks.layers import conv_bn, depthwise_bn, expanded_width, possible_skip, skip_layer
from nasspace.blocks.options import Activation, Factor, Kernel, KernelOrNone, Skip, Width


class _InvertedBottleneck(nn.Module):
    """A chain of layers, and a skip around it where it can exist."""

    def __init__(self, layers: list[nn.Module], skip: str, stride: int):
        super().__init__()
        self.residual = nn.Sequential(*layers)
        self.shortcut = skip_layer(skip, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        out = self.residual(x)
        return out if self.shortcut is None else self.shortcut(x) + out


class UniversalInvertedBottleneck(_InvertedBottleneck):
    """[kxk depthwise, BN ->] 1x1 to hidden, BN, act [-> kxk depthwise, BN, act] -> 1x1, BN [+ input]. MobileNetV4.

    `first_kernel` is that of the depthwise convolution before the expansion, `kernel` that of the one after it, and 0
    leaves one out (section 4): both are the paper's ExtraDW, the second alone an inverted bottleneck, the first alone
    ConvNeXt's block, none a feed-forward network. The last one has the stride; where both are left out, a stride adds
    a 3x3 one after the expansion. hidden = expansion x input width, or given as `hidden`. The skip is that of
    `inverted_residual`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        first_kernel: KernelOrNone = 0,
        kernel: KernelOrNone = 3,
        expansion: Factor = 4.0,
        hidden: Width | None = None,
        activation: Activation = "relu",
        skip: Skip = "identity",
    ):
        resolved = UniversalInvertedBottleneck.resolve(
            in_channels,
            out_channels,
            stride,
            first_kernel=first_kernel,
            kernel=kernel,
            expansion=expansion,
            hidden=hidden,
            skip=skip,
        )
        hidden, kernel = resolved["hidden"], resolved["kernel"]
        layers: list[nn.Module] = []
        if first_kernel:
            layers.append(depthwise_bn(in_channels, first_kernel, 1 if kernel else stride))
        layers.append(conv_bn(in_channels, hidden, activation=activation))
        if kernel:
            layers.append(depthwise_bn(hidden, kernel, stride, activation))
        layers.append(conv_bn(hidden, out_channels))
        super().__init__(layers, resolved["skip"], stride)

    @staticmethod
    def resolve(
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        first_kernel: int,
        kernel: int,
        expansion: float,
        hidden: int | None,
        skip: str,
        **_: Any,
    ) -> dict[str, Any]:
        """The kernel after the expansion, the hidden width, the skip that can exist."""
        return {
            "kernel": kernel if first_kernel or kernel or stride == 1 else 3,
            "expansion": None,
            "hidden": expanded_width(in_channels, expansion, hidden),
            "skip": possible_skip(skip, in_channels, out_channels, stride),
        }


class FusedInvertedBottleneck(_InvertedBottleneck):
    """kxk to hidden, BN, act -> 1x1, BN (linear) [+ input]. MobileNetV4, section 4; EfficientNet-EdgeTPU.

    hidden = expansion x input width, or given as `hidden`. The kxk convolution has the stride. The skip is that of
    `inverted_residual`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        expansion: Factor = 4.0,
        hidden: Width | None = None,
        activation: Activation = "relu",
        skip: Skip = "identity",
    ):
        hidden = expanded_width(in_channels, expansion, hidden)
        layers = [conv_bn(in_channels, hidden, kernel, stride, activation=activation), conv_bn(hidden, out_channels)]
        super().__init__(layers, possible_skip(skip, in_channels, out_channels, stride), stride)

    @staticmethod
    def resolve(
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        expansion: float,
        hidden: int | None,
        skip: str,
        **_: Any,
    ) -> dict[str, Any]:
        """The hidden width, and the skip that can exist."""
        return {
            "expansion": None,
            "hidden": expanded_width(in_channels, expansion, hidden),
            "skip": possible_skip(skip, in_channels, out_channels, stride),
        }


BLOCKS = {
    "universal_inverted_bottleneck": UniversalInvertedBottleneck,
    "fused_inverted_bottleneck": FusedInvertedBottleneck,
}
