"""Cluster monitor: detects a dead cluster before Ray ends this process with only a line in Ray's log."""

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

PATIENCE = 20.0  # seconds without an answer after which a cluster is dead; Ray ends the process after 60
PAUSE = 0.5  # seconds between two connections
SLICE = 1.0  # seconds between two checks of the main thread while it waits for a result
BLOCKED = 25.0  # seconds the main thread has to notice; calls of Ray may not return
SHOW_CURSOR = "\x1b[?25h"


class ClusterLost(BaseException):
    """The cluster is dead. Not an `Exception`: Tune would catch it, and wait for workers that do not answer."""


class ClusterMonitor:
    """Connects to a cluster's control store (GCS) twice a second, in a background thread.

    `message` tells the user that the cluster is dead, and `resume_command` how to continue.
    """

    def __init__(self, address: str, message: str, resume_command: str = "nas resume") -> None:
        host, _, port = address.rpartition(":")
        self._address = host.strip("[]"), int(port)
        self.message = message
        self.resume_command = resume_command
        self.is_lost = False
        self._last_answer = time.monotonic()
        self._done = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[ClusterMonitor]:
        """Monitor the cluster during the body."""
        thread = threading.Thread(target=self._monitor, name="nasspace-watch", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._done.set()

    def answers(self) -> bool:
        """Whether the control store accepts a connection now."""
        try:
            socket.create_connection(self._address, timeout=5.0).close()
        except OSError:
            return False
        self._last_answer = time.monotonic()
        return True

    def check(self) -> None:
        """Raise `ClusterLost` if the cluster is dead."""
        if self.is_lost:
            raise ClusterLost("it does not answer")

    def get(self, reference: Any) -> Any:
        """As `ray.get`, but raises `ClusterLost` in place of waiting for a dead cluster."""
        import ray

        while not self.is_ready(reference, SLICE):
            pass
        return ray.get(reference)

    def is_ready(self, reference: Any, seconds: float) -> bool:
        """Wait for a result for some seconds; raise `ClusterLost` if the cluster dies."""
        import ray

        end = time.monotonic() + seconds
        while True:
            self.check()
            left = end - time.monotonic()
            if ray.wait([reference], timeout=max(0.0, min(SLICE, left)))[0]:
                return True
            if left <= SLICE:
                return False

    def _monitor(self) -> None:
        while not self._done.wait(PAUSE):
            if not self.answers() and time.monotonic() - self._last_answer > PATIENCE:
                self.is_lost = True
                break
        if self.is_lost and not self._done.wait(BLOCKED):
            self._exit()

    def _exit(self) -> None:
        """End the process: its main thread is blocked in Ray, which would end the process a little later."""
        shown = SHOW_CURSOR if os.isatty(2) else ""
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.write(2, f"{shown}nas: {self.message}\n".encode(errors="backslashreplace"))
        os._exit(Interrupted.exit_status)
