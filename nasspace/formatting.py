"""Format numbers for people, and text for Markdown and spreadsheets."""

from __future__ import annotations

import math
from typing import Any


def significant(value: float, digits: int = 3) -> str:
    """Format a number with `digits` significant digits, never in scientific notation.

    >>> significant(1.6), significant(12345.6), significant(0.01234, 2), significant(0)
    ('1.60', '12,346', '0.012', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded value: 9.999 becomes 10.0
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def memory(size: float) -> str:
    """A number of bytes in KB, MB or GB (of 1024), with one decimal, rounded up: it never looks smaller than it is.

    >>> memory(524_288), memory(524_289), memory(2**30), memory(2**34)
    ('512 KB', '512.1 KB', '1,024 MB', '16 GB')
    """
    units = (("KB", 2**10), ("MB", 2**20), ("GB", 2**30))
    unit, scale = next((each for each in units if size < 10 * 1024 * each[1]), units[-1])
    return f"{math.ceil(round(10 * size / scale, 6)) / 10:,.1f}".removesuffix(".0") + f" {unit}"


def percent(share: float) -> str:
    """A share in percent, as exactly as it was given.

    >>> percent(0.725), percent(0.00001)
    ('72.5 %', '0.001 %')
    """
    return f"{100 * share:.6g} %"


def times(count: int) -> str:
    """How often.

    >>> times(1), times(3)
    ('once', '3 times')
    """
    return "once" if count == 1 else f"{count:,} times"


def duration(seconds: float) -> str:
    """Format seconds as 45 s, 12 min or 3.2 h.

    >>> duration(45.2), duration(700), duration(11_500)
    ('45 s', '12 min', '3.2 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def kilobytes(size: float | None) -> str:
    """A number of bytes in KB (1024 bytes); '-' for None and NaN. Rounded up: it never looks smaller than it is.

    >>> kilobytes(6_021_120), kilobytes(1025), kilobytes(None)
    ('5,880 KB', '2 KB', '-')
    """
    return "-" if size is None or size != size else f"{math.ceil(size / 1024):,} KB"


def escape_markdown(text: object) -> str:
    """Text of others on one line, with the characters of Markdown and HTML escaped.

    >>> print(escape_markdown("a_b\\n<b>"))
    a\\_b \\<b\\>
    """
    line = " ".join(str(text).split()).encode("utf-8", "replace").decode()
    return "".join("\\" + letter if letter in "\\`*_[]<>#" else letter for letter in line)


def csv_cell(value: Any) -> Any:
    """A cell of a CSV file: a spreadsheet would run text that begins with = + - @ as a formula, so a quote precedes it.

    >>> csv_cell("=cmd()"), csv_cell("-"), csv_cell(-1.5)
    ("'=cmd()", '-', -1.5)
    """
    is_formula = isinstance(value, str) and len(value) > 1 and value[0] in "=+-@\t\r"
    return f"'{value}" if is_formula else value
