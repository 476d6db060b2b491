"""Blocks: plain `nn.Module`s, and the registry that finds one by its name.

A block is a class `Block(in_channels, out_channels, stride, **options)` with a `forward`. Its signature is
the single definition of its options, their types and defaults. Register a block of your own with

    nasspace.blocks.register("my_block", MyBlock)

or by an entry point of the group `nasspace.blocks` in your package. It is then counted, measured, searched and
exported like the others.

A block may have a static method `resolve(in_channels, out_channels, stride, **options)`, which takes every option and
returns those that are different at these widths (a `groups` made divisible, a shortcut that cannot exist). The
constructor builds what it returns and the digest is taken from it, so two spellings of one network are one network.
None in the result means that another key of it replaces the option (a ratio: the width that it comes to).
An exception in it is an error of the network that holds the block, raised when that is built: in a search, a failed
trial.
"""

from __future__ import annotations

from nasspace.blocks import fire, heads, mobile, plain, residual, sandglass, shuffle, xception
from nasspace.blocks.registry import REQUIRED, Block, get, known, register, resolve, resolve_if_possible, validated

for _module in (plain, mobile, sandglass, shuffle, fire, xception, residual, heads):
    for _name, _class in _module.BLOCKS.items():
        register(_name, _class)

__all__ = ["REQUIRED", "Block", "get", "known", "register", "resolve", "resolve_if_possible", "validated"]
