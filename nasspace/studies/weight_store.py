"""Trained weights of a study's networks: beside its record, and on shared or cloud storage where one is named."""

from __future__ import annotations

import contextlib
import posixpath
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nasspace import files
from nasspace.errors import InputError, first_line

ANSWER = 20.0  # seconds in which a storage must have taken the sample
SAMPLE = 65_536  # bytes
ATTEMPTS, PAUSE = 3, 2.0  # at a copy, and seconds between them
SUFFIX = ".safetensors"


class Weights:
    """One file a trial, in `folder`; copies at `elsewhere`, a path or URL that fsspec reads (`s3://`, `gs://`, ...)."""

    def __init__(self, folder: Path, elsewhere: str | None = None) -> None:
        self.folder = folder
        self.elsewhere = elsewhere

    def keep(self, number: int, state: Mapping[str, Any]) -> None:
        """Keep a state dict as safetensors; each file is moved into place whole."""
        from safetensors.torch import save

        content = save({name: tensor.contiguous() for name, tensor in state.items()})
        with files.replacing(self._path(number)) as temporary:
            Path(temporary).write_bytes(content)
        if self.elsewhere:
            self._copy(_join(self.elsewhere, self._path(number).name), content)

    def _copy(self, url: str, content: bytes) -> None:
        for attempt in range(ATTEMPTS):
            try:
                return _put(url, content)
            except InputError:
                raise
            except Exception as error:  # every kind of storage has its own
                if attempt == ATTEMPTS - 1:
                    raise InputError(
                        f"--storage-path {url}: it cannot be written ({error}); fix that, then resume"
                    ) from error
                time.sleep(PAUSE)
        return None

    def path(self, number: int) -> Path | None:
        """The file of a trial; one that only lies elsewhere is fetched. None if its weights were not kept."""
        path = self._path(number)
        if not path.is_file() and self.elsewhere:
            system, there = _system(_join(self.elsewhere, path.name))
            with contextlib.suppress(FileNotFoundError):
                content = system.cat_file(there)
                with files.replacing(path) as temporary:
                    Path(temporary).write_bytes(content)
        return path if path.is_file() else None

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget the weights of these trials."""
        for number in numbers:
            path = self._path(number)
            if path.is_file():
                path.unlink(missing_ok=True)
                if self.elsewhere:
                    system, there = _system(_join(self.elsewhere, path.name))
                    with contextlib.suppress(FileNotFoundError):
                        system.rm_file(there)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}{SUFFIX}"


def check(place: str) -> None:
    """Refuse a storage that does not take some bytes within 20 seconds."""
    said: list[Exception] = []

    def tried() -> None:
        try:
            probe = _join(place, f".nasspace-{uuid.uuid4().hex}")
            _put(probe, bytes(SAMPLE))
            system, there = _system(probe)
            system.rm_file(there)
        except Exception as error:
            said.append(error)

    thread = threading.Thread(target=tried, daemon=True)  # a client that waits for ever is left behind
    thread.start()
    thread.join(ANSWER)
    if thread.is_alive():
        raise InputError(f"--storage-path {place}: no answer within {ANSWER:.0f} s; check the address and the network")
    if said:
        reason = first_line(said[0])
        remedy = "install its driver" if isinstance(said[0], ImportError) else "choose a path that can be written"
        raise InputError(f"--storage-path {place}: it cannot be written ({reason}); {remedy}")


def _put(url: str, content: bytes) -> None:
    system, path = _system(url)
    system.makedirs(posixpath.dirname(path), exist_ok=True)
    if "file" in system.protocol:
        with files.replacing(Path(path)) as temporary:
            Path(temporary).write_bytes(content)
    else:
        system.pipe_file(path, content)  # an object appears whole


def _system(url: str) -> tuple[Any, str]:
    import fsspec.core

    return fsspec.core.url_to_fs(url)


def _join(place: str, name: str) -> str:
    return f"{place.rstrip('/')}/{name}"
