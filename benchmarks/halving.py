"""Successive halving on a complete table, NAS-Bench-201: the front for a part of the epochs.

    python benchmarks/halving.py [--seeds 20] [--processes 2]

The low rung is the accuracy on CIFAR-100 after 12 epochs, the full training that after 200. `gain` searches with the
low rung; a part of the cells is then trained in full, and only these are found. Against it: `gain` with 50 and 25 full
trainings (10,000 and 5,000 epochs), from reports/benchmarks/samplers.csv, the same seeds. Costs, reference point and
intervals are those of benchmarks/samplers.py.

Three ways to choose the cells that are trained in full: `together`, as the rungs of nasspace do, the cells that
together are expected to dominate the most; `alone`, those that each would take away the most from the front of all;
and `low front`, the front of the low rung, as many as it has (more or fewer epochs).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import samplers

from nasspace.samplers import halving, pareto
from nasspace.samplers.accuracy_belief import AccuracyBelief, Look
from nasspace.samplers.gain_sampler import GainSampler
from nasspace.samplers.observation import Observation

LOW, FULL = 12, 200  # epochs
IMAGES, STEPS = 10_000, 391  # held-out images; steps of an epoch
SCHEMES = ((100, 14), (60, 16))  # cells at the low rung, and trained in full: 4,000 and 3,920 epochs
BASELINE = 50  # full trainings without halving
DRAWS = 200
REPORT = Path(__file__).parents[1] / "reports" / "benchmarks" / "halving.md"


@cache
def low_accuracies() -> dict[samplers.Cell, float]:
    """The accuracy of every cell after 12 epochs."""
    with gzip.open(samplers.TABLE, "rt") as file:
        return {
            samplers.Cell(tuple(samplers.OPERATIONS[int(row[f"op{i}"])] for i in range(6))): float(
                row["cifar100_val_e12"]
            )
            / 100
            for row in csv.DictReader(file)
        }


def searched(table: samplers.Cells, seed: int, count: int) -> list[samplers.Cell]:
    """The cells that `gain` evaluates at the low rung, in order."""
    names, low = sorted({"flops", "params", table.cost}), low_accuracies()
    known = {name: lambda cell, name=name: table.values[cell][name] for name in names}
    sampler = GainSampler(table, ("accuracy", table.cost), {}, known, seed)
    seen: list[Observation] = []
    while len(seen) < count:
        cell = sampler.propose(seen, len(seen))
        seen.append(Observation(cell, {**table.values[cell], "accuracy": low[cell]}))
    return [one.architecture for one in seen]


def alone(accuracies: np.ndarray, costs: np.ndarray, count: int) -> list[int]:
    """The cells without which the front of all would lose the most, on average over draws."""
    points = [np.column_stack([-drawn, costs]) for drawn in accuracies]
    reference = np.vstack(points).max(axis=0) + 1e-9
    total = np.zeros(len(costs))
    for drawn in points:
        members = np.flatnonzero(pareto.front(drawn))
        whole = pareto.hypervolume(drawn[members], reference)
        for member in members:
            total[member] += whole - pareto.hypervolume(drawn[members[members != member]], reference)
    return [int(i) for i in np.argsort(-total, kind="stable")[:count]]


def run(task: str, seed: int) -> dict[tuple[int, int, str], tuple[float, int]]:
    """The share of the true front's hypervolume and the epochs, by scheme and way to choose."""
    table, low = samplers.cells(task), low_accuracies()
    every, found = searched(table, seed, max(count for count, _ in SCHEMES)), {}
    for count, kept in SCHEMES:
        cells = every[:count]
        epochs = ((float(LOW), 1.0),)
        looks = [Look(i, epochs, epochs, low[cell], IMAGES) for i, cell in enumerate(cells)]
        sizes = [table.values[cell]["flops"] for cell in cells]
        accuracies = AccuracyBelief(sizes, looks, FULL, IMAGES, steps=STEPS).draws(DRAWS)
        costs = np.array([[table.values[cell][table.cost]] for cell in cells])
        front = pareto.front(np.column_stack([[-low[cell] for cell in cells], costs]))
        chosen = {
            "together": halving.most_promising(accuracies, costs, kept),
            "alone": alone(accuracies, costs, kept),
            "low front": np.flatnonzero(front),
        }
        for name, indices in chosen.items():
            share = table.share([cells[i] for i in indices])
            found[count, kept, name] = share, LOW * count + FULL * len(indices)
    return found


def report(results: dict[str, list[dict]], baseline: samplers.Runs) -> str:
    """The table as Markdown."""
    parts = ["# Successive halving on NAS-Bench-201\n\n`python benchmarks/halving.py`\n", __doc__.split("\n\n", 2)[2]]
    for task, runs in results.items():
        half, whole = (_in_full(baseline, task, count)[: len(runs)] for count in (BASELINE // 2, BASELINE))
        parts += [f"\n## {task}\n", samplers._header(["cells", "trained in full", "epochs", "share in %", "of the 50"])]
        if whole:
            parts.append(_line(str(BASELINE), "all", BASELINE * FULL, whole, None))
        if half:
            parts.append(_line(str(BASELINE // 2), "all", BASELINE // 2 * FULL, half, whole))
        for (count, kept, name), _ in runs[0].items():
            shares = [one[count, kept, name][0] for one in runs]
            epochs = np.mean([one[count, kept, name][1] for one in runs])
            parts.append(_line(str(count), f"{kept}, {name}" if name != "low front" else name, epochs, shares, whole))
    return "\n".join(parts) + "\n"


def _in_full(baseline: samplers.Runs, task: str, count: int) -> list[float]:
    """The shares of `gain` with so many full trainings, by seed."""
    shares = baseline.column("share", "gain", task, count)
    return [shares[seed] for seed in sorted(shares)]


def _line(cells: str, kept: str, epochs: float, shares: list[float], whole: list[float] | None) -> str:
    low, high = samplers.interval(shares)
    difference = ""
    if whole and len(whole) == len(shares):
        pairs = [one - other for one, other in zip(shares, whole, strict=True)]
        difference = "{:+.1f} ({:+.1f} to {:+.1f})".format(np.mean(pairs), *samplers.interval(pairs))
    text = f"{np.mean(shares):.1f} ({low:.1f} to {high:.1f})"
    return f"| {cells} | {kept} | {epochs:,.0f} ({epochs / BASELINE / FULL:.0%}) | {text} | {difference} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--report", type=Path, default=REPORT)
    arguments = parser.parse_args()
    jobs = list(itertools.product(samplers.TASKS, range(arguments.seeds)))
    results = defaultdict(list)
    with ProcessPoolExecutor(arguments.processes) as pool:
        for (task, _), found in zip(jobs, pool.map(run, *zip(*jobs, strict=True)), strict=True):
            results[task].append(found)
    text = report(results, samplers.Runs(samplers.REPORT.with_suffix(".csv")))
    arguments.report.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
