"""Blocks: plain `nn.Module`s, and the registry that finds one by its name.

A block is a class `Block(in_channels, out_channels, stride, **options)` with a `forward`. Its signature is
the single definition of its options, their types and defaults. Register your own block with

    nasspace.blocks.register("my_block", MyBlock)

or by an entry point of the group `nasspace.blocks` in your package. It is then counted, measured, searched and
exported like the others.

A block may have a static method `resolve(in_channels, out_channels, stride, **options)`, which takes every option and
returns those that change at these widths (a `groups` made divisible, a shortcut that cannot exist). The constructor
uses the resolved options and the digest is computed from them, so that two spellings of one network are equal. None
means that another key of the result replaces the option (a ratio, replaced by the width that it gives). An exception
in `resolve` is raised when the network is built; in a search, it becomes a failed trial.

A block may have a method `folded()`, which returns a module that computes the same in evaluation mode: several
branches in training, one convolution for inference. Networks are trained, saved and loaded as they are,
and counted, measured and exported folded (`nasspace.network.fold`). `folded` may use the module's own parts; it is
called in evaluation mode, also on PyTorch's meta device, whose tensors have no values.

A module in a block with an attribute `loss_weight` is an auxiliary classifier: it returns scores of the classes in
training, and that share of their loss is added to the network's (not in the training of shared weights). Its block has
an attribute `classifies` and an option `classes`, which `Architecture.of` and `Space` set to the network's.
"""

from __future__ import annotations

from nasspace.blocks import (
    fasternet,
    fire,
    ghost,
    heads,
    inception,
    mobile,
    plain,
    reparameterized,
    residual,
    sandglass,
    shuffle,
    starnet,
    universal,
    xception,
)
from nasspace.blocks.registry import REQUIRED, Block, get, known, register, resolve, resolve_if_possible, validated

for _module in (
    plain,
    mobile,
    sandglass,
    shuffle,
    fire,
    xception,
    residual,
    inception,
    ghost,
    universal,
    fasternet,
    starnet,
    reparameterized,
    heads,
):
    for _name, _class in _module.BLOCKS.items():
        register(_name, _class)

__all__ = ["REQUIRED", "Block", "get", "known", "register", "resolve", "resolve_if_possible", "validated"]
