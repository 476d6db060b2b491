"""Whole searches on `digits` with equal numbers of trials: the default sampler and random search, or those named.

    python benchmarks/search.py [SEEDS] [TRIALS] [EPOCHS] [SPACE] [SAMPLER,SAMPLER,...]

Hypervolume of (accuracy, log latency, log FLOPs) over one common reference for all runs, divided by that of all
networks of all runs together; mean and standard deviation over the seeds. Latencies come from one cache, so that the
samplers are compared on equal measurements.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nasspace
from nasspace.latency.conditions import machine
from nasspace.samplers import pareto


def points(trials) -> list[list[float]]:
    rows = trials[trials["state"] == "evaluated"]
    return [[-row.accuracy, math.log(row.latency_ms), math.log(row.flops)] for row in rows.itertuples()]


def main(seeds: int = 3, trials: int = 12, epochs: int = 8, space: str = "shuffle", named: str = "gain,random") -> None:
    print(machine())
    samplers = named.split(",")
    found: dict[tuple[str, int], list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for sampler in samplers:
                began = time.perf_counter()
                study = nasspace.search(
                    space,
                    data="digits",
                    trials=trials,
                    seed=seed,
                    sampler=sampler,
                    fidelity={"resolution": 32, "epochs": epochs},
                    study=Path(folder) / f"{sampler}-{seed}",
                )
                found[sampler, seed] = points(study.trials())
                best = -min(p[0] for p in found[sampler, seed])
                taken = time.perf_counter() - began
                print(f"{sampler}, seed {seed}: {trials} trials in {taken:.0f} s, best accuracy {best:.4f}", flush=True)
    everything = [point for run in found.values() for point in run]
    reference = [0.0, *(max(p[i] for p in everything) + 0.1 for i in (1, 2))]
    whole = pareto.hypervolume(everything, reference)
    print(f"\n{space} on digits, {trials} trials of {epochs} epochs, {seeds} seeds: share of the hypervolume of all")
    for sampler in samplers:
        shares = [pareto.hypervolume(found[sampler, seed], reference) / whole for seed in range(seeds)]
        spread = statistics.stdev(shares) if seeds > 1 else 0.0
        print(f"{sampler:8} {statistics.mean(shares):.4f} +- {spread:.4f}  ({', '.join(f'{s:.4f}' for s in shares)})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:6])
