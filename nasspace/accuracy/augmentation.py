"""Whole batches shifted and mirrored at random, on the device they are on."""

from __future__ import annotations

import torch
from torch import Tensor


def shifted(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image of [N, C, H, W] moved by up to `most` pixels either way; what comes in is its own mirror image.

    The same as padding by reflection and cutting out at random, without the padded copy. `most` is below H and W.
    """
    count, _, height, width = pixels.shape
    offsets = torch.randint(-most, most + 1, (2, count, 1), generator=generator)
    rows = _reflected(torch.arange(height) + offsets[0], height).to(pixels.device)
    columns = _reflected(torch.arange(width) + offsets[1], width).to(pixels.device)
    which = torch.arange(count, device=pixels.device)[:, None, None]
    # Gathered as [N, H, W, C], which seen as [N, C, H, W] is the channels-last layout that training wants.
    return pixels[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mirrored(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of [N, C, H, W] left to right, or as it is, by chance."""
    chosen = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(chosen.to(pixels.device)[:, None, None, None], pixels.flip(3), pixels)


def _reflected(positions: Tensor, size: int) -> Tensor:
    """Positions outside 0..size-1 folded back at the border pixel, which is not doubled."""
    return size - 1 - (size - 1 - positions.abs()).abs()
