"""Measuring and training take turns on one machine, whichever processes do them: latency is measured alone.

The locks are the operating system's, on two files in a folder of the user's alone, and go with a process however it
ends. Trainings share the machine and make way between passes over the data; a measurement waits for them, and has it
alone. Who has a turn notes it next to the locks, so that who waits can say for whom. Waiting pauses a trial's limit
(`timeouts`).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from nasspace.engine import timeouts
from nasspace.errors import InputError

FOLDER = "NASSPACE_TURNS"  # environment variable: where the locks lie, if not in the temporary folder
REPORT_AFTER = 5.0  # seconds of waiting that are reported
REPORT_EVERY = 60.0  # seconds to the next report
MEASURING, TRAINING = "measures latency", "trains"
log = logging.getLogger(__name__)
_numbers = itertools.count()


@contextlib.contextmanager
def measurement_lock() -> Iterator[None]:
    """Alone on this machine: waits until no training runs, and holds new ones back while it waits."""
    with _locked("gate", MEASURING, alone=True), _locked("machine", MEASURING, alone=True):
        yield


class TrainingLock:
    """Beside other trainings, never beside a measurement; `yield_to_measurements` lets those that wait go first."""

    def __init__(self) -> None:
        self._turn = contextlib.ExitStack()

    def __enter__(self) -> TrainingLock:
        self.yield_to_measurements()
        return self

    def __exit__(self, *_: object) -> None:
        self._turn.close()

    def yield_to_measurements(self) -> None:
        """Give the turn back and take it again, behind every measurement that waits."""
        self._turn.close()
        with _locked("gate", TRAINING, alone=False):
            self._turn.enter_context(_locked("machine", TRAINING, alone=False))


@contextlib.contextmanager
def _locked(name: str, purpose: str, *, alone: bool) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: one process at a time is all that can be had
        yield
        return
    folder = _lock_folder()
    descriptor = _open_lock_file(folder / f"{name}.lock")
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            with timeouts.limits_paused(), _reports(folder, name, purpose):
                fcntl.flock(descriptor, how)
        with _holder_note(folder, name, purpose):
            yield
    finally:
        os.close(descriptor)


def _open_lock_file(path: Path) -> int:
    """A file of ours for locking; a link or another's file is an `InputError`."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened for locking: {error.strerror}; {_remedy(path)}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        os.close(descriptor)
        raise InputError(f"{path}: is not a file of yours; {_remedy(path)}")
    return descriptor


def _remedy(path: Path) -> str:
    return f"remove {path}, or name a folder of your own in the environment variable {FOLDER}"


@contextlib.contextmanager
def _reports(folder: Path, name: str, purpose: str) -> Iterator[None]:
    """Say after a few seconds, and again every minute, for which processes this one waits."""
    done = threading.Event()

    def report() -> None:
        pause = REPORT_AFTER
        while not done.wait(pause):
            log.warning(_waiting_message(folder, name, purpose))
            pause = REPORT_EVERY

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _waiting_message(folder: Path, name: str, purpose: str) -> str:
    """The report: who has the turn, and what to do about it."""
    has = _holders(folder, name)
    who = ", ".join(f"process {pid} ({what})" for pid, what in has) or "another nasspace process of yours"
    why = "latency is measured while nothing else runs" if purpose == MEASURING else "latency is being measured"
    return f"waiting for {who}: {why} on this machine; it goes on by itself, or end that process"


@contextlib.contextmanager
def _holder_note(folder: Path, name: str, purpose: str) -> Iterator[None]:
    """A note of this process next to a lock while it has the turn; without space for it there is none."""
    _holders(folder, name)  # removes what killed processes left
    note = folder / f"{name}.{os.getpid()}.{next(_numbers)}"
    with contextlib.suppress(OSError):
        note.write_text(purpose, encoding="utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink()


def _holders(folder: Path, name: str) -> list[tuple[int, str]]:
    """The living processes that have a turn, and what for; notes of those that were killed are removed."""
    found = {}
    for note in sorted(folder.glob("*.*.*")):
        lock, pid, _ = note.name.split(".", 2)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if not (pid.isdecimal() and _is_alive(int(pid))):
                note.unlink()
            elif lock == name:
                found[int(pid)] = note.read_text(encoding="utf-8")[:40]
    return sorted(found.items())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _lock_folder() -> Path:
    """The folder of the locks, of this user alone; one that others own or may write to is an `InputError`."""
    given = os.environ.get(FOLDER)
    folder = Path(given or Path(tempfile.gettempdir()) / f"nasspace-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat() if given else folder.lstat()
    except OSError as error:
        raise InputError(f"{folder}: cannot be used for locks: {error.strerror}; {_remedy(folder)}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{folder}: is not a folder; {_remedy(folder)}")
    if found.st_uid != os.getuid():
        raise InputError(f"{folder}: belongs to another user (uid {found.st_uid}); {_remedy(folder)}")
    if found.st_mode & 0o022:
        raise InputError(f"{folder}: others may write to it; run: chmod 700 {folder}")
    return folder
