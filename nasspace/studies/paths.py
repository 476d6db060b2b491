"""Where a study lies, and that one process at a time writes into it."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from nasspace import files
from nasspace.errors import InputError


def folder_of(name: str | Path) -> Path:
    """The folder that a study's name or path means: the path, else `./reports/NAME`."""
    text = os.fspath(name)
    if not text.strip():
        raise InputError("a study needs a name")
    if {"Cc", "Cs"} & set(map(unicodedata.category, text)):  # NUL, ESC, lone surrogates (a name that is not UTF-8)
        raise InputError(f"{text!a}: a study's name must be printable text in UTF-8; choose another name")
    path = Path(name)
    named = isinstance(name, str) and not {os.sep, "/"} & set(name) and name not in (".", "..")
    try:
        return Path("reports") / path if named and not (path / "study.yaml").is_file() else path
    except OSError as error:  # too long
        raise InputError(f"{text[:60]}...: cannot be a study's name ({error.strerror}); choose another name") from None


def shown(folder: Path) -> str:
    """A study's name where `folder_of` finds the folder by it, else the folder."""
    return folder.name if folder.parent == Path("reports") else str(folder)


def known_studies(parent: Path) -> str:
    """The studies beside a missing one, as the end of its error."""
    names = sorted(path.parent.name for path in parent.glob("*/study.yaml"))
    return f"; {parent} holds: {', '.join(names)}" if names else ""


def storage_url(url: str | None) -> str | None:
    """A storage's URL; the path of an SQLite file made absolute, so that any working folder finds it."""
    if url and url.startswith("sqlite:///"):
        return f"sqlite:///{Path(url.removeprefix('sqlite:///')).expanduser().absolute()}"
    return url


@contextlib.contextmanager
def alone(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """One process a study's folder: the lock is the operating system's, and goes with the process however it ends.

    With `wait` the others are waited for, else their being there is an `InputError`.
    """
    import filelock

    lock = filelock.FileLock(folder / ".lock", timeout=-1 if wait else 0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise InputError(f"{folder}: another process is searching this study; wait for it") from None
    except (OSError, NotImplementedError) as error:  # a read-only disk, a link to nothing, one without locks
        raise files.cannot_write(folder, error) from None
    try:
        yield
    finally:
        lock.release()
