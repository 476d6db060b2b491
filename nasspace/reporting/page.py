"""What the pages of this package share: their parts, the templates, and text from plain values.

Jinja2 escapes every text in the templates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.reporting import plots

if TYPE_CHECKING:
    import jinja2

NAMED_CLASSES = 20  # of a data set, before the list is cut


@dataclass(frozen=True)
class Tile:
    """A large figure with a caption."""

    figure: str
    caption: str


@dataclass(frozen=True)
class Column:
    """A column of a table; `kind` is '', 'number', 'text', 'code', or 'network', a trial whose panel opens."""

    title: str
    kind: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table, with a small text below, and the share of its width that a bar fills (None: no bar)."""

    text: str
    kind: str = ""
    below: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """A table; the cells of each row are those of `columns`."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    @classmethod
    def of(cls, columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> Table:
        """Make a table from rows of values, or of pairs of a text and the small text below."""
        pairs = ([value if isinstance(value, tuple) else (value, "") for value in row] for row in rows)
        cells = (
            [Cell(str(text), column.kind, below) for column, (text, below) in zip(columns, row, strict=True)]
            for row in pairs
        )
        return cls(columns, list(cells))

    def with_bars(self, shares: Mapping[str, Sequence[float]]) -> Table:
        """Fill the cells of some columns with bars; `shares` are from 0 to 1, by the columns' titles."""
        at = {i: shares[column.title] for i, column in enumerate(self.columns) if column.title in shares}
        rows = [
            [replace(cell, bar=at[i][number]) if i in at else cell for i, cell in enumerate(row)]
            for number, row in enumerate(self.rows)
        ]
        return Table(self.columns, rows)


def render(template: str, content: Mapping[str, Any]) -> str:
    """Render a page from a template, with the source of plotly.js."""
    from markupsafe import Markup

    figures = {"plotly_js": Markup(plots.plotly_js()), "plot_config": plots.CONFIG}
    return _environment().get_template(template).render(**figures, **content)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = words
    return environment


def class_names(classes: Sequence[str]) -> str:
    """The number of classes and the first 20 names.

    >>> class_names(["cat", "dog"])
    '2: cat, dog'
    """
    return f"{len(classes)}: {words(classes[:NAMED_CLASSES])}{', ...' if len(classes) > NAMED_CLASSES else ''}"


def words(value: Any) -> str:
    """A plain value as text: mappings as 'name value', sequences with commas, large numbers with separators."""
    if isinstance(value, Mapping):
        given = ((str(name).replace("_", " "), part) for name, part in value.items() if part is not None)
        return ", ".join(f"{name} {words(part)}" for name, part in given) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else str(value)
