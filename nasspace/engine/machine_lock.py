"""Machine-wide locks between processes: latency is measured while no training and no other measurement runs.

The locks are `flock`s on two files in a private folder of the user, and end with their process, however it ends.
Trainings share the machine and yield to waiting measurements between epochs; a measurement waits for all trainings and
excludes them. Holders leave a note next to the locks, so that waiting processes can report whom they wait for. Waiting
pauses a trial's time limit (`timeouts`).
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

FOLDER = "NASSPACE_TURNS"  # environment variable with the folder of the locks; default: the temporary folder
REPORT_AFTER = 5.0  # seconds of waiting before the first report
REPORT_EVERY = 60.0  # seconds between later reports
MEASURING, TRAINING = "measures latency", "trains"
log = logging.getLogger(__name__)
_numbers = itertools.count()


@contextlib.contextmanager
def measurement_lock() -> Iterator[None]:
    """Hold the machine exclusively: wait for running trainings, and keep new ones from starting meanwhile."""
    with _locked("gate", MEASURING, alone=True), _locked("machine", MEASURING, alone=True):
        yield


class TrainingLock:
    """Share the machine with other trainings, but not with a measurement."""

    def __init__(self) -> None:
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> TrainingLock:
        self.yield_to_measurements()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def yield_to_measurements(self) -> None:
        """Release the lock and take it again after all waiting measurements."""
        self._lock.close()
        with _locked("gate", TRAINING, alone=False):
            self._lock.enter_context(_locked("machine", TRAINING, alone=False))


@contextlib.contextmanager
def _locked(name: str, purpose: str, *, alone: bool) -> Iterator[None]:
    """Hold a lock for the body; `alone` excludes all other holders."""
    try:
        import fcntl
    except ImportError:  # Windows: no locks, so run one process at a time
        yield
        return
    folder = _lock_folder()
    descriptor = _open_lock_file(folder / f"{name}.lock")
    mode = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    try:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            with timeouts.limits_paused(), _reports(folder, name, purpose):
                fcntl.flock(descriptor, mode)
        with _holder_note(folder, name, purpose):
            yield
    finally:
        os.close(descriptor)


def _open_lock_file(path: Path) -> int:
    """Open a lock file; `InputError` for a link or another user's file."""
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
    """Return the remedy for an unusable path."""
    return f"remove {path}, or set your own folder in the environment variable {FOLDER}"


@contextlib.contextmanager
def _reports(folder: Path, name: str, purpose: str) -> Iterator[None]:
    """Report after a few seconds, and then every minute, which processes this one waits for."""
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
    """Return the report: the holders of the lock, and the remedy."""
    holders = _holders(folder, name)
    who = ", ".join(f"process {pid} ({activity})" for pid, activity in holders) or "another nasspace process of yours"
    why = "latency is measured while nothing else runs" if purpose == MEASURING else "latency is being measured"
    return f"waiting for {who}: {why} on this machine; this continues automatically, or end that process"


@contextlib.contextmanager
def _holder_note(folder: Path, name: str, purpose: str) -> Iterator[None]:
    """Keep a note of this process next to a lock while it holds it; skipped if the disk is full."""
    _holders(folder, name)  # removes notes of killed processes
    note = folder / f"{name}.{os.getpid()}.{next(_numbers)}"
    with contextlib.suppress(OSError):
        note.write_text(purpose, encoding="utf-8")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink()


def _holders(folder: Path, name: str) -> list[tuple[int, str]]:
    """Return the living holders of a lock as (pid, purpose), and remove the notes of killed processes."""
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
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _lock_folder() -> Path:
    """Return the private folder of the locks; `InputError` if others own it or may write to it."""
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
