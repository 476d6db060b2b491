"""Trained weights of a study's trials, in its folder and optionally on shared or cloud storage."""

from __future__ import annotations

import contextlib
import posixpath
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasspace import files
from nasspace.errors import InputError, first_line

ANSWER = 20.0  # seconds for a storage to accept the sample
SAMPLE = 65_536  # bytes
ATTEMPTS, PAUSE = 3, 2.0  # to write a copy, and seconds between them
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Weights:
    """One file per trial in `folder`, with copies at `copies`: a path or a URL of fsspec (`s3://`, `gs://`, ...)."""

    folder: Path
    copies: str | None = None

    def keep(self, number: int, state: Mapping[str, Any]) -> None:
        """Store a state dict as safetensors, atomically."""
        from safetensors.torch import save

        content = save({name: tensor.contiguous() for name, tensor in state.items()})
        with files.replacing(self._path(number)) as temporary:
            Path(temporary).write_bytes(content)
        if self.copies:
            self._copy(_join(self.copies, self._path(number).name), content)

    def _copy(self, url: str, content: bytes) -> None:
        for attempt in range(ATTEMPTS):
            try:
                return _put(url, content)
            except InputError:
                raise
            except Exception as error:  # every file system of fsspec raises its own kinds
                if attempt == ATTEMPTS - 1:
                    raise InputError(
                        f"--storage-path {url}: it cannot be written ({error}); fix that, then run `nas resume`"
                    ) from error
                time.sleep(PAUSE)
        return None

    def path(self, number: int) -> Path | None:
        """The file of a trial, fetched from the copies if needed; None if its weights were not kept."""
        path = self._path(number)
        if not path.is_file() and self.copies:
            system, there = _system(_join(self.copies, path.name))
            with contextlib.suppress(FileNotFoundError):
                content = system.cat_file(there)
                with files.replacing(path) as temporary:
                    Path(temporary).write_bytes(content)
        return path if path.is_file() else None

    def drop(self, numbers: Iterable[int]) -> None:
        """Delete the weights of these trials."""
        for number in numbers:
            path = self._path(number)
            if path.is_file():
                path.unlink(missing_ok=True)
                if self.copies:
                    system, there = _system(_join(self.copies, path.name))
                    with contextlib.suppress(FileNotFoundError):
                        system.rm_file(there)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}{SUFFIX}"


@dataclass(frozen=True)
class StudyWeights:
    """The weights that a search trained, and those of its last rung at the deployment resolution."""

    search: Weights
    deployed: Weights
    exports: Path

    def path(self, number: int, is_deployed: bool) -> Path | None:
        """The trained weights of a trial: of the last rung if there are any, else of the search."""
        if path := self.deployed.path(number):
            return path
        if is_deployed:  # the weights of the search do not have the reported accuracy
            exported = self.exports / str(number) / "weights.safetensors"
            return exported if exported.is_file() else None
        return self.search.path(number)


def check(place: str) -> None:
    """Refuse a storage that does not accept a small file within 20 seconds."""
    errors: list[Exception] = []

    def write_probe() -> None:
        try:
            probe = _join(place, f".nasspace-{uuid.uuid4().hex}")
            _put(probe, bytes(SAMPLE))
            system, there = _system(probe)
            system.rm_file(there)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=write_probe, daemon=True)  # a client may block forever
    thread.start()
    thread.join(ANSWER)
    if thread.is_alive():
        raise InputError(f"--storage-path {place}: no answer within {ANSWER:.0f} s; check the address and the network")
    if errors:
        reason = first_line(errors[0])
        remedy = "install its driver" if isinstance(errors[0], ImportError) else "choose a writable path"
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
