"""Private temporary folders, removed when their process ends or, if it was killed, by the next run.

A folder holds a file that its process keeps locked. The operating system releases the lock however the process ends,
so a folder whose lock is free has no process, even if the process id is in use again.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nasspace.errors import InputError

PREFIX = "nasspace-"
LOCK = "process"  # the locked file; holds the process id, for people, and the machine's name
RAY = "r"  # folder of Ray's sessions, which Ray makes accessible to all users
MAX_PARENT = 19  # characters of a parent folder: Ray's socket paths are 84 longer, and a socket's path may have 103
KILL_WAIT = 5.0  # seconds to wait for killed processes to end


@contextlib.contextmanager
def private(parent: Path | None = None) -> Iterator[Path]:
    """Create a folder in `parent`, else in the temporary one, that only this user can enter; remove it at the end."""
    parent = parent or Path(tempfile.gettempdir()).resolve()
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as error:
        remedy = "set TMPDIR (for Ray RAY_TMPDIR) to a writable folder"
        raise InputError(f"{parent}: cannot create a temporary folder ({error.strerror}); {remedy}") from None
    descriptor = _locked(folder)
    try:
        yield folder
    finally:
        _remove(folder)
        if descriptor is not None:
            os.close(descriptor)


def for_ray() -> Path:
    """Parent of Ray's folders: RAY_TMPDIR, else the temporary folder; /tmp if socket paths would be too long."""
    given = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).resolve()
    return given if len(os.fspath(given)) <= MAX_PARENT or not Path("/tmp").is_dir() else Path("/tmp").resolve()


def clear() -> None:
    """Remove folders of this user's killed processes and the Ray processes that those left running."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    parents = {for_ray(), Path(tempfile.gettempdir()).resolve()}
    for folder in (folder for parent in parents for folder in parent.glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError):  # in use, another user's, or being removed by another process
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                continue
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.read(descriptor, 300).split()[1:] != [platform.node().encode()]:
                    continue  # another machine's on a shared disk, whose locks may not be visible here
                _end_processes(folder)
                _remove(folder)
            finally:
                os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """Lock the folder for this process; the file is renamed once locked, so that no process sees it unlocked."""
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder / f"{LOCK}.new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.write(descriptor, f"{os.getpid()} {platform.node()}\n".encode())
    with contextlib.suppress(OSError):  # a disk without locks: the folder then never counts as abandoned
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(folder / f"{LOCK}.new", folder / LOCK)
    return descriptor


def _remove(folder: Path) -> None:
    """Remove a folder, its lock last, so that a later run completes an interrupted removal."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name == LOCK:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        if {path.name for path in folder.iterdir()} <= {LOCK}:
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def _end_processes(folder: Path) -> None:
    """Kill Ray processes that were started with a path in the folder, and wait until they have ended.

    Ray ends them itself when the search's process is killed, unless its own supervisor was killed, too.
    """
    found = _processes(folder)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + KILL_WAIT
    while time.monotonic() < end and set(found) & set(_processes(folder)):
        time.sleep(0.05)


def _processes(folder: Path) -> list[int]:
    """Ids of this user's Ray processes with a path in the folder among their arguments (Linux only)."""
    if not sys.platform.startswith("linux"):
        return []
    within, found = os.fsencode(folder) + b"/", []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # has ended
            if entry.name.isdecimal() and entry.stat().st_uid == os.getuid() and int(entry.name) != os.getpid():
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                program = arguments[:3]  # or the script that Python runs
                of_ray = any(b"/ray/" in argument for argument in program)
                if of_ray and any(argument.startswith(within) or b"=" + within in argument for argument in arguments):
                    found.append(int(entry.name))
    return found
