"""What the verbs share: tables, JSON, numbers as people read them, the meaning of ARCH."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

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
    """A message, on standard error."""
    print(shown(text), file=sys.stderr)


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
) -> Any:
    """A Rich table; every column but the first and the folding one is set to the right.

    If `folding` is given, only that column folds; "" for none.
    """
    from rich import box
    from rich.table import Table

    result = Table(
        title=shown(title) or None, caption=shown(caption) or None, box=box.SIMPLE_HEAD, title_justify="left"
    )
    result.caption_justify = "left"
    for i, column in enumerate(columns):
        whole = folding is not None and column != folding
        justify = "left" if i == 0 or column == folding else "right"
        result.add_column(shown(column), justify=justify, overflow="fold", no_wrap=whole)
    for row in rows:
        result.add_row(*map(shown, row))
    return result


def print_table(*args: Any, **kwargs: Any) -> None:
    """A table on standard output; as wide as it needs to be where nobody looks at a terminal."""
    console().print(table(*args, **kwargs))


def console(*, stderr: bool = False) -> Any:
    """A Rich console; into a file or pipe as wide as COLUMNS says, else as lines need.

    It reads no markup: names and descriptions are strangers', and `[/b]` or `:bug:` in one is text.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    given = stream.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=None if given else PIPED)


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


def front_table(front: DataFrame, accuracy_is_of: str, title: str = "", width: int | None = None) -> Any:
    """The Pareto front as a table, without the columns that `width` (the terminal's) has no room for."""
    again = "latency_again_ms" in front and front["latency_again_ms"].notna().any()
    searched = "search_accuracy" in front and front["search_accuracy"].notna().any()
    ties = "latency_ties" in front and front["latency_ties"].astype(bool).any()
    rows = [_front_row(row) for _, row in front.iterrows()]
    absent = {"in the search": searched, "measured again": again, "ties with": ties}
    columns = [column for column in FRONT_COLUMNS if absent.get(column, True)]
    width = width or console().width
    shown, left_out = fitting(columns, rows, width, SPARED, {"latency ms (95 %)": "latency ms"})
    tied = " Ties: intervals of latency overlap." if "ties with" in shown else ""
    caption = f"Accuracy is of {accuracy_is_of}. {FLOPS_ARE}{tied}"
    if "in the search" in shown:
        caption += " 'In the search' is the accuracy at the search's own, lower budget."
    if left_out:
        caption += f" Not shown in {width} columns: {', '.join(left_out)} (--csv has all)."
    return table(shown, [[row[column] for column in shown] for row in rows], title, caption, folding="")


FRONT_COLUMNS = (
    *("id", "accuracy", "in the search", "latency ms (95 %)", "measured again", "ties with", "FLOPs", "params"),
    *("memory access", "digest"),
)


def _front_row(row: Any) -> dict[str, str]:
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
    rows: Sequence[dict[str, str]],
    width: int,
    spared: Sequence[str],
    shorter: dict[str, str] | None = None,
) -> tuple[list[str], list[str]]:
    """The columns that fit side by side into `width`, and those that are left out: of `spared`, the first ones first.

    `shorter` names what takes the place of a column that is left out.
    """

    def needed(names: Sequence[str]) -> int:
        return 1 + sum(3 + max(len(name), *(len(row[name]) for row in rows), 0) for name in names)

    shown, left_out = list(columns), []
    for column in spared:
        if needed(shown) <= width:
            break
        if column in shown:
            instead = (shorter or {}).get(column)
            shown[shown.index(column) : shown.index(column) + 1] = [instead] if instead else []
            left_out.append(column)
    return shown, left_out


def study_trial(text: str) -> tuple[str, int] | None:
    """The study and trial that `STUDY:ID` means; None for anything else."""
    from nasspace.engine import subjects

    return subjects.study_trial(text)


def architecture_of(text: str) -> tuple[Architecture, Path | None]:
    """What ARCH means, and its trained weights if it is a study's: a path, STUDY:ID, or a published network."""
    from nasspace.engine import subjects

    found = subjects.subject(text)
    return found.architecture, found.weights
