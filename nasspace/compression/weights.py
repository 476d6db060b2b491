"""The weights that pruning and sharing act on: nearly all of a network."""

from __future__ import annotations

from torch import nn


def large_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of convolutions and linear layers by name, without the first convolution and depthwise ones.

    These have few weights, and accuracy depends on each of them (Zhu and Gupta 2017, section 3, leave them out in
    MobileNet, too).
    """
    found, is_first = {}, True
    for name, part in network.named_modules():
        is_convolution = isinstance(part, nn.Conv2d)
        is_depthwise = is_convolution and part.groups == part.in_channels > 1
        if isinstance(part, nn.Linear) or (is_convolution and not is_first and not is_depthwise):
            found[f"{name}.weight" if name else "weight"] = part.weight
        is_first &= not is_convolution
    return found
