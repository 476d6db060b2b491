"""Image files to one uint8 tensor: every picture square and of one size, the unreadable ones named."""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from nasspace.errors import InputError

LARGEST_NATIVE = 224  # pixels a side that images are held at where nobody asked for a resolution
GREY_MODES = {"1", "L", "LA", "La", "I", "F"}


@dataclass(frozen=True)
class Encoded:
    """An image not yet decoded: where a person finds it (a path, a row), and its file or bytes."""

    place: str
    content: Path | bytes | None


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded; `broken` says why it cannot be."""

    shorter: int = 0
    grey: bool = False
    broken: str = ""


def headers(images: Sequence[Encoded]) -> list[Header]:
    """Size and kind of each image, from its first bytes."""
    with _strict_pillow(), _threads() as threads:
        return list(threads.map(_header, images))


def common_resolution(found: Sequence[Header]) -> int:
    """The most frequent shorter side in pixels (the larger one of equals), at most 224."""
    counts = Counter(header.shorter for header in found if not header.broken)
    most = max(counts, key=lambda side: (counts[side], side))
    return min(most, LARGEST_NATIVE)


def decode(images: Sequence[Encoded], channels: int, resolution: int) -> tuple[Tensor, dict[int, str]]:
    """Pixels uint8 [N, channels, resolution, resolution], and why each unreadable image is (its row stays zero).

    The shorter side is scaled to `resolution` and the centre is cut out; a camera's rotation mark is obeyed.
    """
    _check_memory(len(images), channels, resolution)
    # NumPy, not torch: a torch operation in each of many threads would start a team of threads of its own.
    pixels = np.zeros((len(images), channels, resolution, resolution), np.uint8)

    def fill(index: int) -> str:
        try:
            pixels[index] = _decoded(images[index], channels, resolution)
        except Exception as error:  # Pillow's decoders raise whatever foreign bytes lead them to
            return _reason(error)
        return ""

    with _strict_pillow(), _threads() as threads:
        reasons = list(threads.map(fill, range(len(images))))
    return torch.from_numpy(pixels), {index: reason for index, reason in enumerate(reasons) if reason}


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
        with _opened(image) as picture:
            return Header(min(picture.size), picture.mode in GREY_MODES or picture.mode.startswith("I;16"))
    except Exception as error:  # as in `decode`
        return Header(broken=_reason(error))


def _decoded(image: Encoded, channels: int, resolution: int) -> np.ndarray:
    with _opened(image) as picture:
        # A JPEG far larger than needed is decoded at 1/2, 1/4 or 1/8; twice the size is left to scale smoothly.
        picture.draft(None, (2 * resolution, 2 * resolution))
        picture.load()
        upright = ImageOps.exif_transpose(picture)
    upright = _eight_bits(upright).convert("L" if channels == 1 else "RGB")
    square = ImageOps.fit(upright, (resolution, resolution), Image.Resampling.BILINEAR)
    array = np.asarray(square)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _opened(image: Encoded) -> Image.Image:
    if image.content is None:
        raise ValueError("there are no bytes")
    return Image.open(io.BytesIO(image.content) if isinstance(image.content, bytes) else image.content)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16-bit greyscale scaled to 8 bits: `convert` would clip it."""
    if not picture.mode.startswith("I"):
        return picture
    return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message is a path or an address in memory
        return "no image format that Pillow knows"
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
def _strict_pillow() -> Iterator[None]:
    """Decompression bombs are errors and Pillow's remarks on odd files are silent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield
