"""Convolution, pooling, identity: the layers between the units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nasspace.blocks.layers import (
    EPSILON,
    SqueezeExcite,
    activated,
    common_groups,
    conv_bn,
    possible_skip,
    skipped,
    squeezed_width,
)
from nasspace.blocks.options import Activation, Epsilon, Groups, Kernel, Norm, Padding, Share, Skip, Window


class Conv(nn.Module):
    """kxk convolution, batch norm, activation [-> SE] [+ input].

    Batch norm replaces the bias: `bias` is true by default only with `norm: none`. `padding` is kernel // 2
    unless given. A `groups` that does not divide both widths becomes the largest number below that does. `se` (ratio to
    the input width) and `skip` are those of MnasNet's search space: the input is added where width and map stay, as it
    is (`identity`, at stride 1) or after 3x3 average pooling (`pool`, at every stride).
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
        padding = kernel // 2 if padding is None else padding
        bias = norm == "none" if bias is None else bias
        groups = common_groups(groups, in_channels, out_channels)
        layers = [nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias)]
        if norm == "bn":
            layers.append(nn.BatchNorm2d(out_channels, eps=eps))
        layers += activated(activation)
        if se:
            layers.append(SqueezeExcite(out_channels, squeezed_width(in_channels, se)))
        self.layers = nn.Sequential(*layers)
        self.shortcut = skipped(_conv_skip(skip, in_channels, out_channels, stride, kernel, padding), stride)

    @staticmethod
    def settle(in_channels: int, out_channels: int, stride: int, options: dict) -> dict:
        kernel, norm, bias, padding, se = (options[key] for key in ("kernel", "norm", "bias", "padding", "se"))
        padding = kernel // 2 if padding is None else padding
        squeezed = {"se": None, "squeezed": squeezed_width(in_channels, se)} if se else {}
        return {
            "groups": common_groups(options["groups"], in_channels, out_channels),
            "bias": norm == "none" if bias is None else bias,
            "padding": padding,
            "skip": _conv_skip(options["skip"], in_channels, out_channels, stride, kernel, padding),
            "eps": options["eps"] if norm == "bn" else EPSILON,
            **squeezed,
        }

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return out if self.shortcut is None else self.shortcut(x) + out


def _conv_skip(skip: str, in_channels: int, out_channels: int, stride: int, kernel: int, padding: int) -> str:
    """The skip that can exist: none, either, where the padding does not keep the map."""
    return possible_skip(skip, in_channels, out_channels, stride) if padding == kernel // 2 else "none"


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
    def settle(in_channels: int, out_channels: int, stride: int, options: dict) -> dict:
        return {"padding": _pool_padding(options["kernel"], options["padding"])}


def _pool_padding(kernel: int, padding: int | None) -> int:
    """PyTorch pads a pooling window by half of it at most."""
    return min((kernel - 1) // 2 if padding is None else padding, kernel // 2)


class MaxPool(_Pool):
    """kxk max pooling; where the width changes, 1x1 convolution and batch norm follow.

    `padding` is (kernel - 1) // 2 unless given and at most half the kernel; `ceil` keeps windows that overlap
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
        padding = _pool_padding(kernel, padding)
        super().__init__(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil), in_channels, out_channels)


class AvgPool(_Pool):
    """kxk average pooling, the border counted as zeros; where the width changes, 1x1 convolution and batch norm.

    Options as those of `max_pool`. With `size` the map is averaged to size x size, whatever it was (torchvision's
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
        padding = _pool_padding(kernel, padding)
        pool = AverageTo(size) if size else nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil)
        super().__init__(pool, in_channels, out_channels)

    @staticmethod
    def settle(in_channels: int, out_channels: int, stride: int, options: dict) -> dict:
        if options["size"]:
            return {"kernel": 3, "padding": 1, "ceil": False}
        return {"padding": _pool_padding(options["kernel"], options["padding"])}


class AverageTo(nn.Module):
    """The means over size x size parts of the map, as PyTorch's adaptive pooling cuts it, in ONNX at any size, too."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self._means(self._means(x, 2), 3)

    def _means(self, x: Tensor, dim: int) -> Tensor:
        side = int(x.shape[dim])  # a plain number also where the network is traced: ONNX rounds a quotient toward 0
        if side == self.size:
            return x
        ends = [(i * side // self.size, ((i + 1) * side + self.size - 1) // self.size) for i in range(self.size)]
        return torch.cat([x.narrow(dim, low, high - low).mean(dim, keepdim=True) for low, high in ends], dim)


class LocalResponseNorm(nn.Module):
    """x / (2 + 1e-4 x mean of x² over 5 neighbouring channels)^0.75. AlexNet, section 3.3.

    Where the shape changes, 1x1 convolution and batch norm follow.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        same = in_channels == out_channels and stride == 1
        self.project = nn.Sequential(*([] if same else [conv_bn(in_channels, out_channels, 1, stride)]))

    def forward(self, x: Tensor) -> Tensor:
        edge = torch.zeros_like(x[:, :1])
        squares = torch.cat([edge, edge, x.square(), edge, edge], 1)
        mean = sum(squares[:, i : i + x.shape[1]] for i in range(5)) / 5
        return self.project(x / (2 + 1e-4 * mean) ** 0.75)


BLOCKS = {
    "conv": Conv,
    "max_pool": MaxPool,
    "avg_pool": AvgPool,
    "lrn": LocalResponseNorm,
    "identity": Identity,
}
