"""The block library: plain `nn.Module`s, and the registry that finds one by its name.

A block is a class `Block(in_channels, out_channels, stride, **options)` with a `forward`. Its signature is
the one truth of its options, their types and defaults. A block of one's own is registered by

    nasspace.blocks.register("my_block", MyBlock)

or by an entry point of the group `nasspace.blocks` in one's own package, and is then counted, measured,
searched and exported like the others. A block may add a static method
`settle(in_channels, out_channels, stride, options)` that returns the options it really uses at these widths
(a `groups` made divisible, a shortcut that cannot exist): two spellings of one network then count as one.
None there means that another key of the result stands for the option (a ratio: the width that it comes to).
What it raises is an error of the network that has the block, when that is built: in a search, a failed trial.
"""

from __future__ import annotations

from nasspace.blocks import fire, heads, mobile, plain, residual, sandglass, shuffle, xception
from nasspace.blocks.registry import REQUIRED, Block, get, known, register, settle, settled_if_possible, validated

for _module in (plain, mobile, sandglass, shuffle, fire, xception, residual, heads):
    for _name, _class in _module.BLOCKS.items():
        register(_name, _class)

__all__ = ["REQUIRED", "Block", "get", "known", "register", "settle", "settled_if_possible", "validated"]
