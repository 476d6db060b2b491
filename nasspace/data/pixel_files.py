"""Decoded images in memory-mapped files of the user's cache, for data sets that do not fit in memory.

Each image is decoded once, and the operating system keeps in memory what fits, so that code which reads a tensor works
unchanged. Worker processes of a `DataLoader` would decode every image again in every epoch.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import torch
from torch import Tensor

from nasspace import files
from nasspace.data import decoding
from nasspace.data.decoding import Encoded
from nasspace.errors import InputError
from nasspace.formatting import memory

VERSION = 1  # of the files; counts in their names
SHARE = 0.5  # of the memory; images that need more are kept in a file
BLOCK = 2**26  # bytes decoded before they are written
UNUSED = 30 * 24 * 3600.0  # seconds without use after which a file is removed
REPORT_EVERY = 30.0  # seconds between reports on the decoding


def exceeds_memory(size: int) -> bool:
    """Whether `size` bytes are more than half of the memory that this process may use."""
    usable = usable_memory()
    return usable is not None and size > SHARE * usable


def usable_memory() -> int | None:
    """Bytes of the machine's memory, or of the container's or job's (control group) if that is less; None if unknown.

    Control groups of both versions are read, with those that contain them.
    """
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers in ("", "memory"):
                home, name = ("", "memory.max") if not controllers else ("memory", "memory.limit_in_bytes")
                folder = Path("/sys/fs/cgroup", home, group.lstrip("/"))
                for place in (folder, *folder.parents):
                    with contextlib.suppress(OSError, ValueError):  # no limit, or "max"
                        least = min(least, int((place / name).read_text()))
    return least


def decode(
    images: Sequence[Encoded], spec: Mapping[str, Any], report: Callable[[str], None], *, skip_broken: bool
) -> tuple[Tensor, dict[int, str], Path]:
    """As `decoding.decode`, with the pixels in a read-only mapped file, whose path is the third value.

    If images are unreadable, there are no pixels and no file; with `skip_broken`, which images these are is written
    down for the next time. A file of the same images, by path, size and time of modification, and the same `spec` is
    used again; `report` says so. A file has its name only once it is complete. Before one is written, those that were
    not used for 30 days are removed, and others for its room (`_evict`). Raises `InputError` if it cannot be written.
    """
    shape = (len(images), *spec["input"])
    path = files.cache_folder() / "images" / f"{_key(images, spec)}.pixels"
    size = f"{len(images):,} images at {shape[3]}x{shape[2]}, {memory(math.prod(shape))}"
    broken = _noted(path) if skip_broken else {}
    if _is_complete(path, shape):
        report(f"{size}: reads them from {path}")
    elif not broken:
        with _writing(path, math.prod(shape)):
            if not _is_complete(path, shape):  # another process may have written it meanwhile
                report(f"{size}: decodes them into {path}")
                broken = _write(path, images, spec, report)
                if broken and skip_broken:
                    files.write_json(_note(path), broken)
    if broken:
        return torch.empty((0, *shape[1:]), dtype=torch.uint8), broken, path
    try:
        return _mapped(path, shape), {}, path
    except FileNotFoundError:  # another process has just removed it, to have room
        return decode(images, spec, report, skip_broken=skip_broken)


def _note(path: Path) -> Path:
    """The file that names the unreadable images."""
    return path.with_suffix(".json")


def _noted(path: Path) -> dict[int, str]:
    """The unreadable images that were found before, and the reasons."""
    if not _note(path).is_file():
        return {}
    return {int(index): reason for index, reason in files.load_json(_note(path)).value.items()}


def _key(images: Sequence[Encoded], spec: Mapping[str, Any]) -> str:
    """16 hex digits that identify the pixels: images, preprocessing, versions of nasspace's files and of Pillow."""
    digest = hashlib.sha256(repr((VERSION, PIL.__version__, sorted(spec.items()))).encode())
    for image in images:
        digest.update(repr(_identity(image.content)).encode())
    return digest.hexdigest()[:16]


def _identity(content: Path | bytes | np.ndarray | None) -> tuple[object, ...]:
    """What identifies an image: path, size and time of modification of a file; else a hash of the content."""
    if isinstance(content, Path):
        with contextlib.suppress(OSError):
            status = content.stat()
            return os.fsencode(content.absolute()), status.st_size, status.st_mtime_ns
        return (os.fsencode(content.absolute()),)
    if isinstance(content, np.ndarray):
        return content.shape, str(content.dtype), hashlib.sha256(np.ascontiguousarray(content)).digest()
    return (None if content is None else hashlib.sha256(content).digest(),)


def _is_complete(path: Path, shape: Sequence[int]) -> bool:
    """Whether a file has all pixels."""
    try:
        return path.stat().st_size == math.prod(shape)
    except OSError:
        return False


@contextlib.contextmanager
def _writing(path: Path, size: int) -> Iterator[None]:
    """Hold the lock of a file that gets `size` bytes; a full disk or an unusable folder raises `InputError`."""
    import filelock

    remedy = f"choose a lower resolution, or set {files.CACHE} to a folder with room for {memory(size)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_suffix(".lock")):
            partial = _partial(path)
            partial.unlink(missing_ok=True)  # of a process that was killed
            _evict(path.parent, size)
            if shutil.disk_usage(path.parent).free < size:
                raise InputError(f"{path.parent}: has no room for the decoded images; {remedy}")
            try:
                yield
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from None


def _evict(folder: Path, size: int) -> None:
    """Remove the files of a folder that were not used for 30 days, and the least recently used until `size` bytes fit.

    A file that a process has mapped stays. If all files together leave too little room, only the old ones are removed.
    """
    found: dict[Path, os.stat_result] = {}
    for path in folder.glob("*.pixels"):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            found[path] = path.stat()
    can_fit = shutil.disk_usage(folder).free + sum(one.st_size for one in found.values()) >= size
    for path in sorted(found, key=lambda one: found[one].st_mtime):
        is_old = time.time() - found[path].st_mtime > UNUSED
        if is_old or (can_fit and shutil.disk_usage(folder).free < size):
            with contextlib.suppress(OSError), path.open("rb") as file:  # in use
                _lock(file, exclusively=True)
                path.unlink()


def _lock(file: BinaryIO, *, exclusively: bool = False) -> None:
    """Lock an open file as one that is used, or exclusively, which raises `OSError` if it is used.

    Windows needs no lock: it does not remove open files.
    """
    with contextlib.suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusively else fcntl.LOCK_SH)


def _partial(path: Path) -> Path:
    """The name of a file that is being written."""
    return path.with_suffix(".partial")


def _write(
    path: Path, images: Sequence[Encoded], spec: Mapping[str, Any], report: Callable[[str], None]
) -> dict[int, str]:
    """Decode images into a file, unless some are unreadable; returns the reasons of these."""
    broken: dict[int, str] = {}
    step = max(1, BLOCK // math.prod(spec["input"]))
    start = last = time.monotonic()
    with _partial(path).open("wb") as file:
        for first in range(0, len(images), step):
            pixels, wrong = decoding.decode(images[first : first + step], spec)
            broken |= {first + index: reason for index, reason in wrong.items()}
            file.write(pixels.numpy())
            if time.monotonic() - last > REPORT_EVERY:
                last = time.monotonic()
                done = first + len(pixels)
                left = (last - start) / done * (len(images) - done)
                report(f"decoded {done:,} of {len(images):,} images, {left / 60:.0f} min left")
        file.flush()
        os.fsync(file.fileno())
    if not broken:
        _partial(path).replace(path)
    return broken


def _mapped(path: Path, shape: Sequence[int]) -> Tensor:
    """The pixels of a file, uint8; they are read when they are used, and cannot be written.

    Linux refuses a writable private mapping, which `torch.from_file` makes, if it is larger than the memory.
    """
    with path.open("rb") as file:
        with contextlib.suppress(OSError):  # a disk without locks, a file of another user
            _lock(file)  # until nothing is mapped: the mapping has a duplicate of the descriptor
            os.utime(path)  # the time of the last use
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the tensor is read-only, and nothing writes to it
        return torch.frombuffer(mapping, dtype=torch.uint8).view(*shape)


def read_ahead(path: Path, pixels: Tensor, indices: Tensor) -> None:
    """Let the system read these rows of mapped pixels, all at the same time.

    Without it, each row waits for the disk in turn, which then reads megabytes around it that are not used.
    """
    if not hasattr(os, "posix_fadvise"):  # macOS, Windows
        return
    size = math.prod(pixels.shape[1:])
    with contextlib.suppress(OSError), path.open("rb") as file:
        for index in indices.tolist():
            os.posix_fadvise(file.fileno(), pixels.storage_offset() + index * size, size, os.POSIX_FADV_WILLNEED)
