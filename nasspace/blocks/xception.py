"""Xception's module of separable convolutions."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from nasspace.blocks.layers import EPSILON, activation_layers, conv_bn
from nasspace.blocks.options import Activation, Epsilon, Kernel, Repeats


class Xception(nn.Module):
    """[ReLU ->] kxk depthwise -> 1x1, BN, `repeats` times [-> 3x3 pool]; + shortcut. Xception, figure 5.

    The activation comes first; nothing follows the sum. Between the depthwise convolution and the 1x1 there is
    no BN, and no activation unless `middle` names one (the paper's figure 10: it hurts). `first_relu: false` leaves
    out the very first ReLU (entry flow). `grow` is the convolution that changes the width (the exit flow: `last`).
    A stride is that of a 3x3 max or average `pool`, or with `none` of the last depthwise convolution. The
    shortcut is a 1x1 convolution and BN where the shape changes; `skip: false` removes it (figure 9).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        repeats: Repeats = 3,
        middle: Activation = "none",
        first_relu: bool = True,
        grow: Literal["first", "last"] = "first",
        pool: Literal["max", "avg", "none"] = "max",
        skip: bool = True,
        eps: Epsilon = EPSILON,
    ):
        super().__init__()
        resolved = Xception.resolve(in_channels, out_channels, stride, repeats=repeats, grow=grow, pool=pool)
        grow, pool = resolved["grow"], resolved["pool"]
        same = in_channels == out_channels and stride == 1
        self.shortcut = None
        if skip:
            self.shortcut = nn.Identity() if same else conv_bn(in_channels, out_channels, 1, stride, eps=eps)
        narrow = in_channels if grow == "last" else out_channels
        widths = [in_channels, *[narrow] * (repeats - 1), out_channels]
        layers: list[nn.Module] = []
        for i in range(repeats):
            last = stride if pool == "none" and i == repeats - 1 else 1
            relu = [nn.ReLU()] if i or first_relu else []
            layers += [*relu, *_separable(widths[i], widths[i + 1], kernel, last, middle, eps)]
        if stride > 1 and pool != "none":
            layers.append({"max": nn.MaxPool2d, "avg": nn.AvgPool2d}[pool](3, stride, 1))
        self.residual = nn.Sequential(*layers)

    @staticmethod
    def resolve(
        in_channels: int, out_channels: int, stride: int, *, repeats: int, grow: str, pool: str, **_: Any
    ) -> dict[str, Any]:
        """The convolution that changes the width, and the pooling; the defaults where neither makes a difference."""
        one_way = in_channels == out_channels or repeats == 1
        return {"grow": "first" if one_way else grow, "pool": pool if stride > 1 else "max"}

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        out = self.residual(x)
        return out if self.shortcut is None else out + self.shortcut(x)


def _separable(
    in_channels: int, out_channels: int, kernel: int, stride: int, middle: str, eps: float
) -> list[nn.Module]:
    """kxk depthwise, middle, 1x1, BN, without biases."""
    depthwise = nn.Conv2d(in_channels, in_channels, kernel, stride, kernel // 2, groups=in_channels, bias=False)
    pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return [depthwise, *activation_layers(middle), pointwise, nn.BatchNorm2d(out_channels, eps=eps)]


BLOCKS = {"xception": Xception}
