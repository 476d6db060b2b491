"""Image files to one uint8 tensor by the shipped preprocessing, and the facts of a data set that it depends on."""

from __future__ import annotations

import os
import statistics
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
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
BACKGROUND = (255, 255, 255)  # what transparent images are put on
CHUNK = 32  # images that a thread takes at once
FREQUENT = 0.1  # of the images
DIMMEST = 64  # of 255; colors of sixteen bits that all lie below use fourteen bits at most


@dataclass(frozen=True)
class Encoded:
    """An image not yet decoded: where a person finds it (a path, a row), and its file, bytes or array."""

    place: str
    content: Path | bytes | np.ndarray | None


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded; `broken` says why it cannot be.

    `shorter` is in pixels; `deep` is more than eight bits; `wide` is color of sixteen, of which Pillow gives eight.
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
    """The most frequent shorter side in pixels, the larger one of equals; the median where sizes are all different.

    A size is frequent that a tenth of the images have: a few odd ones among photographs of any size say nothing.
    """
    counts = Counter(header.shorter for header in found if not header.broken)
    side = max(counts, key=lambda side: (counts[side], side))
    return side if FREQUENT * counts.total() <= counts[side] else statistics.median_high(counts.elements())


def value_range(images: Sequence[Encoded]) -> tuple[float, float] | None:
    """The least and the greatest finite value in images of more than eight bits; None without any.

    Images that cannot be decoded are left out: `decode` names them.
    """
    with _quiet_pillow(), _threads() as threads:
        found = [extremes for extremes in threads.map(_extremes, images) if extremes]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


def check_brightness(images: Sequence[Encoded]) -> None:
    """Refuse color images of sixteen bits that use the lower ones only, such as those of a camera of twelve bits.

    Pillow gives the upper eight bits of such an image, which would be close to black and have few levels.
    """
    with _quiet_pillow(), _threads() as threads:
        found = [value for value in threads.map(_brightest, images) if value is not None]
    if found and max(found) < DIMMEST:
        more = f" and {len(images) - 1} more" if len(images) > 1 else ""
        limit = 256 * (max(found) + 1)
        raise InputError(
            f"{images[0].place}{more}: color of sixteen bits with values below {limit:,} only, of which Pillow reads "
            "the upper eight bits; scale the images to the full range, or save them with eight bits"
        )


def specification(
    channels: int, resolution: int, *, values: tuple[float, float] | None = None, jpeg: bool = False
) -> dict[str, Any]:
    """The content of preprocessing.json, except `mean`, `std` and `classes`: square images of `resolution` pixels.

    `values` becomes `range`. With `jpeg` a JPEG far larger than needed is decoded at 1/2, 1/4 or 1/8; twice the
    resolution is left to scale smoothly.
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


def decode(images: Sequence[Encoded], spec: dict[str, Any]) -> tuple[Tensor, dict[int, str]]:
    """Pixels uint8 [N, *spec["input"]], and why each unreadable image is (its row stays zero)."""
    _check_memory(len(images), *spec["input"][:2])
    # NumPy, not torch: a torch operation in each of many threads would start a team of threads of its own.
    pixels = np.zeros((len(images), *spec["input"]), np.uint8)
    broken: dict[int, str] = {}

    def fill(start: int) -> None:
        for index in range(start, min(start + CHUNK, len(images))):
            try:
                pixels[index] = predict.preprocess(_content(images[index]), spec)
            except Exception as error:  # Pillow's decoders raise whatever foreign bytes lead them to
                broken[index] = _reason(error)

    with _quiet_pillow(), _threads() as threads:
        list(threads.map(fill, range(0, len(images), CHUNK)))
    return torch.from_numpy(pixels), dict(sorted(broken.items()))


def name_broken(broken: Sequence[tuple[str, str]]) -> InputError:
    """The error that names the unreadable images: (place, reason) of each."""
    place, reason = broken[0]
    others = [f"\n  {place}: {reason}" for place, reason in broken[1:5]]
    more = f"\n  and {len(broken) - 5} more" if len(broken) > 5 else ""
    return InputError(
        f"{place}: cannot be read as an image ({reason}); repair or remove it, or go on without such images "
        f"by --skip-broken{';' if others else ''}{' also' if others else ''}{''.join(others)}{more}"
    )


def _header(image: Encoded) -> Header:
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
    try:
        with predict.opened(_content(image)) as picture:
            values = np.asarray(picture)
    except Exception:  # as in `decode`
        return None
    values = values[np.isfinite(values)]
    return (values.min().item(), values.max().item()) if values.size else None


def _is_wide(picture: Image.Image) -> bool:
    """Whether its pixels have sixteen bits in the file and eight in Pillow."""
    tiles = getattr(picture, "tile", ())  # codec, extent, offset and what the codec is to unpack: `RGB;16B`
    return any(";16" in str(tile[3]) or (tile[0] == "ppm" and tile[3][-1] > 255) for tile in tiles)


def _brightest(image: Encoded) -> int | None:
    try:
        with predict.opened(_content(image)) as picture:
            return max(high for _, high in picture.convert("RGB").getextrema())
    except Exception:  # as in `decode`
        return None


def _content(image: Encoded) -> Path | bytes | np.ndarray:
    if image.content is None:
        raise ValueError("there are no bytes")
    return image.content


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message is a path or an address in memory
        return "no image format that Pillow knows"
    if isinstance(error, OSError) and error.strerror:  # without the path, which the place names
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_memory(count: int, channels: int, resolution: int) -> None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = count * channels * resolution**2
    if needed > memory / 2:
        fitting = int((memory / 2 / (count * channels)) ** 0.5)
        raise InputError(
            f"{count} images at {resolution}x{resolution} need {needed / 2**30:.1f} GiB, and data sets are held in "
            f"memory (here {memory / 2**30:.1f} GiB); a resolution of {fitting} would take half of it"
        )


def _threads() -> ThreadPoolExecutor:
    """Pillow decodes outside the interpreter's lock; twice the cores also hides the waiting for the disk."""
    return ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1)))


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow's remarks on odd files are silent; `predict.check_size` refuses what is too large."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
