"""How the published networks are initialised: named schemes, each of which fills the weights of a list of modules.

A scheme takes the modules of a network in their order, so that it can tell the first convolution from the others. Of
each it sets the weight and the bias; modules without weights may be among them. All draw from torch's global generator.
Where nothing else is said, batch norm starts with 1 and 0, and every bias with 0.
"""

from __future__ import annotations

import math
import re
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
NARROW = 16  # units of squeeze-and-excitation: fewer may all start at zero, where ReLU has no gradient


def kaiming(parts: Sequence[nn.Module]) -> None:
    """Convolutions: normal, Kaiming's fan-out (k x k x out, in groups as well); linear: normal, 0.01.

    He et al. 2015; as torchvision initialises MobileNetV2, MobileNetV3 and ResNet (whose last layer it leaves as
    PyTorch does). MobileNeXt's official code writes the same as N(0, sqrt(2 / (k x k x out))).
    """
    for part in parts:
        _plain(part)
        if isinstance(part, CONVOLUTIONS):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(part, DENSE):
            nn.init.normal_(part.weight, 0, 0.01)


def alexnet(parts: Sequence[nn.Module]) -> None:
    """All weights N(0, 0.01); biases 1 in convolutions 2, 4, 5 and the hidden linear layers (recalled: section 5)."""
    convolutions = [part for part in parts if isinstance(part, CONVOLUTIONS)]
    ones = [*convolutions[1:2], *convolutions[3:5], *[part for part in parts if isinstance(part, DENSE)][:-1]]
    for part in parts:
        _plain(part)
        if isinstance(part, WEIGHTED):
            nn.init.normal_(part.weight, 0, 0.01)
    for part in ones:
        if part.bias is not None:
            nn.init.ones_(part.bias)


def squeezenet(parts: Sequence[nn.Module]) -> None:
    """Caffe's "xavier": uniform in +-sqrt(3 / fan-in); the last layer N(0, 0.01) (official prototxt)."""
    weighted = [part for part in parts if isinstance(part, WEIGHTED)]
    for part in parts:
        _plain(part)
        if part in weighted[-1:]:
            nn.init.normal_(part.weight, 0, 0.01)
        elif part in weighted:
            nn.init.kaiming_uniform_(part.weight, nonlinearity="linear")  # its bound is Caffe's


def xception(parts: Sequence[nn.Module]) -> None:
    """Glorot's uniform, +-sqrt(6 / (fan-in + fan-out)): Keras' default, recalled; the paper names none."""
    for part in parts:
        _plain(part)
        if isinstance(part, WEIGHTED):
            nn.init.xavier_uniform_(part.weight)


def mobilenet_v1(parts: Sequence[nn.Module]) -> None:
    """Normal with standard deviation 0.09 cut off at two of them, not widened for it (official code, TF-slim)."""
    for part in parts:
        _plain(part)
        if isinstance(part, WEIGHTED):
            nn.init.trunc_normal_(part.weight, 0, 0.09, -0.18, 0.18)


def mnasnet(parts: Sequence[nn.Module]) -> None:
    """Convolutions N(0, sqrt(2 / fan-out)), fan-out k x k x out and k x k in depthwise ones; linear: uniform in
    +-1 / sqrt(out) (official code).
    """
    for part in parts:
        _plain(part)
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
        _plain(part)
        if isinstance(part, WEIGHTED):
            inner = isinstance(part, CONVOLUTIONS) and part is not first
            nn.init.normal_(part.weight, 0, 1 / part.weight.shape[1] if inner else 0.01)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.constant_(part.bias, 1e-4)


def pytorch(parts: Sequence[nn.Module]) -> None:
    """What PyTorch's constructors do: uniform in +-1 / sqrt(fan-in), biases as well."""
    for part in parts:
        if isinstance(part, (*WEIGHTED, nn.BatchNorm2d)):
            part.reset_parameters()


SCHEMES: dict[str, Scheme] = {
    DEFAULT: kaiming,
    "alexnet": alexnet,
    "squeezenet": squeezenet,
    "xception": xception,
    "mobilenet_v1": mobilenet_v1,
    "mobilenet_v2": kaiming,
    "mnasnet": mnasnet,
    "shufflenet": shufflenet,
    "mobilenet_v3": kaiming,
    "mobilenext": kaiming,
    "resnet": kaiming,
    "pytorch": pytorch,
}
# The names of published networks by family: `mobilenet_v2_0.75`, `shufflenet_v1_g3_1.0`, `resnet50`. A network of a
# study is called `STUDY-NUMBER` and is never one of them, whatever the study's name.
NUMBER = r"\d+(\.\d+)?"
FAMILIES = {
    "alexnet": r"alexnet",
    "squeezenet": r"squeezenet(_1\.[01])?",
    "xception": r"xception",
    "mobilenet_v1": rf"mobilenet_v1_{NUMBER}",
    "mobilenet_v2": rf"mobilenet_v2_{NUMBER}",
    "mnasnet": rf"mnasnet_(a1|b1)_{NUMBER}|mnasnet_small",
    "shufflenet": rf"shufflenet_v1_g[12348]_{NUMBER}|shufflenet_v2_{NUMBER}",
    "mobilenet_v3": rf"mobilenet_v3_(large|small)_{NUMBER}",
    "mobilenext": rf"mobilenext_{NUMBER}(_identity_1_\d+)?",
    "resnet": r"(se_)?resnet(18|34|50|101|152)|resnext(50|101|152)_\d+x\d+d",
}
VARIANT = r"(_bypass|_complex_bypass|_grouped|_v1|_torchvision|_megvii|_cifar|_d-li14)*"


def names() -> list[str]:
    """The schemes: `kaiming`, the default, one for each published family, and `pytorch`."""
    return list(SCHEMES)


def load(name: str) -> Scheme:
    """The scheme of a name; an unknown one is an `InputError` with the nearest."""
    if name not in SCHEMES:
        raise InputError(f"initialisation: '{name}' is not a scheme{nearest(name, SCHEMES)}")
    return SCHEMES[name]


def of(name: str) -> Scheme:
    """The scheme of a published network's name (its paper's, also in a variant); of any other name the default."""
    return SCHEMES[family(name) or DEFAULT]


def family(name: str) -> str | None:
    """The family of a published network's name, which is also its scheme's; None for any other name.

    >>> family("shufflenet_v2_1.0_torchvision"), family("mobilenet_v2_0.75"), family("mobilenet_v2-17")
    ('shufflenet', 'mobilenet_v2', None)
    """
    return next((kind for kind, form in FAMILIES.items() if re.fullmatch(f"({form}){VARIANT}", name, re.ASCII)), None)


def is_depthwise(part: nn.Module) -> bool:
    """Whether it is a convolution of each channel by itself."""
    return isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1


def activate_squeeze(parts: Sequence[nn.Module]) -> None:
    """Give the strongest unit of each narrow squeeze-and-excitation a positive sum of weights.

    The unit reads means of activations, which are hardly ever negative. Where every unit has a negative sum, ReLU gives
    zero for every image, and no gradient: with three units that is one network in eight. Only a sign changes.
    """
    for part in parts:
        if isinstance(part, SqueezeExcite) and part.reduce.out_channels < NARROW:
            with torch.no_grad():
                sums = part.reduce.weight.sum(dim=(1, 2, 3))
                strongest = int(sums.abs().argmax())
                if sums[strongest] < 0:
                    part.reduce.weight[strongest].neg_()


def _plain(part: nn.Module) -> None:
    """Batch norm 1 and 0, every bias 0; weights of convolutions and linear layers stay."""
    if isinstance(part, nn.BatchNorm2d):
        nn.init.ones_(part.weight)
    if isinstance(part, (*WEIGHTED, nn.BatchNorm2d)) and part.bias is not None:
        nn.init.zeros_(part.bias)
