"""Channel pruning of networks that are chains of blocks: which widths can shrink, and which channels are kept.

A pruned network is again an `Architecture`, with smaller widths in the same blocks. Of each width, the channels stay
whose removal would change the loss least, to first order (Molchanov et al. 2019, "Importance estimation for neural
network pruning"): the square of the sum of weight times gradient over everything that belongs to a channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nasspace.architecture import Architecture, canonical
from nasspace.compression.channels import Channels, channels, kept_channels, selected
from nasspace.errors import InputError
from nasspace.network import Network, build

DIVISOR = 4  # widths are multiples of it, as in the spaces
LEAST_SHARE = 0.25  # of a width, that one step keeps
INNER = {  # a block's option for its inner width, and the resolved option that has the number of channels
    "inverted_residual": ("hidden", "hidden"),
    "universal_inverted_bottleneck": ("hidden", "hidden"),
    "fused_inverted_bottleneck": ("hidden", "hidden"),
    "ghost_bottleneck": ("hidden", "hidden"),
    "bottleneck": ("base_width", "base_width"),
    "basic": ("base_width", "base_width"),
    "fire": ("squeeze", "squeezed"),
    "shuffle_v1": ("bottleneck", "middle"),
}
BASE_WIDTH = 64  # the default of ResNet's units
MOST_GROUPS = 8  # that a width stays a multiple of
SHARES = ("squeeze", "bottleneck")  # options that are a share of the output width


@dataclass(frozen=True)
class Width:
    """A width that can shrink: of the outputs of `layers`, or the inner one (`option`) of a single layer.

    `count` is the number of channels; for outputs of several widths (`is_joint`), that of the widest.
    """

    layers: tuple[int, ...]
    option: str
    count: int
    is_joint: bool = False

    def __str__(self) -> str:
        first, last = self.layers[0], self.layers[-1]
        where = f"layer {first}" if first == last else f"layers {first} to {last}"
        if self.is_joint:
            return f"all widths of {where}, the largest"
        return f"the {'width' if self.option == 'out' else self.option} of {where}"


class Prunable:
    """A network with weights, the channels that it has, and how important each is.

    `batches` are normalized images (N, C, H, W) with labels (N,), which decide which channels are important.
    """

    def __init__(
        self,
        architecture: Architecture,
        state: Mapping[str, Tensor],
        batches: Sequence[tuple[Tensor, Tensor]] = (),
    ):
        self.architecture = architecture
        self.batches = batches
        self.state = dict(state)
        self.layers = _explicit(architecture)
        self.network = build(architecture)
        self.network.load_state_dict(self.state)

    @cached_property
    def channels(self) -> Channels | None:
        """The channels; None if a block mixes them in a way that is not known."""
        try:
            return channels(self.network, self.architecture.input)
        except InputError:
            return None

    @cached_property
    def widths(self) -> list[Width]:
        """Every width that can shrink; the last one is that of all outputs together."""
        groups = list(self._output_groups())
        together = sorted(i for group in groups for i in group)
        inner = [i for i, layer in enumerate(self.layers) if layer["block"] in INNER and self._option(i) in layer]
        found = [
            *(Width((i,), self._option(i), self._inner_width(i)) for i in inner),
            *(Width(tuple(group), "out", max(self._out(i) for i in group)) for group in groups),
        ]
        if len(groups) > 1:
            found.append(Width(tuple(together), "out", max(self._out(i) for i in together), is_joint=True))
        return [width for width in found if width.count > 1]

    def _output_groups(self) -> Iterator[list[int]]:
        """The layers whose outputs have channels in common, in groups; not those of images and of class scores."""
        if self.channels is None:
            return
        groups: list[tuple[set[int], list[int]]] = [(set(self.channels.of_input), [])]
        for i, own in enumerate(self.channels.of_layers):
            linked = [group for group in groups if group[0] & own]
            groups = [group for group in groups if not group[0] & own]
            groups.append((own.union(*(one for one, _ in linked)), [*(j for _, some in linked for j in some), i]))
        fixed = self.channels.of_input | self.channels.of_layers[-1]
        yield from (layers for numbers, layers in groups if not numbers & fixed)

    def _option(self, i: int) -> str:
        """The layer's option for its inner width."""
        return INNER[self.layers[i]["block"]][0]

    def _out(self, i: int) -> int:
        """The layer's output width; 0 for a flattened map."""
        return self.architecture.layers[i].out or 0

    def _inner_width(self, i: int) -> int:
        """The number of channels of the layer's inner width, which may be its option itself."""
        resolved = canonical(self.architecture.layers[i], self._out(i - 1) if i else self.architecture.input[0])
        option, name = INNER[self.layers[i]["block"]]
        return resolved[name] or self.layers[i][option]

    def narrowed(self, width: Width, count: int) -> Architecture | None:
        """The architecture with `count` channels in a width; None if the block does not take it.

        Outputs of several widths shrink in proportion.
        """
        layers = [dict(layer) for layer in self.layers]
        for i in width.layers:
            out = self._out(i)
            if width.option != "out":
                layers[i][width.option] = count / out if width.option in SHARES else count
            elif out:
                layers[i]["out"] = scaled = self._rounded(out * count / width.count, out)
                if layers[i]["block"] in INNER and (option := self._option(i)) in SHARES:  # the inner width stays
                    layers[i][option] = min(1.0, self._inner_width(i) / scaled)
        before = self.architecture
        try:
            return Architecture.of(layers, input=before.input, classes=before.classes, name=before.name)
        except InputError:
            return None

    @cached_property
    def divisor(self) -> int:
        """Widths are multiples of it: of `DIVISOR` and of the numbers of groups."""
        groups = (layer.options.get("groups", 1) for layer in self.architecture.layers)
        return math.lcm(DIVISOR, *(number for number in groups if number <= MOST_GROUPS))

    def _rounded(self, value: float, most: int) -> int:
        """A multiple of `divisor` near a width, at most `most`."""
        return max(1, min(most, round(value / self.divisor) * self.divisor or round(value)))

    def counts(self, width: Width) -> list[int]:
        """Smaller numbers of channels to try, the largest first."""
        least = max(1, math.ceil(LEAST_SHARE * width.count))
        step = self.divisor if width.count >= 4 * self.divisor else 1
        return list(range((width.count - 1) // step * step, least - 1, -step))

    @cached_property
    def importance(self) -> list[float]:
        """How much the loss changes without each channel, to first order, in squared nats; zeros without images."""
        assert self.channels is not None
        if not self.batches:
            return [0.0] * len(self.channels.all)
        self.network.eval()  # the statistics of batch norm as shipped
        found = []
        for images, labels in self.batches:
            self.network.zero_grad()
            nn.functional.cross_entropy(self.network(images), labels).backward()
            parts = self.network.named_parameters()
            found.append(_by_channel(self.channels, {n: (p * p.grad).detach() for n, p in parts if p.grad is not None}))
        self.network.zero_grad()
        return torch.stack(found).square().mean(0).tolist()

    def pruned(self, architecture: Architecture) -> Pruned | None:
        """The network of a smaller architecture with the most important channels; None if it has no smaller widths.

        Where channels cannot be followed, the first ones of every tensor are kept.
        """
        network = build(architecture)
        smaller = network.state_dict()
        if not _fits_into(smaller, self.state):
            return None
        if self.channels is not None:
            after = channels(network, architecture.input)
            kept = kept_channels(self.channels, after, self.importance)
            if kept is not None:
                shapes = {name: tensor.shape for name, tensor in smaller.items()}
                state = selected(self.state, shapes, self.channels, after, kept)
                lost = sum(self.importance) - sum(self.importance[i] for i in kept)
                return Pruned(architecture, state, lost)
        cut = {
            name: tensor[tuple(slice(size) for size in smaller[name].shape)].clone()
            for name, tensor in self.state.items()
        }
        return Pruned(architecture, cut, None)


@dataclass(frozen=True)
class Pruned:
    """A pruned network with its weights. `lost` is the importance of what was removed, in squared nats of the loss.

    None if the channels could not be followed.
    """

    architecture: Architecture
    state: Mapping[str, Tensor]
    lost: float | None

    @property
    def network(self) -> Network:
        """The network with its weights."""
        network = build(self.architecture)
        network.load_state_dict(dict(self.state))
        return network


def _by_channel(found: Channels, values: Mapping[str, Tensor]) -> Tensor:
    """The sum of the values of all weights of each channel (channels,)."""
    sums = {
        (name, dimension): tensor.transpose(0, dimension).reshape(tensor.shape[dimension], -1).sum(1)
        for name, tensor in values.items()
        for dimension in range(min(2, tensor.dim()))
    }
    result = torch.zeros(len(found.all))
    for number, channel in enumerate(found.all):
        for entry, positions in channel.places:
            if entry in sums:
                result[number] += sums[entry][list(positions)].sum()
    return result


def _explicit(architecture: Architecture) -> list[dict[str, Any]]:
    """The layers with their widths, and with inner widths as numbers where they were relative to the input's width."""
    channels_in, found = architecture.input[0], []
    for layer, made in zip(architecture.to_dict()["layers"], architecture.layers, strict=True):
        full = canonical(made, channels_in)
        if made.out is not None:
            layer["out"] = made.out
        if INNER.get(made.block, ("", ""))[0] == "hidden":
            layer = {k: v for k, v in layer.items() if k not in ("expansion", "hidden")}
            # A hidden width that equals the input's follows it: in this block there is no convolution between them.
            follows = made.block == "inverted_residual" and full["hidden"] == channels_in
            layer |= {"expansion": 1.0} if follows else {"hidden": full["hidden"]}
        elif made.block in INNER:
            option, resolved = INNER[made.block]
            layer[option] = full[resolved] / made.out if option in SHARES else made.options.get(option, BASE_WIDTH)
        found.append(layer)
        channels_in = made.out
    return found


def _fits_into(smaller: Mapping[str, Tensor], larger: Mapping[str, Tensor]) -> bool:
    """Whether all tensors have the same names and are not larger in any dimension."""
    return smaller.keys() == larger.keys() and all(
        tensor.dim() == larger[name].dim()
        and all(a <= b for a, b in zip(tensor.shape, larger[name].shape, strict=True))
        for name, tensor in smaller.items()
    )
