"""Re-parameterized blocks: parallel branches in training, which fold into one convolution for inference."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nasspace.blocks.layers import SqueezeExcite, common_groups, conv_bn, resolved_se, squeezed_width
from nasspace.blocks.options import Groups, Kernel, Repeats, Share


class Branches(nn.Module):
    """The sum of `count` kxk convolutions, a 1x1 convolution if k > 1, and the input if its shape stays, each with BN.

    The branches are registered in the order of the official codes, so that their checkpoints can be loaded.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1, count: int = 1):
        super().__init__()
        self.identity = nn.BatchNorm2d(out_channels) if in_channels == out_channels and stride == 1 else None
        self.convolutions = nn.ModuleList(
            conv_bn(in_channels, out_channels, kernel, stride, groups) for _ in range(count)
        )
        self.pointwise = conv_bn(in_channels, out_channels, 1, stride, groups) if kernel > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, H, W) to (batch, out_channels, H / stride, W / stride)."""
        branches = (self.identity, self.pointwise, *self.convolutions)
        first, *others = (branch(x) for branch in branches if branch is not None)
        return sum(others, first)

    @torch.no_grad()
    def convolution(self) -> nn.Conv2d:
        """The one convolution that computes the same in evaluation mode. RepVGG, section 3.3.

        Each kernel is scaled by its batch norm. The kernel of the input itself is 1 in the center, for its own channel.
        """
        whole = copy.deepcopy(self.convolutions[0][0])
        branches = [*self.convolutions, *([] if self.pointwise is None else [self.pointwise])]
        kernels, norms = [branch[0].weight for branch in branches], [branch[1] for branch in branches]
        if self.identity is not None:
            own = torch.eye(whole.in_channels // whole.groups, dtype=whole.weight.dtype, device=whole.weight.device)
            kernels.append(own.repeat(whole.groups, 1)[:, :, None, None])
            norms.append(self.identity)
        margins = [(whole.kernel_size[0] - kernel.shape[-1]) // 2 for kernel in kernels]
        padded = torch.stack([functional.pad(one, 4 * [margin]) for one, margin in zip(kernels, margins, strict=True)])
        deviations = torch.stack([norm.running_var + norm.eps for norm in norms]).sqrt()
        scales = torch.stack([norm.weight for norm in norms]) / deviations
        means = torch.stack([norm.running_mean for norm in norms])
        shifts = torch.stack([norm.bias for norm in norms]) - means * scales
        whole.weight = nn.Parameter((padded * scales[:, :, None, None, None]).sum(0))
        whole.bias = nn.Parameter(shifts.sum(0))
        return whole


class _Chain(nn.Sequential):
    """Branches and other layers, one after another."""

    def folded(self) -> nn.Sequential:
        """The chain with one convolution for all branches of a sum."""
        return nn.Sequential(*(part.convolution() if isinstance(part, Branches) else part for part in self))


class RepVGG(_Chain):
    """kxk + 1x1 [+ input], BN each, ReLU. RepVGG, figure 2.

    For inference the sum is one kxk convolution. The input is added where its shape stays. A `groups` that does not
    divide both widths becomes the largest smaller number that does. Counts are those for inference.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        groups: Groups = 1,
    ):
        groups = RepVGG.resolve(in_channels, out_channels, stride, groups=groups)["groups"]
        super().__init__(Branches(in_channels, out_channels, kernel, stride, groups), nn.ReLU())

    @staticmethod
    def resolve(in_channels: int, out_channels: int, stride: int, *, groups: int, **_: Any) -> dict[str, Any]:
        """Groups that divide both widths."""
        return {"groups": common_groups(groups, in_channels, out_channels)}


class MobileOne(_Chain):
    """n kxk + 1x1 [+ input], depthwise, BN each [-> SE], ReLU -> n 1x1 [+ input], BN each [-> SE], ReLU.

    MobileOne, figure 3. n = `branches` is the number of equal branches in training (the paper's k). For inference the
    first sum is one depthwise convolution, the second one 1x1 convolution. The input is added where its shape stays.
    `se` is the ratio of squeeze-and-excitation to the width of each of the two. Counts are those for inference.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        kernel: Kernel = 3,
        branches: Repeats = 1,
        se: Share = 0.0,
    ):
        resolved = MobileOne.resolve(in_channels, out_channels, stride, se=se)
        excited = [SqueezeExcite(in_channels, resolved["squeezed"])] if se else []
        excited_out = [SqueezeExcite(out_channels, resolved["squeezed_out"])] if se else []
        depthwise = Branches(in_channels, in_channels, kernel, stride, in_channels, branches)
        pointwise = Branches(in_channels, out_channels, 1, 1, count=branches)
        super().__init__(depthwise, *excited, nn.ReLU(), pointwise, *excited_out, nn.ReLU())

    @staticmethod
    def resolve(in_channels: int, out_channels: int, stride: int, *, se: float, **_: Any) -> dict[str, Any]:
        """The inner widths of the two squeeze-and-excitations."""
        out = {"squeezed_out": squeezed_width(out_channels, se)} if se else {}
        return {**resolved_se(in_channels, se), **out}


BLOCKS = {"repvgg": RepVGG, "mobileone": MobileOne}
