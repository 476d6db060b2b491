"""RandAugment and TrivialAugment on uint8 batches [N, C, H, W]: one of fourteen operations an image, at random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nasspace.data import augmentation

BINS = 31  # magnitudes 0 to 30
# name: (largest magnitude, whether its sign is random) of RandAugment, then of TrivialAugment's wide space
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
    "posterize": ((4.0, False), (6.0, False)),  # bits that are lost
    "solarize": ((1.0, False), (1.0, False)),  # the threshold is this share of 256 below white
    "autocontrast": ((0.0, False), (0.0, False)),
    "equalize": ((0.0, False), (0.0, False)),
}
NAMES = tuple(RANGES)
GEOMETRIC = NAMES[1:6]


def rand_augmented(pixels: Tensor, generator: torch.Generator, layers: int = 2, magnitude: float = 9) -> Tensor:
    """RandAugment (Cubuk et al. 2020): `layers` random operations a image, all of one magnitude of 0 to 30."""
    for _ in range(layers):
        kinds = torch.randint(len(NAMES), (len(pixels),), generator=generator)
        shares = torch.full((len(pixels),), magnitude / (BINS - 1))
        pixels = applied(pixels, kinds, _magnitudes(kinds, shares, 0, generator))
    return pixels


def trivially_augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """TrivialAugment, wide (Müller and Hutter 2021): one random operation of a random magnitude a image.

    Translations are up to 32 / 224 of the side, which at 224 pixels are the paper's 32.
    """
    kinds = torch.randint(len(NAMES), (len(pixels),), generator=generator)
    shares = torch.randint(BINS, (len(pixels),), generator=generator) / (BINS - 1)
    return applied(pixels, kinds, _magnitudes(kinds, shares, 1, generator))


def _magnitudes(kinds: Tensor, shares: Tensor, column: int, generator: torch.Generator) -> Tensor:
    """Each image's share of its operation's largest magnitude, with a random sign where the operation has two."""
    most = torch.tensor([RANGES[name][column][0] for name in NAMES])
    signed = torch.tensor([RANGES[name][column][1] for name in NAMES])
    negative = (torch.rand(len(kinds), generator=generator) < 0.5) & signed[kinds]
    return torch.where(negative, -1.0, 1.0) * shares * most[kinds]


def applied(pixels: Tensor, kinds: Tensor, magnitudes: Tensor) -> Tensor:
    """The operation `kinds` (positions in NAMES) at `magnitudes` on each image."""
    result = pixels.clone()
    geometric = torch.isin(kinds, torch.tensor([NAMES.index(name) for name in GEOMETRIC])).nonzero()[:, 0]
    if len(geometric):
        matrices = _matrices(kinds[geometric], magnitudes[geometric], pixels.shape[-1])
        places = geometric.to(pixels.device)
        result[places] = augmentation.warped(pixels[places], matrices)
    for name, operation in OPERATIONS.items():
        chosen = (kinds == NAMES.index(name)).nonzero()[:, 0]
        if len(chosen):
            places = chosen.to(pixels.device)
            amounts = magnitudes[chosen].to(pixels.device)[:, None, None, None]
            result[places] = operation(pixels[places], amounts)
    return result


def _matrices(kinds: Tensor, magnitudes: Tensor, side: int) -> Tensor:
    """For `augmentation.warped`, [N, 2, 3]."""
    of = {name: torch.where(kinds == NAMES.index(name), magnitudes, 0.0) for name in GEOMETRIC}
    matrices = augmentation.rotations(of["rotate"])
    matrices[:, 0, 1] += of["shear_x"]
    matrices[:, 1, 0] += of["shear_y"]
    matrices[:, 0, 2] += of["translate_x"] * side
    matrices[:, 1, 2] += of["translate_y"] * side
    return matrices


def _toned(operation):
    return lambda pixels, amounts: augmentation.as_bytes(operation(pixels.float(), 1 + amounts))


def sharpened(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a smoothed image (3x3, 5 in the middle of 13); the border stays."""
    if min(images.shape[2:]) < 3:
        return images
    channels = images.shape[1]
    kernel = torch.ones(channels, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = functional.conv2d(images, kernel / 13, groups=channels).round()
    return augmentation.blended(images, smooth, factor)


def posterized(pixels: Tensor, lost: Tensor) -> Tensor:
    """The lowest `lost` bits, rounded, become 0."""
    kept = 2 ** lost.round().to(torch.int64)
    return (pixels // kept * kept).to(torch.uint8)


def solarized(pixels: Tensor, share: Tensor) -> Tensor:
    """Values at or above the threshold, 255 x (1 - share), are inverted; at share 0 only white would be: none is."""
    threshold = torch.where(share == 0, 256.0, 255 * (1 - share))
    return torch.where(pixels.float() >= threshold, 255 - pixels, pixels)


def autocontrasted(pixels: Tensor, _: Tensor | None = None) -> Tensor:
    """Each channel stretched to 0..255; one of a single value stays."""
    images = pixels.float()
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) * 255 / (high - low).clamp(min=1)
    return augmentation.as_bytes(torch.where(high > low, stretched, images))


def equalized(pixels: Tensor, _: Tensor | None = None) -> Tensor:
    """The histogram of each channel flattened, as Pillow does."""
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
    "brightness": _toned(augmentation.brightened),
    "color": _toned(augmentation.saturated),
    "contrast": _toned(augmentation.contrasted),
    "sharpness": _toned(sharpened),
    "posterize": posterized,
    "solarize": solarized,
    "autocontrast": autocontrasted,
    "equalize": equalized,
}
POLICIES = {"randaugment": rand_augmented, "trivialaugment": trivially_augmented}
