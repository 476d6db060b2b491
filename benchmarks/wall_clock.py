"""`nas search` in five minutes against Optuna loops as one would write them in fifteen: whose front is worth more?

    python benchmarks/wall_clock.py FOLDER --space mixed --data imagefolder:clothing10 --latency-target 0.7ms
        --resolution 64 [--epochs 25] [--time-budget 5m] [--loop-seconds 900] [--seeds 0,1]

FOLDER keeps what is done, so that a stopped run goes on. A loop asks Optuna's TPE or NSGA-II sampler for the choices of
the same space, trains each network for five epochs at the deployment resolution with a plain PyTorch loop on all cores,
and measures it; a network whose median is over the target is not trained. Its front is that of accuracy on the
validation images and latency. From each front at most four networks (the most accurate one, and others evenly by
latency) are trained in full alike by the package, with the seeds of the searches, and judged on the test images; all
latencies are measured in one session at the end.

Printed: for each search the hypervolume of test accuracy and log latency inside the target, and the difference of
`nas search` from each loop with a 95 % bootstrap interval over images and training seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import plain_training
import published

import nasspace
from nasspace.architecture import Architecture
from nasspace.data.loading import load_data
from nasspace.latency.conditions import machine
from nasspace.network import build
from nasspace.samplers import pareto
from nasspace.space.space import Space
from nasspace.studies.recipe import quantity

EPOCHS, BATCH = 5, 64  # of a training in a loop
SAMPLERS = {"tpe": optuna.samplers.TPESampler, "nsga2": optuna.samplers.NSGAIISampler}


def loop(sampler: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Search with Optuna for a fixed time; return the front as {accuracy, latency_ms, architecture}."""
    data = load_data(options.data, resolution=options.resolution)
    judged = replace(data, test=data.validation)
    space = Space.load(options.space, classes=len(data.classes), resolution=options.resolution, channels=data.channels)
    target = quantity(options.latency_target, "latency")
    found = []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        def choose(name: str, values: list) -> Any:
            return values[trial.suggest_categorical(name, range(len(values)))]

        architecture = space.architecture(choose)
        latency = nasspace.measure_latency(architecture, seconds=1.0).median_ms
        trial.set_constraint("latency", latency - target)
        if latency > target:
            return 0.0, latency
        right, _ = plain_training.plain(build(architecture, seed=seed), judged, EPOCHS, BATCH, seed)
        accuracy = right / len(judged.test)
        value = json.loads(architecture.to_json())
        found.append({"accuracy": accuracy, "latency_ms": latency, "architecture": value})
        return accuracy, latency

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=SAMPLERS[sampler](seed=seed))
    started = time.perf_counter()
    study.optimize(objective, timeout=options.loop_seconds)
    spent = time.perf_counter() - started
    print(f"{sampler}, seed {seed}: {len(found)} trainings in {len(study.trials)} trials, {spent:.0f} s", flush=True)
    mask = pareto.front([[-one["accuracy"], one["latency_ms"]] for one in found])
    return [one for one, is_member in zip(found, mask, strict=True) if is_member]


def main() -> None:
    parser = published.arguments(str(__doc__), "5m")
    parser.add_argument("--loop-seconds", type=float, default=900)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(machine(), flush=True)
    networks: dict[str, dict[str, Any]] = {}
    for seed in options.seeds:
        run = options.folder / f"gain-{seed}"
        run.mkdir(parents=True, exist_ok=True)
        folder = published.search(argparse.Namespace(**{**vars(options), "folder": run, "seed": seed}))
        front = json.loads((folder / "front.json").read_text())["front"]
        fronts = {"gain": [{**row, "accuracy": row["accuracy_expected"]} for row in front]}
        for sampler in SAMPLERS:
            path = options.folder / f"{sampler}-{seed}.json"
            if not path.exists():
                path.write_text(json.dumps(loop(sampler, seed, options)))
            fronts[sampler] = json.loads(path.read_text())
        for sampler, members in fronts.items():
            best = sorted(members, key=lambda one: -one["accuracy"])[:1]
            for number, one in enumerate(published.selected(members, *best)):
                networks[f"{sampler}-{seed}-{number}"] = {"architecture": one["architecture"]}
    rows = published.trainings(networks, options)
    names = list(networks)
    compared = published.Comparison(rows, names, options.seeds)
    latencies = [
        nasspace.measure_latency(Architecture.from_json(json.dumps(one["architecture"])), fresh=True).median_ms
        for one in networks.values()
    ]
    for name, accuracy, latency in zip(names, compared.accuracies, latencies, strict=True):
        print(f"{name}: {100 * accuracy:.1f} %, {latency:.3f} ms")
    floor = float(compared.accuracies.min()) - published.BELOW
    log_target = math.log(quantity(options.latency_target, "latency"))
    whole = (1 - floor) * (log_target - math.log(min(latencies)))

    def volume(accuracies: np.ndarray, search: str) -> float:
        points = [
            [-accuracies[i], math.log(latencies[i])]
            for i, name in enumerate(names)
            if name.rpartition("-")[0] == search
        ]
        return pareto.hypervolume(points, [-floor, log_target]) / whole

    for seed in options.seeds:
        ours = volume(compared.accuracies, f"gain-{seed}")
        print(f"seed {seed}: nas search {ours:.3f}")
        for sampler in SAMPLERS:
            theirs = volume(compared.accuracies, f"{sampler}-{seed}")
            gaps = [volume(one, f"gain-{seed}") - volume(one, f"{sampler}-{seed}") for one in compared.samples[:1000]]
            low, high = compared.interval(np.array(gaps))
            print(f"  {sampler} {theirs:.3f}, difference {ours - theirs:+.3f} ({low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main()
