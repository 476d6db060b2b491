"""Interrupts that arrive where Python ignores exceptions."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

PAUSE = 0.05  # seconds until an ignored interrupt is repeated


@contextlib.contextmanager
def repeated(repeat: Callable[[], None]) -> Iterator[None]:
    """Call `repeat`, in another thread, whenever Python ignores a `KeyboardInterrupt` during the body.

    A signal handler runs between any two instructions of the main thread, also in a destructor or in the callback of a
    weak reference. Python prints an exception that is raised there, and continues.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        timer = threading.Timer(PAUSE, repeat)
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def send(number: int) -> None:
    """Send a signal to the main thread of this process."""
    if hasattr(signal, "pthread_kill") and (main := threading.main_thread().ident) is not None:
        signal.pthread_kill(main, number)
    else:
        signal.raise_signal(number)
