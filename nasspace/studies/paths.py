"""Folders of studies, and the lock that lets one process at a time write into a folder."""

from __future__ import annotations

import contextlib
import os
import shlex
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from nasspace import files
from nasspace.errors import InputError

FRONT, RECOMMENDED = "front", "recommended"  # after STUDY:, all members of the front, and one of them
TRAININGS = "trainings"  # the folder in which `nas train` writes
COMPARISON = "comparison.yaml"  # the settings of a comparison, whose folder holds several studies


def folder_of(name: str | Path) -> Path:
    """The folder of a study: `./reports/NAME` for a name, else the path itself."""
    if not isinstance(name, str | os.PathLike):
        raise InputError(f"{name!r:.60}: a study is a name or a path")
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


def named(folder: Path) -> str:
    """What `folder_of` makes a study's folder of: its name below `./reports`, else the path."""
    is_name = folder.parent == Path("reports") and not folder.name.startswith("-")  # which would be a flag
    return folder.name if is_name else str(folder)


def as_argument(folder: Path, number: int | None = None) -> str:
    """A study, or a network of it, as an argument of a command that can be copied: `named`, quoted for a shell.

    >>> as_argument(Path("reports/my photos"), 7), as_argument(Path("elsewhere/one"))
    ("'my photos:7'", 'elsewhere/one')
    """
    name = named(folder)
    return shlex.quote(name if number is None else f"{name}:{number}")


def known_studies(parent: Path) -> str:
    """The names of the studies in a folder, as the end of an error."""
    names = sorted(path.parent.name for path in parent.glob("*/study.yaml"))
    return f"; {parent} holds: {', '.join(names)}" if names else ""


def storage_url(url: str | None) -> str | None:
    """A storage's URL, with an absolute path for a SQLite file, so that it does not depend on the working folder."""
    if url is not None and not (isinstance(url, str) and url):
        raise InputError(f"storage: {url!r:.60} is not a URL such as sqlite:///study.db")
    if url is not None and url.startswith("sqlite:///"):
        return f"sqlite:///{Path(url.removeprefix('sqlite:///')).expanduser().absolute()}"
    return url


@contextlib.contextmanager
def alone(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a study's folder, which the operating system releases when the process ends.

    With `wait`, wait for the process that holds it; otherwise raises `InputError`.
    """
    import filelock

    lock = filelock.FileLock(folder / ".lock", timeout=-1 if wait else 0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout:
        raise InputError(f"{folder}: another process is searching this study; wait for it") from None
    except (OSError, NotImplementedError) as error:  # a read-only disk, a broken link, a disk without locks
        raise files.cannot_write(folder, error) from None
    try:
        yield
    finally:
        lock.release()
