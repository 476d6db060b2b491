"""Random augmentation of uint8 batches [N, C, H, W] on their device.

Every function first draws the parameters of all images from a generator on the CPU, then applies them: an image's
result depends on its own parameters only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

ATTEMPTS = 10  # boxes drawn for each image; the first that fits is taken
GRAY = (0.2989, 0.587, 0.114)  # ITU-R 601-2 luma


def random_shift(pixels: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Shift each image of [N, C, H, W] by up to `most` pixels in each direction, with reflection at the border.

    Equal to reflection padding and a random crop, without the padded copy. `most` must be below H and W.
    """
    count, _, height, width = pixels.shape
    offsets = torch.randint(-most, most + 1, (2, count, 1), generator=generator)
    rows = _reflect(torch.arange(height) + offsets[0], height).to(pixels.device)
    columns = _reflect(torch.arange(width) + offsets[1], width).to(pixels.device)
    which = torch.arange(count, device=pixels.device)[:, None, None]
    # Gathered as [N, H, W, C]: as [N, C, H, W] this is the channels-last layout that training uses.
    return pixels[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flip(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each image of [N, C, H, W] horizontally with probability 1/2."""
    chosen = torch.rand(len(pixels), generator=generator) < 0.5
    return torch.where(chosen.to(pixels.device)[:, None, None, None], pixels.flip(3), pixels)


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Reflect positions outside 0..size-1 at the border pixel, which is not repeated."""
    return size - 1 - (size - 1 - positions.abs()).abs()


def random_boxes(
    count: int, size: tuple[int, int], scale: Sequence[float], ratio: Sequence[float], generator: torch.Generator
) -> Tensor:
    """Random boxes, int64 [count, 4] of (top, left, height, width) inside `size`.

    The area as a share of the image's is uniform in `scale`, the logarithm of width over height uniform in that of
    `ratio`. If none of 10 draws fits, the box is the largest central one that `ratio` allows (Szegedy et al. 2015, as
    in torchvision's RandomResizedCrop).
    """
    rows, columns = size
    areas = _uniform((count, ATTEMPTS), *scale, generator) * (rows * columns)
    shapes = _uniform((count, ATTEMPTS), math.log(ratio[0]), math.log(ratio[1]), generator).exp()
    places = torch.rand((count, 2), generator=generator, dtype=torch.float64)
    heights, widths = (areas / shapes).sqrt().round().long(), (areas * shapes).sqrt().round().long()
    fits = (heights >= 1) & (heights <= rows) & (widths >= 1) & (widths <= columns)
    first = fits.int().argmax(1)[:, None]
    height, width = heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0]
    top, left = (places[:, 0] * (rows - height + 1)).long(), (places[:, 1] * (columns - width + 1)).long()
    found = torch.stack([top, left, height, width], 1)
    return torch.where(fits.any(1)[:, None], found, torch.tensor(_central_box(rows, columns, ratio)))


def _central_box(rows: int, columns: int, ratio: Sequence[float]) -> tuple[int, int, int, int]:
    """The largest central box (top, left, height, width) whose width over height is in `ratio`."""
    if columns / rows < ratio[0]:
        height, width = max(1, round(columns / ratio[0])), columns
    elif columns / rows > ratio[1]:
        height, width = rows, max(1, round(rows * ratio[1]))
    else:
        height, width = rows, columns
    return (rows - height) // 2, (columns - width) // 2, height, width


def random_resized_crop(
    pixels: Tensor, scale: Sequence[float], ratio: Sequence[float], generator: torch.Generator
) -> Tensor:
    """Crop a random box of each image (`random_boxes`) and resize it to the image's size, bilinear."""
    return resized_crop(pixels, random_boxes(len(pixels), tuple(pixels.shape[2:]), scale, ratio, generator))


def resized_crop(pixels: Tensor, found: Tensor) -> Tensor:
    """Crop the box (top, left, height, width) of each image and resize it to the image's size, bilinear."""
    rows, columns = pixels.shape[2:]
    top, left, height, width = found.to(pixels.device, torch.float32)[:, :, None].unbind(1)
    y = _source_positions(rows, top, height)
    x = _source_positions(columns, left, width)
    grid = torch.stack(
        [
            ((2 * x + 1) / columns - 1)[:, None, :].expand(-1, rows, -1),
            ((2 * y + 1) / rows - 1)[:, :, None].expand(-1, -1, columns),
        ],
        -1,
    )
    return _grid_sample(pixels, grid, "border")


def _source_positions(size: int, start: Tensor, length: Tensor) -> Tensor:
    """Source positions of `size` pixels that cover `length` pixels from `start`, clamped to these."""
    positions = (torch.arange(size, device=start.device) + 0.5) * length / size - 0.5
    return start + torch.minimum(positions.clamp(min=0), length - 1)


def _grid_sample(pixels: Tensor, grid: Tensor, padding: str) -> Tensor:
    """Sample uint8 images at the grid, bilinear."""
    sampled = functional.grid_sample(pixels.float(), grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return to_uint8(sampled)


def affine(pixels: Tensor, matrices: Tensor) -> Tensor:
    """Transform each image by an affine map, bilinear; pixels outside the image are black.

    `matrices` [N, 2, 3] map (x, y, 1) of the result to (x, y) of the image, in pixels from the center.
    """
    rows, columns = pixels.shape[2:]
    device = pixels.device
    y = torch.arange(rows, device=device) - (rows - 1) / 2
    x = torch.arange(columns, device=device) - (columns - 1) / 2
    points = torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns), torch.ones(rows, columns, device=device)])
    found = torch.einsum("nij,jhw->nhwi", matrices.to(device, torch.float32), points)
    return _grid_sample(pixels, found * torch.tensor([2 / columns, 2 / rows], device=device), "zeros")


def random_rotation(pixels: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Rotate each image about its center by up to `most` degrees in each direction; the corners become black."""
    return affine(pixels, rotation_matrices(_uniform((len(pixels),), -most, most, generator)))


def rotation_matrices(degrees: Tensor) -> Tensor:
    """The matrices [N, 2, 3] of counterclockwise rotations, for `affine`."""
    angles = torch.deg2rad(degrees.double())
    zero = torch.zeros_like(angles)
    rows = [torch.stack([angles.cos(), -angles.sin(), zero], 1), torch.stack([angles.sin(), angles.cos(), zero], 1)]
    return torch.stack(rows, 1)


def color_jitter(pixels: Tensor, most: Sequence[float], generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image at random, in a random order.

    `most` has one value for each: factors are drawn between 1 - value (at least 0) and 1 + value, the change of hue
    between -value and value, as a share of the color circle. Images of one channel have no saturation and no hue.
    """
    count = len(pixels)
    draws = torch.rand((4, count), generator=generator, dtype=torch.float64)
    lows = torch.tensor([max(0.0, 1 - value) for value in most[:3]] + [-most[3]], dtype=torch.float64)[:, None]
    highs = torch.tensor([1 + value for value in most[:3]] + [most[3]], dtype=torch.float64)[:, None]
    orders = torch.rand((count, 4), generator=generator).argsort(1)
    changes = (lows + draws * (highs - lows)).float()
    return apply_jitter(pixels, changes, orders, [value > 0 for value in most])


def apply_jitter(pixels: Tensor, changes: Tensor, orders: Tensor, active: Sequence[bool] = (True,) * 4) -> Tensor:
    """Apply `changes` [4, N] (brightness, contrast, saturation, hue) to each image in its order of [N, 4]."""
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    possible = [used and (pixels.shape[1] == 3 or kind < 2) for kind, used in enumerate(active)]
    result = pixels.float()
    for step in range(4):
        for kind, operation in enumerate(operations):
            chosen = (orders[:, step] == kind).nonzero()[:, 0].to(pixels.device)
            if possible[kind] and len(chosen):
                amount = changes[kind].to(pixels.device)[chosen]
                result[chosen] = operation(result[chosen], amount[:, None, None, None])
    return to_uint8(result)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply float images of 0..255 by `factor` [N, 1, 1, 1]."""
    return (images * factor).clamp(0, 255)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its mean gray."""
    return blend(images, to_gray(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its gray version."""
    return blend(images, to_gray(images), factor)


def blend(images: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    """factor x images + (1 - factor) x others, within 0..255."""
    return (images * factor + others * (1 - factor)).clamp(0, 255)


def to_gray(images: Tensor) -> Tensor:
    """The luma of float images, [N, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(GRAY, device=images.device)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def adjust_hue(images: Tensor, change: Tensor) -> Tensor:
    """Change the hue of float RGB images by `change` [N, 1, 1, 1], a share of the color circle (through HSV)."""
    highest, lowest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    spread = highest - lowest
    safe = torch.where(spread == 0, 1.0, spread)
    red, green, blue = images.split(1, 1)
    sector = torch.where(
        highest == red,
        (green - blue) / safe,
        torch.where(highest == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = (sector / 6 + change) % 1
    offsets = torch.tensor([5.0, 3.0, 1.0], device=images.device)[:, None, None]
    position = (offsets + 6 * hue) % 6
    return highest - spread * torch.minimum(position, 4 - position).clamp(0, 1)


def principal_components(pixels: Tensor) -> Tensor:
    """Principal components of the colors of uint8 [N, C, H, W], times their eigenvalues: the columns of [C, C].

    Pixels are scaled to 0..1, as in the PyTorch and Torch7 versions of AlexNet's noise.
    """
    channels = pixels.shape[1]
    total, products, count = torch.zeros(channels).double(), torch.zeros(channels, channels).double(), 0
    for chunk in pixels.split(128):
        flat = chunk.transpose(0, 1).reshape(channels, -1).double() / 255
        total += flat.sum(1)
        products += flat @ flat.T
        count += flat.shape[1]
    mean = total / count
    values, vectors = torch.linalg.eigh(products / count - mean[:, None] * mean)
    return (vectors * values.clamp(min=0)).float()


def color_noise(pixels: Tensor, components: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add one random color to each image (Krizhevsky et al. 2012, with `std` 0.1).

    It is normally distributed along the principal components.
    """
    draws = torch.randn((len(pixels), components.shape[1]), generator=generator) * std
    colors = 255 * draws @ components.T
    return to_uint8(pixels.float() + colors.to(pixels.device)[:, :, None, None])


def random_erasing(
    pixels: Tensor,
    probability: float,
    fill: Sequence[float],
    generator: torch.Generator,
    scale: Sequence[float] = (0.02, 0.33),
    ratio: Sequence[float] = (0.3, 3.3),
) -> Tensor:
    """Fill a random box (`random_boxes`) with the color `fill` with some probability (Zhong et al. 2017)."""
    count, _, rows, columns = pixels.shape
    chosen = torch.rand(count, generator=generator) < probability
    inside = (
        box_masks(random_boxes(count, (rows, columns), scale, ratio, generator), rows, columns) & chosen[:, None, None]
    )
    color = torch.tensor(fill, dtype=torch.float32).round().to(pixels.device, pixels.dtype)[:, None, None]
    return torch.where(inside[:, None].to(pixels.device), color, pixels)


def box_masks(found: Tensor, rows: int, columns: int) -> Tensor:
    """Boolean masks [N, rows, columns], true inside the box (top, left, height, width) of each image."""
    top, left, height, width = found[:, :, None].unbind(1)
    y, x = torch.arange(rows), torch.arange(columns)
    return ((y >= top) & (y < top + height))[:, :, None] & ((x >= left) & (x < left + width))[:, None, :]


def mixup(images: Tensor, labels: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """MixUp (Zhang et al. 2018): share x batch + (1 - share) x permuted batch, for images and labels.

    `images` are float, `labels` soft [N, classes]. The batch has one share, drawn from Beta(alpha, alpha).
    """
    share, others = _beta(alpha, generator), torch.randperm(len(images), generator=generator).to(images.device)
    return images.lerp(images[others], 1 - share), labels.lerp(labels[others], 1 - share)


def cutmix(images: Tensor, labels: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019): replace a box of each image by that of another image; mix labels by area.

    The box's center is uniform in the image and the box is clipped at the border; its area before clipping is
    1 - Beta(alpha, alpha), as a share of the image's.
    """
    rows, columns = images.shape[2:]
    share, others = _beta(alpha, generator), torch.randperm(len(images), generator=generator).to(images.device)
    center = torch.rand(2, generator=generator).tolist()
    side = math.sqrt(1 - share)
    (top, bottom), (left, right) = (
        (max(0, round(size * (at - side / 2))), min(size, round(size * (at + side / 2))))
        for size, at in zip((rows, columns), center, strict=True)
    )
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[others, :, top:bottom, left:right]
    part = (bottom - top) * (right - left) / (rows * columns)
    return images, labels.lerp(labels[others], part)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Draw from Beta(alpha, alpha) by the inverse of its distribution function."""
    from scipy.special import betaincinv

    return float(betaincinv(alpha, alpha, float(torch.rand((), generator=generator, dtype=torch.float64))))


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """float64 numbers, uniform between `low` and `high`."""
    return low + torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low)


def to_uint8(images: Tensor) -> Tensor:
    """Round float images in place to 0..255, as uint8."""
    return images.round_().clamp_(0, 255).to(torch.uint8)
