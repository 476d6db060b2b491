"""Fast depthwise convolutions of tiny maps during training: equal sums, without a slow case of oneDNN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 4  # pixels of a side: above, oneDNN is faster


@contextmanager
def fast_tiny_maps(model: nn.Module, device: str = "cpu") -> Iterator[None]:
    """Train `model` on the CPU without oneDNN's slow gradients.

    If a map is smaller than a depthwise kernel (3x3 on 2x2 and below, 5x5 and 7x7 on 4x4 and below), the gradient of a
    batch of 64 takes 6 to 40 ms in torch 2.13, about 10 times as long as on a larger map. Here each output pixel is
    computed as a sum over the input's pixels instead: 2 to 40 times faster, equal up to rounding.
    """
    convolutions = [part for part in model.modules() if type(part) is nn.Conv2d and _is_depthwise(part)]
    if torch.device(device).type != "cpu":
        convolutions = []
    for convolution in convolutions:
        convolution.forward = partial(_forward, convolution)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for convolution in convolutions:
            del convolution.forward


def _is_depthwise(convolution: nn.Conv2d) -> bool:
    """Whether `by_pixels` can compute a convolution."""
    channels = convolution.groups == convolution.in_channels == convolution.out_channels > 1
    plain = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return channels and plain and convolution.dilation == (1, 1)


def _forward(convolution: nn.Conv2d, maps: Tensor) -> Tensor:
    """`by_pixels` for tiny maps, else the convolution's own forward."""
    if not is_tiny(maps, convolution.weight):
        return nn.Conv2d.forward(convolution, maps)
    return by_pixels(maps, convolution.weight, convolution.bias, convolution.stride, convolution.padding)  # type: ignore[arg-type]


def is_tiny(maps: Tensor, weight: Tensor) -> bool:
    """Whether maps [N, C, H, W] are so small that `by_pixels` is faster than a convolution, in training."""
    height, width = maps.shape[2:]
    return max(height, width) <= LARGEST and min(height, width) < min(weight.shape[2:])


def by_pixels(
    maps: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    """A depthwise convolution of maps [N, C, H, W] with weights [C, 1, K, L], as sums over all H x W pixels.

    The cost grows with the square of the number of pixels.
    """
    batch, channels, height, width = maps.shape
    taps, rows, columns = _taps((height, width), weight.shape[2:], stride, padding)
    padded = functional.pad(weight.flatten(1), (0, 1)).t()  # the last tap is zero: pixels outside the kernel
    table = padded.index_select(0, taps).view(height * width, rows * columns, channels)
    pixels = maps.permute(0, 2, 3, 1).reshape(batch, height * width, 1, channels)
    sums = (pixels * table).sum(1)
    return (sums if bias is None else sums + bias).view(batch, rows, columns, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=256)
def _taps(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[Tensor, int, int]:
    """The kernel's tap between each input and output pixel, flattened; rows and columns of the output.

    The index after the last tap means no tap.
    """
    rows, columns = ((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    y, x, row, column = torch.meshgrid(*map(torch.arange, (*size, rows, columns)), indexing="ij")
    down, right = y - row * stride[0] + padding[0], x - column * stride[1] + padding[1]
    inside = (down >= 0) & (down < kernel[0]) & (right >= 0) & (right < kernel[1])
    return torch.where(inside, down * kernel[1] + right, kernel[0] * kernel[1]).flatten(), rows, columns
