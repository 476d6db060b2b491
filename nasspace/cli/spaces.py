"""`nas spaces` and `nas zoo`: the search spaces, and the published networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from nasspace.cli import choices, printing

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("spaces")(spaces)
    app.command("zoo")(zoo)


def spaces(
    name: Annotated[
        str | None,
        typer.Argument(help="A space's name or path; without it, all are listed.", autocompletion=choices.spaces),
    ] = None,
    resolution: Annotated[int | None, typer.Option(help="Deployment resolution; the file's own if not given.")] = None,
    classes: Annotated[int, typer.Option(help="Number of classes of the last layer.")] = 10,
    json: Json = False,
) -> None:
    """List the search spaces; or one: its choices, its size, and the reachable range of FLOPs and parameters."""
    if name is None:
        return _list_all(json)
    return _show_one(name, classes, resolution, json)


def _list_all(json: bool) -> None:
    """Print one row per space; a broken file is named on standard error, and the others are listed."""
    from nasspace.cli import listing

    found, errors = listing.spaces()
    for error in errors:
        printing.print_message(f"not listed: {printing.escape(error)}")
    if json:
        return printing.print_json([{key: s[key] for key in ("name", "size", "input", "description")} for s in found])
    columns = ("space", "networks", "input", "description")
    cells = [(s["name"], _short(s["size"]), "x".join(map(str, s["input"])), s["description"]) for s in found]
    rows = [dict(zip(columns, row, strict=True)) for row in cells]
    return printing.print_fitted(columns, rows, ("input", "networks", "description"), wrapped="description")


def _show_one(name: str, classes: int, resolution: int | None, json: bool) -> None:
    """Print the choices and the reachable range of one space."""
    from nasspace.cli import listing

    space = listing.space(name, classes, resolution)
    if json:
        return printing.print_json(space)
    rows = [(choice, ", ".join(map(str, options))) for choice, options in space["choices"].items()]
    title = f"{space['name']}: {space['description']}"
    printing.print_table(["choice", "options"], rows, title=title, wrapped="options")
    kind = "exact" if space["exact"] else "of a sample of networks"
    print(f"{space['size']:,} sequences of choices ({_short(space['size'])})")
    for label, key in (("FLOPs", "flops"), ("parameters", "params"), ("memory access", "memory_access")):
        low, high = space[key]
        printing.print_text(f"{label}: {printing.count(low)} to {printing.count(high)} ({low:,} to {high:,}; {kind})")
    printing.print_text(printing.FLOPS_ARE)
    return None


def _short(size: int) -> str:
    """A size, exact up to a million, then rounded to a power of ten."""
    return f"{size:,}" if size < 10**6 else f"{size:.2e}"


def zoo(json: Json = False) -> None:
    """List the published networks: counted parameters and FLOPs, and the published figures with their source."""
    from nasspace.cli import listing

    found = listing.zoo()
    if json:
        return printing.print_json(found)
    shown = printing.count if printing.is_narrow() else "{:,}".format
    rows = [_zoo_row(network, shown) for network in found]
    caption = printing.FLOPS_ARE + PUBLISHED_ARE
    return printing.print_fitted(ZOO_COLUMNS, rows, DROPPABLE, caption=caption, wrapped="source")


ZOO_COLUMNS = ("network", "input", "params", "FLOPs", "top-1 %", "params M", "FLOPs M", "source")
DROPPABLE = ("source", "FLOPs M", "params M", "input", "top-1 %", "params")  # in a narrow terminal, in this order
PUBLISHED_ARE = (
    "\nTop-1 accuracy on ImageNet and the columns to its right are published figures (`nas show NAME` has all sources)."
)


def _zoo_row(network: dict[str, Any], shown: Callable[[int], str]) -> dict[str, str]:
    row = network["published"][0] if network["published"] else {}
    figures = {"top-1 %": "top1", "params M": "params_m", "FLOPs M": "madds_m"}
    return {
        "network": network["name"],
        "input": "x".join(map(str, network["input"])),
        "params": shown(network["params"]),
        "FLOPs": shown(network["flops"]),
        **{column: "" if row.get(key) is None else f"{row[key]:g}" for column, key in figures.items()},
        "source": row.get("source", ""),
    }
