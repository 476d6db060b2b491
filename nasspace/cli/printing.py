"""What the verbs share: tables, JSON, numbers as people read them, the meaning of ARCH."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

RUNTIMES = "What runs the network: onnxruntime, onnxruntime-int8, eager, torchscript, compile, ncnn."
LATENCY_DEVICE = "Where to measure: local, or ssh://USER@HOST:PORT/PATH/OF/PYTHON (HOST is enough)."
PIPED, WIDE = 180, 120  # columns: of a file or pipe, and from which on exact figures stand side by side
FLOPS_ARE = "FLOPs are multiply-adds of convolutions and linear layers at batch 1."


def print_json(document: Any) -> None:
    """One JSON document on standard output; what a terminal would obey, or UTF-8 cannot hold, is escaped."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(re.sub("[\x7f-\x9f\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def say(text: str) -> None:
    """A message, on standard error; in a terminal its lines break between words."""
    _print_wrapped(text, sys.stderr, console(stderr=True).width if sys.stderr.isatty() else None)


def shown(text: object) -> str:
    r"""A text in which everything can be seen, names of strangers' files and classes too.

    What a terminal would obey, such as ESC, what is invisible, and what is no character become escapes.

    >>> print(shown("a\x1b[2J, caf\udce9, café"))
    a\x1b[2J, caf\udce9, café
    """
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    title: str = "",
    caption: str = "",
    folding: str | None = None,
    width: int | None = None,
) -> Any:
    """A Rich table of at most `width` columns (the terminal's); the first and the `folding` column are set to the left.

    Lines break between words: in every cell, or, if `folding` is given, in headers and the cells of that column only;
    "" for none. Within a word they break only where not even the longest words fit side by side.
    """
    from rich import box
    from rich.table import Table

    result = Table(
        title=shown(title) or None, caption=shown(caption) or None, box=box.SIMPLE_HEAD, title_justify="left"
    )
    result.caption_justify = "left"
    names, cells = [shown(column) for column in columns], [list(map(shown, row)) for row in rows]
    least, most = _widths(names, cells, [folding in (None, column) for column in columns])
    given = _shared(least, most, (width or console().width) - EDGES - GAP * len(names))
    for i, (column, room) in enumerate(zip(columns, given, strict=True)):
        justify = "left" if i == 0 or column == folding else "right"
        result.add_column(names[i], justify=justify, overflow="fold", width=room)
    for row in cells:
        result.add_row(*row)
    return result


EDGES, GAP = 1, 3  # columns of the terminal that a table takes, and each of its columns beside its text


def _widths(names: Sequence[str], cells: Sequence[Sequence[str]], folds: Sequence[bool]) -> tuple[list[int], list[int]]:
    """The least and the greatest width of each column's text: of its longest word, and of its longest cell."""
    least, most = [], []
    for i, (name, fold) in enumerate(zip(names, folds, strict=True)):
        below = [row[i] for row in cells]
        most.append(max(map(_lines_width, [name, *below])))
        words = [word for text in ([name, *below] if fold else [name]) for word in text.split()]
        least.append(
            min(most[-1], max([len(word) for word in words] + ([] if fold else list(map(len, below))), default=0))
        )
    return least, most


def _lines_width(text: str) -> int:
    return max(map(len, text.split("\n")))


def _shared(least: Sequence[int], most: Sequence[int], room: int) -> list[int | None]:
    """The width of each column: the least, and what is left of `room` in equal parts; None if `room` is too small."""
    left = room - sum(least)
    if left < 0:
        return [None] * len(least)
    given = list(least)
    wishes = sorted(range(len(least)), key=lambda i: most[i] - least[i])
    for done, i in enumerate(wishes):
        more = min(most[i] - least[i], left // (len(wishes) - done))
        given[i] += more
        left -= more
    return given


def print_table(*args: Any, **kwargs: Any) -> None:
    """A table on standard output; as wide as it needs to be where nobody looks at a terminal."""
    console().print(table(*args, **kwargs))


def print_text(text: str) -> None:
    """Text on standard output; lines longer than the terminal, or than COLUMNS says, break between words."""
    _print_wrapped(text, sys.stdout, console().width if _is_width_given(sys.stdout) else None)


def _print_wrapped(text: str, stream: Any, width: int | None) -> None:
    for line in shown(text).split("\n"):
        indent = line[: len(line) - len(line.lstrip())]
        wrap = {"break_long_words": False, "break_on_hyphens": False, "subsequent_indent": indent}
        print(textwrap.fill(line, width, **wrap) if width and line else line, file=stream)


def console(*, stderr: bool = False) -> Any:
    """A Rich console; into a file or pipe as wide as COLUMNS says, else as lines need.

    It reads no markup: names and descriptions are strangers', and `[/b]` or `:bug:` in one is text.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if _is_width_given(stream) else PIPED
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


def _is_width_given(stream: Any) -> bool:
    return stream.isatty() or os.environ.get("COLUMNS", "").isdigit()


def is_narrow() -> bool:
    """Whether standard output has no room for exact figures side by side."""
    return console().width < WIDE


def count(value: float) -> str:
    """A count as people read it.

    >>> count(145_814_296), count(2_278_760), count(576)
    ('145.8M', '2.279M', '576')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.0f}"


def milliseconds(value: float | None) -> str:
    """Milliseconds with three digits; '-' where there are none."""
    return "-" if value is None or value != value else f"{value:.3g}"


def latency(low: float | None, median: float | None, high: float | None) -> str:
    """A latency with its interval, such as '4.12 (4.08-4.2)'."""
    if median is None or median != median:
        return "-"
    return f"{milliseconds(median)} ({milliseconds(low)}-{milliseconds(high)})"


def fraction(value: float | None) -> str:
    """An accuracy with four digits; '-' where there is none."""
    return "-" if value is None or value != value else f"{value:.4f}"


# Columns of a front that a narrow terminal goes without, the first one first.
SPARED = (
    *(
        "memory access",
        "ties with",
        "digest",
        "params",
        "measured again",
        "in the search",
        "latency ms (95 %)",
        "FLOPs",
    ),
    "latency ms",
)


def front_table(
    front: Sequence[Mapping[str, Any]], accuracy_is_of: str, title: str = "", width: int | None = None
) -> Any:
    """The Pareto front as a table, without the columns that `width` (the terminal's) has no room for."""

    def has(column: str) -> bool:
        return any(row.get(column) not in (None, "") and row[column] == row[column] for row in front)

    again, searched, ties = has("latency_again_ms"), has("search_accuracy"), has("latency_ties")
    accuracy = has("accuracy") or searched  # else it is no objective
    rows = [_front_row(row) for row in front]
    absent = {"accuracy": accuracy, "in the search": searched, "measured again": again, "ties with": ties}
    columns = [column for column in FRONT_COLUMNS if absent.get(column, True)]
    width = width or console().width
    shown, left_out = fitting(columns, rows, width, SPARED, {"latency ms (95 %)": "latency ms"})
    tied = " Ties: intervals of latency overlap." if "ties with" in shown else ""
    caption = f"Accuracy is of {accuracy_is_of}. " if accuracy else ""
    caption += f"{FLOPS_ARE}{tied}"
    if "in the search" in shown:
        caption += " 'In the search' is the accuracy at the search's own, lower budget."
    caption += not_shown(left_out, width, "--csv")
    return table(shown, [[row[column] for column in shown] for row in rows], title, caption, "", width)


FRONT_COLUMNS = (
    *("id", "accuracy", "in the search", "latency ms (95 %)", "measured again", "ties with", "FLOPs", "params"),
    *("memory access", "digest"),
)


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
        "ties with": str(row.get("latency_ties") or ""),
        **{name: "-" if value is None or value != value else count(value) for name, value in counts.items()},
        "digest": str(row["digest"]),
    }


def fitting(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    width: int,
    spared: Sequence[str],
    shorter: Mapping[str, str] | None = None,
    folding: str | None = "",
) -> tuple[list[str], list[str]]:
    """The columns that fit side by side into `width`, and those that are left out: of `spared`, the first ones first.

    What fits after all, since a wider column was left out later, is kept. `shorter` names what takes the place of a
    column that is left out; `folding` is as in `table`.
    """
    shorter = shorter or {}

    def taken(left_out: Sequence[str]) -> list[str]:
        instead = (shorter.get(name) if name in left_out else name for name in columns)
        return [name for name in instead if name is not None and name not in left_out]

    def fits(left_out: Sequence[str]) -> bool:
        names = taken(left_out)
        cells = [[shown(row[name]) for name in names] for row in rows]
        least, _ = _widths(names, cells, [folding in (None, name) for name in names])
        return EDGES + sum(GAP + each for each in least) <= width

    left_out: list[str] = []
    for name in spared:
        if fits(left_out):
            break
        if name in taken(left_out):
            left_out.append(name)
    for name in reversed(left_out[:-1]):
        if fits(fewer := [other for other in left_out if other != name]):
            left_out = fewer
    return taken(left_out), left_out


def print_fitting(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    spared: Sequence[str],
    *,
    title: str = "",
    caption: str = "",
    folding: str | None = "",
) -> None:
    """A table without the columns of `spared` that the terminal has no room for, which its caption names."""
    width = console().width
    fit, left_out = fitting(columns, rows, width, spared, folding=folding)
    caption = f"{caption}{not_shown(left_out, width, '--json')}".strip()
    print_table(fit, [[row[name] for name in fit] for row in rows], title, caption, folding, width)


def not_shown(left_out: Sequence[str], width: int, flag: str) -> str:
    """The end of a caption: which columns are left out, and the flag that prints them; empty where none is."""
    return f" Not shown in {width} columns: {', '.join(left_out)} ({flag} has all)." if left_out else ""


def study_trial(text: str) -> tuple[str, int] | None:
    """The study and trial that `STUDY:ID` means; None for anything else."""
    from nasspace.engine import arch_reference

    return arch_reference.parse_trial(text)


def architecture_of(text: str) -> tuple[Architecture, Path | None]:
    """What ARCH means, and its trained weights if it is a study's: a path, STUDY:ID, or a published network."""
    from nasspace.engine import arch_reference

    found = arch_reference.resolve_arch(text)
    return found.architecture, found.weights
