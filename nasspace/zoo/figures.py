"""Published figures of the networks: accuracy, size, cost and latency, each with its source (figures.csv)."""

from __future__ import annotations

import csv
import functools
import importlib.resources
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One published row: ImageNet top-1 accuracy in percent, parameters and multiply-adds in millions.

    None where the source has no figure. `latency` is as printed, with its device. The counts are those of the source,
    which may leave out batch norm or round; `nasspace.cost` counts the network itself.
    """

    name: str
    resolution: int
    top1: float | None
    params_m: float | None
    madds_m: float | None
    latency: str
    source: str


def published(name: str, resolution: int | None = None) -> tuple[Published, ...]:
    """Return the rows of a network, its best source first; with `resolution`, only those at it."""
    rows = _all().get(name, ())
    return tuple(row for row in rows if resolution in (None, row.resolution))


@functools.cache
def _all() -> dict[str, tuple[Published, ...]]:
    """All rows by the network's name."""
    text = importlib.resources.files(__package__).joinpath("figures.csv").read_text(encoding="utf-8")
    rows: dict[str, tuple[Published, ...]] = {}
    for line in csv.DictReader(text.splitlines()):
        numbers = {key: float(line[key]) if line[key] else None for key in ("top1", "params_m", "madds_m")}
        row = Published(
            line["name"], int(line["resolution"]), **numbers, latency=line["latency"], source=line["source"]
        )
        rows[row.name] = (*rows.get(row.name, ()), row)
    return rows
