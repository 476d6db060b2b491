"""Classify exceptions: a candidate's own failure fails its trial, any other error ends the search."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

from nasspace.errors import InputError, NasspaceError

OURS = "nasspace"
BLOCKS = "nasspace.blocks"
RUNS_BLOCKS = ("nasspace.network", "nasspace.counting")  # an `InputError` raised here means a block that does not run
MISTAKES = (TypeError, AttributeError, NameError, LookupError, AssertionError, ImportError, SyntaxError)
MAX_TRACEBACK = 20_000  # the last characters of a traceback are kept


class CandidateFailed(NasspaceError):
    """A candidate's block or training raised an exception; `traceback` is its formatted text."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback

    def to_json(self) -> dict[str, str]:
        """Plain values, as stored in a study."""
        return {"failed": str(self), "traceback": self.traceback}


def is_candidate_fault(error: BaseException) -> bool:
    """Whether a candidate's block or training caused the error, so that the search continues without it.

    True for any error raised through the code of a block, a user's own or the library's, and for errors that PyTorch or
    a runtime raises for a network (out of memory, a missing operation). False for a bug in nasspace or a library it
    calls (such as a `TypeError`), for errors of the operating system, and for messages to the user.
    """
    modules = [name for each in _chain(error) for name in _modules(each.__traceback__)]
    if any(name == BLOCKS or name.startswith(f"{BLOCKS}.") or name in _own_modules() for name in modules):
        return True
    if isinstance(error, InputError):
        return any(name in RUNS_BLOCKS for name in modules)
    if isinstance(error, NasspaceError | OSError) or not isinstance(error, Exception):
        return False
    if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
        return True
    innermost = next(iter(_modules(error.__traceback__)[::-1]), "")
    return innermost.partition(".")[0] != OURS and not isinstance(error, MISTAKES)


def is_machine_fault(error: BaseException) -> bool:
    """Whether a training ran out of memory or lost its device, so that it may succeed at another time."""
    message = str(error).lower()
    words = ("out of memory", "allocate memory", "cuda error", "cuda driver")
    return isinstance(error, MemoryError) or any(word in message for word in words)


def candidate_failure(error: BaseException) -> CandidateFailed:
    """Convert an error to a `CandidateFailed` with a one-line message and the end of the traceback."""
    lines = str(error).strip().splitlines() or [""]
    message = lines[0] if isinstance(error, NasspaceError) else f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    return CandidateFailed(message, "".join(traceback.format_exception(error))[-MAX_TRACEBACK:])


@contextlib.contextmanager
def as_candidate_failures() -> Iterator[None]:
    """Raise errors that a candidate caused as `CandidateFailed`."""
    try:
        yield
    except Exception as error:
        if not is_candidate_fault(error):
            raise
        raise candidate_failure(error) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Iterate over an error and its causes."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _modules(frames: TracebackType | None) -> list[str]:
    """Names of the modules in a traceback, the innermost last."""
    return [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(frames)]


def _own_modules() -> set[str]:
    """Modules of the user's own blocks; empty if the registry was never loaded."""
    registry = sys.modules.get("nasspace.blocks.registry")
    return {cls.__module__ for cls in registry.own_blocks().values()} if registry else set()
