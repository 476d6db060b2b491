"""Convolution, pooling, identity: the layers between the units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nasspace.blocks.layers import (
    EPSILON,
    SqueezeExcite,
    activation_layers,
    common_groups,
    conv_bn,
    possible_skip,
    resolved_se,
    skip_layer,
)
from nasspace.blocks.options import Activation, Epsilon, Groups, Kernel, Norm, Padding, Share, Skip, Window


class Conv(nn.Module):
    """kxk convolution, batch norm, activation [-> SE] [+ input].

    Batch norm replaces the bias: `bias` is true by default only with `norm: none`. `padding` is kernel // 2
    by default. A `groups` that does not divide both widths becomes the largest smaller number that does. `se` (ratio
    to the input width) and `skip` are those of MnasNet's search space: the input is added where width and map stay,
    unchanged (`identity`, at stride 1) or after 3x3 average pooling (`pool`, at every stride).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        groups: Groups = 1,
        activation: Activation = "relu",
        norm: Norm = "bn",
        bias: bool | None = None,
        padding: Padding | None = None,
        se: Share = 0.0,
        skip: Skip = "none",
        eps: Epsilon = EPSILON,
    ):
        super().__init__()
        resolved = Conv.resolve(
            in_channels,
            out_channels,
            stride,
            kernel=kernel,
            groups=groups,
            norm=norm,
            bias=bias,
            padding=padding,
            se=se,
            skip=skip,
            eps=eps,
        )
        padding, groups, bias = (resolved[option] for option in ("padding", "groups", "bias"))
        layers = [nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias)]
        if norm == "bn":
            layers.append(nn.BatchNorm2d(out_channels, eps=eps))
        layers += activation_layers(activation)
        if se:
            layers.append(SqueezeExcite(out_channels, resolved["squeezed"]))
        self.layers = nn.Sequential(*layers)
        self.shortcut = skip_layer(resolved["skip"], stride)

    @staticmethod
    def resolve(
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        kernel: int,
        groups: int,
        norm: str,
        bias: bool | None,
        padding: int | None,
        se: float,
        skip: str,
        eps: float,
        **_: Any,
    ) -> dict[str, Any]:
        """Groups that divide, the default bias and padding, and the skip, which exists where the map keeps its size."""
        padding = kernel // 2 if padding is None else padding
        keeps_map = padding == kernel // 2
        return {
            "groups": common_groups(groups, in_channels, out_channels),
            "bias": norm == "none" if bias is None else bias,
            "padding": padding,
            "skip": possible_skip(skip, in_channels, out_channels, stride) if keeps_map else "none",
            "eps": eps if norm == "bn" else EPSILON,
            **resolved_se(in_channels, se),
        }

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H', W')."""
        out = self.layers(x)
        return out if self.shortcut is None else self.shortcut(x) + out


class Identity(nn.Sequential):
    """Nothing where the shape stays; else 1x1 convolution and batch norm (the projection of ResNet, option B)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        same = in_channels == out_channels and stride == 1
        super().__init__(*([] if same else [conv_bn(in_channels, out_channels, 1, stride)]))


class _Pool(nn.Sequential):
    """Pooling; where the width changes, 1x1 convolution and batch norm follow."""

    def __init__(self, pool: nn.Module, in_channels: int, out_channels: int):
        same = in_channels == out_channels
        super().__init__(pool, *([] if same else [conv_bn(in_channels, out_channels)]))

    @staticmethod
    def resolve(
        in_channels: int, out_channels: int, stride: int, *, kernel: int, padding: int | None, **_: Any
    ) -> dict[str, Any]:
        """The padding, at most half of the window: PyTorch allows no more."""
        return {"padding": min((kernel - 1) // 2 if padding is None else padding, kernel // 2)}


class MaxPool(_Pool):
    """kxk max pooling; where the width changes, 1x1 convolution and batch norm follow.

    `padding` is (kernel - 1) // 2 by default and at most half the kernel; `ceil` keeps windows that overlap
    the border (SqueezeNet).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Window = 3,
        padding: Padding | None = None,
        ceil: bool = False,
    ):
        padding = _Pool.resolve(in_channels, out_channels, stride, kernel=kernel, padding=padding)["padding"]
        super().__init__(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil), in_channels, out_channels)


class AvgPool(_Pool):
    """kxk average pooling, the border counted as zeros; where the width changes, 1x1 convolution and batch norm.

    The options of `max_pool`. With `size` a map of any size is averaged to size x size (torchvision's
    AlexNet), and the other options and the stride do nothing.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Window = 3,
        padding: Padding | None = None,
        ceil: bool = False,
        size: Window | None = None,
    ):
        padding = _Pool.resolve(in_channels, out_channels, stride, kernel=kernel, padding=padding)["padding"]
        pool = AverageTo(size) if size else nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil)
        super().__init__(pool, in_channels, out_channels)

    @staticmethod
    def resolve(
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        kernel: int,
        padding: int | None,
        size: int | None,
        **_: Any,
    ) -> dict[str, Any]:
        """The padding; with `size`, which ignores the window, the defaults of the options that describe one."""
        if size:
            return {"kernel": 3, "padding": 1, "ceil": False}
        return _Pool.resolve(in_channels, out_channels, stride, kernel=kernel, padding=padding)


class AverageTo(nn.Module):
    """Average the map to size x size with the windows of PyTorch's adaptive pooling; converts to ONNX at any size."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, H, W) to (batch, channels, size, size)."""
        return self._means(self._means(x, 2), 3)

    def _means(self, x: Tensor, dim: int) -> Tensor:
        """Average the map to `size` along one dimension."""
        side = int(x.shape[dim])  # a plain number while tracing, too: ONNX rounds a quotient toward 0
        if side == self.size:
            return x
        ends = [(i * side // self.size, ((i + 1) * side + self.size - 1) // self.size) for i in range(self.size)]
        return torch.cat([x.narrow(dim, low, high - low).mean(dim, keepdim=True) for low, high in ends], dim)


class BatchNorm(nn.Sequential):
    """Batch norm alone, as before StarNet's classifier; where the shape changes, a 1x1 convolution comes first."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        same = in_channels == out_channels and stride == 1
        projection = [] if same else [nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)]
        super().__init__(*projection, nn.BatchNorm2d(out_channels))


class LocalResponseNorm(nn.Module):
    """x / (2 + 1e-4 x mean of x² over 5 neighboring channels)^0.75. AlexNet, section 3.3.

    Where the shape changes, 1x1 convolution and batch norm follow.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        same = in_channels == out_channels and stride == 1
        self.project = nn.Sequential(*([] if same else [conv_bn(in_channels, out_channels, 1, stride)]))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        edge = torch.zeros_like(x[:, :1])
        squares = torch.cat([edge, edge, x.square(), edge, edge], 1)
        mean = sum(squares[:, i : i + x.shape[1]] for i in range(5)) / 5
        return self.project(x / (2 + 1e-4 * mean) ** 0.75)


BLOCKS = {
    "conv": Conv,
    "max_pool": MaxPool,
    "avg_pool": AvgPool,
    "batch_norm": BatchNorm,
    "lrn": LocalResponseNorm,
    "identity": Identity,
}
