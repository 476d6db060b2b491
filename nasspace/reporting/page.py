"""Parts of an HTML page: a frame that loads nothing from elsewhere, tables, lists of facts. Every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --soft: #5c636b; --ground: #ffffff; --raised: #f5f6f8;
  --line: #d9dde2; --accent: #b34700; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6e9; --soft: #a2a9b2; --ground: #17191c; --raised: #202327;
  --line: #383d44; --accent: #ff9d57; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 76rem; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .6rem; font-size: 1.15rem; }
p { margin: .4rem 0; max-width: 62rem; }
.soft, caption { color: var(--soft); }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.3rem 0; }
.tile { flex: 1 1 9rem; padding: .7rem 1rem; background: var(--raised); border-radius: 6px; }
.tile b { display: block; font-size: 1.4rem; line-height: 1.3; white-space: nowrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide > table { min-width: 100%; } details.print .wide > table { min-width: 0; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
th.code { font: inherit; font-weight: 600; }
td.number, th.number { text-align: right; white-space: nowrap; padding-right: 1.1rem; }
h3 { margin: 1.2rem 0 .3rem; font-size: 1rem; }
td.text { min-width: 15rem; }
td small { display: block; color: var(--soft); }
code, pre, .code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .87em; }
pre { padding: .8rem 1rem; background: var(--raised); border-radius: 6px; overflow-x: auto; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; margin: .5rem 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 3rem; }
details { margin: .3rem 0; border: 1px solid var(--line); border-radius: 6px; padding: .45rem .9rem; }
details details { margin-bottom: .6rem; }
summary { cursor: pointer; } summary b { color: var(--accent); }
@media print { :root { --text: #000; --soft: #444; --ground: #fff; --raised: #f3f3f3; --line: #bbb; --accent: #000;
  color-scheme: light; } body { padding: 0; max-width: none; font-size: 11px; } .modebar { display: none; }
  details, tr, .plotly-graph-div { break-inside: avoid; } .wide { overflow: visible; } h2 { break-after: avoid; }
  th { white-space: normal; } td.text { min-width: 0; } th, td, td.number, th.number { padding-right: .5rem; } }
"""
OPEN_TO_PRINT = """
addEventListener('beforeprint', () => document.querySelectorAll('details.print').forEach(part => part.open = true));
"""


def page(title: str, body: Iterable[str], scripts: Iterable[str] = ()) -> str:
    """A whole document; `body` is HTML, `scripts` are run before it. The browser is told to load nothing else."""
    head = "".join(f"<script>{script}</script>\n" for script in (*scripts, OPEN_TO_PRINT))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
{head}</head>
<body>
{"".join(f"{part}{chr(10)}" for part in body)}</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """Large figures, each with a few words under it."""
    parts = (f'<div class="tile"><b>{escape(figure)}</b>{escape(words)}</div>' for figure, words in figures)
    return f'<div class="tiles">{"".join(parts)}</div>'


def table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[Any]]) -> str:
    """A table; a column is (title, kind), of kind '', 'number', 'text', 'code'; a cell a text or (text, small text)."""
    kinds = [kind for _, kind in columns]
    head = "".join(f'<th class="{kind}">{escape(title)}</th>' for title, kind in columns)
    lines = (
        "<tr>" + "".join(_cell(cell, kind) for cell, kind in zip(row, kinds, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n' + "\n".join(lines) + "\n</table></div>"


def _cell(cell: Any, kind: str) -> str:
    text, small = cell if isinstance(cell, tuple) else (cell, "")
    more = f"<small>{escape(small)}</small>" if small else ""
    return f'<td class="{kind}">{escape(str(text))}{more}</td>'


def details(summary: str, *parts: str, strong: str = "", printed: bool = False) -> str:
    """A part that opens on a click; one that is `printed` opens for printing, too."""
    lead = f"<b>{escape(strong)}</b> " if strong else ""
    kind = ' class="print"' if printed else ""
    return f"<details{kind}><summary>{lead}{escape(summary)}</summary>\n" + "\n".join(parts) + "\n</details>"


def preformatted(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def facts(values: Mapping[str, Any]) -> str:
    """Names and values; those that are None or empty are left out."""
    parts = (
        f"<dt>{escape(str(name).replace('_', ' '))}</dt><dd>{escape(words(value))}</dd>"
        for name, value in values.items()
        if value is not None and value != "" and value != {} and value != []
    )
    return f'<dl class="facts">{"".join(parts)}</dl>'


def words(value: Any) -> str:
    """A plain value in words: mappings as 'name value', sequences with commas."""
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
