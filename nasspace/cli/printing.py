"""Output of the commands: tables, JSON, readable numbers; and the resolution of ARCH."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import formatting

if TYPE_CHECKING:
    from nasspace.architecture import Architecture
    from nasspace.exporting.check import Check

LATENCY_DEVICE = "Where to measure: local, or ssh://USER@HOST:PORT/PATH/OF/PYTHON (HOST is enough)."
PIPED, WIDE = 180, 120  # columns: of a file or pipe; with this many, exact figures fit side by side
FLOPS_ARE = "FLOPs are multiply-adds of convolutions and linear layers at batch 1."


def print_json(document: Any) -> None:
    """Print one JSON document on standard output; control characters and what UTF-8 cannot encode are escaped."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(re.sub("[\x7f-\x9f\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def print_message(text: str) -> None:
    """Print a message on standard error, wrapped to the terminal."""
    _print_wrapped(text, sys.stderr, console(stderr=True).width if sys.stderr.isatty() else None)


def escape(text: object) -> str:
    r"""Escape control characters, invisible ones, and surrogates: names of files and classes may hold anything.

    >>> print(escape("a\x1b[2J, caf\udce9, café"))
    a\x1b[2J, caf\udce9, café
    """
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )


def escape_line(text: object) -> str:
    r"""Escape as `escape` does, and also line breaks and tabs: the text stays in one line, and in one field of it.

    >>> print(escape_line("a\n\tb"))
    a\n\tb
    """
    return escape(text).replace("\n", r"\n").replace("\t", r"\t")


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    title: str = "",
    caption: str = "",
    wrapped: str | None = None,
    width: int | None = None,
) -> Any:
    """A Rich table of at most `width` characters (the terminal's); the first and the `wrapped` column are left-aligned.

    Lines break between words: in every cell, or, if `wrapped` is given, in headers and the cells of that column only;
    "" for none. Words are broken only if not even the longest words fit side by side.
    """
    from rich import box
    from rich.table import Table

    result = Table(
        title=escape(title) or None, caption=escape(caption) or None, box=box.SIMPLE_HEAD, title_justify="left"
    )
    result.caption_justify = "left"
    names, cells = [escape(column) for column in columns], [list(map(escape, row)) for row in rows]
    smallest, largest = _width_ranges(names, cells, [wrapped in (None, column) for column in columns])
    widths = _share_width(smallest, largest, (width or console().width) - EDGES - GAP * len(names))
    for i, (column, column_width) in enumerate(zip(columns, widths, strict=True)):
        justify = "left" if i == 0 or column == wrapped else "right"
        result.add_column(names[i], justify=justify, overflow="fold", width=column_width)
    for row in cells:
        result.add_row(*row)
    return result


EDGES, GAP = 1, 3  # characters that a table adds to a line, and to the text of each column


def _width_ranges(
    names: Sequence[str], cells: Sequence[Sequence[str]], wraps: Sequence[bool]
) -> tuple[list[int], list[int]]:
    """The smallest and largest width of each column: of its longest word, and of its longest cell."""
    smallest, largest = [], []
    for i, (name, wrap) in enumerate(zip(names, wraps, strict=True)):
        column = [row[i] for row in cells]
        largest.append(max(map(_lines_width, [name, *column])))
        words = [word for text in ([name, *column] if wrap else [name]) for word in text.split()]
        unbroken = words if wrap else [*words, *column]
        smallest.append(min(largest[-1], max(map(len, unbroken), default=0)))
    return smallest, largest


def _lines_width(text: str) -> int:
    """The width of the longest line."""
    return max(map(len, text.split("\n")))


def _share_width(smallest: Sequence[int], largest: Sequence[int], total: int) -> Sequence[int | None]:
    """The width of each column: the smallest, and an equal part of the rest; None if `total` is too small."""
    rest = total - sum(smallest)
    if rest < 0:
        return [None] * len(smallest)
    widths = list(smallest)
    by_need = sorted(range(len(smallest)), key=lambda i: largest[i] - smallest[i])
    for done, i in enumerate(by_need):
        more = min(largest[i] - smallest[i], rest // (len(by_need) - done))
        widths[i] += more
        rest -= more
    return widths


def print_table(*args: Any, **kwargs: Any) -> None:
    """Print a table on standard output; outside a terminal, as wide as it needs to be."""
    console().print(table(*args, **kwargs))


def print_text(text: str) -> None:
    """Print text on standard output, wrapped to the terminal, or to COLUMNS."""
    _print_wrapped(text, sys.stdout, console().width if _is_width_given(sys.stdout) else None)


def _print_wrapped(text: str, stream: Any, width: int | None) -> None:
    for line in escape(text).split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        wrap = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": indent}
        print(textwrap.fill(line, width, **wrap) if width and line else line, file=stream)


def console(*, stderr: bool = False) -> Any:
    """A Rich console; for a file or pipe as wide as COLUMNS, or else as the lines.

    Markup is off: names and descriptions may hold anything, and `[/b]` or `:bug:` in one is text.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if _is_width_given(stream) else PIPED
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


def _is_width_given(stream: Any) -> bool:
    return stream.isatty() or os.environ.get("COLUMNS", "").isdigit()


def is_narrow() -> bool:
    """Whether standard output is too narrow for exact figures."""
    return console().width < WIDE


def count(value: float) -> str:
    """A count with a unit, rounded to four digits.

    >>> count(145_814_296), count(2_278_760), count(576)
    ('145.8M', '2.279M', '576')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.0f}"


def milliseconds(value: float | None) -> str:
    """Milliseconds with three digits; '-' for None and NaN."""
    return "-" if value is None or value != value else f"{value:.3g}"


def latency(low: float | None, median: float | None, high: float | None) -> str:
    """A latency with its interval, such as '4.12 (4.08-4.2)'."""
    if median is None or median != median:
        return "-"
    return f"{milliseconds(median)} ({milliseconds(low)}-{milliseconds(high)})"


def fraction(value: float | None) -> str:
    """An accuracy with four digits; '-' for None and NaN."""
    return "-" if value is None or value != value else f"{value:.4f}"


def interval(expected: float | None, low: float | None, high: float | None) -> str:
    """An expected accuracy with its interval, such as '0.76 (0.69-0.82)'; '-' without an interval."""
    if low is None or low != low:
        return "-"
    return f"{expected:.3f} ({low:.3f}-{high:.3f})"


def _ids(listed: Any) -> str:
    """Ids as a cell, whether they are text or a list."""
    if isinstance(listed, list | tuple):
        return ", ".join(map(str, listed))
    return "" if listed is None or listed != listed else str(listed)


# Columns of a front that are dropped in a narrow terminal, in this order.
DROPPABLE = (
    *("memory access", "digest", "params", "measured again", "in the search", "same latency", "same accuracy"),
    *("full training (95 %)", "latency ms (95 %)", "FLOPs", "latency ms"),
)


def front_table(
    front: Sequence[Mapping[str, Any]],
    accuracy_is_of: str,
    title: str = "",
    width: int | None = None,
    asked: Container[str] = (),
) -> Any:
    """The Pareto front as a table; columns that do not fit into `width` (the terminal's) are dropped.

    `asked` are the search's objectives and limits: memory is shown if it is one of them.
    """

    def has(column: str) -> bool:
        return any(row.get(column) not in (None, "") and row[column] == row[column] for row in front)

    again, searched, believed = has("latency_again_ms"), has("search_accuracy"), has("accuracy_low")
    accuracy = has("accuracy") or searched  # else it is not an objective
    rows = [_front_row(row) for row in front]
    optional = {
        "accuracy": accuracy,
        "in the search": searched,
        "full training (95 %)": believed,
        "same accuracy": has("accuracy_ties"),
        "measured again": again,
        "same latency": has("latency_ties"),
        **{name: objective in asked for name, objective in MEMORY_COLUMNS.items()},
    }
    columns = [column for column in PRINTED_COLUMNS if optional.get(column, True)]
    width = width or console().width
    shown, dropped = fit_columns(columns, rows, width, DROPPABLE, {"latency ms (95 %)": "latency ms"})
    tied = " 'Same latency': ids whose intervals of latency overlap." if "same latency" in shown else ""
    caption = f"Accuracy is of {accuracy_is_of}. " if accuracy else ""
    caption += f"{FLOPS_ARE}{tied}"
    if "in the search" in shown:
        caption += " 'In the search' is the accuracy at the search's own, lower budget, or with shared weights."
    if "full training (95 %)" in shown:
        caption += " 'Full training' is where the accuracy on new images is expected after a full training."
    if "same accuracy" in shown:
        caption += " 'Same accuracy': ids that cannot be told apart after a full training."
    caption += dropped_note(dropped, width, "--csv")
    return table(shown, [[row[column] for column in shown] for row in rows], title, caption, "", width)


PRINTED_COLUMNS = (
    *("id", "accuracy", "in the search", "full training (95 %)", "same accuracy", "latency ms (95 %)"),
    *("measured again", "same latency", "peak memory", "flash", "FLOPs", "params", "memory access", "digest"),
)
MEMORY_COLUMNS = {"peak memory": "peak_memory", "flash": "flash"}


def _front_row(row: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a member by column; `latency ms` is the latency without its interval."""
    counts = {"FLOPs": row["flops"], "params": row["params"], "memory access": row["memory_access"]}
    again = [row.get(f"latency_again{part}_ms") for part in ("_low", "", "_high")]
    return {
        "id": str(int(row["id"])),
        "accuracy": fraction(row["accuracy"]),
        "in the search": fraction(row.get("search_accuracy")),
        "latency ms (95 %)": latency(row["latency_low_ms"], row["latency_ms"], row["latency_high_ms"]),
        "latency ms": milliseconds(row["latency_ms"]),
        "measured again": latency(*again),
        "same latency": _ids(row.get("latency_ties")),
        "same accuracy": _ids(row.get("accuracy_ties")),
        "full training (95 %)": interval(*(row.get(f"accuracy_{part}") for part in ("expected", "low", "high"))),
        **{name: "-" if value is None or value != value else count(value) for name, value in counts.items()},
        **{name: formatting.kilobytes(row.get(f"{objective}_bytes")) for name, objective in MEMORY_COLUMNS.items()},
        "digest": str(row["digest"]),
    }


def fit_columns(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    width: int,
    droppable: Sequence[str],
    shorter: Mapping[str, str] | None = None,
    wrapped: str | None = "",
) -> tuple[list[str], list[str]]:
    """The columns that fit into `width`, and those that are dropped, in the order of `droppable`.

    A column is kept if it fits after a wider one was dropped. `shorter` names replacements for dropped columns;
    `wrapped` is as in `table`.
    """
    shorter = shorter or {}

    def taken(dropped: Sequence[str]) -> list[str]:
        instead = (shorter.get(name) if name in dropped else name for name in columns)
        return [name for name in instead if name is not None and name not in dropped]

    def fits(dropped: Sequence[str]) -> bool:
        names = taken(dropped)
        cells = [[escape(row[name]) for name in names] for row in rows]
        smallest, _ = _width_ranges(names, cells, [wrapped in (None, name) for name in names])
        return EDGES + sum(GAP + each for each in smallest) <= width

    dropped: list[str] = []
    for name in droppable:
        if fits(dropped):
            break
        if name in taken(dropped):
            dropped.append(name)
    for name in reversed(dropped[:-1]):
        if fits(fewer := [other for other in dropped if other != name]):
            dropped = fewer
    return taken(dropped), dropped


def print_fitted(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    droppable: Sequence[str],
    *,
    title: str = "",
    caption: str = "",
    wrapped: str | None = "",
) -> None:
    """Print a table; columns of `droppable` that do not fit the terminal are dropped and named in the caption."""
    width = console().width
    fit, dropped = fit_columns(columns, rows, width, droppable, wrapped=wrapped)
    caption = f"{caption}{dropped_note(dropped, width, '--json')}".strip()
    print_table(fit, [[row[name] for name in fit] for row in rows], title, caption, wrapped, width)


def dropped_note(dropped: Sequence[str], width: int, flag: str) -> str:
    """The end of a caption: the dropped columns, and the flag that prints them; empty if there are none."""
    return f" Not shown in {width} columns: {', '.join(dropped)} ({flag} has all)." if dropped else ""


CHECK_COLUMNS = ("check", "", "value", "limit")


def print_checks(checks: Sequence[Check]) -> None:
    """Print checks as a table, and how many passed."""
    from nasspace.exporting.check import summary

    print_fitted(CHECK_COLUMNS, [_check_row(check) for check in checks], ("limit",), wrapped=None)
    print(summary(checks))


def _check_row(check: Check) -> dict[str, str]:
    if check.ok is None:
        cells = check.name, "not run", check.why, ""
    else:
        cells = check.name, "ok" if check.ok else "FAILED", _figure(check.value), _figure(check.limit)
    return dict(zip(CHECK_COLUMNS, cells, strict=True))


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def study_trial(text: str) -> tuple[str, int] | None:
    """The study and trial of `STUDY:ID`; None for anything else."""
    from nasspace.engine import arch_reference

    return arch_reference.parse_trial(text)


def architecture_of(text: str) -> tuple[Architecture, Path | None]:
    """Load ARCH (a path, STUDY:ID, or a published network) and find its trained weights, if it has any."""
    from nasspace.engine import arch_reference

    found = arch_reference.resolve_arch(text)
    return found.architecture, found.weights
