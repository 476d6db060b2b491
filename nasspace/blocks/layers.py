"""Components of the blocks: convolution + batch norm + activation, squeeze-and-excitation, channel shuffle."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard_swish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "hard_sigmoid": nn.Hardsigmoid,
}
EPSILON = 1e-5  # PyTorch's epsilon of batch norm


def activation_layers(name: str) -> list[nn.Module]:
    """The activation called `name` as a list of one module; an empty list for 'none'."""
    return [] if name == "none" else [ACTIVATIONS[name]()]


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: str = "none",
    eps: float = EPSILON,
) -> nn.Sequential:
    """Convolution without bias, padded to keep the size, batch norm, activation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=eps),
        *activation_layers(activation),
    )


def conv_relu(
    in_channels: int,
    out_channels: int,
    kernel: int | tuple[int, int] = 1,
    stride: int = 1,
    padding: int | None = None,
    norm: str = "bn",
    eps: float = EPSILON,
) -> nn.Sequential:
    """Convolution, batch norm with `bn` (else a bias), ReLU; padded to keep the size if no padding is given."""
    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    border = tuple(size // 2 if padding is None else padding for size in sizes)
    conv = nn.Conv2d(in_channels, out_channels, sizes, stride, border, bias=norm == "none")
    return nn.Sequential(conv, *([nn.BatchNorm2d(out_channels, eps=eps)] if norm == "bn" else []), nn.ReLU())


def depthwise_bn(
    channels: int, kernel: int, stride: int = 1, activation: str = "none", eps: float = EPSILON
) -> nn.Sequential:
    """Depthwise convolution, batch norm, activation."""
    return conv_bn(channels, channels, kernel, stride, channels, activation, eps)


def make_divisible(value: float, divisor: int = 8, minimum: int | None = None) -> int:
    """The multiple of `divisor` nearest to `value`, never below nine tenths of it (TF-slim's rule).

    >>> make_divisible(0.75 * 24), make_divisible(0.35 * 16), make_divisible(58, 4)
    (24, 8, 60)
    """
    lowest = divisor if minimum is None else minimum
    rounded = max(lowest, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def share_of(width: int, share: float) -> int:
    """Multiply a width by a share and round down; a third of 96 is 32 despite binary fractions.

    >>> share_of(96, 1 / 3), share_of(100, 0.57)
    (32, 57)
    """
    return math.floor(width * share + 1e-6)


def common_groups(groups: int, *channels: int) -> int:
    """The largest number not above `groups` that divides all `channels`.

    >>> common_groups(8, 60, 240), common_groups(3, 24, 60, 216)
    (6, 3)
    """
    shared = math.gcd(*channels)
    return next(g for g in range(min(groups, shared), 0, -1) if shared % g == 0)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` groups: (g, n) is read as (n, g). ShuffleNet, section 3.1."""
    if groups == 1:
        return x
    channels, height, width = (int(size) for size in x.shape[1:])  # plain numbers, so that only the batch is traced
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):  # keep the format of training
        x = x.permute(0, 2, 3, 1).reshape(-1, height, width, groups, channels // groups)
        return x.transpose(3, 4).reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    x = x.reshape(-1, groups, channels // groups, height * width)  # four dimensions, as delegates on phones demand
    return x.transpose(1, 2).reshape(-1, channels, height, width)


def expanded_width(in_channels: int, expansion: float, hidden: int | None) -> int:
    """The given hidden width, else the expanded input width."""
    return hidden or max(1, round(in_channels * expansion))


def possible_skip(skip: str, in_channels: int, out_channels: int, stride: int) -> str:
    """The skip that can exist: 'none' where the width changes, and no 'identity' at a stride."""
    if in_channels != out_channels or (skip == "identity" and stride != 1):
        return "none"
    return skip


def skip_layer(skip: str, stride: int) -> nn.Module | None:
    """The module of a skip: an identity, 3x3 average pooling (MnasNet), or None for 'none'."""
    if skip == "none":
        return None
    return nn.AvgPool2d(3, stride, 1) if skip == "pool" else nn.Identity()


def squeezed_width(channels: int, se: float) -> int:
    """The inner width of squeeze-and-excitation: the share `se` of `channels`, at least 1."""
    return max(1, share_of(channels, se))


def resolved_se(channels: int, se: float) -> dict[str, int | None]:
    """Replace the ratio `se` to `channels` by the inner width it gives; nothing to replace where it is 0."""
    return {"se": None, "squeezed": squeezed_width(channels, se)} if se else {}


class SqueezeExcite(nn.Module):
    """mean -> 1x1 (bias), ReLU -> 1x1 (bias), gate -> scale. SENet, section 3."""

    def __init__(self, channels: int, squeezed: int, gate: str = "sigmoid"):
        super().__init__()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = ACTIVATIONS[gate]()

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of (batch, channels, H, W)."""
        return x * self.gate(self.expand(self.relu(self.reduce(self.mean(x)))))
