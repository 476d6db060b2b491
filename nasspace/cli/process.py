"""What `nas` is as a process: standard streams that are closed, signals that end it, errors of nasspace's own."""

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

INTERRUPTED = 130
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, batch systems, a terminal that is closed
READER_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # of `| head -1`, and of a terminal that is closed
AT_ONCE = b"nas: stopped at once; what is finished is kept, `nas resume` goes on\n"
SHOW_CURSOR = b"\x1b[?25h"


class Lasting:
    """A standard stream whose reader may go: what is written after that is dropped, and the work goes on.

    Other errors, such as a full disk, are raised where `strict`.
    """

    def __init__(self, stream: Any, *, strict: bool) -> None:
        self._stream = stream
        self._strict = strict

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, self._stream.fileno())  # what is buffered goes there, too
        os.close(sink)
        if self._strict and error.errno not in READER_GONE:
            raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_streams() -> None:
    """Make standard streams that last, also where the caller closed them (`>&-`).

    A number that is left free would be given to the next file that is opened, such as a database, and whatever a
    library prints would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name) or open(number, "w", closefd=False)  # noqa: SIM115
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # names of files that are not UTF-8
        setattr(sys, name, Lasting(stream, strict=name == "stdout"))


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """End in order on the first signal, as on Ctrl-C, and at once on the second one; ignored signals stay so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    met = 0

    def stop(number: int, *_: object) -> None:
        nonlocal met
        met += 1
        if met > 1 and number == getattr(signal, "SIGHUP", None):  # a terminal that is closed sends it twice
            return
        if met > 1:
            with contextlib.suppress(OSError):
                os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + AT_ONCE)
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def keep_traceback(error: BaseException) -> str | None:
    """Write the traceback of an error of our own to a file; its path, or None if there is no room."""
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="nasspace-error-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            masked = (re.sub(r"(?<=://)[^@/\s]*@", "***@", argument) for argument in sys.argv[1:])  # passwords
            file.write(f"nas {' '.join(masked)}\n\n")
            file.writelines(traceback.format_exception(error))
        return path
    return None
