"""Exceptions for users, with the exit status of each, and helpers for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_NAMES = 20  # known names listed in a message
MAX_VALUE_MESSAGE = 400  # characters of a message that quotes a value from outside
MAX_PLACE = 200  # characters of a place, whose keys come from outside
MAX_MESSAGE = 1200  # characters of any message


class NasspaceError(Exception):
    """Base of nasspace's errors; the message is written for the user.

    A message may quote values and names of any length, so the middle of a long message is left out.
    """

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(cut(message, MAX_MESSAGE))


class InputError(NasspaceError):
    """Bad input; the message names the place and the remedy."""

    exit_status = 2

    def at(self, place: str) -> InputError:
        """Return the same error with `place` (a file and line, a key) before the message."""
        return type(self)(f"{place}: {self}" if place else str(self))


class NothingFound(NasspaceError):
    """A search found no network within its limits."""

    exit_status = 3


class VerificationError(NasspaceError):
    """A check of a result failed: the files are not those of the network."""

    exit_status = 1


class Interrupted(NasspaceError):
    """The user stopped the work, or its cluster stopped; the message says what is kept and how to continue."""

    exit_status = 130


def nearest(name: object, known: Iterable[str]) -> str:
    """Suggest the nearest known name, '; did you mean 'x'?', or list the known names if none is near.

    >>> nearest("shufle_v2", ["shuffle_v2", "fire"])
    "; did you mean 'shuffle_v2'?"
    >>> nearest("banana", ["shuffle_v2", "fire"])
    '; known: fire, shuffle_v2'
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    shown = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    return f"; known: {shown}" if names else ""


def cut(text: str, most: int = MAX_VALUE_MESSAGE) -> str:
    """Shorten a text to `most` characters by leaving out its middle.

    >>> cut("a" * 30, 10)
    'aaaaa ... aaaaa'
    """
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2) :]}"


def first_line(error: BaseException) -> str:
    """First line of an error's message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
