"""How much of the true Pareto front each sampler finds with equal evaluations, on the complete NAS-Bench-201 table.

    python benchmarks/samplers.py [--seeds 10] [--samplers gain tpe ...]

15,625 cells of six choices; accuracy on CIFAR-10 after 200 epochs, multiply-adds (known for every candidate), and
latency on a Raspberry Pi 5 in ONNX Runtime (measured, so unknown to a sampler). Printed is the share of the true
front's hypervolume, mean and standard deviation over the seeds; the reference point is the front's worst value in each
objective and a tenth of its range beyond. A candidate over the limit is rejected after its measurement, and is
no evaluation. A repeated proposal is told as failed; after twenty in a row a random new cell is taken.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna

from nasspace.samplers import pareto
from nasspace.samplers.gain_sampler import GainSampler
from nasspace.samplers.observation import Observation
from nasspace.samplers.optuna_samplers import optuna_sampler

TABLE = Path(__file__).parents[1] / ".." / "shared" / "data" / "nasbench201.csv.gz"
OPERATIONS = ("none", "skip", "conv_1x1", "conv_3x3", "avg_pool")
EVALUATIONS = (25, 50, 100)
PATIENCE = 20
TASKS = {  # name: objectives, limits
    "accuracy, multiply-adds": (("accuracy", "flops"), {}),
    "accuracy, latency": (("accuracy", "latency"), {}),
    "accuracy, multiply-adds; latency within the fastest tenth": (("accuracy", "flops"), {"latency": 1.65}),
}


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

    @cached_property
    def values(self) -> dict[Cell, dict[str, float]]:
        table = {}
        with gzip.open(TABLE, "rt") as file:
            for row in csv.DictReader(file):
                table[Cell(tuple(OPERATIONS[int(row[f"op{i}"])] for i in range(6)))] = {
                    "accuracy": float(row["cifar10_test_e200"]) / 100,
                    "flops": float(row["macs"]),
                    "latency": float(row["lat_ms_pi5_onnx"]),
                }
        return table

    def architecture(self, choose: Callable[[str, Sequence[str]], str]) -> Cell:
        return Cell(tuple(choose(name, options) for name, options in self.options.items()))

    def sample(self, rng: random.Random) -> Cell:
        return self.architecture(lambda _, options: rng.choice(options))

    def enumerate(self):
        yield from self.values


@cache
def cells() -> Cells:
    return Cells()


def ours(objectives: Sequence[str], limits: Mapping[str, float], seed: int) -> Callable[[list[Observation]], Cell]:
    """Asks the project's sampler."""
    known = {"flops": lambda cell: cells().values[cell]["flops"]}
    sampler = GainSampler(cells(), objectives, limits, known, seed)
    return lambda seen: sampler.propose(seen, len(seen))


def optunas(
    name: str, objectives: Sequence[str], limits: Mapping[str, float], seed: int
) -> Callable[[list[Observation]], Cell]:
    """Asks one of Optuna's, and tells it what became of its last proposal."""
    directions = ["maximize" if objective == "accuracy" else "minimize" for objective in objectives]
    study = optuna.create_study(directions=directions, sampler=optuna_sampler(name, seed))
    asked: list[optuna.Trial] = []

    def ask(seen: list[Observation]) -> Cell:
        if seen:
            _tell(study, asked[-1], seen[-1].values, objectives, limits)
        taken = {trial.architecture for trial in seen}
        for repeats in itertools.count():
            if repeats >= PATIENCE:
                study.enqueue_trial(cells().sample(random.Random(f"{seed}/{len(seen)}/{repeats}")).choices)
            asked.append(study.ask())
            cell = cells().architecture(lambda at, options: asked[-1].suggest_categorical(at, options))
            if cell not in taken:
                return cell
            study.tell(asked[-1], state=optuna.trial.TrialState.FAIL)

    return ask


def _tell(
    study: optuna.Study, trial: optuna.Trial, values: Mapping, objectives: Sequence[str], limits: Mapping
) -> None:
    for name, most in limits.items():
        trial.set_constraint(name, values[name] / most - 1)
    if "accuracy" in values:
        study.tell(trial, [values[objective] for objective in objectives])
    else:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def points(found: Sequence[Mapping[str, float]], objectives: Sequence[str]) -> np.ndarray:
    """Rows to be minimized."""
    rows = [[-values[name] if name == "accuracy" else values[name] for name in objectives] for values in found]
    return np.array(rows).reshape(len(rows), len(objectives))


def run(name: str, task: str, seed: int) -> dict[str, Any]:
    """One search: the shares after each number of evaluations, how many were rejected, seconds an ask."""
    objectives, limits = TASKS[task]
    ask = ours(objectives, limits, seed) if name == "gain" else optunas(name, objectives, limits, seed)
    seen: list[Observation] = []
    evaluated: list[dict[str, float]] = []
    began = time.process_time()
    while len(evaluated) < EVALUATIONS[-1]:
        cell = ask(seen)
        values = dict(cells().values[cell])
        if all(values[limited] <= most for limited, most in limits.items()):
            evaluated.append(dict(values))
        else:
            del values["accuracy"]
        seen.append(Observation(cell, values))
    seconds = (time.process_time() - began) / len(seen)
    shares = [share(evaluated[:count], task) for count in EVALUATIONS]
    return {"shares": shares, "rejected": len(seen) - len(evaluated), "seconds": seconds}


def share(found: Sequence[Mapping[str, float]], task: str) -> float:
    """The hypervolume of what was found, in percent of the true front's."""
    front, reference = _truth(task)
    return 100 * pareto.hypervolume(points(found, TASKS[task][0]), reference) / pareto.hypervolume(front, reference)


@cache
def _truth(task: str) -> tuple[np.ndarray, np.ndarray]:
    """The true front inside the limits, and the reference point."""
    objectives, limits = TASKS[task]
    inside = [v for v in cells().values.values() if all(v[name] <= most for name, most in limits.items())]
    every = points(inside, objectives)
    front = every[pareto.front(every)]
    return front, front.max(axis=0) + 0.1 * np.ptp(front, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--samplers", nargs="+", default=["random", "nsga2", "tpe", "gain"])
    arguments = parser.parse_args()
    print(f"optuna {optuna.__version__}, {arguments.seeds} seeds; % of the true front's hypervolume after evaluations")
    with ProcessPoolExecutor(2) as pool:
        for task in TASKS:
            print(f"\n{task}\n{'':8}" + "".join(f"{count:>14}" for count in EVALUATIONS) + "   rejected   s an ask")
            for name in arguments.samplers:
                count = arguments.seeds
                runs = list(pool.map(run, [name] * count, [task] * count, range(count)))
                print(_line(name, runs), flush=True)


def _line(name: str, runs: Sequence[Mapping[str, Any]]) -> str:
    shares = np.array([found["shares"] for found in runs])
    columns = "".join(f"{mean:8.1f} ± {std:3.1f}" for mean, std in zip(shares.mean(0), shares.std(0), strict=True))
    rejected, seconds = (np.mean([found[key] for found in runs]) for key in ("rejected", "seconds"))
    return f"{name:8}{columns}{rejected:11.0f}{seconds:11.3f}"


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    main()
