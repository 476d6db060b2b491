"""Whose fault an exception is: the candidate's, which is that trial's failure, or nasspace's, which ends the search."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

from nasspace.errors import InputError, NasspaceError

OURS = "nasspace"
BLOCKS = "nasspace.blocks"
RUNS_BLOCKS = ("nasspace.network", "nasspace.counting")  # an `InputError` from here is of a block that does not run
MISTAKES = (TypeError, AttributeError, NameError, LookupError, AssertionError, ImportError, SyntaxError)
MOST = 20_000  # characters of a traceback that are kept, the last ones


class CandidateFailed(NasspaceError):
    """A candidate's block or training raised; `traceback` is its text."""

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback

    def to_json(self) -> dict[str, str]:
        """As a study keeps it."""
        return {"failed": str(self), "traceback": self.traceback}


def is_of_candidate(error: BaseException) -> bool:
    """Whether a candidate's block or training is to blame, so that the search goes on without it.

    What passed through the code of a block is, a user's own or the library's; so is what PyTorch or a runtime raises
    for a network (out of memory, an operation that is not there). A mistake such as a `TypeError` in nasspace or in a
    library that it called, a refusal of the machine, and what is said to the person at the keyboard are not.
    """
    modules = [name for one in _chain(error) for name in _modules(one.__traceback__)]
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


def is_of_machine(error: BaseException) -> bool:
    """Whether memory or the device ran out under a training: the same training may pass at another time."""
    said = str(error).lower()
    words = ("out of memory", "allocate memory", "cuda error", "cuda driver")
    return isinstance(error, MemoryError) or any(word in said for word in words)


def text_of(error: BaseException) -> str:
    """The traceback of an error as it is kept with its trial."""
    return "".join(traceback.format_exception(error))[-MOST:]


def failed(error: BaseException) -> CandidateFailed:
    """The failure of a candidate, in a line, with its traceback."""
    lines = str(error).strip().splitlines() or [""]
    said = lines[0] if isinstance(error, NasspaceError) else f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    return CandidateFailed(said, text_of(error))


@contextlib.contextmanager
def of_candidates() -> Iterator[None]:
    """Raise what a candidate is to blame for as `CandidateFailed`."""
    try:
        yield
    except Exception as error:
        if not is_of_candidate(error):
            raise
        raise failed(error) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    met: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in met:
        met.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _modules(frames: TracebackType | None) -> list[str]:
    """The modules that a traceback passed through, the innermost one last."""
    return [str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(frames)]


def _own_modules() -> set[str]:
    """The modules of the blocks of a user's own; nobody has any if the registry was never loaded."""
    registry = sys.modules.get("nasspace.blocks.registry")
    return {cls.__module__ for cls in registry.own_blocks().values()} if registry else set()
