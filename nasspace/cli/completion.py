"""Words such as STUDY:ID and --space=NAME in the completion of bash, which splits words at `:` and `=`."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator

VARIABLE = "_NAS_COMPLETE"  # set by the script that `nas --install-completion` installs
BREAKS = (":", "=")


@contextlib.contextmanager
def whole_words() -> Iterator[None]:
    """Join the words that bash split, and print of each completion what follows the last colon typed.

    bash splits `photos:7` into three words, and replaces only the last one. Without a completion, do nothing.
    """
    try:
        words = shlex.split(os.environ["COMP_WORDS"])
        cursor = int(os.environ["COMP_CWORD"])
    except (KeyError, ValueError):  # no completion, or an open quote
        words, cursor = [], 0
    if os.environ.get(VARIABLE) != "complete_bash" or not {*BREAKS} & {*words[: cursor + 1]}:
        yield
        return
    joined = join(words[: cursor + 1])
    typed = re.sub(r"^--[\w-]+=|[^:]*$", "", joined[-1])
    os.environ.update(COMP_WORDS=shlex.join(joined), COMP_CWORD=str(len(joined) - 1))
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            yield
    finally:
        for line in output.getvalue().splitlines():
            print(line.removeprefix(typed))


def join(words: list[str]) -> list[str]:
    """Join words around each `:` and `=`.

    >>> join(["nas", "show", "photos", ":", "7"]), join(["nas", "search", "--space", "="])
    (['nas', 'show', 'photos:7'], ['nas', 'search', '--space='])
    """
    joined: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if joined and {before, word} & {*BREAKS}:
            joined[-1] += word
        else:
            joined.append(word)
    return joined
