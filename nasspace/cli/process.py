"""The process of `nas`: closed standard streams, signals, and tracebacks of internal errors."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from nasspace import interrupts

INTERRUPTED = 130
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # from Ctrl-C, batch systems, and a closed terminal
READER_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # after `| head -1`, or in a closed terminal
STOPPED = b"nas: stopped immediately; what is finished is kept; run `nas resume` to continue\n"
SHOW_CURSOR = b"\x1b[?25h"


class ResilientStream:
    """A standard stream that discards output once its reader is gone, so that the work continues.

    Other errors, such as a full disk, are raised if `strict`.
    """

    def __init__(self, stream: Any, *, strict: bool) -> None:
        self._stream = stream
        self._strict = strict

    def write(self, text: str) -> int:
        """Write text, or discard it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or discard what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, self._stream.fileno())  # buffered output goes there, too
        os.close(sink)
        if self._strict and error.errno not in READER_GONE:
            raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_streams() -> None:
    """Make the standard streams resilient, and open those that the caller closed (`>&-`).

    The next file that is opened, such as a database, would get the descriptor of a closed stream, and the output of
    libraries would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free descriptor
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or open(number, "w", closefd=False)  # noqa: SIM115
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # names of files that are not UTF-8
        setattr(sys, name, ResilientStream(stream, strict=name == "stdout"))


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Raise `KeyboardInterrupt` on the first signal, and exit on the second one; ignored signals stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received, first = 0, signal.SIGINT

    def stop(number: int, *_: object) -> None:
        nonlocal received, first
        received += 1
        if received > 1 and number == getattr(signal, "SIGHUP", None):  # a closed terminal sends it twice
            return
        if received > 1:
            with contextlib.suppress(OSError):
                os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + STOPPED)
            os._exit(INTERRUPTED)
        first = signal.Signals(number)
        raise KeyboardInterrupt

    def repeat() -> None:
        nonlocal received
        received = 0
        interrupts.send(first)

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # by `nohup`
            signal.signal(number, stop)
    try:
        with interrupts.repeated(repeat):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def keep_traceback(error: BaseException) -> str | None:
    """Write the traceback of an internal error to a file; return its path, or None if it cannot be written."""
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="nasspace-error-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            masked = (re.sub(r"(?<=://)[^@/\s]*@", "***@", argument) for argument in sys.argv[1:])  # passwords
            file.write(f"nas {' '.join(masked)}\n\n")
            file.writelines(traceback.format_exception(error))
        return path
    return None
