"""The data frame of a front, which prints only the columns that fit the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

import pandas

from nasspace.studies.objectives import COUNTED_COLUMNS

LEADING = ("id", "accuracy", "latency_ms", *COUNTED_COLUMNS, "digest", "search_accuracy", "latency_ties")
HIDDEN = ("architecture",)  # JSON of several kilobytes


class FrontFrame(pandas.DataFrame):
    """A DataFrame that prints as many columns as fit side by side. Operations on it return plain data frames.

    >>> print(FrontFrame({"id": [3], "accuracy": [0.93], "latency_ms": [float("nan")], "architecture": ["{...}"]}))
       id  accuracy
    0   3      0.93
    <BLANKLINE>
    [1 row x 4 columns; not shown: architecture]
    """

    @property
    def _constructor(self) -> Any:
        return pandas.DataFrame

    def __repr__(self) -> str:
        if self.empty:
            return super().__repr__()
        columns, width = list(self._filled()), _width()
        frame = pandas.DataFrame(self)
        frame = frame.astype({name: "Int64" for name in COUNTED_COLUMNS if name in frame and _is_whole(frame[name])})
        left_out = [name for name in HIDDEN if name in frame]
        while len(columns) > 1 and frame[columns].to_string().index("\n") > width:
            left_out.insert(0, columns.pop())
        size = f"{len(frame)} row{'s' if len(frame) != 1 else ''} x {frame.shape[1]} columns"
        note = f"[{size}; not shown: {', '.join(left_out)}]" if left_out else f"[{size}]"
        return f"{frame[columns].to_string()}\n\n{textwrap.fill(note, width)}"

    def _filled(self) -> Iterator[str]:
        """The columns that hold a value, the leading ones first."""
        rest = [name for name in self if name not in (*LEADING, *HIDDEN)]
        return (name for name in (*LEADING, *rest) if name in self and self[name].notna().any())


def _is_whole(column: pandas.Series) -> bool:
    """Whether all values are whole numbers that a float holds exactly."""
    values = column.dropna()
    return bool((values % 1 == 0).all() and (values.abs() < 2**53).all())


def _width() -> int:
    """The width of the terminal in characters, else the one that pandas uses."""
    return shutil.get_terminal_size((pandas.get_option("display.width") or 80, 24)).columns
