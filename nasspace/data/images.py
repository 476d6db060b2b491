"""Decoded images: one uint8 tensor per split, fingerprints, other resolutions, stratified subsets."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from nasspace.data import pixel_files
from nasspace.data.decoding import specification
from nasspace.data.sources import SPLITS
from nasspace.errors import InputError
from nasspace.formatting import memory

CHUNK = 128  # images converted to floats at once


@dataclass(frozen=True, eq=False)
class Images:
    """One split: `pixels` uint8 [N, C, H, W], `labels` int64 [N], and the `originals` of the pixels.

    `file` is the file that the pixels are mapped from (`pixel_files`); None: they are held in memory. An original is a
    path, the bytes of an image file, or a uint8 array [H, W] or [H, W, 3]. Validation and test splits keep their
    originals, the training split does not.
    """

    pixels: Tensor
    labels: Tensor
    originals: Sequence[Path | bytes | numpy.ndarray] | None = None
    file: Path | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: Tensor) -> Images:
        """The images at these indices, held in memory."""
        if self.file is not None:
            pixel_files.read_ahead(self.file, self.pixels, indices)
        originals = self.originals
        if originals is not None:
            originals = [originals[index] for index in torch.arange(len(self))[indices].tolist()]
        return Images(self.pixels[indices], self.labels[indices], originals)

    def without_originals(self) -> Images:
        """Pixels and labels only."""
        return dataclasses.replace(self, originals=None)


@dataclass(frozen=True, eq=False)
class DataSet:
    """Splits of square images at `resolution`; `skipped` names images that were left out.

    `mean` and `std` of each channel are computed on the training split, on a scale of 0 to 255, and are kept at other
    resolutions. Divided by 255 they have six decimals, as in `preprocessing`, the content of preprocessing.json at this
    resolution. `native` is the most frequent shorter side of the training images in pixels. `seed` and `held_out` are
    the arguments of `load_data`.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    train: Images
    validation: Images
    test: Images | None
    resolution: int
    skipped: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    native: int = 0
    preprocessing: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    held_out: float = 0.2
    own_validation: bool = False  # the source has a validation split

    def __post_init__(self) -> None:
        mean_and_std = (self.mean, self.std) if self.mean else moments(self.train.pixels)
        scaled = [[round(value / 255, 6) for value in values] for values in mean_and_std]
        spec = self.preprocessing or specification(self.channels, self.resolution)
        spec = {**spec, "mean": scaled[0], "std": scaled[1], "classes": list(self.classes)}
        derived = {
            "mean": tuple(255 * value for value in scaled[0]),
            "std": tuple(255 * value for value in scaled[1]),
            "native": self.native or self.resolution,
            "preprocessing": spec,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def validated_on(self) -> str:
        """The name of the validation images in tables and reports."""
        return "validation images" if self.own_validation else "held-out training images"

    @property
    def origin(self) -> dict[str, Any]:
        """What identifies the validation images: name, seed, held_out, fingerprint."""
        return {
            "name": self.name,
            "seed": self.seed,
            "held_out": self.held_out,
            "fingerprint": self.fingerprint,
        }

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits of a hash of classes, resolution, labels and pixels of all splits."""
        digest = hashlib.sha256(repr((self.classes, self.resolution)).encode())
        for images in (self.train, self.validation, self.test):
            for tensor in (images.labels, images.pixels) if images else ():
                digest.update(repr(tuple(tensor.shape)).encode())
                digest.update(tensor.contiguous().numpy())
        return digest.hexdigest()[:12]


def moments(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (at least 1) of each channel of uint8 [N, C, H, W]."""
    counts = torch.zeros(pixels.shape[1], 256, dtype=torch.int64)  # counting 256 values is fast and exact
    for start in range(0, len(pixels), CHUNK):
        for channel, count in enumerate(counts):
            count += torch.bincount(pixels[start : start + CHUNK, channel].flatten(), minlength=256)
    shares = counts / counts[0].sum().double()
    values = torch.arange(256, dtype=torch.float64)
    mean = shares @ values
    std = (shares @ values**2 - mean**2).clamp(min=1).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def prepared(data: DataSet, resolution: int) -> DataSet:
    """The data set at another resolution: itself, or a copy; keep the copy to train often.

    The copy's pixels are scaled from the pixels in memory. It drops the originals, and its `preprocessing` has the new
    resolution.
    """
    if resolution == data.resolution:
        return data
    splits = {split: getattr(data, split) for split in SPLITS}
    needed = sum(len(images) for images in splits.values() if images) * data.channels * resolution**2
    if pixel_files.exceeds_memory(needed):
        raise InputError(
            f"{data.name}: images resized to {resolution}x{resolution} are held in memory and would need "
            f"{memory(needed)}, more than half of it; choose a lower resolution, or that of the decoded images, "
            f"{data.resolution}"
        )
    scaled = {
        split: images and Images(resized(images.pixels, resolution), images.labels) for split, images in splits.items()
    }
    values, jpeg = data.preprocessing["range"], data.preprocessing["draft"] is not None
    spec = specification(data.channels, resolution, values=values, jpeg=jpeg)
    return dataclasses.replace(data, **scaled, resolution=resolution, preprocessing=spec)


def resized(pixels: Tensor, resolution: int) -> Tensor:
    """Resize uint8 [N, C, H, W] to `resolution` squared, bilinear with antialiasing."""
    if pixels.shape[-2:] == (resolution, resolution):
        return pixels
    scaled = pixels.new_empty((*pixels.shape[:2], resolution, resolution))
    for start in range(0, len(pixels), CHUNK):
        chunk = pixels[start : start + CHUNK].float()
        chunk = functional.interpolate(chunk, (resolution, resolution), mode="bilinear", antialias=True)
        scaled[start : start + CHUNK] = chunk.round().clamp(0, 255).to(torch.uint8)
    return scaled


def spread(total: int, count: int) -> Tensor:
    """At most `count` indices spread evenly over `total` images, the first and the last among them.

    Images of a folder are sorted by class, so that an even spread has images of every class.

    >>> spread(10, 4).tolist(), spread(3, 4).tolist()
    ([0, 3, 6, 9], [0, 1, 2])
    """
    return torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round().long()


def stratified(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sorted indices of a random `share` of each class, and of the rest.

    Both parts have at least one image of each class with two or more images.
    """
    taken, rest = [], []
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(share * len(members))), max(1, len(members) - 1))
        taken.append(members[:count])
        rest.append(members[count:])
    return torch.cat(taken).sort().values, torch.cat(rest).sort().values
