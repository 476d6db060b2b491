"""A picture of a network as SVG: a block per layer, as wide as its channels and as high as its map, both to scale.

Lines inside a block are the borders of its groups. The label of a block has its kind, kernel, groups and width.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

WIDEST, TALLEST = 110.0, 96.0  # pixels of the widest and of the tallest block
THINNEST = 2.0  # pixels of the smallest block
SLOT = 17.0  # the least pixels from one block to the next, for a label
GAP = 7.0  # pixels between blocks
TOP, LABEL_GAP, CHARACTER = 20.0, 8.0, 6.8  # above the blocks, below them, of a character of a label
MOST_LINES = 16  # groups whose borders are drawn
COLORS = ("#4C78A8", "#E07B39", "#3E9E8F", "#B8569B", "#8C7A2B", "#7A6FBE", "#C2504F", "#5A8F3C")
KINDS = {  # color by kind: units that the papers propose stand out from plain layers
    "conv": 0,
    "shuffle_v2": 1,
    "shuffle_v2_xception": 4,
    "shuffle_v1": 2,
    "inverted_residual": 3,
    "sandglass": 5,
    "depthwise_separable": 7,
    "fire": 6,
    "basic": 4,
    "bottleneck": 5,
    "xception": 2,
    "ghost_bottleneck": 1,
    "universal_inverted_bottleneck": 3,
    "fused_inverted_bottleneck": 4,
    "fasternet": 6,
    "starnet": 5,
}
PLAIN = ("max_pool", "avg_pool", "global_pool", "flatten", "dropout", "identity", "lrn", "linear")
GRAY = "#8C8C8C"


@dataclass(frozen=True)
class Drawn:
    """A layer as it is drawn: its kind, the shape of its output, kernel and groups (None: it has none)."""

    kind: str
    shape: tuple[int, ...]
    kernel: int | None = None
    groups: int | None = None

    @property
    def channels(self) -> int:
        """The width of the output."""
        return self.shape[0]

    @property
    def side(self) -> int:
        """The height of the output in pixels; 1 for a vector."""
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def size(self) -> str:
        """The size of the output: '28×28'."""
        return "×".join(map(str, self.shape[1:])) or "1"

    @property
    def label(self) -> str:
        """The kind with what it has: 'shuffle_v1 5×5 g3'."""
        kernel = f" {self.kernel}×{self.kernel}" if self.kernel else ""
        return f"{self.kind}{kernel}{f' g{self.groups}' if (self.groups or 1) > 1 else ''}"

    @property
    def color(self) -> str:
        """The color of the kind: gray for layers without convolutions."""
        if self.kind in PLAIN:
            return GRAY
        return COLORS[KINDS.get(self.kind, zlib.crc32(self.kind.encode()) % len(COLORS))]


def drawn(kind: str, shape: Sequence[int], options: Mapping[str, object]) -> Drawn:
    """A layer from its kind, the shape of its output and all its options."""
    found = {name: value for name in ("kernel", "groups") if type(value := options.get(name)) is int}
    return Drawn(kind, tuple(shape), **found)


def described(layers: Iterable[Drawn]) -> str:
    """The picture in words: runs of equal layers with their widths and map sizes.

    >>> layers = [Drawn("conv", (24, 14, 14), 3), *2 * [Drawn("shuffle_v1", (48, 7, 7), 3, 4)]]
    >>> described(layers)
    'conv 3×3, 24 channels at 14×14; 2 of shuffle_v1 3×3 g4, 48 channels at 7×7'
    """
    runs = []
    for layer, run in groupby(layers):
        count = len(list(run))
        several = f"{count} of " if count > 1 else ""
        runs.append(f"{several}{layer.label}, {layer.channels:,} channels at {layer.size}")
    return "; ".join(runs)


def picture(layers: Sequence[Drawn], name: str) -> str:
    """Draw layers from left to right as an SVG of its natural size; `name` begins its text alternative."""
    widest, tallest = max(one.channels for one in layers), max(one.side for one in layers)
    floor = TOP + TALLEST
    parts, labels, x = [], [], GAP
    for i, layer in enumerate(layers):
        width = max(THINNEST, WIDEST * layer.channels / widest)
        height = max(THINNEST, TALLEST * layer.side / tallest)
        slot = max(SLOT, width)
        middle = x + slot / 2
        parts += _block(layer, middle, floor, width, height)
        if i == 0 or layer.shape[1:] != layers[i - 1].shape[1:]:
            parts.append(f'<text x="{x:.0f}" y="{floor - height - 6:.0f}">{layer.size}</text>')
        text = escape(f"{layer.label} · {layer.channels:,}")
        labels.append(f'<text x="{-floor - LABEL_GAP:.0f}" y="{middle + 4:.0f}">{text}</text>')
        x += slot + GAP
    longest = max(len(f"{layer.label} · {layer.channels:,}") for layer in layers)
    # The last size may be wider than its block.
    size = f"{x + 24:.0f}", f"{floor + LABEL_GAP + CHARACTER * longest + 4:.0f}"
    text = escape(f"{name}: {described(layers)}")
    start = f'<svg class="picture" role="img" aria-label="{text}" width="{size[0]}" height="{size[1]}"'
    turned = f'<g transform="rotate(-90)">{"".join(labels)}</g>'
    return f'{start} viewBox="0 0 {size[0]} {size[1]}">{"".join(parts)}{turned}</svg>'


def _block(layer: Drawn, middle: float, floor: float, width: float, height: float) -> list[str]:
    """The rectangle of a layer, with the borders of its groups."""
    left, top = middle - width / 2, floor - height
    box = f'x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"'
    parts = [f'<rect {box} fill="{layer.color}"/>']
    groups = layer.groups or 1
    if 1 < groups <= MOST_LINES:
        step = width / groups
        lines = "".join(f"M{left + i * step:.1f} {top:.1f}v{height:.1f}" for i in range(1, groups))
        parts.append(f'<path d="{lines}"/>')
    return parts
