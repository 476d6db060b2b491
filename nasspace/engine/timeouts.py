"""The time that a trial may take: its own work counts, waiting for other processes on the machine does not."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHORTEST = 1e-3  # seconds that a limit is set to, at least


class _Limit:
    """A limit of this process, of which the seconds that are left are known while it is paused."""

    def __init__(self, seconds: float, file: Any) -> None:
        self.left = seconds
        self.file = file
        self._since = 0.0

    def start(self) -> None:
        self._since = time.monotonic()
        faulthandler.dump_traceback_later(max(self.left, SHORTEST), exit=True, file=self.file)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.left -= time.monotonic() - self._since


_limits: list[_Limit] = []  # one at most: of the trial that this process evaluates


@contextlib.contextmanager
def time_limit(seconds: float | None, path: str | None) -> Iterator[None]:
    """End this process if the body works longer: what it is in may be a loop in C that nothing else interrupts.

    The places that its threads are at are written to `path`, if its folder is on this node. None is no limit.
    """
    if seconds is None:
        yield
        return
    here = path is not None and Path(path).parent.is_dir()
    with open(path if here else os.devnull, "w") as file:
        limit = _Limit(seconds, file)
        _limits.append(limit)
        limit.start()
        try:
            yield
        finally:
            limit.stop()
            _limits.remove(limit)
    if here:
        Path(path).unlink()


@contextlib.contextmanager
def limits_paused() -> Iterator[None]:
    """Do not count the body, in which the trial waits for others."""
    limits = tuple(_limits)
    for limit in limits:
        limit.stop()
    try:
        yield
    finally:
        for limit in limits:
            limit.start()
