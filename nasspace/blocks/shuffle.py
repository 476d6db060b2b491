"""The ShuffleNet units."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from nasspace.blocks.layers import (
    SqueezeExcite,
    channel_shuffle,
    common_groups,
    conv_bn,
    depthwise_bn,
    share_of,
    squeezed_width,
)
from nasspace.blocks.options import Groups, Kernel, Ratio, Share

Order = Literal["paper", "megvii"]  # of the channels: the paper's, or that of the official code's weights


class ShuffleV1(nn.Module):
    """1x1 group conv, BN, ReLU -> shuffle -> kxk depthwise, BN -> 1x1 group conv, BN; ReLU(+ input). ShuffleNet, fig 2.

    The inner width is bottleneck x out. Where the shape changes, the main path gives out - in channels and the
    3x3 average-pooled input is concatenated in front (figure 2c); where out is not above in, a 1x1 convolution
    projects the pooled input to half of out first (a single channel has no half, and then no shortcut).
    `first_groups` groups the first convolution alone (1 in the network's first unit), else it is as `groups`.
    Groups that do not divide the unit's widths become the largest number below that divides them all.
    `shuffle: megvii` is for the official code's weights: it shuffles behind the depthwise convolution, and the other
    way round ((n, g) is read as (g, n)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        groups: Groups = 3,
        first_groups: Groups | None = None,
        kernel: Kernel = 3,
        bottleneck: Ratio = 0.25,
        shuffle: Order = "paper",
    ):
        super().__init__()
        same = stride == 1 and in_channels == out_channels
        middle, main = _v1_widths(in_channels, out_channels, same, bottleneck)
        groups, first_groups = _v1_groups(in_channels, middle, main, groups, first_groups)
        late = shuffle == "megvii" and groups > 1
        self.before, self.behind = (1, middle // groups) if late else (groups, 1)  # the depthwise convolution
        self.reduce = conv_bn(in_channels, middle, groups=first_groups, activation="relu")
        self.depthwise = depthwise_bn(middle, kernel, stride)
        self.expand = conv_bn(middle, main, groups=groups)
        self.adds = same
        self.shortcut = None if out_channels == main else nn.Sequential(nn.AvgPool2d(3, stride, 1))
        if self.shortcut is not None and out_channels <= in_channels:
            self.shortcut.append(conv_bn(in_channels, out_channels - main))
        self.relu = nn.ReLU()

    @staticmethod
    def settle(in_channels: int, out_channels: int, stride: int, options: dict) -> dict:
        same = stride == 1 and in_channels == out_channels
        middle, main = _v1_widths(in_channels, out_channels, same, options["bottleneck"])
        groups, first = _v1_groups(in_channels, middle, main, options["groups"], options["first_groups"])
        shuffle = options["shuffle"] if 1 < groups < middle else "paper"
        return {"groups": groups, "first_groups": first, "bottleneck": None, "middle": middle, "shuffle": shuffle}

    def forward(self, x: Tensor) -> Tensor:
        out = self.depthwise(channel_shuffle(self.reduce(x), self.before))
        out = self.expand(channel_shuffle(out, self.behind))
        if self.adds:
            return self.relu(x + out)
        return self.relu(out if self.shortcut is None else torch.cat([self.shortcut(x), out], 1))


def _v1_widths(in_channels: int, out_channels: int, same: bool, bottleneck: float) -> tuple[int, int]:
    """The inner width and that of the main path's output."""
    middle = max(1, share_of(out_channels, bottleneck))
    if same:
        return middle, out_channels
    grows = out_channels > in_channels
    return middle, out_channels - (in_channels if grows else out_channels // 2)


def _v1_groups(in_channels: int, middle: int, main: int, groups: int, first: int | None) -> tuple[int, int]:
    if first is None:
        groups = common_groups(groups, in_channels, middle, main)
        return groups, groups
    return common_groups(groups, middle, main), common_groups(first, in_channels, middle)


class ShuffleV2(nn.Module):
    """Half passes; half: 1x1, BN, ReLU -> kxk depthwise, BN -> 1x1, BN, ReLU [-> SE]; concat; shuffle(2). V2, fig. 3.

    Where the shape changes nothing is split: the shortcut is kxk depthwise, BN -> 1x1, BN, ReLU (figure 3d).
    Its width is that of the input with `split: paper` (the official code), half of out with `split: half`
    (torchvision), and half of out where out is not above in. An odd width cannot be shuffled and is not. `se`
    is the ratio of squeeze-and-excitation at the end of the branch (the paper's appendix). `shuffle: megvii` is for
    the official code's weights: nothing is shuffled at the end; even channels pass and odd ones enter the branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        split: Literal["paper", "half"] = "paper",
        se: Share = 0.0,
        shuffle: Order = "paper",
    ):
        super().__init__()
        self.passed, source, main = _v2_widths(in_channels, out_channels, stride, split)
        middle = out_channels // 2 or 1
        self.shortcut = _v2_shortcut(in_channels, out_channels - main - self.passed, kernel, stride)
        self.branch = nn.Sequential(
            conv_bn(source, middle, activation="relu"),
            depthwise_bn(middle, kernel, stride),
            conv_bn(middle, main, activation="relu"),
            *([SqueezeExcite(main, squeezed_width(main, se))] if se else []),
        )
        groups = common_groups(2, out_channels)
        self.before, self.behind = (out_channels // groups, 1) if shuffle == "megvii" else (1, groups)  # the branch

    @staticmethod
    def settle(in_channels: int, out_channels: int, stride: int, options: dict) -> dict:
        paper, half = (_v2_widths(in_channels, out_channels, stride, split) for split in ("paper", "half"))
        split = options["split"] if paper != half else "paper"
        main = (half if split == "half" else paper)[2]
        se = {"se": None, "squeezed": squeezed_width(main, options["se"])} if options["se"] else {}
        shuffle = options["shuffle"] if out_channels % 2 == 0 and out_channels > 2 else "paper"
        return {"split": split, "shuffle": shuffle, **se}

    def forward(self, x: Tensor) -> Tensor:
        if self.passed:
            x = channel_shuffle(x, self.before)
            kept, x = x[:, : self.passed], x[:, self.passed :]
        elif self.shortcut is None:
            return self.branch(x)
        else:
            kept = self.shortcut(x)
        return channel_shuffle(torch.cat([kept, self.branch(x)], 1), self.behind)


def _v2_widths(in_channels: int, out_channels: int, stride: int, split: str) -> tuple[int, int, int]:
    """Channels that pass unchanged (0 in the down form), that enter the branch, that the branch gives.

    A single channel cannot be split, so that its unit takes the down form; half of one is none, so that a unit of
    one output channel has no shortcut.
    """
    if stride == 1 and in_channels == out_channels > 1:
        passed = in_channels // 2
        return passed, in_channels - passed, out_channels - passed
    projected = in_channels if split == "paper" and out_channels > in_channels else out_channels // 2
    return 0, in_channels, out_channels - projected


def _v2_shortcut(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Module | None:
    if not out_channels:
        return None
    return nn.Sequential(
        depthwise_bn(in_channels, kernel, stride), conv_bn(in_channels, out_channels, activation="relu")
    )


class ShuffleV2Xception(nn.Module):
    """ShuffleNet V2's unit with the branch [kxk depthwise, BN -> 1x1, BN, ReLU] x 3. Single Path One-Shot, section 4.

    Widths, shortcut and shuffle as in `shuffle_v2`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, kernel: Kernel = 3):
        super().__init__()
        self.passed, source, main = _v2_widths(in_channels, out_channels, stride, "paper")
        middle = out_channels // 2 or 1
        widths = [source, middle, middle, main]
        layers: list[nn.Module] = []
        for i in range(3):
            layers.append(depthwise_bn(widths[i], kernel, stride if i == 0 else 1))
            layers.append(conv_bn(widths[i], widths[i + 1], activation="relu"))
        self.shortcut = _v2_shortcut(in_channels, out_channels - main - self.passed, kernel, stride)
        self.branch = nn.Sequential(*layers)
        self.before, self.behind = 1, common_groups(2, out_channels)

    forward = ShuffleV2.forward


BLOCKS = {"shuffle_v1": ShuffleV1, "shuffle_v2": ShuffleV2, "shuffle_v2_xception": ShuffleV2Xception}
