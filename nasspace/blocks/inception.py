"""Inception modules: parallel branches, whose outputs are concatenated or, in Inception-ResNet, added to the input.

Options are shares of a module's output width, so that every module exists at every width; a published network gives
the shares that result in its widths (`256` channels and `1/8` are 32). The first branch gets the channels that the
other ones leave, and a branch without channels is left out. Every convolution has batch norm and ReLU.

Modules that keep the size of the map put a 3x3 max pooling in front for a stride, as the published networks do. Those
that halve it concatenate a max pooling of the input; where the output is not wider than the input, that branch ends
in a 1x1 convolution to half of the output. With `padding: 0` their windows stay inside of the map, as published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nasspace.blocks.layers import EPSILON, activation_layers, conv_bn, conv_relu, share_of
from nasspace.blocks.options import Activation, Epsilon, Kernel, Norm, Probability, Ratio, Share, Width, Window
from nasspace.blocks.plain import AverageTo, Identity

Size = int | tuple[int, int]  # of a kernel, or its rows and columns
Border = Literal[0, 1]
REDUCED = 128  # channels of an auxiliary classifier


class _Branches(nn.Module):
    """Branches over one map, whose outputs are concatenated.

    `outputs` are the options for the widths of all branches but the first, `inner` those for widths within branches,
    each with the branches that have it (`first`, or one of `outputs`).
    """

    outputs: tuple[str, ...]
    inner: tuple[tuple[str, tuple[str, ...]], ...]

    def __init__(self, branches: Iterable[nn.Module], stride: int = 1):
        super().__init__()
        self.before = nn.MaxPool2d(3, stride, 1) if stride > 1 else nn.Identity()
        self.branches = nn.ModuleList(branches)

    @classmethod
    def widths(cls, out_channels: int, shares: Mapping[str, float]) -> dict[str, int]:
        """The width in channels for each share of `out_channels`, and that of the `first` branch."""
        left, widths = out_channels, {}
        for option in cls.outputs:
            widths[option] = min(left, share_of(out_channels, shares[option]))
            left -= widths[option]
        widths["first"] = left
        for option, branches in cls.inner:
            used = any(widths[branch] for branch in branches)
            widths[option] = max(1, share_of(out_channels, shares[option])) if used else 0
        return widths

    @classmethod
    def resolve(cls, in_channels: int, out_channels: int, stride: int, **options: Any) -> dict[str, Any]:
        """Widths in channels in place of shares."""
        widths = cls.widths(out_channels, options)
        options = [*cls.outputs, *(option for option, _ in cls.inner)]
        return dict.fromkeys(options) | {f"{option}_width": widths[option] for option in options}

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        x = self.before(x)
        return torch.cat([branch(x) for branch in self.branches], 1)


class InceptionV1(_Branches):
    """concat(1x1 | 1x1 -> 3x3 | 1x1 -> 5x5 | 3x3 max pooling -> 1x1), BN and ReLU after each. GoogLeNet, figure 2b.

    The defaults are the shares of module 3a (table 1). `kernel` is that of the 5x5 branch; torchvision's GoogLeNet has
    3. `factorization` replaces its convolution by `stacked` 3x3 ones of the same field of view (Szegedy et al. 2016,
    figure 5) or by 1xk and kx1 (`asymmetric`, figure 6). With `norm: none`, as in the paper, convolutions have a bias.
    """

    outputs = ("expand_3x3", "expand_5x5", "pool")
    inner = (("squeeze_3x3", ("expand_3x3",)), ("squeeze_5x5", ("expand_5x5",)))

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        squeeze_3x3: Share = 96 / 256,
        expand_3x3: Share = 128 / 256,
        squeeze_5x5: Share = 16 / 256,
        expand_5x5: Share = 32 / 256,
        pool: Share = 32 / 256,
        kernel: Kernel = 5,
        factorization: Literal["none", "stacked", "asymmetric"] = "none",
        norm: Norm = "bn",
        eps: Epsilon = EPSILON,
    ):
        shares = {
            "squeeze_3x3": squeeze_3x3,
            "expand_3x3": expand_3x3,
            "squeeze_5x5": squeeze_5x5,
            "expand_5x5": expand_5x5,
            "pool": pool,
        }
        width = self.widths(out_channels, shares)
        sizes = _factors(kernel, factorization)
        branches = [
            _chain(in_channels, (width["first"], 1), eps=eps, norm=norm),
            _chain(in_channels, (width["squeeze_3x3"], 1), (width["expand_3x3"], 3), eps=eps, norm=norm),
            _chain(
                in_channels,
                (width["squeeze_5x5"], 1),
                *((width["expand_5x5"], size) for size in sizes),
                eps=eps,
                norm=norm,
            ),
            _pooled(nn.MaxPool2d(3, 1, 1), in_channels, width["pool"], eps, norm),
        ]
        super().__init__(filter(None, branches), stride)

    @classmethod
    def resolve(cls, in_channels: int, out_channels: int, stride: int, **options: Any) -> dict[str, Any]:
        """Widths in channels in place of shares; no kernel of a branch that is left out, nor factors equal to it."""
        resolved = super().resolve(in_channels, out_channels, stride, **options)
        kernel = options["kernel"] if resolved["expand_5x5_width"] else 5
        factors = _factors(kernel, options["factorization"]) if resolved["expand_5x5_width"] else [kernel]
        return {
            **resolved,
            "kernel": kernel,
            "factorization": "none" if factors == [kernel] else options["factorization"],
            "eps": options["eps"] if options["norm"] == "bn" else EPSILON,
        }


class InceptionA(_Branches):
    """concat(1x1 | 1x1 -> 5x5 | 1x1 -> 3x3 -> 3x3 | 3x3 average pooling -> 1x1). Inception v3 (2016), figure 5.

    The defaults are the shares at 256 channels. `kernel` is that of the second branch (3 in Inception v4, figure 4).
    `count_border` counts the zeros around the map in the average, as torchvision does and timm does not.
    """

    outputs = ("expand_5x5", "expand_3x3", "pool")
    inner = (("squeeze_5x5", ("expand_5x5",)), ("squeeze_3x3", ("expand_3x3",)))

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        squeeze_5x5: Share = 48 / 256,
        expand_5x5: Share = 64 / 256,
        squeeze_3x3: Share = 64 / 256,
        expand_3x3: Share = 96 / 256,
        pool: Share = 32 / 256,
        kernel: Kernel = 5,
        count_border: bool = True,
        eps: Epsilon = EPSILON,
    ):
        shares = {
            "squeeze_5x5": squeeze_5x5,
            "expand_5x5": expand_5x5,
            "squeeze_3x3": squeeze_3x3,
            "expand_3x3": expand_3x3,
            "pool": pool,
        }
        width = self.widths(out_channels, shares)
        wide = (width["expand_3x3"], 3)
        branches = [
            _chain(in_channels, (width["first"], 1), eps=eps),
            _chain(in_channels, (width["squeeze_5x5"], 1), (width["expand_5x5"], kernel), eps=eps),
            _chain(in_channels, (width["squeeze_3x3"], 1), wide, wide, eps=eps),
            _pooled(_average(count_border), in_channels, width["pool"], eps),
        ]
        super().__init__(filter(None, branches), stride)

    @classmethod
    def resolve(cls, in_channels: int, out_channels: int, stride: int, **options: Any) -> dict[str, Any]:
        """Widths in channels in place of shares; no kernel or border of a branch that is left out."""
        resolved = super().resolve(in_channels, out_channels, stride, **options)
        kernel = options["kernel"] if resolved["expand_5x5_width"] else 5
        return {**resolved, "kernel": kernel, **_border(resolved, options)}


class InceptionC(_Branches):
    """concat(1x1 | 1x1 -> 1x7 -> 7x1 | 1x1 -> (7x1 -> 1x7) twice | 3x3 average pooling -> 1x1). Inception v3, figure 6.

    `expand_short` and `expand_long` are the output shares of the two branches with factors; in both, `squeeze` is the
    share of their first convolutions and `middle` that of the others before the last. The defaults are the shares of
    the first module of 768 channels. `kernel` is k of 1xk and kx1, and `count_border` is that of `inception_a`.
    """

    outputs = ("expand_short", "expand_long", "pool")
    inner = (("squeeze", ("expand_short", "expand_long")), ("middle", ("expand_short", "expand_long")))

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        squeeze: Share = 128 / 768,
        middle: Share = 128 / 768,
        expand_short: Share = 192 / 768,
        expand_long: Share = 192 / 768,
        pool: Share = 192 / 768,
        kernel: Kernel = 7,
        count_border: bool = True,
        eps: Epsilon = EPSILON,
    ):
        shares = {
            "squeeze": squeeze,
            "middle": middle,
            "expand_short": expand_short,
            "expand_long": expand_long,
            "pool": pool,
        }
        width = self.widths(out_channels, shares)
        reduced, between = (width["squeeze"], 1), width["middle"]
        row, column = (1, kernel), (kernel, 1)
        long = [(width["squeeze"], column), (between, row), (between, column), (width["expand_long"], row)]
        branches = [
            _chain(in_channels, (width["first"], 1), eps=eps),
            _chain(in_channels, reduced, (between, row), (width["expand_short"], column), eps=eps),
            _chain(in_channels, reduced, *long, eps=eps),
            _pooled(_average(count_border), in_channels, width["pool"], eps),
        ]
        super().__init__(filter(None, branches), stride)

    @classmethod
    def resolve(cls, in_channels: int, out_channels: int, stride: int, **options: Any) -> dict[str, Any]:
        """Widths in channels in place of shares; no kernel or border of branches that are left out."""
        resolved = super().resolve(in_channels, out_channels, stride, **options)
        return {
            **resolved,
            "kernel": options["kernel"] if resolved["squeeze_width"] else 7,
            **_border(resolved, options),
        }


class InceptionE(_Branches):
    """concat(1x1 | 1x1 -> 1x3, 3x1 | 1x1 -> 3x3 -> 1x3, 3x1 | 3x3 average pooling -> 1x1). Inception v3, figure 7.

    `expand_short` and `expand_long` are the output shares of the branches that end in 1x3 and 3x1 side by side, half of
    the channels each. With `factorized` the 3x3 convolution of the long branch is 3x1 -> 1x3 with a width halfway in
    the middle (Inception v4, figure 6). The defaults are the shares at 2048 channels. `count_border` is that of
    `inception_a`.
    """

    outputs = ("expand_short", "expand_long", "pool")
    inner = (("squeeze_short", ("expand_short",)), ("squeeze_long", ("expand_long",)), ("middle", ("expand_long",)))

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        squeeze_short: Share = 384 / 2048,
        expand_short: Share = 768 / 2048,
        squeeze_long: Share = 448 / 2048,
        middle: Share = 384 / 2048,
        expand_long: Share = 768 / 2048,
        pool: Share = 192 / 2048,
        factorized: bool = False,
        count_border: bool = True,
        eps: Epsilon = EPSILON,
    ):
        shares = {
            "squeeze_short": squeeze_short,
            "expand_short": expand_short,
            "squeeze_long": squeeze_long,
            "middle": middle,
            "expand_long": expand_long,
            "pool": pool,
        }
        width = self.widths(out_channels, shares)
        between, squeezed = width["middle"], width["squeeze_long"]
        whole = [((squeezed + between) // 2, (3, 1)), (between, (1, 3))] if factorized else [(between, 3)]
        branches = [
            _chain(in_channels, (width["first"], 1), eps=eps),
            _forked(in_channels, width["expand_short"], (width["squeeze_short"], 1), eps=eps),
            _forked(in_channels, width["expand_long"], (squeezed, 1), *whole, eps=eps),
            _pooled(_average(count_border), in_channels, width["pool"], eps),
        ]
        super().__init__(filter(None, branches), stride)

    @classmethod
    def resolve(cls, in_channels: int, out_channels: int, stride: int, **options: Any) -> dict[str, Any]:
        """Widths in channels in place of shares; no factors or border of branches that are left out."""
        resolved = super().resolve(in_channels, out_channels, stride, **options)
        factorized = options["factorized"] and bool(resolved["middle_width"])
        return {**resolved, "factorized": factorized, **_border(resolved, options)}


class _Reduction(_Branches):
    """Branches that may halve the map, and a max pooling of the input: shares are those of the other channels."""

    def __init__(
        self,
        branches: Iterable[nn.Module | None],
        in_channels: int,
        out_channels: int,
        stride: int,
        padding: Border,
        eps: float,
        pool: bool = True,
        pool_first: bool = False,
    ):
        pooled = _pooled_width(in_channels, out_channels, pool)
        project = [conv_relu(in_channels, pooled, eps=eps)] if pooled not in (0, in_channels) else []
        pools = [nn.Sequential(nn.MaxPool2d(3, stride, padding), *project)] if pooled else []
        present = [branch for branch in branches if branch is not None]
        super().__init__([*pools, *present] if pool_first else [*present, *pools])

    @classmethod
    def resolve(cls, in_channels: int, out_channels: int, stride: int, **options: Any) -> dict[str, Any]:
        """Widths in channels in place of shares."""
        pooled = _pooled_width(in_channels, out_channels, options.get("pool", True))
        return super().resolve(in_channels, out_channels - pooled, stride, **options)


class InceptionB(_Reduction):
    """concat(3x3 | 1x1 -> 3x3 -> 3x3 | 3x3 max pooling), the last of each with the stride. Inception v3, figure 10.

    `squeeze`, `middle` and `expand` are shares of the second branch in the channels besides the pooled ones; the
    defaults are those of v3 with 288 channels in. `pool_first` puts the pooling first (Inception v4's stem).
    """

    outputs = ("expand",)
    inner = (("squeeze", ("expand",)), ("middle", ("expand",)))

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        squeeze: Share = 64 / 480,
        middle: Share = 96 / 480,
        expand: Share = 96 / 480,
        padding: Border = 1,
        pool_first: bool = False,
        eps: Epsilon = EPSILON,
    ):
        grown = out_channels - _pooled_width(in_channels, out_channels)
        width = self.widths(grown, {"squeeze": squeeze, "middle": middle, "expand": expand})
        last = {"eps": eps, "stride": stride, "padding": padding}
        steps = [(width["squeeze"], 1), (width["middle"], 3), (width["expand"], 3)]
        branches = [_chain(in_channels, (width["first"], 3), **last), _chain(in_channels, *steps, **last)]
        super().__init__(branches, in_channels, out_channels, stride, padding, eps, pool_first=pool_first)


class InceptionD(_Reduction):
    """concat(1x1 -> 3x3 | 1x1 -> 1x7 -> 7x1 -> 3x3 | 3x3 max pooling), the last of each with the stride. Inception v3.

    torchvision's module with 7x7 factors; the shares are those of `inception_b`, with `squeeze_3x3` for the first
    branch. Without `pool` it is the module of Inception v4's stem with two branches (figure 3).
    """

    outputs = ("expand_7x7",)
    inner = (("squeeze_3x3", ("first",)), ("squeeze_7x7", ("expand_7x7",)), ("middle_7x7", ("expand_7x7",)))

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        squeeze_3x3: Share = 192 / 512,
        squeeze_7x7: Share = 192 / 512,
        middle_7x7: Share = 192 / 512,
        expand_7x7: Share = 192 / 512,
        pool: bool = True,
        padding: Border = 1,
        eps: Epsilon = EPSILON,
    ):
        shares = {
            "squeeze_3x3": squeeze_3x3,
            "squeeze_7x7": squeeze_7x7,
            "middle_7x7": middle_7x7,
            "expand_7x7": expand_7x7,
        }
        width = self.widths(out_channels - _pooled_width(in_channels, out_channels, pool), shares)
        last = {"eps": eps, "stride": stride, "padding": padding}
        factors = [(width["squeeze_7x7"], (1, 7)), (width["middle_7x7"], (7, 1))]
        branches = [
            _chain(in_channels, (width["squeeze_3x3"], 1), (width["first"], 3), **last),
            _chain(in_channels, (width["squeeze_7x7"], 1), *factors, (width["expand_7x7"], 3), **last),
        ]
        super().__init__(branches, in_channels, out_channels, stride, padding, eps, pool)


class InceptionResnetD(_Reduction):
    """concat(1x1 -> 3x3 | 1x1 -> 3x3 | 1x1 -> 3x3 -> 3x3 | 3x3 max pooling), the last of each with the stride.

    Inception-ResNet v2's second reduction (Szegedy et al. 2017, figure 18). The shares are those of `inception_b`;
    `squeeze` is that of all three branches.
    """

    outputs = ("expand_short", "expand_long")
    inner = (("squeeze", ("first", "expand_short", "expand_long")), ("middle", ("expand_long",)))

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        squeeze: Share = 256 / 992,
        expand_short: Share = 288 / 992,
        middle: Share = 288 / 992,
        expand_long: Share = 320 / 992,
        padding: Border = 1,
        eps: Epsilon = EPSILON,
    ):
        shares = {"squeeze": squeeze, "expand_short": expand_short, "middle": middle, "expand_long": expand_long}
        width = self.widths(out_channels - _pooled_width(in_channels, out_channels), shares)
        last = {"eps": eps, "stride": stride, "padding": padding}
        reduced = (width["squeeze"], 1)
        branches = [
            _chain(in_channels, reduced, (width["first"], 3), **last),
            _chain(in_channels, reduced, (width["expand_short"], 3), **last),
            _chain(in_channels, reduced, (width["middle"], 3), (width["expand_long"], 3), **last),
        ]
        super().__init__(branches, in_channels, out_channels, stride, padding, eps)


class _Residual(nn.Module):
    """activation(scale x 1x1(concat(branches)) + shortcut); the 1x1 convolution has a bias and no batch norm.

    The shortcut is a 1x1 convolution and BN where the width changes. A stride is a 3x3 max pooling in front.
    """

    def __init__(
        self,
        branches: list[nn.Module],
        width: int,
        in_channels: int,
        out_channels: int,
        stride: int,
        scale: float,
        activation: str,
    ):
        super().__init__()
        self.before = nn.MaxPool2d(3, stride, 1) if stride > 1 else nn.Identity()
        self.branches = nn.ModuleList(branches)
        self.project = nn.Conv2d(width, out_channels, 1)
        self.shortcut = nn.Identity() if in_channels == out_channels else conv_bn(in_channels, out_channels)
        self.scale = scale
        self.activation = nn.Sequential(*activation_layers(activation))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        x = self.before(x)
        added = self.project(torch.cat([branch(x) for branch in self.branches], 1))
        return self.activation(added * self.scale + self.shortcut(x))


class InceptionResnetA(_Residual):
    """ReLU(scale x 1x1(concat(1x1 | 1x1 -> 3x3 | 1x1 -> 3x3 -> 3x3)) + input). Inception-ResNet v2, figure 16.

    `squeeze` is the share of the output width that the 1x1 convolutions and the first 3x3 branch have, `middle` and
    `expand` are those of the two 3x3 convolutions. The defaults are the shares at 320 channels; `scale` follows the
    paper's section 3.3. The shortcut where the width changes is that of ResNet.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        squeeze: Ratio = 32 / 320,
        middle: Ratio = 48 / 320,
        expand: Ratio = 64 / 320,
        scale: Ratio = 0.17,
        activation: Activation = "relu",
        eps: Epsilon = EPSILON,
    ):
        narrow, between, wide = (_inner(out_channels, share) for share in (squeeze, middle, expand))
        reduced = (narrow, 1)
        branches = [
            _convs(in_channels, reduced, eps=eps),
            _convs(in_channels, reduced, (narrow, 3), eps=eps),
            _convs(in_channels, reduced, (between, 3), (wide, 3), eps=eps),
        ]
        super().__init__(branches, 2 * narrow + wide, in_channels, out_channels, stride, scale, activation)

    @staticmethod
    def resolve(in_channels: int, out_channels: int, stride: int, **options: Any) -> dict[str, Any]:
        """Widths in channels in place of shares."""
        return _inner_widths(out_channels, options, "squeeze", "middle", "expand")


class InceptionResnetB(_Residual):
    """ReLU(scale x 1x1(concat(1x1 | 1x1 -> 1x7 -> 7x1)) + input). Inception-ResNet v2, figure 17; figure 19 with 3.

    `straight` is the share of the 1x1 branch in the output width, `squeeze`, `middle` and `expand` are those of the
    other branch in turn. The defaults are the shares at 1088 channels. `kernel` is k of 1xk and kx1. `scale` and the
    shortcut are those of `inception_resnet_a`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        straight: Ratio = 192 / 1088,
        squeeze: Ratio = 128 / 1088,
        middle: Ratio = 160 / 1088,
        expand: Ratio = 192 / 1088,
        kernel: Kernel = 7,
        scale: Ratio = 0.1,
        activation: Activation = "relu",
        eps: Epsilon = EPSILON,
    ):
        first, narrow, between, wide = (_inner(out_channels, share) for share in (straight, squeeze, middle, expand))
        branches = [
            _convs(in_channels, (first, 1), eps=eps),
            _convs(in_channels, (narrow, 1), (between, (1, kernel)), (wide, (kernel, 1)), eps=eps),
        ]
        super().__init__(branches, first + wide, in_channels, out_channels, stride, scale, activation)

    @staticmethod
    def resolve(in_channels: int, out_channels: int, stride: int, **options: Any) -> dict[str, Any]:
        """Widths in channels in place of shares."""
        return _inner_widths(out_channels, options, "straight", "squeeze", "middle", "expand")


class AuxiliaryClassifier(nn.Sequential):
    """Average to size x size -> 1x1 to 128, BN, ReLU -> linear, ReLU -> dropout -> linear: scores of classes.

    `loss_weight` makes a training add that share of their loss to the network's.
    """

    def __init__(self, in_channels: int, classes: int, size: int, hidden: int, p: float, weight: float):
        super().__init__(
            AverageTo(size),
            conv_bn(in_channels, REDUCED, activation="relu"),
            nn.Flatten(),
            nn.Linear(REDUCED * size**2, hidden),
            nn.ReLU(),
            nn.Dropout(p),
            nn.Linear(hidden, classes),
        )
        self.loss_weight = weight


class Auxiliary(nn.Module):
    """The map itself; in training a classifier on it, whose loss is added to the network's. GoogLeNet, section 5.

    The classifier has the network's `classes`; it is no part of the network for inference, nor of its counts. It
    averages the map to `size` x `size`, which is what the paper's pooling gives at its resolution, and has a hidden
    layer of `hidden` units; `p` is the probability of dropout. `weight` is that of its loss. Where the shape changes, a
    1x1 convolution and BN follow.
    """

    classifies = True  # `classes` are the network's

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        classes: Width = 1000,
        size: Window = 4,
        hidden: Width = 1024,
        p: Probability = 0.7,
        weight: Ratio = 0.3,
    ):
        super().__init__()
        self.classifier = AuxiliaryClassifier(in_channels, classes, size, hidden, p, weight)
        self.passed = Identity(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        if self.training:
            self.classifier(x)
        return self.passed(x)

    def folded(self) -> nn.Module:
        """The block without its classifier."""
        return self.passed


def _inner(out_channels: int, share: float) -> int:
    """The width of a branch that is always there."""
    return max(1, share_of(out_channels, share))


def _inner_widths(out_channels: int, options: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Widths in channels in place of the shares called `names`."""
    return dict.fromkeys(names) | {f"{name}_width": _inner(out_channels, options[name]) for name in names}


def _factors(kernel: int, factorization: str) -> list[Size]:
    """The kernels that replace a square one; the kernel itself where there is nothing to factorize."""
    if factorization == "stacked" and kernel > 3:
        return [3] * (kernel // 2)
    if factorization == "asymmetric" and kernel > 1:
        return [(1, kernel), (kernel, 1)]
    return [kernel]


def _pooled_width(in_channels: int, out_channels: int, pool: bool = True) -> int:
    """The channels of a reduction's pooling: those of the input, or half of an output that is not wider."""
    if not pool:
        return 0
    return in_channels if in_channels < out_channels else out_channels // 2


def _border(resolved: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, bool]:
    """`count_border`, which does nothing without a branch that averages."""
    return {"count_border": options["count_border"] or not resolved["pool_width"]}


def _average(count_border: bool) -> nn.Module:
    """3x3 average pooling that keeps the size of the map."""
    return nn.AvgPool2d(3, 1, 1, count_include_pad=count_border)


def _pooled(
    pooling: nn.Module, in_channels: int, out_channels: int, eps: float, norm: str = "bn"
) -> nn.Sequential | None:
    """A pooling and a 1x1 convolution; None without output channels."""
    return nn.Sequential(pooling, conv_relu(in_channels, out_channels, norm=norm, eps=eps)) if out_channels else None


def _chain(in_channels: int, *steps: tuple[int, Size], **options: Any) -> nn.Sequential | None:
    """Convolutions in sequence, as `_convs`; None if the last one has no output channels."""
    return _convs(in_channels, *steps, **options) if steps[-1][0] else None


def _convs(
    in_channels: int,
    *steps: tuple[int, Size],
    eps: float,
    norm: str = "bn",
    stride: int = 1,
    padding: int | None = None,
) -> nn.Sequential:
    """Convolutions in sequence, given as output width and kernel; the last one has the stride and the padding."""
    widths = [in_channels, *(width for width, _ in steps)]
    layers = [conv_relu(before, *step, norm=norm, eps=eps) for before, step in zip(widths, steps[:-1], strict=False)]
    return nn.Sequential(*layers, conv_relu(widths[-2], *steps[-1], stride, padding, norm, eps))


class _Forked(nn.Module):
    """Convolutions, then 1x3 and 3x1 over their output, concatenated; the 1x3 has the larger half of the channels."""

    def __init__(self, in_channels: int, out_channels: int, steps: Iterable[tuple[int, Size]], eps: float):
        super().__init__()
        steps = list(steps)
        width, tall = steps[-1][0], out_channels // 2
        self.convs = _convs(in_channels, *steps, eps=eps)
        self.row = conv_relu(width, out_channels - tall, (1, 3), eps=eps)
        self.column = conv_relu(width, tall, (3, 1), eps=eps) if tall else None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H, W)."""
        x = self.convs(x)
        return self.row(x) if self.column is None else torch.cat([self.row(x), self.column(x)], 1)


def _forked(in_channels: int, out_channels: int, *steps: tuple[int, Size], eps: float) -> nn.Module | None:
    """A branch that ends in 1x3 and 3x1 side by side; None without output channels."""
    return _Forked(in_channels, out_channels, steps, eps) if out_channels else None


BLOCKS = {
    "inception_v1": InceptionV1,
    "inception_a": InceptionA,
    "inception_b": InceptionB,
    "inception_c": InceptionC,
    "inception_d": InceptionD,
    "inception_e": InceptionE,
    "inception_resnet_a": InceptionResnetA,
    "inception_resnet_b": InceptionResnetB,
    "inception_resnet_d": InceptionResnetD,
    "auxiliary": Auxiliary,
}
