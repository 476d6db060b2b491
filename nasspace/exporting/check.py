"""A check of files that were written earlier, as `nas verify` and `nas report --check` show it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasspace.errors import InputError


@dataclass(frozen=True)
class Check:
    """One check: the value found, and its limit; `ok` is None, with the reason in `why`, if it did not run."""

    name: str
    ok: bool | None
    value: Any
    limit: Any
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The check in JSON documents, without an empty `why`."""
        return {key: value for key, value in vars(self).items() if key != "why" or value}


def digest(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256; a missing file raises `InputError`."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def not_run(name: str, why: str) -> Check:
    """A check that could not run or was not requested."""
    return Check(name, None, None, None, why)


def has_failed(checks: Iterable[Check]) -> bool:
    """Whether a check failed; checks that did not run do not count."""
    return any(check.ok is False for check in checks)


def summary(checks: Iterable[Check]) -> str:
    """How many checks passed, failed and did not run.

    >>> summary([Check("a", True, 1, 1), not_run("b", "no data")])
    '1 check ok, 0 failed, 1 not run'
    """
    found = [check.ok for check in checks]
    counts = [sum(one is ok for one in found) for ok in (True, False, None)]
    return f"{counts[0]} check{'s' if counts[0] != 1 else ''} ok, {counts[1]} failed, {counts[2]} not run"
