"""Build the `nn.Module` of an architecture: a chain of blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nasspace import blocks
from nasspace import initialization as schemes
from nasspace.architecture import Architecture, Layer
from nasspace.errors import InputError


class Network(nn.Sequential):
    """Blocks in sequence, one per layer; a 1x1 map at the end becomes a row of class scores."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, C, H, W) to (batch, classes)."""
        for block in self:
            x = block(x)
        return x.flatten(1) if x.dim() == 4 and x.shape[2] == x.shape[3] == 1 else x


def build(architecture: Architecture, *, seed: int = 0, initialization: str = schemes.DEFAULT) -> Network:
    """Build the network of an architecture, with initial weights from `seed`.

    Its input is (batch, C, H, W), its output (batch, classes). `initialization` names the scheme of the library's
    blocks (`nasspace.initialization.names()`); `nasspace.zoo.initialization_of(name)` is that of a published network's
    paper. A user's own block keeps the initialization of its constructor. Equal architectures have equal weights from
    one seed. The global random state does not change. An unknown scheme raises `InputError` with the nearest known one.
    """
    initialize = schemes.load(initialization)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # `torch.manual_seed` also changes the accelerators'
        network = Network()
        channels = architecture.input[0]
        for i, layer in enumerate(architecture.layers):
            if blocks.get(layer.block).flattens:
                channels = math.prod(_shape(network, architecture))
            module = make_block(layer, channels, i)
            network.append(module)
            channels = layer.out or channels
        own = [block for block in network if type(block).__module__.startswith("nasspace.blocks.")]
        parts = [part for block in own for part in block.modules()]
        initialize(parts)
        schemes.activate_squeeze(parts)
    return network


def fold(module: nn.Module) -> nn.Module:
    """The module for inference: each part with a method `folded` replaced by what that returns.

    The module must be in evaluation mode; it is changed.
    """
    if hasattr(module, "folded"):
        return module.folded()
    for name, child in module.named_children():
        if (folded := fold(child)) is not child:
            setattr(module, name, folded)
    return module


def folds(architecture: Architecture) -> bool:
    """Whether a block of an architecture has another form for inference, by a method `folded`."""
    return any(hasattr(blocks.get(layer.block).cls, "folded") for layer in architecture.layers)


def make_block(layer: Layer, in_channels: int, position: int | None = None) -> nn.Module:
    """Build one block; an error in its constructor or its `resolve` becomes an `InputError` that names the layer."""
    block = blocks.get(layer.block)
    try:
        if layer.out is not None and not block.flattens:  # `Architecture.of` ignores errors of `resolve`
            blocks.resolve(layer.block, in_channels, layer.out, layer.stride, layer.options)
        return block.cls(in_channels, layer.out or in_channels, layer.stride, **layer.options)
    except Exception as error:  # a user's block may raise anything
        where = layer.block if position is None else f"layers[{position}] ({layer.block})"
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{where}: cannot be built with {in_channels} channels in, {layer.out} out: {reason}"
        ) from error


def _shape(network: nn.Module, architecture: Architecture) -> tuple[int, ...]:
    """Shape of one image after the blocks so far, without the batch."""
    network.eval()  # one image has no batch statistics
    with torch.no_grad():
        shape = tuple(network(torch.zeros(1, *architecture.input)).shape[1:])
    network.train()
    return shape
