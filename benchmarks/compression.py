"""NetAdapt from a trained network, and networks with a width multiplier and the same latency that were trained alike.

    python benchmarks/compression.py FOLDER --data imagefolder:clothing10 --resolution 64 [--name mobilenet_v2]
        [--epochs 25] [--seeds 0] [--shares 0.7,0.5] [--step 5%]

FOLDER keeps every training, so that a stopped run goes on. For each share of the latency of `NAME_1.0`:

    netadapt      pruned from `NAME_1.0` after `--epochs`, and trained for `--epochs` more
    width         the largest width multiplier within the same latency, trained for `--epochs`
    width, twice  the same, trained for twice as many epochs

Printed: latency, accuracy on the test images with 95 % bootstrap intervals over images and seeds, and the difference
from `netadapt` paired by image. Run it on a quiet machine: latencies decide.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

import nasspace
from nasspace import zoo
from nasspace.data.loading import DataSet, load_data
from nasspace.exporting.judging import onnx_scores
from nasspace.latency.benchmark import measure_latency
from nasspace.training.trainer import normalized

WIDTHS = [round(0.025 * step, 3) for step in range(39, 3, -1)]
DRAWS = 10_000


def main() -> None:
    """Train, compress, and print a row per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--name", default="mobilenet_v2")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--shares", default="0.7,0.5")
    parser.add_argument("--step", type=float, default=0.05)
    options = parser.parse_args()
    data = load_data(options.data, resolution=options.resolution)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    print("| network | ms | test accuracy, % (95 %) | against netadapt, points (95 %) |")
    print("| -- | -- | -- | -- |")
    whole = [trained(f"{options.name}_1.0", options.epochs, seed, options) for seed in seeds]
    print_row(f"`{options.name}_1.0`", whole, data, None)
    for share in map(float, options.shares.split(",")):
        pruned = [compressed(folder, share, seed, options) for folder, seed in zip(whole, seeds, strict=True)]
        target = json.loads((pruned[0] / "compression.json").read_text())["target_ms"]
        reference = correct(pruned, data)
        print_row(f"netadapt, {share:g} of the latency", pruned, data, None)
        name = widest(target, len(data.classes), options)
        for factor, words in ((1, ""), (2, ", twice the epochs")):
            alike = [trained(name, factor * options.epochs, seed, options) for seed in seeds]
            print_row(f"`{name}`{words}", alike, data, reference)


def trained(name: str, epochs: int, seed: int, options: argparse.Namespace) -> Path:
    """The folder of a training."""
    out = options.folder / f"{name}-{epochs}-{seed}"
    chosen = {"data": options.data, "resolution": options.resolution, "epochs": epochs, "seed": seed}
    nasspace.train(name, **chosen, out=out, report=print_error)
    return out


def compressed(folder: Path, share: float, seed: int, options: argparse.Namespace) -> Path:
    """The folder of a compression of a trained network."""
    out = options.folder / f"netadapt-{share:g}-{seed}"
    chosen = {"epochs": options.epochs, "seed": seed, "step": options.step}
    nasspace.compress(folder, latency_share=share, **chosen, out=out, report=print_error)
    return out


def widest(target_ms: float, classes: int, options: argparse.Namespace) -> str:
    """The network with the largest width multiplier whose measured latency is within a target."""
    for width in WIDTHS:
        name = f"{options.name}_{width:g}"
        architecture = zoo.load(name, resolution=options.resolution, classes=classes)
        if measure_latency(architecture).high_ms <= target_ms:
            return name
    raise SystemExit(f"no width of {options.name} is within {target_ms:.4g} ms")


def correct(folders: list[Path], data: DataSet) -> np.ndarray:
    """Which test images each folder's network classifies correctly, (seeds, images)."""
    images = normalized(data.test.pixels, data).contiguous().numpy()
    labels = data.test.labels.numpy()
    parts = np.array_split(np.arange(len(labels)), -(-len(labels) // 256))
    rows = []
    for folder in folders:
        scores = onnx_scores(folder / "model.onnx")
        rows.append(np.concatenate([scores(images[part]).argmax(1) for part in parts]) == labels)
    return np.array(rows)


def print_row(words: str, folders: list[Path], data: DataSet, reference: np.ndarray | None) -> None:
    """A line of the table."""
    right = correct(folders, data)
    architecture = nasspace.Architecture.from_json((folders[0] / "architecture.json").read_text())
    latency = measure_latency(architecture)
    ms = f"{latency.median_ms:.3f} ({latency.low_ms:.3f} to {latency.high_ms:.3f})"
    against = "" if reference is None else interval(right.astype(float) - reference)
    print(f"| {words} | {ms} | {interval(right.astype(float))} | {against} |", flush=True)


def interval(values: np.ndarray) -> str:
    """The mean of values (seeds, images) in percent, with the 95 % interval of drawing seeds and images again."""
    rng = np.random.default_rng(0)
    seeds, images = values.shape
    draws = [values[rng.integers(seeds, size=seeds)][:, rng.integers(images, size=images)].mean() for _ in range(DRAWS)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{100 * values.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"


def print_error(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
