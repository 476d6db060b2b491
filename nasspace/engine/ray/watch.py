"""Notices that a cluster is gone before Ray does: Ray ends this process for that, with a log line of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from nasspace.errors import Interrupted

PATIENCE = 20.0  # seconds without an answer after which a cluster is lost; Ray ends the process after 60
PAUSE = 0.5  # seconds between two looks
SLICE = 1.0  # seconds that the main thread waits between two looks at what this one has found
SHOW_CURSOR = "\x1b[?25h"
BLOCKED = 25.0  # seconds after that in which the main thread must have noticed; Ray's own calls may not come back


class Lost(BaseException):
    """The cluster is gone. Not an `Exception`: Tune would catch it, and wait for workers that do not answer."""


class Watch:
    """Looks at the address of a cluster's control store (GCS) in a thread of its own, twice a second."""

    def __init__(self, address: str, message: str, go_on: str = "nas resume") -> None:
        host, _, port = address.rpartition(":")
        self._address = host.strip("[]"), int(port)
        self.message = message
        self.go_on = go_on  # the command that goes on
        self._answered = time.monotonic()
        self._done = threading.Event()
        self.lost = False

    @contextlib.contextmanager
    def running(self) -> Iterator[Watch]:
        thread = threading.Thread(target=self._look, name="nasspace-watch", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._done.set()

    def answers(self) -> bool:
        """Whether the control store takes a connection now."""
        try:
            socket.create_connection(self._address, timeout=5.0).close()
        except OSError:
            return False
        self._answered = time.monotonic()
        return True

    def check(self) -> None:
        """Raise `Lost` if the cluster is gone."""
        if self.lost:
            raise Lost("it does not answer")

    def got(self, reference: Any) -> Any:
        """`ray.get` that does not wait for a cluster that is gone."""
        import ray

        while not self.is_ready(reference, SLICE):
            pass
        return ray.get(reference)

    def is_ready(self, reference: Any, seconds: float) -> bool:
        """Wait so long for a result; raise `Lost` if the cluster goes."""
        import ray

        end = time.monotonic() + seconds
        while True:
            self.check()
            left = end - time.monotonic()
            if ray.wait([reference], timeout=max(0.0, min(SLICE, left)))[0]:
                return True
            if left <= SLICE:
                return False

    def _look(self) -> None:
        while not self._done.wait(PAUSE):
            if not self.answers() and time.monotonic() - self._answered > PATIENCE:
                self.lost = True
                break
        if self.lost and not self._done.wait(BLOCKED):
            self._end()

    def _end(self) -> None:
        """End the process: its main thread is inside Ray, which ends it anyway a little later."""
        shown = SHOW_CURSOR if os.isatty(2) else ""
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.write(2, f"{shown}nas: {self.message}\n".encode(errors="backslashreplace"))
        os._exit(Interrupted.exit_status)
