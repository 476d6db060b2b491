"""Search efficiency of the samplers on a complete table, NAS-Bench-201.

    python benchmarks/samplers.py [--seeds 20] [--samplers gain tpe ...] [--evaluations 25 50 100 200] [--processes 2]

15,625 cells of six choices. Accuracy on CIFAR-100 after 200 epochs is maximized against one cost: latency on a
Raspberry Pi 4, latency on a Pixel 3, or multiply-adds. Each cost is known for every candidate; `gain`, which can use
it, calls it on candidates that it does not evaluate, and sees multiply-adds and parameters too, as in every search of
nasspace. `gain-measured` sees the latency of evaluated cells only. Optuna's and pymoo's samplers have no use for
known costs. `mnasnet` does not look for a front: it maximizes one reward, with the 25th percentile of cost as target,
and evaluates cells over the target, too (the soft form).

Share: of the true front's hypervolume, with the reference point at 60 % accuracy and the 90th percentile of the cost. A
proposal of a cell that was evaluated before is recorded as failed and does not count as an evaluation, which favors
samplers that repeat themselves; after twenty in a row, a random cell is enqueued. Intervals are 95 % by bootstrap over
the seeds, paired where two samplers are compared. Empty: not run. Seconds are those of one core of a busy machine.

Runs are stored in reports/benchmarks/samplers.csv and not repeated; remove a sampler's lines to run it again. `pymoo`
needs pymoo (tested: 0.6.2), and is left out unless it is installed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import itertools
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nasspace.samplers import pareto
from nasspace.samplers.gain_sampler import GainSampler
from nasspace.samplers.mnasnet import MnasNetSampler
from nasspace.samplers.observation import Observation

ROOT = Path(__file__).parents[1]
TABLE = ROOT / ".." / "shared" / "data" / "nasbench201.csv.gz"
REPORT = ROOT / "reports" / "benchmarks" / "samplers.md"
OPERATIONS = ("none", "skip", "conv_1x1", "conv_3x3", "avg_pool")
EVALUATIONS = (25, 50, 100, 200)
LIMITS = (10, 25, 50)  # percentiles of cost
TARGET = 25  # the percentile of cost that is the target of `mnasnet`
LEAST_ACCURACY, LARGEST_COST = 0.60, 90  # the reference point: accuracy, percentile of cost
PATIENCE = 20  # repeated proposals in a row
POPULATION = 20
TASKS = {  # name: the cost among the objectives, its column in the table
    "Raspberry Pi 4": ("latency", "lat_ms_raspi4"),
    "Pixel 3": ("latency", "lat_ms_pixel3"),
    "multiply-adds": ("flops", "macs"),
}
SAMPLERS = ("random", "mnasnet", "evolution", "nsga2", "pymoo", "tpe", "gp", "gain-measured", "gain")


class Cell(NamedTuple):
    """An architecture of the table."""

    operations: tuple[str, ...]

    @property
    def choices(self) -> dict[str, str]:
        return {f"op{i}": operation for i, operation in enumerate(self.operations)}

    @property
    def digest(self) -> str:
        return ",".join(self.operations)


class Cells:
    """The table as a space."""

    size = len(OPERATIONS) ** 6
    options = {f"op{i}": OPERATIONS for i in range(6)}  # noqa: RUF012

    def __init__(self, task: str):
        self.cost, self.column = TASKS[task]

    @cached_property
    def values(self) -> dict[Cell, dict[str, float]]:
        """Every cell's values."""
        table = {}
        with gzip.open(TABLE, "rt") as file:
            for row in csv.DictReader(file):
                table[Cell(tuple(OPERATIONS[int(row[f"op{i}"])] for i in range(6)))] = {
                    "accuracy": float(row["cifar100_test_e200"]) / 100,
                    "flops": float(row["macs"]),
                    "params": float(row["params"]),
                    self.cost: float(row[self.column]),
                }
        return table

    @cached_property
    def points(self) -> np.ndarray:
        """Rows (negative accuracy, cost) of all cells."""
        return np.array([self.point(cell) for cell in self.values])

    @cached_property
    def reference(self) -> np.ndarray:
        """The reference point of the hypervolume."""
        return np.array([-LEAST_ACCURACY, np.percentile(self.points[:, 1], LARGEST_COST)])

    @cached_property
    def true_volume(self) -> float:
        """The hypervolume of the true front."""
        return pareto.hypervolume(self.points[pareto.front(self.points)], self.reference)

    def point(self, cell: Cell) -> tuple[float, float]:
        return -self.values[cell]["accuracy"], self.values[cell][self.cost]

    def architecture(self, choose: Callable[[str, Sequence[str]], str]) -> Cell:
        return Cell(tuple(choose(name, options) for name, options in self.options.items()))

    def sample(self, rng: random.Random) -> Cell:
        return self.architecture(lambda _, options: rng.choice(options))

    def enumerate(self) -> Iterator[Cell]:
        yield from self.values

    def neighbors(self, cell: Cell) -> Iterator[Cell]:
        for i, other in itertools.product(range(6), OPERATIONS):
            if other != cell.operations[i]:
                yield Cell((*cell.operations[:i], other, *cell.operations[i + 1 :]))

    def share(self, found: Sequence[Cell]) -> float:
        """The hypervolume of what was found, in percent of the true front's."""
        return 100 * pareto.hypervolume([self.point(cell) for cell in found], self.reference) / self.true_volume

    def regrets(self, found: Sequence[Cell]) -> list[float]:
        """Percentage points by which the best accuracy within each limit is below the best of the table."""
        below = []
        for limit in np.percentile(self.points[:, 1], LIMITS):
            best = -min(accuracy for accuracy, cost in self.points if cost <= limit)
            inside = [-accuracy for accuracy, cost in map(self.point, found) if cost <= limit]
            below.append(100 * (best - max(inside, default=0.0)))
        return below


@cache
def cells(task: str) -> Cells:
    return Cells(task)


Proposals = Iterator[Cell]  # every cell that the sampler proposes, in order


def gain_proposals(table: Cells, seed: int, is_known: bool = True) -> Proposals:
    """Proposals of nasspace's `gain`; without `is_known`, it sees the cost of evaluated cells only."""
    names = {"flops", "params", *([table.cost] if is_known else [])}
    known = {name: lambda cell, name=name: table.values[cell][name] for name in sorted(names)}
    return observed_proposals(table, GainSampler(table, ("accuracy", table.cost), {}, known, seed))


def mnasnet_proposals(table: Cells, seed: int) -> Proposals:
    """Proposals of nasspace's `mnasnet`, whose target is a percentile of the cost."""
    target = float(np.percentile(table.points[:, 1], TARGET))
    return observed_proposals(
        table, MnasNetSampler(table, ("accuracy", table.cost), {table.cost: target}, {}, seed, "soft")
    )


def observed_proposals(table: Cells, sampler: Any) -> Proposals:
    """Proposals of a sampler that is given every evaluated cell."""
    seen: list[Observation] = []
    while True:
        cell = sampler.propose(seen, len(seen))
        yield cell
        seen.append(Observation(cell, table.values[cell]))


def optuna_proposals(table: Cells, seed: int, name: str) -> Proposals:
    """Proposals of an Optuna sampler."""
    import optuna

    from nasspace.samplers.optuna_samplers import optuna_sampler

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=optuna_sampler(name, seed))
    taken: set[Cell] = set()
    repeats = 0
    while True:
        if repeats >= PATIENCE:
            study.enqueue_trial(table.sample(random.Random(f"{seed}/{len(study.trials)}")).choices)
        trial = study.ask()
        cell = table.architecture(lambda at, options, trial=trial: trial.suggest_categorical(at, options))
        yield cell
        if cell in taken:
            repeats += 1
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            repeats = 0
            taken.add(cell)
            study.tell(trial, table.point(cell))


def pymoo_proposals(table: Cells, seed: int) -> Proposals:
    """Proposals of pymoo's NSGA-II on integers, which drops repeated cells itself."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    repair = RoundingRepair()
    algorithm = NSGA2(
        pop_size=POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=repair),
        mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=repair),
    )
    problem = Problem(n_var=6, n_obj=2, xl=0, xu=4, vtype=int)
    algorithm.setup(problem, termination=("n_gen", 10_000), seed=seed)
    while True:
        population = algorithm.ask()
        found = [Cell(tuple(OPERATIONS[int(i)] for i in row)) for row in population.get("X")]
        yield from found
        population.set("F", np.array([table.point(cell) for cell in found]))
        algorithm.tell(infills=population)


def proposals(name: str, table: Cells, seed: int) -> Proposals:
    if name == "pymoo":
        return pymoo_proposals(table, seed)
    if name.startswith("gain"):
        return gain_proposals(table, seed, is_known=name == "gain")
    if name == "mnasnet":
        return mnasnet_proposals(table, seed)
    return optuna_proposals(table, seed, name)


def run(name: str, task: str, seed: int, counts: Sequence[int]) -> list[dict[str, Any]]:
    """One search: a row for each number of evaluations."""
    table, rows = cells(task), []
    table.share([])  # reads the table, before the clock starts
    found: dict[Cell, None] = {}
    source, asked, seconds = proposals(name, table, seed), 0, 0.0
    while len(found) < counts[-1]:
        started = time.process_time()
        cell = next(source)
        seconds += time.process_time() - started
        asked += 1
        if cell in found:
            continue
        found[cell] = None
        if len(found) in counts:
            row = {"sampler": name, "task": task, "seed": seed, "evaluations": len(found)}
            row |= {"share": round(table.share(list(found)), 3)}
            row |= {f"regret_{limit}": round(r, 3) for limit, r in zip(LIMITS, table.regrets(list(found)), strict=True)}
            rows.append(row | {"distinct": round(len(found) / asked, 4), "seconds": round(seconds / asked, 4)})
    return rows


class Runs:
    """The stored rows of all runs."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = [{key: _parsed(value) for key, value in row.items()} for row in csv.DictReader(file)]

    def missing(self, names: Sequence[str], seeds: int, counts: Sequence[int]) -> list[tuple]:
        """The arguments of the runs that are not stored."""
        stored = {(row["sampler"], row["task"], row["seed"], row["evaluations"]) for row in self.rows}
        wanted = [
            (seed, name, task)
            for seed, name, task in itertools.product(range(seeds), names, TASKS)
            if name != "gain-measured" or TASKS[task][0] == "latency"
        ]
        return [
            (name, task, seed, counts)
            for seed, name, task in wanted
            if any((name, task, seed, count) not in stored for count in counts)
        ]

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Store the rows of one run."""
        new = not self.path.exists()
        self.rows += rows
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(rows)

    def column(self, name: str, sampler: str, task: str, evaluations: int) -> dict[int, float]:
        """A column's value by seed."""
        key = (sampler, task, evaluations)
        return {row["seed"]: row[name] for row in self.rows if (row["sampler"], row["task"], row["evaluations"]) == key}


def _parsed(text: str) -> Any:
    """An integer, a float, or the text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean."""
    array = np.array(values)
    draws = np.random.default_rng(0).integers(len(array), size=(10_000, len(array)))
    low, high = np.percentile(array[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def report(runs: Runs) -> str:
    """All tables as Markdown."""
    counts = sorted({row["evaluations"] for row in runs.rows})
    names = [name for name in SAMPLERS if any(row["sampler"] == name for row in runs.rows)]
    parts = [_heading(runs)]
    for task in TASKS:
        parts.append(f"\n## {task}\n\nShare of the true front's hypervolume in %, mean and 95 % interval.\n")
        parts.append(_header(["sampler", "seeds", *(f"{count} evaluations" for count in counts)]))
        ran = [name for name in names if any((row["sampler"], row["task"]) == (name, task) for row in runs.rows)]
        parts += [_share_line(runs, name, task, counts) for name in ran]
        limits = ", ".join(f"{limit}th" for limit in LIMITS)
        parts.append(
            f"\nPercentage points below the best accuracy within the {limits} percentile of cost; share of new "
            "proposals; seconds of CPU time a proposal.\n"
        )
        parts.append(_header(["sampler", *(f"{count} evaluations" for count in counts), "new", "seconds"]))
        parts += [_regret_line(runs, name, task, counts) for name in ran]
    if "gain" in names and {50, 200} <= set(counts):
        parts.append(_comparison(runs, names))
    return "\n".join(parts) + "\n"


def _heading(runs: Runs) -> str:
    import optuna
    import scipy

    text = "\n\n".join(__doc__.split("\n\n")[2:4])
    versions = f"optuna {optuna.__version__}, numpy {np.__version__}, scipy {scipy.__version__}, {platform.machine()}"
    return f"# Samplers on NAS-Bench-201\n\n`python benchmarks/samplers.py`, {versions}.\n\n{text}"


def _header(names: Sequence[str]) -> str:
    return f"| {' | '.join(names)} |\n|{' -- |' * len(names)}"


def _share_line(runs: Runs, name: str, task: str, counts: Sequence[int]) -> str:
    columns, seeds = [], 0
    for count in counts:
        values = list(runs.column("share", name, task, count).values())
        seeds = max(seeds, len(values))
        columns.append(f"{np.mean(values):.1f} ({' to '.join(f'{v:.1f}' for v in interval(values))})" if values else "")
    return f"| {name} | {seeds} | {' | '.join(columns)} |"


def _regret_line(runs: Runs, name: str, task: str, counts: Sequence[int]) -> str:
    columns = []
    for count in counts:
        found = [runs.column(f"regret_{limit}", name, task, count) for limit in LIMITS]
        columns.append(", ".join(f"{np.mean(list(values.values())):.2f}" for values in found) if found[0] else "")
    last = max(row["evaluations"] for row in runs.rows if row["sampler"] == name and row["task"] == task)
    distinct, seconds = (np.mean(list(runs.column(key, name, task, last).values())) for key in ("distinct", "seconds"))
    return f"| {name} | {' | '.join(columns)} | {100 * distinct:.0f} % | {seconds:.3f} |"


def _comparison(runs: Runs, names: Sequence[str]) -> str:
    """`gain` at 50 evaluations minus every other sampler at 200, paired by seed."""
    lines = ["\n## `gain` after 50 evaluations minus the others after 200\n", _header(["sampler", *TASKS])]
    for name in names:
        columns = []
        for task in TASKS:
            ours, theirs = runs.column("share", "gain", task, 50), runs.column("share", name, task, 200)
            pairs = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
            low, high = interval(pairs) if pairs else (np.nan, np.nan)
            columns.append(f"{np.mean(pairs):+.1f} ({low:+.1f} to {high:+.1f})" if pairs else "")
        if not name.startswith("gain"):
            lines.append(f"| {name} | {' | '.join(columns)} |")
    return "\n".join(lines)


def available() -> list[str]:
    """The samplers whose packages are installed."""
    return [name for name in SAMPLERS if name != "pymoo" or importlib.util.find_spec("pymoo")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers", nargs="+", default=available(), choices=SAMPLERS)
    parser.add_argument("--evaluations", nargs="+", type=int, default=list(EVALUATIONS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--stored", action="store_true", help="only write the report of the stored runs")
    arguments = parser.parse_args()
    runs = Runs(arguments.report.with_suffix(".csv"))
    with ProcessPoolExecutor(arguments.processes) as pool:
        missing = runs.missing([] if arguments.stored else arguments.samplers, arguments.seeds, arguments.evaluations)
        for done in as_completed([pool.submit(run, *each) for each in missing]):
            runs.add(done.result())
    text = report(runs)
    arguments.report.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
