"""Time limit of a trial, which excludes waiting for other processes on the machine."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHORTEST = 1e-3  # smallest limit in seconds


class _Limit:
    """A time limit of this process that can be paused."""

    def __init__(self, seconds: float, file: Any) -> None:
        self.left = seconds
        self.file = file
        self._since = 0.0

    def start(self) -> None:
        """Start or continue the limit."""
        self._since = time.monotonic()
        faulthandler.dump_traceback_later(max(self.left, SHORTEST), exit=True, file=self.file)

    def stop(self) -> None:
        """Pause the limit and keep the remaining seconds."""
        faulthandler.cancel_dump_traceback_later()
        self.left -= time.monotonic() - self._since


_limits: list[_Limit] = []  # at most one, of the trial that this process evaluates


@contextlib.contextmanager
def time_limit(seconds: float | None, path: str | None) -> Iterator[None]:
    """End this process if the body runs longer than `seconds`, since a loop in C cannot be interrupted otherwise.

    The stack traces of all threads are written to `path` if its folder exists on this node. None means no limit.
    """
    if seconds is None:
        yield
        return
    writable = path is not None and Path(path).parent.is_dir()
    with open(path if writable else os.devnull, "w") as file:
        limit = _Limit(seconds, file)
        _limits.append(limit)
        limit.start()
        try:
            yield
        finally:
            limit.stop()
            _limits.remove(limit)
    if writable:
        Path(path).unlink()


@contextlib.contextmanager
def limits_paused() -> Iterator[None]:
    """Pause the time limit for the body, in which the trial waits for others."""
    limits = tuple(_limits)
    for limit in limits:
        limit.stop()
    try:
        yield
    finally:
        for limit in limits:
            limit.start()
