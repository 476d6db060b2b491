"""ResNet's and ResNeXt's residual units."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from nasspace.blocks.layers import SqueezeExcite, common_groups, conv_bn, resolved_se
from nasspace.blocks.options import Groups, Kernel, Share, Width

WIDEST = 65536
StrideAt = Literal["1x1", "3x3"]


class _Residual(nn.Module):
    """ReLU(residual + shortcut): a 1x1 convolution and BN where the shape changes (ResNet's option B)."""

    def __init__(self, layers: list[nn.Module], in_channels: int, out_channels: int, stride: int, squeezed: int | None):
        super().__init__()
        excitation = [SqueezeExcite(out_channels, squeezed)] if squeezed else []
        self.residual = nn.Sequential(*layers, *excitation)
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(in_channels, out_channels, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        return self.relu(self.residual(x) + self.shortcut(x))


class Basic(_Residual):
    """kxk to width, BN, ReLU -> kxk, BN [-> SE]; ReLU(+ shortcut). ResNet, figure 5 left.

    width = out x base_width / 64. A `groups` that does not divide the unit's widths becomes the largest smaller
    number that divides them all. `se` is the ratio of squeeze-and-excitation to out (SENet, figure 3). There is no
    1x1 convolution that could have the stride, so `stride_at` does nothing: the first convolution has it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        groups: Groups = 1,
        base_width: Width = 64,
        se: Share = 0.0,
        stride_at: StrideAt = "3x3",
    ):
        resolved = Basic.resolve(in_channels, out_channels, stride, groups=groups, base_width=base_width, se=se)
        width, groups = resolved["width"], resolved["groups"]
        layers = [
            conv_bn(in_channels, width, kernel, stride, groups, "relu"),
            conv_bn(width, out_channels, kernel, 1, groups),
        ]
        super().__init__(layers, in_channels, out_channels, stride, resolved.get("squeezed"))

    @staticmethod
    def resolve(
        in_channels: int, out_channels: int, stride: int, *, groups: int, base_width: int, se: float, **_: Any
    ) -> dict[str, Any]:
        """The inner width, groups that divide all widths, the inner width of squeeze-and-excitation."""
        width = _width(out_channels, base_width)
        groups = common_groups(groups, in_channels, width, out_channels)
        widths = {"base_width": None, "width": width, "groups": groups}
        return {**widths, **resolved_se(out_channels, se), "stride_at": "3x3"}


class Bottleneck(_Residual):
    """1x1 to width, BN, ReLU -> kxk in groups, BN, ReLU -> 1x1, BN [-> SE]; ReLU(+ shortcut). ResNet, figure 5 right.

    width = groups x (out / 4 x base_width / 64): a ResNeXt 32x4d has 32 groups and a base width of 4 (ResNeXt,
    table 1). The stride is in the kxk convolution (torchvision), or in the first 1x1 with `stride_at: 1x1` (the
    paper). `se` is the ratio of squeeze-and-excitation to out (SENet, figure 3).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        groups: Groups = 1,
        base_width: Width = 64,
        se: Share = 0.0,
        stride_at: StrideAt = "3x3",
    ):
        resolved = Bottleneck.resolve(
            in_channels, out_channels, stride, groups=groups, base_width=base_width, se=se, stride_at=stride_at
        )
        width = resolved["width"]
        if width > WIDEST:
            raise ValueError(
                f"its inner width would be {width}, above {WIDEST}; take fewer groups or a smaller base_width"
            )
        first, second = (stride, 1) if resolved["stride_at"] == "1x1" else (1, stride)
        layers = [
            conv_bn(in_channels, width, 1, first, activation="relu"),
            conv_bn(width, width, kernel, second, groups, "relu"),
            conv_bn(width, out_channels),
        ]
        super().__init__(layers, in_channels, out_channels, stride, resolved.get("squeezed"))

    @staticmethod
    def resolve(
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        groups: int,
        base_width: int,
        se: float,
        stride_at: str,
        **_: Any,
    ) -> dict[str, Any]:
        """The inner width, that of squeeze-and-excitation, and where the stride is if there is one."""
        widths = {"base_width": None, "width": groups * _width(out_channels // 4, base_width)}
        return {**widths, **resolved_se(out_channels, se), "stride_at": stride_at if stride > 1 else "3x3"}


def _width(channels: int, base_width: int) -> int:
    """`channels` x `base_width` / 64, at least 1."""
    return max(1, channels * base_width // 64)


BLOCKS = {"basic": Basic, "bottleneck": Bottleneck}
