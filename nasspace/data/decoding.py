"""Decode image files to one uint8 tensor by the shipped preprocessing, and derive that preprocessing from the files."""

from __future__ import annotations

import os
import statistics
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, JpegImagePlugin, UnidentifiedImageError
from torch import Tensor

from nasspace.data import predict
from nasspace.errors import InputError

GRAY_MODES = {"1", "L", "LA", "La"}
BACKGROUND = (255, 255, 255)  # of transparent images
CHUNK = 32  # images per task of a thread
FREQUENT = 0.1  # share of the images
DIMMEST = 64  # of 255; 16-bit colors that are all below use at most 14 bits


@dataclass(frozen=True)
class Encoded:
    """An image that is not decoded: its `place` for messages (a path, a row), and its path, bytes or array."""

    place: str
    content: Path | bytes | np.ndarray | None


@dataclass(frozen=True)
class Header:
    """Properties of an image before it is decoded; `broken` is the reason why it cannot be.

    `shorter` is the shorter side in pixels. `deep`: gray of more than eight bits. `wide`: color of sixteen bits, of
    which Pillow reads eight.
    """

    shorter: int = 0
    gray: bool = False
    deep: bool = False
    wide: bool = False
    jpeg: bool = False
    broken: str = ""


def headers(images: Sequence[Encoded]) -> list[Header]:
    """Size and kind of each image, from its first bytes."""
    with _quiet_pillow(), _threads() as threads:
        return list(threads.map(_header, images))


def native_side(found: Sequence[Header]) -> int:
    """The most frequent shorter side in pixels, the larger one of a tie; the median if no side is frequent.

    A side is frequent if a tenth of the images have it; in photographs of many sizes none is.
    """
    counts = Counter(header.shorter for header in found if not header.broken)
    side = max(counts, key=lambda side: (counts[side], side))
    return side if FREQUENT * counts.total() <= counts[side] else statistics.median_high(counts.elements())


def value_range(images: Sequence[Encoded]) -> tuple[float, float] | None:
    """The smallest and the largest finite value in images of more than eight bits; None without any.

    Images that cannot be decoded are skipped; `decode` reports them.
    """
    with _quiet_pillow(), _threads() as threads:
        found = [extremes for extremes in threads.map(_extremes, images) if extremes]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def check_brightness(images: Sequence[Encoded]) -> None:
    """Refuse color images of sixteen bits that use the lower bits only, such as those of a 12-bit camera.

    Pillow reads the upper eight bits of such an image, which would be almost black and have few levels.
    """
    with _quiet_pillow(), _threads() as threads:
        maxima = [value for value in threads.map(_brightest, images) if value is not None]
    if maxima and max(maxima) < DIMMEST:
        more = f" and {len(images) - 1} more" if len(images) > 1 else ""
        limit = 256 * (max(maxima) + 1)
        raise InputError(
            f"{images[0].place}{more}: color of sixteen bits with values below {limit:,} only, of which Pillow reads "
            "the upper eight bits; scale the images to the full range, or save them with eight bits"
        )


def specification(
    channels: int, resolution: int, *, values: tuple[float, float] | None = None, jpeg: bool = False
) -> dict[str, Any]:
    """The content of preprocessing.json without `mean`, `std` and `classes`, for square images of `resolution` pixels.

    `values` becomes `range`. With `jpeg`, a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, but at twice the
    resolution at least, so that resizing stays smooth.
    """
    return {
        "input": [channels, resolution, resolution],
        "orientation": "exif",
        "color": "L" if channels == 1 else "RGB",
        "background": list(BACKGROUND),
        "draft": [2 * resolution, 2 * resolution] if jpeg else None,
        "range": list(values) if values else None,
        "resize": {"shorter_side": resolution},
        "interpolation": "bilinear",
        "crop": [resolution, resolution],
    }


def decode(images: Sequence[Encoded], spec: Mapping[str, Any]) -> tuple[Tensor, dict[int, str]]:
    """Pixels uint8 [N, *spec["input"]], and the reason for each unreadable image, whose pixels are zero."""
    # NumPy, not torch: a torch operation in each thread would start another pool of threads.
    pixels = np.zeros((len(images), *spec["input"]), np.uint8)
    broken: dict[int, str] = {}

    def fill(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(images))):
            try:
                pixels[index] = predict.preprocess(_content(images[index]), spec)
            except Exception as error:  # Pillow's decoders raise many kinds of exceptions on damaged files
                broken[index] = _reason(error)

    with _quiet_pillow(), _threads() as threads:
        list(threads.map(fill, range(0, len(images), CHUNK)))
    return torch.from_numpy(pixels), dict(sorted(broken.items()))


def name_broken(broken: Sequence[tuple[str, str]]) -> InputError:
    """An error that names the unreadable images, given the place and reason of each."""
    place, reason = broken[0]
    others = [f"\n  {place}: {reason}" for place, reason in broken[1:5]]
    more = f"\n  and {len(broken) - 5} more" if len(broken) > 5 else ""
    return InputError(
        f"{place}: cannot be read as an image ({reason}); repair or remove it, or skip such images "
        f"with --skip-broken{';' if others else ''}{' also' if others else ''}{''.join(others)}{more}"
    )


def _header(image: Encoded) -> Header:
    """The properties of one image."""
    try:
        with predict.opened(_content(image)) as picture:
            deep, jpeg = predict.is_deep(picture), isinstance(picture, JpegImagePlugin.JpegImageFile)
            if not jpeg:
                predict.check_size(picture.size)
            gray = deep or picture.mode in GRAY_MODES
            return Header(min(picture.size), gray, deep, not deep and _is_wide(picture), jpeg)
    except Exception as error:  # as in `decode`
        return Header(broken=_reason(error))


def _extremes(image: Encoded) -> tuple[float, float] | None:
    """The smallest and the largest finite value of an image; None if it cannot be decoded or has none."""
    try:
        with predict.opened(_content(image)) as picture:
            values = np.asarray(picture)
    except Exception:  # as in `decode`
        return None
    values = values[np.isfinite(values)]
    return (values.min().item(), values.max().item()) if values.size else None


def _is_wide(picture: Image.Image) -> bool:
    """Whether the pixels have sixteen bits in the file and eight in Pillow."""
    tiles = getattr(picture, "tile", ())  # codec, extent, offset, arguments of the codec such as `RGB;16B`
    return any(";16" in str(tile[3]) or (tile[0] == "ppm" and tile[3][-1] > 255) for tile in tiles)


def _brightest(image: Encoded) -> int | None:
    """The largest value of an image's channels, 0 to 255; None if it cannot be decoded."""
    try:
        with predict.opened(_content(image)) as picture:
            return max(high for _, high in picture.convert("RGB").getextrema())
    except Exception:  # as in `decode`
        return None


def _content(image: Encoded) -> Path | bytes | np.ndarray:
    """The content of an image; ValueError if there is none."""
    if image.content is None:
        raise ValueError("there are no bytes")
    return image.content


def _reason(error: Exception) -> str:
    """Why an image cannot be decoded, in one line."""
    if isinstance(error, UnidentifiedImageError):  # its message is a path or an address in memory
        return "not an image format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:  # without the path, which the place names
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def _threads() -> ThreadPoolExecutor:
    """A pool of twice as many threads as cores: Pillow releases the GIL, and the rest hides the latency of the disk."""
    return ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1)))


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings about unusual files; `predict.check_size` refuses files that are too large."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
