"""RandAugment and TrivialAugment on uint8 batches [N, C, H, W]: one of fourteen random operations per image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from nasspace.data import augmentation

BINS = 31  # magnitudes 0 to 30
# name: (largest magnitude, whether its sign is random) in RandAugment, then in TrivialAugment's wide space
RANGES = {
    "identity": ((0.0, False), (0.0, False)),
    "shear_x": ((0.3, True), (0.99, True)),
    "shear_y": ((0.3, True), (0.99, True)),
    "translate_x": ((150 / 331, True), (32 / 224, True)),  # of the side
    "translate_y": ((150 / 331, True), (32 / 224, True)),
    "rotate": ((30.0, True), (135.0, True)),  # degrees
    "brightness": ((0.9, True), (0.99, True)),
    "color": ((0.9, True), (0.99, True)),
    "contrast": ((0.9, True), (0.99, True)),
    "sharpness": ((0.9, True), (0.99, True)),
    "posterize": ((4.0, False), (6.0, False)),  # bits that are dropped
    "solarize": ((1.0, False), (1.0, False)),  # the threshold is this share of 256 below white
    "autocontrast": ((0.0, False), (0.0, False)),
    "equalize": ((0.0, False), (0.0, False)),
}
NAMES = tuple(RANGES)
GEOMETRIC = NAMES[1:6]


def rand_augment(pixels: Tensor, generator: torch.Generator, layers: int = 2, magnitude: float = 9) -> Tensor:
    """RandAugment (Cubuk et al. 2020): `layers` random operations per image, all with one magnitude of 0 to 30."""
    for _ in range(layers):
        kinds = torch.randint(len(NAMES), (len(pixels),), generator=generator)
        shares = torch.full((len(pixels),), magnitude / (BINS - 1))
        pixels = apply_operations(pixels, kinds, _magnitudes(kinds, shares, 0, generator))
    return pixels


def trivial_augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """TrivialAugment, wide (Müller and Hutter 2021): one random operation of random magnitude per image.

    Translations are up to 32 / 224 of the side: at 224 pixels, the paper's 32.
    """
    kinds = torch.randint(len(NAMES), (len(pixels),), generator=generator)
    shares = torch.randint(BINS, (len(pixels),), generator=generator) / (BINS - 1)
    return apply_operations(pixels, kinds, _magnitudes(kinds, shares, 1, generator))


def _magnitudes(kinds: Tensor, shares: Tensor, column: int, generator: torch.Generator) -> Tensor:
    """`shares` times the largest magnitude of each image's operation, with a random sign if the operation has one."""
    most = torch.tensor([RANGES[name][column][0] for name in NAMES])
    signed = torch.tensor([RANGES[name][column][1] for name in NAMES])
    negative = (torch.rand(len(kinds), generator=generator) < 0.5) & signed[kinds]
    return torch.where(negative, -1.0, 1.0) * shares * most[kinds]


def apply_operations(pixels: Tensor, kinds: Tensor, magnitudes: Tensor) -> Tensor:
    """Apply to each image the operation of its `kinds` (an index into NAMES) with its magnitude."""
    result = pixels.clone()
    geometric = torch.isin(kinds, torch.tensor([NAMES.index(name) for name in GEOMETRIC])).nonzero()[:, 0]
    if len(geometric):
        matrices = _matrices(kinds[geometric], magnitudes[geometric], pixels.shape[-1])
        places = geometric.to(pixels.device)
        result[places] = augmentation.affine(pixels[places], matrices)
    for name, operation in OPERATIONS.items():
        chosen = (kinds == NAMES.index(name)).nonzero()[:, 0]
        if len(chosen):
            places = chosen.to(pixels.device)
            amounts = magnitudes[chosen].to(pixels.device)[:, None, None, None]
            result[places] = operation(pixels[places], amounts)
    return result


def _matrices(kinds: Tensor, magnitudes: Tensor, side: int) -> Tensor:
    """The matrices [N, 2, 3] of geometric operations, for `augmentation.affine`."""
    of = {name: torch.where(kinds == NAMES.index(name), magnitudes, 0.0) for name in GEOMETRIC}
    matrices = augmentation.rotation_matrices(of["rotate"])
    matrices[:, 0, 1] += of["shear_x"]
    matrices[:, 1, 0] += of["shear_y"]
    matrices[:, 0, 2] += of["translate_x"] * side
    matrices[:, 1, 2] += of["translate_y"] * side
    return matrices


def _with_factor(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """An operation on uint8 images and magnitudes from one on float images and factors (1 + magnitude)."""
    return lambda pixels, amounts: augmentation.to_uint8(operation(pixels.float(), 1 + amounts))


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with a smoothed one (3x3 kernel, center 5 / 13); the border is not smoothed."""
    if min(images.shape[2:]) < 3:
        return images
    channels = images.shape[1]
    kernel = torch.ones(channels, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = functional.conv2d(images, kernel / 13, groups=channels).round()
    return augmentation.blend(images, smooth, factor)


def posterize(pixels: Tensor, bits: Tensor) -> Tensor:
    """Set the lowest `bits` bits, rounded, to 0."""
    step = 2 ** bits.round().to(torch.int64)
    return (pixels // step * step).to(torch.uint8)


def solarize(pixels: Tensor, share: Tensor) -> Tensor:
    """Invert values at or above 255 x (1 - share); none at share 0, where only white would be inverted."""
    threshold = torch.where(share == 0, 256.0, 255 * (1 - share))
    return torch.where(pixels.float() >= threshold, 255 - pixels, pixels)


def autocontrast(pixels: Tensor, _: Tensor | None = None) -> Tensor:
    """Stretch each channel to 0..255; a channel with a single value stays."""
    images = pixels.float()
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) * 255 / (high - low).clamp(min=1)
    return augmentation.to_uint8(torch.where(high > low, stretched, images))


def equalize(pixels: Tensor, _: Tensor | None = None) -> Tensor:
    """Equalize the histogram of each channel, as Pillow does."""
    count, channels = pixels.shape[:2]
    planes = pixels.reshape(count * channels, -1).long()
    histograms = torch.zeros(len(planes), 256, dtype=torch.int64, device=pixels.device)
    histograms.scatter_add_(1, planes, torch.ones_like(planes))
    highest = planes.amax(1, keepdim=True)
    step = (planes.shape[1] - histograms.gather(1, highest)) // 255
    sums = histograms.cumsum(1) - histograms + step // 2
    table = (sums // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, table.gather(1, planes), planes).reshape(pixels.shape).to(torch.uint8)


OPERATIONS = {
    "brightness": _with_factor(augmentation.adjust_brightness),
    "color": _with_factor(augmentation.adjust_saturation),
    "contrast": _with_factor(augmentation.adjust_contrast),
    "sharpness": _with_factor(adjust_sharpness),
    "posterize": posterize,
    "solarize": solarize,
    "autocontrast": autocontrast,
    "equalize": equalize,
}
POLICIES = {"randaugment": rand_augment, "trivialaugment": trivial_augment}
