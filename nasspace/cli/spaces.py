"""`nas spaces` and `nas zoo`: what there is to search and to begin with."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nasspace.cli import printing

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def add_to(app: typer.Typer) -> None:
    """Add this file's verbs."""
    app.command("spaces")(spaces)
    app.command("zoo")(zoo)


def spaces(
    name: Annotated[str | None, typer.Argument(help="A space's name or path; without it, all are listed.")] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Deployment resolution; as the file says if not given.")
    ] = None,
    classes: Annotated[int, typer.Option(help="Number of classes of the last layer.")] = 10,
    json: Json = False,
) -> None:
    """List the search spaces; or one: its choices, its size, and the reachable range of FLOPs and parameters."""
    if name is None:
        return _all(json)
    return _one(name, classes, resolution, json)


def _all(json: bool) -> None:
    from nasspace import files
    from nasspace.space import Space

    found = [Space.load(path) for path in files.names("spaces").values()]
    if json:
        rows = [{"name": s.name, "size": s.size, "input": s.plan.input, "description": s.description} for s in found]
        return printing.print_json(rows)
    rows = [(s.name, _short(s.size), "x".join(map(str, s.plan.input)), s.description) for s in found]
    return printing.print_table(["space", "networks", "input", "description"], rows)


def _one(name: str, classes: int, resolution: int | None, json: bool) -> None:
    from nasspace.ranges import reachable
    from nasspace.space import Space

    space = Space.load(name, classes=classes, resolution=resolution)
    span = reachable(space)
    if json:
        return printing.print_json(
            {
                "name": space.name,
                "description": space.description,
                "input": space.plan.input,
                "size": space.size,
                "flops": span.flops,
                "params": span.params,
                "memory_access": span.memory_access,
                "exact": span.exact,
                "choices": {choice: list(options) for choice, options in space.options.items()},
            }
        )
    rows = [(choice, ", ".join(map(str, options))) for choice, options in space.options.items()]
    printing.print_table(["choice", "options"], rows, title=f"{space.name}: {space.description}")
    kind = "exact" if span.exact else "of a sample of networks"
    print(f"{space.size:,} sequences of choices ({_short(space.size)})")
    for label, (low, high) in (
        ("FLOPs", span.flops),
        ("parameters", span.params),
        ("memory access", span.memory_access),
    ):
        print(f"{label}: {printing.count(low)} to {printing.count(high)} ({low:,} to {high:,}; {kind})")
    print(printing.FLOPS_ARE)
    return None


def _short(size: int) -> str:
    """A size as people read it: exact up to a million, then a power of ten."""
    return f"{size:,}" if size < 10**6 else f"{size:.2e}"


def zoo(json: Json = False) -> None:
    """List the published networks: our parameters and FLOPs beside the published figures and their source."""
    from nasspace import zoo as published
    from nasspace.counting import cost

    found = []
    for name in published.names():
        architecture = published.load(name)
        counted = cost(architecture)
        network = {"name": name, "input": architecture.input, "params": counted.params, "flops": counted.flops}
        found.append({**network, "published": [vars(row) for row in published.published(name)]})
    if json:
        return printing.print_json(found)
    rows = map(_zoo_row, found)
    narrow = printing.is_narrow()
    columns = [column for column in ZOO_COLUMNS if not (narrow and column in WIDE_ONLY)]
    shown = ([row[column] for column in columns] for row in rows)
    return printing.print_table(columns, shown, caption=printing.FLOPS_ARE + PUBLISHED_ARE, folding="source")


ZOO_COLUMNS = ("network", "input", "params", "FLOPs", "top-1 %", "params M", "FLOPs M", "source")
WIDE_ONLY = ("input", "params M", "FLOPs M", "source")
PUBLISHED_ARE = (
    "\nTop-1 accuracy on ImageNet and what stands right of it are published, by the source named (`nas show NAME`)."
)


def _zoo_row(network: dict[str, Any]) -> dict[str, str]:
    row = network["published"][0] if network["published"] else {}
    figures = {"top-1 %": "top1", "params M": "params_m", "FLOPs M": "madds_m"}
    return {
        "network": network["name"],
        "input": "x".join(map(str, network["input"])),
        "params": f"{network['params']:,}",
        "FLOPs": f"{network['flops']:,}",
        **{column: "" if row.get(key) is None else f"{row[key]:g}" for column, key in figures.items()},
        "source": row.get("source", ""),
    }
