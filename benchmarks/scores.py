"""How well training-free scores rank trained networks: Kendall's tau with its interval, and seconds of one CPU thread.

    python benchmarks/scores.py score clothing10 DIR | cifar10-12k DIR | fashion-10k installed | zoo [DIR]
        [--images 32] [--seed 0] [--resolution 224] [--networks N] [--table FILE]
    python benchmarks/scores.py report [--nasbench201 FILE] [--draws 1000] [--table FILE]

`score` appends a row for each network, score and seed to `reports/benchmarks/scores.csv`, and goes on after a stop. The
first three sets are those of fidelities.py (networks, images, and the accuracy of long trainings in its table); DIR is
the folder of images or parquet files. `zoo` has the published networks below 1,000 million multiply-adds with an
ImageNet accuracy at 224 pixels; their minibatch is drawn from an image folder DIR, or is Gaussian noise. `report`
prints tau-b of each score with the accuracy, its 95 % bootstrap interval over networks, and the best pair of scores by
the sum of ranks, chosen on the same data. The table NAS-Bench-201 has counts only.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
import time
from pathlib import Path

import numpy
import torch

from nasspace import Architecture, zoo
from nasspace.data.loading import load_data
from nasspace.engine.scoring import draw
from nasspace.training.proxies import SCORES, Minibatch, counts, scores
from nasspace.training.trainer import threads

sys.path.insert(0, str(Path(__file__).parent))
import fidelities

TABLE = Path(__file__).parents[1] / "reports" / "benchmarks" / "scores.csv"
COLUMNS = ("set", "network", "digest", "resolution", "images", "seed", "score", "value", "seconds")
ZOO, PIXELS = "zoo", 224
LARGEST = 1e9  # multiply-adds: the light-weight networks of the zoo
CONVOLUTIONS = ("2", "3")  # numbers of NAS-Bench-201's operations that are ReLU, convolution, batch norm
CELL_UNITS = 5 * (16 * 32**2 + 32 * 16**2 + 64 * 8**2)  # units of one convolution of the cell, over all cells


def published(resolution: int) -> dict[str, tuple[Architecture, float]]:
    """Published networks with an ImageNet accuracy at 224 pixels, by FLOPs, with the accuracy of their best source."""
    found = {}
    for name in zoo.names():
        rows = [row for row in zoo.published(name, PIXELS) if row.top1 is not None]
        architecture = zoo.load(name)
        if rows and architecture.input[1] == PIXELS:
            found[name] = architecture, rows[0].top1 / 100
    flops = {name: counts(architecture)["flops"] for name, (architecture, _) in found.items()}
    light = sorted((name for name in found if flops[name] < LARGEST), key=flops.__getitem__)
    return {name: (found[name][0].with_resolution(resolution), found[name][1]) for name in light}


def noise(architecture: Architecture, images: int, seed: int) -> Minibatch:
    """A minibatch of Gaussian noise with random classes."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, *architecture.input, generator=generator)
    return Minibatch(pixels, torch.randint(0, architecture.classes, (images,), generator=generator))


def score(name: str, place: str | None, images: int, seed: int, resolution: int, most: int | None, table: Path) -> None:
    """Append the scores of the networks of a set that the table does not hold yet."""
    if name == ZOO:
        named = {each: architecture for each, (architecture, _) in published(resolution).items()}
        data = load_data(f"imagefolder:{place}", resolution=resolution) if place else None
    else:
        data = fidelities.data_of(name, {name: None if place == "installed" else place})
        networks = fidelities.networks_of(name, data.channels)
        named = {str(i): architecture for i, architecture in enumerate(networks)}
    held = {(row["set"], row["network"], row["seed"], row["images"], row["score"]) for row in rows(table)}
    new = not table.exists()
    with table.open("a", newline="") as file, threads(1):
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for each, architecture in itertools.islice(named.items(), most):
            minibatch = noise(architecture, images, seed) if data is None else draw(data, architecture, images, seed)
            counts(architecture)  # each block of the network is counted once
            for key in SCORES:
                if (name, each, str(seed), str(images), key) in held:
                    continue
                start = time.process_time()
                value = scores(architecture, minibatch, names=[key], seed=seed)[key]
                seconds = time.process_time() - start
                cells = (name, each, architecture.digest, architecture.input[1], images, seed, key)
                writer.writerow(dict(zip(COLUMNS, (*cells, f"{value:.10g}", f"{seconds:.4g}"), strict=True)))
            file.flush()
            print(f"{name} {each}", flush=True)


def rows(table: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines())) if table.exists() else []


def accuracies(name: str) -> dict[str, float]:
    """The trained accuracy of each network of a set: published, or the mean over the seeds of the long trainings."""
    if name == ZOO:
        return {each: accuracy for each, (_, accuracy) in published(PIXELS).items()}
    long = fidelities.PLAN[name].long.name
    found: dict[str, list[float]] = {}
    for row in rows(fidelities.FOLDER / "trainings.csv"):
        if row["set"] == name and row["budget"] == long:
            found.setdefault(row["network"], []).append(fidelities.accuracy(row, name))
    return {network: float(numpy.mean(values)) for network, values in found.items()}


def tau(values: numpy.ndarray, truth: numpy.ndarray) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(values, truth).statistic)


def interval(values: numpy.ndarray, truth: numpy.ndarray, draws: int) -> str:
    """Tau-b, and the 2.5 % and 97.5 % quantiles of its bootstrap over networks."""
    rng = numpy.random.default_rng(0)
    samples = (rng.integers(len(truth), size=len(truth)) for _ in range(draws))
    low, high = numpy.nanquantile([tau(values[chosen], truth[chosen]) for chosen in samples], [0.025, 0.975])
    return f"{tau(values, truth):.2f} ({low:.2f} to {high:.2f})"


def best_pair(columns: dict[str, numpy.ndarray], truth: numpy.ndarray) -> tuple[str, numpy.ndarray]:
    """The two scores whose sum of ranks has the highest tau, and that sum."""
    from scipy.stats import rankdata

    sums = {
        f"{one} + {other}": rankdata(columns[one]) + rankdata(columns[other])
        for one, other in itertools.combinations(columns, 2)
    }
    best = max(sums, key=lambda pair: tau(sums[pair], truth))
    return best, sums[best]


def report(table: Path, nasbench201: Path | None, draws: int) -> None:
    """Print the tables."""
    kept: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in rows(table):
        kept.setdefault((row["set"], row["images"], row["seed"]), []).append(row)
    for (name, images, seed), held in kept.items():
        values = {(row["network"], row["score"]): float(row["value"]) for row in held}
        known = accuracies(name)
        networks = [each for each in known if all((each, key) in values for key in SCORES)]
        truth = numpy.array([known[each] for each in networks])
        columns = {key: numpy.array([values[each, key] for each in networks]) for key in SCORES}
        seconds = {key: numpy.mean([float(row["seconds"]) for row in held if row["score"] == key]) for key in SCORES}
        about = f"{len(networks)} networks at {held[0]['resolution']} pixels, {images} images, seed {seed}"
        spread = f"{100 * truth.mean():.1f} % +- {100 * truth.std(ddof=1):.1f}"
        show(f"{name}: {about}; accuracy {spread}", columns, truth, seconds, draws)
    if nasbench201:
        for title, (columns, truth) in tabular(nasbench201).items():
            show(title, columns, truth, {}, draws)


def tabular(path: Path) -> dict[str, tuple[dict[str, numpy.ndarray], numpy.ndarray]]:
    """The counts of NAS-Bench-201 and the accuracy after 200 epochs on two data sets."""
    import pandas

    table = pandas.read_csv(path, dtype={f"op{i}": str for i in range(6)})
    operations = table[[f"op{i}" for i in range(6)]]
    columns = {
        "flops": table["macs"].to_numpy(),
        "params": table["params"].to_numpy(),
        "units": CELL_UNITS * operations.isin(CONVOLUTIONS).sum(axis=1).to_numpy(),
    }
    return {
        f"NAS-Bench-201, {data}: {len(table)} networks": (columns, table[f"{data}_test_e200"].to_numpy())
        for data in ("cifar10", "cifar100")
    }


def show(
    title: str, columns: dict[str, numpy.ndarray], truth: numpy.ndarray, seconds: dict[str, float], draws: int
) -> None:
    print(f"\n{title}\n\n| score | tau (95 %) | CPU seconds |\n| -- | -- | -- |")
    for key in sorted(columns, key=lambda key: -tau(columns[key], truth)):
        print(f"| {key} | {interval(columns[key], truth, draws)} | {f'{seconds[key]:.2g}' if key in seconds else ''} |")
    pair, ranks = best_pair(columns, truth)
    print(f"| best pair, chosen on these data: {pair} | {interval(ranks, truth, draws)} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    scoring = verbs.add_parser("score")
    scoring.add_argument("set", choices=[*fidelities.PLAN, ZOO])
    scoring.add_argument("place", nargs="?", help="the folder of the data; 'installed' for Debian's Fashion-MNIST")
    scoring.add_argument("--images", type=int, default=32)
    scoring.add_argument("--seed", type=int, default=0)
    scoring.add_argument("--resolution", type=int, default=PIXELS, help="of the zoo")
    scoring.add_argument("--networks", type=int, help="only the first N")
    reporting = verbs.add_parser("report")
    reporting.add_argument("--nasbench201", type=Path)
    reporting.add_argument("--draws", type=int, default=1000)
    for verb in (scoring, reporting):
        verb.add_argument("--table", type=Path, default=TABLE)
    given = parser.parse_args()
    if given.verb == "report":
        report(given.table, given.nasbench201, given.draws)
    else:
        score(given.set, given.place, given.images, given.seed, given.resolution, given.networks, given.table)


if __name__ == "__main__":
    main()
