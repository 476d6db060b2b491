"""How well shared weights rank networks: Kendall's tau with its interval, and images a second of their training.

    python benchmarks/supernet.py train SET DIR [--epochs 10] [--sampling sandwich] [--networks 1] [--rate-ratio 1]
        [--momenta 1] [--learning-rate 0.2] [--resolution 32] [--seed 0] [--only N] [--table FILE]
    python benchmarks/supernet.py speed SET DIR [--networks 10] [--resolution 32]
    python benchmarks/supernet.py report [--draws 1000] [--table FILE]

SET is a data set whose networks have long trainings (fidelities.py), DIR its folder: 20 of `mixed` on clothing10, 16 of
`shuffle` on cifar10-12k, 16 of `mobile` on fashion-10k ('' for its usual folder). `train` trains the shared weights of
the space once, evaluates these networks with them, and appends a row for each to `reports/benchmarks/supernet.csv`.
`report` prints tau-b with the accuracy of the long trainings, over all networks and over the better half of them alone,
for shared weights, for counts and NASWOT (scores.py), and for short trainings of each network (fidelities.py). `speed`
times steps of shared and of plain training on the same networks. Seconds are of one CPU thread, unless the short
trainings ran on a GPU.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import torch

from nasspace.architecture import Architecture
from nasspace.data.images import DataSet, prepared
from nasspace.network import build
from nasspace.space.space import Space
from nasspace.training import supernet, trainer
from nasspace.training.depthwise import fast_tiny_maps
from nasspace.training.settings import Fidelity, Sharing, TrainingSettings
from nasspace.training.supernet import Supernet, train_supernet

sys.path.insert(0, str(Path(__file__).parent))
import fidelities
import scores

TABLE = Path(__file__).parents[1] / "reports" / "benchmarks" / "supernet.csv"
SETS = ("clothing10", "cifar10-12k", "fashion-10k")
HOW = ("sampling", "networks", "rate_ratio", "momenta", "learning_rate", "resolution", "epochs", "seed")
COLUMNS = ("set", *HOW, "seconds", "network", "digest", "accuracy", "log_loss", "evaluation_seconds")
STEPS = 5  # timed for each network
COUNTS = ("activations", "units", "flops", "params", "naswot")


def task(name: str, place: str) -> tuple[DataSet, Space, list[Architecture]]:
    """The images, the space and the networks of the set, at its deployment resolution."""
    data = fidelities.data_of(name, {name: place})
    plan = fidelities.PLAN[name]
    space = Space.load(plan.space, classes=len(data.classes), resolution=plan.resolution, channels=data.channels)
    return data, space, fidelities.networks_of(name, data.channels)


def trained(given: argparse.Namespace) -> None:
    """Train shared weights and append what each network reaches with them."""
    data, space, networks = task(given.set, given.place)
    images = prepared(data, given.resolution)
    weights = Supernet(space, seed=given.seed)
    sharing = Sharing(given.sampling, given.networks, given.rate_ratio, given.momenta)
    settings = TrainingSettings(learning_rate=given.learning_rate)
    start = time.process_time()
    done = train_supernet(
        weights,
        images,
        Fidelity(given.resolution, given.epochs),
        sharing,
        settings,
        seed=given.seed,
        on_epoch=lambda done: print(f"epoch {done.number} of {done.epochs}: loss {done.loss:.3f}", flush=True),
    )
    how = {name: getattr(given, name) for name in HOW} | {"seconds": f"{time.process_time() - start:.1f}"}
    print(f"{done.networks} steps of networks in {how['seconds']} CPU seconds", flush=True)
    new = not given.table.exists()
    with given.table.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for number, architecture in enumerate(networks[: given.only]):
            start = time.process_time()
            judged = weights.evaluate(architecture, images, given.resolution, settings, seed=given.seed)
            found = {"accuracy": f"{judged.accuracy:.5f}", "log_loss": f"{judged.log_loss:.5f}"}
            about = {"network": number, "digest": architecture.digest}
            seconds = {"evaluation_seconds": f"{time.process_time() - start:.2f}"}
            writer.writerow({"set": given.set, **how, **about, **found, **seconds})
            print(f"network {number}: accuracy {judged.accuracy:.3f}, log loss {judged.log_loss:.3f}", flush=True)


def speed(given: argparse.Namespace) -> None:
    """Print images a second of CPU time of shared and of plain training, on the same networks and batch."""
    data, space, networks = task(given.set, given.place)
    images, settings = prepared(data, given.resolution), TrainingSettings()
    pixels = trainer.normalized(images.train.pixels[: settings.batch_size], images)
    labels = images.train.labels[: settings.batch_size]
    shared = supernet._SharedStep(Supernet(space), settings, Sharing("uniform"), 1, (STEPS + 1) * len(networks), 0)
    seconds = {"plain": 0.0, "shared": 0.0}
    for architecture in networks[: given.networks]:
        model = build(architecture).to(memory_format=torch.channels_last).train()
        plain = trainer._Step(model, settings, 1, STEPS + 1)
        shared.sampler.round = lambda architecture=architecture: [architecture]
        for name, step in {"plain": plain, "shared": shared}.items():
            with fast_tiny_maps(model):
                step(pixels, labels, 0)
                start = time.process_time()
                for _ in range(STEPS):
                    step(pixels, labels, 0)
                seconds[name] += time.process_time() - start
    for name, spent in seconds.items():
        print(f"{name}: {len(labels) * STEPS * len(networks[: given.networks]) / spent:.0f} images a second")


def runs(table: Path, name: str) -> dict[tuple[str, ...], list[dict[str, str]]]:
    """The rows of each training of shared weights."""
    found: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in (row for row in scores.rows(table) if row["set"] == name):
        found.setdefault(tuple(row[name] for name in HOW), []).append(row)
    return found


def columns(table: Path, set_name: str, networks: list[str]) -> dict[str, tuple[numpy.ndarray, str]]:
    """What ranks the networks: name, values (larger is better) and CPU seconds for all of them."""
    found: dict[str, tuple[numpy.ndarray, str]] = {}

    def add(name: str, values: dict[str, float], seconds: str) -> None:
        if all(network in values for network in networks):
            found[name] = numpy.array([values[network] for network in networks]), seconds

    for how, rows in runs(table, set_name).items():
        name = "{} x{}, rate ratio {}, {} momenta, rate {}, {}x{}, seed {}".format(*how)
        spent = float(rows[0]["seconds"]) + sum(float(row["evaluation_seconds"]) for row in rows)
        add(
            f"shared weights, log loss ({name})",
            {row["network"]: -float(row["log_loss"]) for row in rows},
            f"{spent:.0f}",
        )
        add(
            f"shared weights, accuracy ({name})",
            {row["network"]: float(row["accuracy"]) for row in rows},
            f"{spent:.0f}",
        )
    for score in COUNTS:
        held = [row for row in scores.rows(scores.TABLE) if row["set"] == set_name and row["score"] == score]
        first = [row for row in held if (row["seed"], row["images"]) == ("0", "32")]
        spent = sum(float(row["seconds"]) for row in first)
        add(score, {row["network"]: float(row["value"]) for row in first}, f"{spent:.1g}")
    trainings = scores.rows(fidelities.FOLDER / "trainings.csv")
    held = [row for row in trainings if row["set"] == set_name and row["budget"] != fidelities.PLAN[set_name].long.name]
    for budget, seed in dict.fromkeys((row["budget"], row["seed"]) for row in held):
        rows = [row for row in held if (row["budget"], row["seed"]) == (budget, seed)]
        spent = sum(float(row["seconds"]) for row in rows)
        values = {row["network"]: -float(row["validation_log_loss"]) for row in rows}
        add(f"trained {budget}, log loss", values, f"{spent:.0f}")
    return found


def report(given: argparse.Namespace) -> None:
    """Print a table for each set."""
    for name in SETS:
        table(name, given)


def table(name: str, given: argparse.Namespace) -> None:
    known = scores.accuracies(name)
    networks = list(known)
    truth = numpy.array([known[network] for network in networks])
    half = truth >= numpy.median(truth)
    print(
        f"\n{name}: {len(truth)} networks; accuracy {100 * truth.mean():.1f} % +- {100 * truth.std(ddof=1):.1f}; ",
        end="",
    )
    print(f"better half {100 * truth[half].mean():.1f} % +- {100 * truth[half].std(ddof=1):.1f}\n")
    print(f"| ranked by | tau (95 %) | better half alone ({half.sum()}) | seconds for all |\n| -- | -- | -- | -- |")
    for what, (values, seconds) in columns(given.table, name, networks).items():
        whole = scores.interval(values, truth, given.draws)
        better = scores.interval(values[half], truth[half], given.draws)
        print(f"| {what} | {whole} | {better} | {seconds} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    training = verbs.add_parser("train")
    defaults: dict[str, Any] = {"epochs": 10, "networks": 1, "rate_ratio": 1.0, "momenta": 1, "learning_rate": 0.2}
    for name, value in {**defaults, "seed": 0}.items():
        training.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    training.add_argument("--sampling", default="sandwich")
    training.add_argument("--only", type=int, help="evaluate only the first N networks")
    timing = verbs.add_parser("speed")
    timing.add_argument("--networks", type=int, default=10)
    for verb in (training, timing):
        verb.add_argument("set", choices=SETS)
        verb.add_argument("place", metavar="DIR")
        verb.add_argument("--resolution", type=int, default=32)
    reporting = verbs.add_parser("report")
    reporting.add_argument("--draws", type=int, default=1000)
    for verb in (training, reporting):
        verb.add_argument("--table", type=Path, default=TABLE)
    given = parser.parse_args()
    torch.set_num_threads(1)
    {"train": trained, "speed": speed, "report": report}[given.verb](given)


if __name__ == "__main__":
    main()
