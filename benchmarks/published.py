"""Is a search's front worth more than published networks? All trained in full alike and judged on the test images.

    python benchmarks/published.py FOLDER --space mixed --data imagefolder:clothing10 --latency-target 1ms
        --resolution 64 --epochs 25 [--time-budget 30m] [--recipe quick] [--workers 2] [--seeds 0,1]

FOLDER keeps what is done, so that a stopped run goes on: the study, the networks with their latencies, and a line for
each training. From the front at most four members are taken: the recommended one, the most accurate one, and others
evenly by latency, from the fastest on. From the published networks, six families each give their largest network (by
FLOPs) inside the target at this resolution, and the largest one that is inside for certain: by the upper end of its
interval, which counts for the search, too. Every network is trained from new weights with the package's own settings,
one thread each, and classifies the test images once. All latencies are measured in one session at the end.

Intervals are of 10,000 bootstrap samples (1,000 for the hypervolume): images are drawn in common for all networks,
seeds per network. A search that is killed starts its time again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nasspace
from nasspace import zoo
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.data.loading import DataSet, load_data
from nasspace.latency.conditions import machine
from nasspace.network import build
from nasspace.samplers import pareto
from nasspace.studies.recipe import quantity
from nasspace.studies.study import load
from nasspace.training import trainer
from nasspace.training.settings import Fidelity, TrainingSettings

FAMILIES = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3", "mnasnet", "shufflenet_v2", "mobilenext")
MEMBERS = 4
DRAWS = 10_000
BELOW = 0.05  # the reference accuracy of the hypervolume lies this far below the least accurate network


def search(options: argparse.Namespace) -> Path:
    """Run `nas search` once, also if its time was too short for the whole front; return the study's folder."""
    folder, seconds = options.folder.resolve() / "study", options.folder / "seconds.txt"
    if seconds.exists():
        return folder
    command = [
        str(Path(sys.executable).with_name("nas")), "search", "--space", options.space, "--data", options.data,
        "--latency-target", options.latency_target, "--resolution", str(options.resolution),
        "--time-budget", options.time_budget, "--recipe", options.recipe, "--seed", str(options.seed),
        "--workers", str(options.workers), "--study", str(folder),
    ]  # fmt: skip
    print(" ".join(command[1:]), flush=True)
    started = time.perf_counter()
    with (options.folder / "search.log").open("a") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    seconds.write_text(f"{time.perf_counter() - started:.0f}\n")
    return folder


def selected(front: Sequence[dict[str, Any]], *first: dict[str, Any]) -> list[dict[str, Any]]:
    """At most `MEMBERS` rows of a front: the `first`, and others evenly by latency, from the fastest on."""
    ordered = sorted(front, key=lambda row: row["latency_ms"])
    places = np.linspace(0, len(ordered) - 1, MEMBERS).round().astype(int) if ordered else ()
    rows = [*first, *(ordered[place] for place in places)]
    return list({id(row): row for row in rows}.values())[:MEMBERS]


def members(folder: Path) -> dict[str, dict[str, Any]]:
    """The members of the front that are compared."""
    snapshot = load(folder).snapshot()
    rows = snapshot.document()["front"]
    by_id = {row["id"]: row for row in rows}
    recommended = snapshot.recommended if snapshot.recommended is not None else rows[0]["id"]
    most_accurate = max(rows, key=lambda row: row["accuracy_expected"])
    return {
        f"trial {row['id']}" + (", recommended" if row["id"] == recommended else ""): {
            "architecture": row["architecture"],
            "recommended": row["id"] == recommended,
            "expected": [row[key] for key in ("accuracy_expected", "accuracy_low", "accuracy_high")],
        }
        for row in selected(rows, by_id[recommended], most_accurate)
    }


def published(data: DataSet, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The largest networks of each family inside the target: by the interval's upper end, and by the median."""
    target = quantity(options.latency_target, "latency")
    found: dict[str, dict[str, Any]] = {}
    for family in FAMILIES:
        names = [name for name in zoo.names() if name.startswith(family) and not name.endswith(zoo.CIFAR)]
        networks = {name: zoo.load(name, options.resolution, len(data.classes)) for name in names}
        inside: list[str] = []
        for name in sorted(networks, key=lambda each: -cost(networks[each]).flops):
            latency = nasspace.measure_latency(networks[name])
            print(f"{name}: {latency.median_ms:.3f} ms ({latency.low_ms:.3f} to {latency.high_ms:.3f})", flush=True)
            if latency.median_ms <= target and (not inside or latency.high_ms <= target):
                inside.append(name)
            if latency.high_ms <= target:
                break
        found |= {name: {"architecture": json.loads(networks[name].to_json())} for name in inside}
    return found


def train(name: str, value: Any, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network in full, and classify the test images."""
    torch.set_num_threads(1)
    data = load_data(options.data, resolution=options.resolution)
    model = build(Architecture.from_json(json.dumps(value)), seed=seed)
    start = time.process_time()
    fidelity = Fidelity(options.resolution, options.epochs)
    trainer.train(model, data, fidelity, TrainingSettings(), seed=seed)
    seconds = time.process_time() - start
    model.eval()
    with torch.inference_mode():
        parts = [model(trainer.normalized(part, data)).argmax(1) for part in data.test.pixels.split(500)]
    correct = (torch.cat(parts) == data.test.labels).int().tolist()
    return {"network": name, "seed": seed, "seconds": round(seconds, 1), "correct": "".join(map(str, correct))}


def trainings(networks: dict[str, dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the missing trainings, two at a time; return a row for each."""
    table = options.folder / "trainings.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []
    held = {(row["network"], row["seed"]) for row in rows}
    left = [(name, seed) for seed in options.seeds for name in networks if (name, seed) not in held]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool, table.open("a") as file:
        running = [pool.submit(train, name, networks[name]["architecture"], seed, options) for name, seed in left]
        for finished in concurrent.futures.as_completed(running):
            rows.append(finished.result())
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
            print(f"{rows[-1]['network']}, seed {rows[-1]['seed']}: {rows[-1]['seconds']:.0f} CPU s", flush=True)
    return [row for row in rows if row["network"] in networks and row["seed"] in options.seeds]


class Comparison:
    """Accuracies of networks over images and seeds, and bootstrap samples of them."""

    def __init__(self, rows: Sequence[dict[str, Any]], names: Sequence[str], seeds: Sequence[int]):
        self.names = list(names)
        correct = {(row["network"], row["seed"]): [int(each) for each in row["correct"]] for row in rows}
        self.correct = np.array([[correct[name, seed] for seed in seeds] for name in names], float)  # name, seed, image
        self.accuracies = self.correct.mean((1, 2))
        rng = np.random.default_rng(0)
        networks, count, images = self.correct.shape
        samples = np.empty((DRAWS, networks))
        for i in range(DRAWS):
            weights = np.bincount(rng.integers(images, size=images), minlength=images) / images
            by_seed = self.correct @ weights
            samples[i] = np.take_along_axis(by_seed, rng.integers(count, size=(networks, count)), 1).mean(1)
        self.samples = samples

    def interval(self, values: np.ndarray) -> tuple[float, float]:
        """The 95 % interval of bootstrap samples."""
        low, high = np.quantile(values, (0.025, 0.975))
        return float(low), float(high)


def report(
    networks: dict[str, dict[str, Any]], rows: list[dict[str, Any]], latencies: dict[str, Any], options: Any
) -> None:
    """Print the table, the difference of the recommended network, and the hypervolumes."""
    names = list(networks)
    found = Comparison(rows, names, options.seeds)
    target = quantity(options.latency_target, "latency")
    print(f"\n| network | latency ms | MFLOPs | test % (95 %) | seeds | search expected % |\n{'| -- ' * 6}|")
    for i, name in sorted(enumerate(names), key=lambda pair: latencies[pair[1]][0]):
        low, high = found.interval(found.samples[:, i])
        flops = cost(Architecture.from_json(json.dumps(networks[name]["architecture"]))).flops
        seeds = ", ".join(f"{100 * each:.1f}" for each in found.correct[i].mean(1))
        expected = networks[name].get("expected")
        shown = "{:.1f} ({:.1f} to {:.1f})".format(*(100 * each for each in expected)) if expected else ""
        latency = "{:.3f} ({:.3f} to {:.3f})".format(*latencies[name])
        accuracy = f"{100 * found.accuracies[i]:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        print(f"| {name} | {latency} | {flops / 1e6:.1f} | {accuracy} | {seeds} | {shown} |")
    own = [i for i, name in enumerate(names) if name.startswith("trial")]
    others = [i for i in range(len(names)) if i not in own]
    recommended = next(i for i in own if networks[names[i]].get("recommended"))
    best = max(others, key=lambda i: found.accuracies[i])
    gap = found.samples[:, recommended] - found.samples[:, best]
    low, high = found.interval(gap)
    difference = found.accuracies[recommended] - found.accuracies[best]
    print(
        f"\nrecommended ({names[recommended]}) minus the best published one ({names[best]}): "
        f"{100 * difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    )
    floor = float(found.accuracies.min()) - BELOW
    log_target = math.log(target)
    fastest = min(math.log(latency[0]) for latency in latencies.values())

    def volume(accuracies: np.ndarray, which: list[int]) -> float:
        points = [[-accuracies[i], math.log(latencies[names[i]][0])] for i in which]
        return pareto.hypervolume(points, [-floor, log_target])

    whole = (1 - floor) * (log_target - fastest)
    ours, theirs = (volume(found.accuracies, which) / whole for which in (own, others))
    gaps = np.array([volume(one, own) - volume(one, others) for one in found.samples[:1000]]) / whole
    low, high = found.interval(gaps)
    print(
        f"hypervolume of test accuracy (above {100 * floor:.1f} %) and log latency (below {target:g} ms), as a share "
        f"of the box: front {ours:.3f}, published {theirs:.3f}, "
        f"difference {ours - theirs:+.3f} ({low:+.3f} to {high:+.3f})"
    )


def arguments(description: str, time_budget: str) -> argparse.ArgumentParser:
    """The arguments that searches on real images and full trainings need."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--space", default="mixed")
    parser.add_argument("--data", required=True)
    parser.add_argument("--latency-target", required=True)
    parser.add_argument("--resolution", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--time-budget", default=time_budget)
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seeds", type=lambda text: [int(each) for each in text.split(",")], default=[0, 1])
    return parser


def main() -> None:
    parser = arguments(str(__doc__), "30m")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    folder = search(options)
    list_of_networks = options.folder / "networks.json"
    if not list_of_networks.exists():
        data = load_data(options.data, resolution=options.resolution)
        list_of_networks.write_text(json.dumps(members(folder) | published(data, options), indent=1))
    networks = json.loads(list_of_networks.read_text())
    rows = trainings(networks, options)
    measured = {}
    for name, network in networks.items():
        latency = nasspace.measure_latency(Architecture.from_json(json.dumps(network["architecture"])), fresh=True)
        measured[name] = (latency.median_ms, latency.low_ms, latency.high_ms)
    report(networks, rows, measured, options)


if __name__ == "__main__":
    main()
