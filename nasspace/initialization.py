"""Initialization schemes by name: Kaiming's normal, and those of the published networks.

A scheme is a function that sets the weights and biases of a list of modules. It takes the modules of a whole network in
their order, since some schemes treat the first convolution differently; modules without weights may be among them. All
schemes draw from torch's global generator. Unless a scheme's docstring differs, batch norm starts with weight 1 and
bias 0, and every other bias with 0. A family of published networks names its scheme (`zoo.parts.Family`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from nasspace.blocks.layers import SqueezeExcite
from nasspace.errors import InputError, nearest

Scheme = Callable[[Sequence[nn.Module]], None]

CONVOLUTIONS = (nn.Conv2d,)
DENSE = (nn.Linear,)
WEIGHTED = (nn.Conv2d, nn.Linear)
DEFAULT = "kaiming"
NARROW = 16  # units of a squeeze-and-excitation: fewer may all start at zero, where ReLU has no gradient


def kaiming(parts: Sequence[nn.Module]) -> None:
    """Convolutions: normal, Kaiming's fan-out (k x k x out, in groups as well); linear: normal, 0.01.

    He et al. 2015; as torchvision initializes MobileNetV2, MobileNetV3 and ResNet (whose last layer it leaves as
    PyTorch does); MobileNetV4's here, for which timm has `mnasnet`. MobileNeXt's official code writes the same as
    N(0, sqrt(2 / (k x k x out))).
    """
    for part in parts:
        _reset_norms_and_biases(part)
        if isinstance(part, CONVOLUTIONS):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, DENSE):
            nn.init.normal_(part.weight, 0, 0.01)


def alexnet(parts: Sequence[nn.Module]) -> None:
    """All weights N(0, 0.01); biases 1 in convolutions 2, 4, 5 and the hidden linear layers (recalled: section 5)."""
    convolutions = [part for part in parts if isinstance(part, CONVOLUTIONS)]
    ones = [*convolutions[1:2], *convolutions[3:5], *[part for part in parts if isinstance(part, DENSE)][:-1]]
    for part in parts:
        _reset_norms_and_biases(part)
        if isinstance(part, WEIGHTED):
            nn.init.normal_(part.weight, 0, 0.01)
    for part in ones:
        if part.bias is not None:
            nn.init.ones_(part.bias)


def squeezenet(parts: Sequence[nn.Module]) -> None:
    """Caffe's "xavier": uniform in +-sqrt(3 / fan-in); the last layer N(0, 0.01) (official prototxt)."""
    weighted = [part for part in parts if isinstance(part, WEIGHTED)]
    for part in parts:
        _reset_norms_and_biases(part)
        if part in weighted[-1:]:
            nn.init.normal_(part.weight, 0, 0.01)
        elif part in weighted:
            nn.init.kaiming_uniform_(part.weight, nonlinearity="linear")  # its bound is Caffe's


def xception(parts: Sequence[nn.Module]) -> None:
    """Glorot's uniform, +-sqrt(6 / (fan-in + fan-out)): Keras' default, recalled; the paper names none."""
    for part in parts:
        _reset_norms_and_biases(part)
        if isinstance(part, WEIGHTED):
            nn.init.xavier_uniform_(part.weight)


def inception(parts: Sequence[nn.Module]) -> None:
    """Normal with standard deviation 0.1, truncated at two standard deviations (torchvision's Inception v3)."""
    for part in parts:
        _reset_norms_and_biases(part)
        if isinstance(part, WEIGHTED):
            nn.init.trunc_normal_(part.weight, 0, 0.1, -0.2, 0.2)


def mobilenet_v1(parts: Sequence[nn.Module]) -> None:
    """Normal with standard deviation 0.09, truncated at two standard deviations (official code, TF-slim)."""
    for part in parts:
        _reset_norms_and_biases(part)
        if isinstance(part, WEIGHTED):
            nn.init.trunc_normal_(part.weight, 0, 0.09, -0.18, 0.18)


def mnasnet(parts: Sequence[nn.Module]) -> None:
    """Convolutions N(0, sqrt(2 / fan-out)), fan-out k x k x out and k x k in depthwise ones; linear: uniform in
    +-1 / sqrt(out) (official code).
    """
    for part in parts:
        _reset_norms_and_biases(part)
        if isinstance(part, CONVOLUTIONS):
            area = part.kernel_size[0] * part.kernel_size[1]
            nn.init.normal_(part.weight, 0, math.sqrt(2 / (area * (1 if is_depthwise(part) else part.out_channels))))
        elif isinstance(part, DENSE):
            bound = 1 / math.sqrt(part.out_features)
            nn.init.uniform_(part.weight, -bound, bound)


def shufflenet(parts: Sequence[nn.Module]) -> None:
    """First convolution and linear N(0, 0.01), other convolutions N(0, 1 / f) with f the input channels a group, so
    that depthwise ones have a standard deviation of 1; batch norm 1 and 0.0001 (official code of V1 and V2).
    """
    first = next((part for part in parts if isinstance(part, CONVOLUTIONS)), None)
    for part in parts:
        _reset_norms_and_biases(part)
        if isinstance(part, WEIGHTED):
            inner = isinstance(part, CONVOLUTIONS) and part is not first
            nn.init.normal_(part.weight, 0, 1 / part.weight.shape[1] if inner else 0.01)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.constant_(part.bias, 1e-4)


def fasternet(parts: Sequence[nn.Module]) -> None:
    """All weights N(0, 0.02) (official code, whose bounds of +-2 cut nothing off)."""
    for part in parts:
        _reset_norms_and_biases(part)
        if isinstance(part, WEIGHTED):
            nn.init.normal_(part.weight, 0, 0.02)


def starnet(parts: Sequence[nn.Module]) -> None:
    """As `fasternet`, but biases of convolutions as PyTorch's: uniform in +-1 / sqrt(fan-in) (official code)."""
    fasternet(parts)
    for part in parts:
        if isinstance(part, CONVOLUTIONS) and part.bias is not None:
            bound = 1 / math.sqrt(part.weight[0].numel())
            nn.init.uniform_(part.bias, -bound, bound)


def pytorch(parts: Sequence[nn.Module]) -> None:
    """PyTorch's constructors: uniform in +-1 / sqrt(fan-in), biases as well.

    RepVGG's official code initializes nothing else; nor does MobileOne's (recalled).
    """
    for part in parts:
        if isinstance(part, (*WEIGHTED, nn.BatchNorm2d)):
            part.reset_parameters()


SCHEMES: dict[str, Scheme] = {
    DEFAULT: kaiming,
    "alexnet": alexnet,
    "squeezenet": squeezenet,
    "xception": xception,
    "inception": inception,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": kaiming,
    "mnasnet": mnasnet,
    "shufflenet": shufflenet,
    "mobilenet_v3": kaiming,
    "mobilenet_v4": kaiming,
    "mobilenext": kaiming,
    "resnet": kaiming,
    "repvgg": pytorch,
    "mobileone": pytorch,
    "fasternet": fasternet,
    "starnet": starnet,
    "pytorch": pytorch,
}


def names() -> list[str]:
    """Names of the schemes: `kaiming`, the default, those of published families, and `pytorch`."""
    return list(SCHEMES)


def load(name: str) -> Scheme:
    """Return the scheme called `name`; an unknown name raises `InputError` with the nearest known one."""
    if name not in SCHEMES:
        raise InputError(f"initialization: '{name}' is not a scheme{nearest(name, SCHEMES)}")
    return SCHEMES[name]


def is_depthwise(part: nn.Module) -> bool:
    """Whether a module is a depthwise convolution."""
    return isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1


def activate_squeeze(parts: Sequence[nn.Module]) -> None:
    """Make the largest sum of weights of each narrow squeeze-and-excitation positive, by the sign of one unit.

    Units read means of activations, which are hardly ever negative. Where every unit has a negative sum of weights,
    ReLU returns zero for every image and has no gradient: with three units, in one network of eight.
    """
    for part in parts:
        if isinstance(part, SqueezeExcite) and part.reduce.out_channels < NARROW:
            with torch.no_grad():
                sums = part.reduce.weight.sum(dim=(1, 2, 3))
                strongest = int(sums.abs().argmax())
                if sums[strongest] < 0:
                    part.reduce.weight[strongest].neg_()


def _reset_norms_and_biases(part: nn.Module) -> None:
    """Set batch norm to 1 and 0 and every bias to 0; keep weights of convolutions and linear layers."""
    if isinstance(part, nn.BatchNorm2d):
        nn.init.ones_(part.weight)
    if isinstance(part, (*WEIGHTED, nn.BatchNorm2d)) and part.bias is not None:
        nn.init.zeros_(part.bias)
