"""What the verbs share: tables, JSON, numbers as people read them, the meaning of ARCH."""

from __future__ import annotations

import json
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
    """A Rich table; every column but the first is set to the right. If `folding` is given, only that column folds."""
    from rich import box
    from rich.table import Table

    result = Table(
        title=shown(title) or None, caption=shown(caption) or None, box=box.SIMPLE_HEAD, title_justify="left"
    )
    result.caption_justify = "left"
    for i, column in enumerate(columns):
        whole = folding is not None and column != folding
        result.add_column(shown(column), justify="left" if i == 0 else "right", overflow="fold", no_wrap=whole)
    for row in rows:
        result.add_row(*map(shown, row))
    return result


def print_table(*args: Any, **kwargs: Any) -> None:
    """A table on standard output; as wide as it needs to be where nobody looks at a terminal."""
    console().print(table(*args, **kwargs))


def console(*, stderr: bool = False) -> Any:
    """A Rich console; into a file or pipe it does not cut lines to a terminal's width.

    It reads no markup: names and descriptions are strangers', and `[/b]` or `:bug:` in one is text.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 180
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


def is_narrow() -> bool:
    """Whether standard output is a terminal with no room for exact figures side by side."""
    return console().width < 120


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


def front_table(front: DataFrame, accuracy_is_of: str, title: str = "") -> Any:
    """The Pareto front as a table."""
    again = "latency_again_ms" in front and front["latency_again_ms"].notna().any()
    searched = "search_accuracy" in front and front["search_accuracy"].notna().any()
    columns = ["id", "accuracy", *(["in the search"] if searched else []), "latency ms (95 %)"]
    columns += ["measured again"] if again else []
    ties = "latency_ties" in front and front["latency_ties"].astype(bool).any()
    columns += [*(["ties with"] if ties else []), "FLOPs", "params", "memory access", "digest"]
    rows = []
    for _, row in front.iterrows():
        cells = [int(row["id"]), fraction(row["accuracy"])]
        cells += [fraction(row["search_accuracy"])] if searched else []
        cells.append(latency(row["latency_low_ms"], row["latency_ms"], row["latency_high_ms"]))
        if again:
            cells.append(latency(row["latency_again_low_ms"], row["latency_again_ms"], row["latency_again_high_ms"]))
        cells += [row["latency_ties"]] if ties else []
        cells += [
            "-" if row[name] is None or row[name] != row[name] else count(row[name])
            for name in ("flops", "params", "memory_access")
        ]
        rows.append([*cells, row["digest"]])
    tied = " Ties: intervals of latency overlap." if ties else ""
    caption = f"Accuracy is of {accuracy_is_of}. {FLOPS_ARE}{tied}"
    if searched:
        caption += " 'In the search' is the accuracy at the search's own, lower budget."
    return table(columns, rows, title, caption)


def study_trial(text: str) -> tuple[str, int] | None:
    """The study and trial that `STUDY:ID` means; None for anything else."""
    from nasspace.engine import subjects

    return subjects.study_trial(text)


def architecture_of(text: str) -> tuple[Architecture, Path | None]:
    """What ARCH means, and its trained weights if it is a study's: a path, STUDY:ID, or a published network."""
    from nasspace.engine import subjects

    found = subjects.subject(text)
    return found.architecture, found.weights
