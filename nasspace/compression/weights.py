"""The weights that pruning and sharing act on: nearly all of a network."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from nasspace.initialization import is_depthwise


def large_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of convolutions and linear layers by name, without the first convolution and depthwise ones.

    These have few weights, and accuracy depends on each of them (Zhu and Gupta 2017, section 3, leave them out in
    MobileNet, too). Auxiliary classifiers do not ship and are left out as well.
    """
    found, is_first = {}, True
    for name, part in _parts(network):
        is_convolution = isinstance(part, nn.Conv2d)
        if isinstance(part, nn.Conv2d | nn.Linear) and not (is_convolution and is_first) and not is_depthwise(part):
            found[f"{name}.weight" if name else "weight"] = part.weight
        is_first &= not is_convolution
    return found


def parameter_count(network: nn.Module) -> int:
    """The number of parameters as trained: with the branches that fold, without auxiliary classifiers."""
    return sum(own.numel() for _, part in _parts(network) for own in part.parameters(recurse=False))


def _parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a network by name, without those in auxiliary classifiers (`nasspace.blocks`)."""
    classifiers = tuple(f"{name}." for name, part in network.named_modules() if hasattr(part, "loss_weight"))
    return ((name, part) for name, part in network.named_modules() if not name.startswith(classifiers))
