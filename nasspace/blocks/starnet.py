"""StarNet's unit: two branches, multiplied."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nasspace.blocks.layers import activation_layers, expanded_width
from nasspace.blocks.options import Activation, Factor, Kernel


class StarNet(nn.Module):
    """[3x3, BN ->] kxk depthwise, BN -> (1x1, act) x (1x1) to hidden -> 1x1, BN -> kxk depthwise; + the unit's input.

    StarNet, figure 3: the star operation is the product of the two branches. hidden = expansion x output width. Where
    the shape changes, a 3x3 convolution and BN come first, as at the start of the paper's stages. All convolutions have
    a bias, as in the official code, also those that BN follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 7,
        expansion: Factor = 4.0,
        activation: Activation = "relu6",
    ):
        super().__init__()
        hidden = expanded_width(out_channels, expansion, None)
        same = in_channels == out_channels and stride == 1
        self.down = nn.Sequential(*([] if same else _conv_bn(in_channels, out_channels, 3, stride)))
        self.depthwise = nn.Sequential(*_conv_bn(out_channels, out_channels, kernel, groups=out_channels))
        self.first = nn.Sequential(nn.Conv2d(out_channels, hidden, 1), *activation_layers(activation))
        self.second = nn.Conv2d(out_channels, hidden, 1)
        self.project = nn.Sequential(*_conv_bn(hidden, out_channels, 1))
        self.last = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2, groups=out_channels)

    @staticmethod
    def resolve(in_channels: int, out_channels: int, stride: int, *, expansion: float, **_: Any) -> dict[str, Any]:
        """The hidden width."""
        return {"expansion": None, "hidden": expanded_width(out_channels, expansion, None)}

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        x = self.down(x)
        out = self.depthwise(x)
        return x + self.last(self.project(self.first(out) * self.second(out)))


def _conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution with bias, padded to keep the size, and batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups)
    return [conv, nn.BatchNorm2d(out_channels)]


BLOCKS = {"starnet": StarNet}
