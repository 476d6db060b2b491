"""What can go wrong, and what a person can do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMED = 20
MESSAGE = 400  # characters of a message that holds a value from outside
PLACE = 200  # characters of a place, whose keys come from outside
LONGEST = 1200  # characters of any message


class NasspaceError(Exception):
    """An error of nasspace's own; the message is written for the person at the keyboard.

    A message may hold values and names from outside, of any length: of a long one, the middle is left out.
    """

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(cut(message, LONGEST))


class InputError(NasspaceError):
    """Something given from outside is wrong; the message names the place and the remedy."""

    exit_status = 2

    def at(self, place: str) -> InputError:
        """The same error, with `place` (a file and line, a key) put before the message."""
        return type(self)(f"{place}: {self}" if place else str(self))


class NothingFound(NasspaceError):
    """A search ended without a network inside its limits."""

    exit_status = 3


class VerificationError(NasspaceError):
    """A check of a result failed: what was written is not what was meant."""

    exit_status = 1


class Interrupted(NasspaceError):
    """The work was stopped by a person, or its cluster was; the message says what is kept and how to continue."""

    exit_status = 130


def nearest(name: object, known: Iterable[str]) -> str:
    """'; did you mean 'x'?' with the nearest known name, or the list of them where none is near.

    >>> nearest("shufle_v2", ["shuffle_v2", "fire"])
    "; did you mean 'shuffle_v2'?"
    >>> nearest("banana", ["shuffle_v2", "fire"])
    '; known: fire, shuffle_v2'
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    shown = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
    return f"; known: {shown}" if names else ""


def cut(text: str, most: int = MESSAGE) -> str:
    """A text that holds a value from outside, which may be long, without its middle.

    >>> cut("a" * 30, 10)
    'aaaaa ... aaaaa'
    """
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2) :]}"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, without its type; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
