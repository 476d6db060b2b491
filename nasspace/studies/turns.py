"""Measuring and training take turns on one machine, whichever processes do them: latency is measured alone.

The locks are the operating system's, on two files of the user's, and go with a process however it ends. Trainings
share the machine and make way between passes over the data; a measurement waits for them, and has it alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

FOLDER = "NASSPACE_TURNS"  # environment variable: where the locks lie, if not in the temporary folder
LONG = 60.0  # seconds of waiting that are told
log = logging.getLogger(__name__)


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Alone on this machine: waits until no training runs, and holds new ones back while it waits."""
    with _held("gate", alone=True), _held("machine", alone=True):
        yield


class Training:
    """Beside other trainings, never beside a measurement; `make_way` lets those that wait go first."""

    def __init__(self) -> None:
        self._turn = contextlib.ExitStack()

    def __enter__(self) -> Training:
        self.make_way()
        return self

    def __exit__(self, *_: object) -> None:
        self._turn.close()

    def make_way(self) -> None:
        """Give the turn back and take it again, behind every measurement that waits."""
        self._turn.close()
        with _held("gate", alone=False):
            self._turn.enter_context(_held("machine", alone=False))


@contextlib.contextmanager
def _held(name: str, *, alone: bool) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: one process at a time is all that can be had
        yield
        return
    descriptor = os.open(_folder() / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            long = threading.Timer(LONG, log.warning, [f"waiting for other nasspace processes of yours ({_folder()})"])
            long.daemon = True
            long.start()
            fcntl.flock(descriptor, how)
            long.cancel()
        yield
    finally:
        os.close(descriptor)


def _folder() -> Path:
    folder = Path(os.environ.get(FOLDER) or Path(tempfile.gettempdir()) / f"nasspace-{os.getuid()}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
