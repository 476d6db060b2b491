"""The end of a network: global pooling, flatten, dropout, linear."""

from __future__ import annotations

from torch import Tensor, nn

from nasspace.blocks.layers import activation_layers
from nasspace.blocks.options import Activation, Probability


class GlobalPool(nn.Sequential):
    """Mean over the map, to 1x1; where the width changes, a 1x1 convolution with bias follows.

    A 1x1 map has nothing to stride over, so `stride` does nothing.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        same = in_channels == out_channels
        super().__init__(nn.AdaptiveAvgPool2d(1), *([] if same else [nn.Conv2d(in_channels, out_channels, 1)]))


class Flatten(nn.Sequential):
    """The map as one row of C x H x W values; where `out` is another width, a linear layer follows.

    `in_channels` is C x H x W, as `network.build` passes it; `stride` does nothing.
    """

    flattens = True  # `in_channels` is the size of the whole map

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        same = in_channels == out_channels
        super().__init__(nn.Flatten(), *([] if same else [nn.Linear(in_channels, out_channels)]))


class Dropout(nn.Sequential):
    """Dropout with probability `p`; where the width changes, a `linear` follows. `stride` does nothing."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, p: Probability = 0.2):
        same = in_channels == out_channels
        super().__init__(nn.Dropout(p), *([] if same else [Linear(in_channels, out_channels)]))


class Linear(nn.Module):
    """Linear layer, activation; a map larger than 1x1 is averaged first; `stride` does nothing."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        bias: bool = True,
        activation: Activation = "none",
    ):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=bias)
        self.activation = nn.Sequential(*activation_layers(activation))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels) or (batch, in_channels, H, W) to (batch, out_channels)."""
        if x.dim() == 4:
            x = x.flatten(1) if x.shape[2] == x.shape[3] == 1 else x.mean((2, 3))
        return self.activation(self.linear(x))


BLOCKS = {"global_pool": GlobalPool, "flatten": Flatten, "dropout": Dropout, "linear": Linear}
