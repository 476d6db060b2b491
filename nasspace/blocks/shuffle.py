"""The ShuffleNet units."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from nasspace.blocks.layers import (
    SqueezeExcite,
    channel_shuffle,
    common_groups,
    conv_bn,
    depthwise_bn,
    resolved_se,
    share_of,
)
from nasspace.blocks.options import Groups, Kernel, Ratio, Share

Order = Literal["paper", "megvii"]  # channel order of the paper, or of the official weights


class ShuffleV1(nn.Module):
    """1x1 group conv, BN, ReLU -> shuffle -> kxk depthwise, BN -> 1x1 group conv, BN; ReLU(+ input). ShuffleNet, fig 2.

    The inner width is bottleneck x out. If the shape changes, the 3x3 average-pooled input is concatenated before the
    main path's out - in channels (figure 2c). If out <= in, a 1x1 convolution first projects the pooled input to
    out // 2 channels; with out = 1 there is no shortcut. `first_groups` sets the groups of the first convolution (1 in
    the network's first unit), by default `groups`. Groups that do not divide all widths of the unit are lowered to the
    next number that does. `shuffle: megvii` is for the official weights: the shuffle follows the depthwise convolution
    and is inverse, reading (n, g) as (g, n). `none` leaves it out (table 3).
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
        shuffle: Literal["paper", "megvii", "none"] = "paper",
    ):
        super().__init__()
        resolved = ShuffleV1.resolve(
            in_channels,
            out_channels,
            stride,
            groups=groups,
            first_groups=first_groups,
            bottleneck=bottleneck,
            shuffle=shuffle,
        )
        groups, middle, main = resolved["groups"], resolved["middle"], _v1_main(in_channels, out_channels, stride)
        # Groups of the channel shuffles before and after the depthwise convolution; 1 does not shuffle.
        orders = {"paper": (groups, 1), "megvii": (1, middle // groups), "none": (1, 1)}
        self.shuffle_before, self.shuffle_after = orders[resolved["shuffle"]]
        self.reduce = conv_bn(in_channels, middle, groups=resolved["first_groups"], activation="relu")
        self.depthwise = depthwise_bn(middle, kernel, stride)
        self.expand = conv_bn(middle, main, groups=groups)
        self.adds = stride == 1 and in_channels == out_channels
        self.shortcut = None if out_channels == main else nn.Sequential(nn.AvgPool2d(3, stride, 1))
        if self.shortcut is not None and out_channels <= in_channels:
            self.shortcut.append(conv_bn(in_channels, out_channels - main))
        self.relu = nn.ReLU()

    @staticmethod
    def resolve(
        in_channels: int,
        out_channels: int,
        stride: int,
        *,
        groups: int,
        first_groups: int | None,
        bottleneck: float,
        shuffle: str,
        **_: Any,
    ) -> dict[str, Any]:
        """Resolve the inner width, groups that divide the widths, and `shuffle` ('paper' if all orders are equal)."""
        middle, main = max(1, share_of(out_channels, bottleneck)), _v1_main(in_channels, out_channels, stride)
        if first_groups is None:
            groups = first_groups = common_groups(groups, in_channels, middle, main)
        else:
            groups = common_groups(groups, middle, main)
            first_groups = common_groups(first_groups, in_channels, middle)
        return {
            "groups": groups,
            "first_groups": first_groups,
            "bottleneck": None,
            "middle": middle,
            "shuffle": shuffle if 1 < groups < middle else "paper",
        }

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        out = self.depthwise(channel_shuffle(self.reduce(x), self.shuffle_before))
        out = self.expand(channel_shuffle(out, self.shuffle_after))
        if self.adds:
            return self.relu(x + out)
        return self.relu(out if self.shortcut is None else torch.cat([self.shortcut(x), out], 1))


def _v1_main(in_channels: int, out_channels: int, stride: int) -> int:
    """The output width of the main path: `out` minus the width of the concatenated shortcut, if there is one."""
    if stride == 1 and in_channels == out_channels:
        return out_channels
    return out_channels - (in_channels if out_channels > in_channels else out_channels // 2)


class ShuffleV2(nn.Module):
    """Split: identity | 1x1, BN, ReLU -> kxk depthwise, BN -> 1x1, BN, ReLU [-> SE]; concat; shuffle(2). V2, fig. 3.

    If the shape changes, the input is not split, and the shortcut is kxk depthwise, BN -> 1x1, BN, ReLU (figure 3d).
    The shortcut has as many channels as the input with `split: paper` (the official code), and out // 2 with
    `split: half` (torchvision) or if out <= in. An odd width is not shuffled. `se` is the ratio of
    squeeze-and-excitation at the end of the branch (the paper's appendix). `shuffle: megvii` is for the official
    weights: the shuffle precedes the split, so that even channels pass and odd ones enter the branch.
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
        resolved = ShuffleV2.resolve(in_channels, out_channels, stride, split=split, se=se, shuffle=shuffle)
        self.passed, source, main = _v2_widths(in_channels, out_channels, stride, resolved["split"])
        middle = out_channels // 2 or 1
        self.shortcut = _v2_shortcut(in_channels, out_channels - main - self.passed, kernel, stride)
        self.branch = nn.Sequential(
            conv_bn(source, middle, activation="relu"),
            depthwise_bn(middle, kernel, stride),
            conv_bn(middle, main, activation="relu"),
            *([SqueezeExcite(main, resolved["squeezed"])] if se else []),
        )
        groups = common_groups(2, out_channels)
        # Groups of the channel shuffles before and after the branch; 1 does not shuffle.
        megvii = resolved["shuffle"] == "megvii"
        self.shuffle_before, self.shuffle_after = (out_channels // groups, 1) if megvii else (1, groups)

    @staticmethod
    def resolve(
        in_channels: int, out_channels: int, stride: int, *, split: str, se: float, shuffle: str, **_: Any
    ) -> dict[str, Any]:
        """Resolve `split` and `shuffle` ('paper' where they make no difference), and the inner width of `se`."""
        paper, half = (_v2_widths(in_channels, out_channels, stride, each) for each in ("paper", "half"))
        split = split if paper != half else "paper"
        main = (half if split == "half" else paper)[2]
        shuffle = shuffle if out_channels % 2 == 0 and out_channels > 2 else "paper"
        return {"split": split, "shuffle": shuffle, **resolved_se(main, se)}

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        if self.passed:
            x = channel_shuffle(x, self.shuffle_before)
            kept, x = x[:, : self.passed], x[:, self.passed :]
        elif self.shortcut is None:
            return self.branch(x)
        else:
            kept = self.shortcut(x)
        return channel_shuffle(torch.cat([kept, self.branch(x)], 1), self.shuffle_after)


def _v2_widths(in_channels: int, out_channels: int, stride: int, split: str) -> tuple[int, int, int]:
    """The widths of the identity path (0 if the shape changes), of the branch's input, and of its output.

    A single channel cannot be split, so a unit with one input channel is built as if the shape changed. With one
    output channel there is no shortcut.
    """
    if stride == 1 and in_channels == out_channels > 1:
        passed = in_channels // 2
        return passed, in_channels - passed, out_channels - passed
    projected = in_channels if split == "paper" and out_channels > in_channels else out_channels // 2
    return 0, in_channels, out_channels - projected


def _v2_shortcut(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Module | None:
    """kxk depthwise, BN -> 1x1, BN, ReLU; None for no output channels."""
    if not out_channels:
        return None
    return nn.Sequential(
        depthwise_bn(in_channels, kernel, stride), conv_bn(in_channels, out_channels, activation="relu")
    )


class ShuffleV2Xception(nn.Module):
    """ShuffleNet V2's unit with the branch [kxk depthwise, BN -> 1x1, BN, ReLU] x 3. Single Path One-Shot, section 4.

    Widths, shortcut and shuffle are those of `shuffle_v2`.
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
        self.shuffle_before, self.shuffle_after = 1, common_groups(2, out_channels)

    forward = ShuffleV2.forward


BLOCKS = {"shuffle_v1": ShuffleV1, "shuffle_v2": ShuffleV2, "shuffle_v2_xception": ShuffleV2Xception}
