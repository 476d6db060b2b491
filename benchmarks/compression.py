"""NetAdapt from a trained network, and networks with a width multiplier and the same latency that were trained alike.

    python benchmarks/compression.py FOLDER --data imagefolder:clothing10 --resolution 64 [--name mobilenet_v2]
        [--epochs 25] [--seeds 0] [--shares 0.7,0.5] [--step 5%]

FOLDER keeps every training, so that a stopped run goes on. For each share of the latency of `NAME_1.0`:

    netadapt      pruned from `NAME_1.0` after `--epochs`, and trained for `--epochs` more
    width         the largest width multiplier that is measured to be at most as slow as the pruned network of the
                  first seed, trained for `--epochs`
    width, twice  the same, trained for twice as many epochs

Networks are compared in turn, since the speed of a machine that others use differs more than they do. Printed:
latencies of the first seed's networks, all measured in one session, with the change against `NAME_1.0`; accuracy on the
test images with 95 % bootstrap intervals over images and seeds; and the difference from `netadapt`, paired by image.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import nasspace
from nasspace import zoo
from nasspace.data.loading import DataSet, load_data
from nasspace.exporting.judging import onnx_scores
from nasspace.exporting.weights import read_safetensors
from nasspace.latency.benchmark import change_between, measure_in_turn, middle
from nasspace.training.trainer import normalized

WIDTHS = [round(0.025 * step, 3) for step in range(4, 40)]
DRAWS = 10_000


def main() -> None:
    """Train, compress, measure, and print a row per network."""
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
    whole = [trained(f"{options.name}_1.0", options.epochs, seed, options) for seed in seeds]
    rows, references = {f"`{options.name}_1.0`": whole}, {}
    for share in map(float, options.shares.split(",")):
        pruned = [compressed(folder, share, seed, options) for folder, seed in zip(whole, seeds, strict=True)]
        rows[f"netadapt, {share:g} of the latency"] = pruned
        name = widest(pruned[0], len(data.classes), options)
        for factor, words in ((1, ""), (2, ", twice the epochs")):
            rows[row := f"`{name}`{words}, for {share:g}"] = [
                trained(name, factor * options.epochs, seed, options) for seed in seeds
            ]
            references[row] = pruned
    print_table(rows, references, data)


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


def widest(pruned: Path, classes: int, options: argparse.Namespace) -> str:
    """The network with the largest width multiplier that is at most as slow as a pruned one, found by bisection."""
    low, high = 0, len(WIDTHS)  # WIDTHS[:low] are not slower, WIDTHS[high:] are
    while low < high:
        center = (low + high) // 2
        name = f"{options.name}_{WIDTHS[center]:g}"
        architecture = zoo.load(name, resolution=options.resolution, classes=classes)
        networks = {"pruned": network_of(pruned), name: (nasspace.build(architecture).eval(), architecture.input)}
        change, *ends = change_between(*measure_in_turn(networks).values())
        print_error(f"{name}: {change:+.1%} ({ends[0]:+.1%} to {ends[1]:+.1%}) against the pruned network")
        low, high = (center + 1, high) if change <= 0 else (low, center)
    if low == 0:
        raise SystemExit(f"no width of {options.name} is as fast as {pruned}")
    return f"{options.name}_{WIDTHS[low - 1]:g}"


def network_of(folder: Path) -> tuple[nn.Module, tuple[int, int, int]]:
    """An exported network with its weights, and its input."""
    architecture = nasspace.Architecture.from_json((folder / "architecture.json").read_text())
    model = nasspace.build(architecture)
    model.load_state_dict(read_safetensors(folder / "weights.safetensors"))
    return model.eval(), architecture.input


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


def print_table(rows: dict[str, list[Path]], references: dict[str, list[Path]], data: DataSet) -> None:
    """A line for each network, the first of which is that of all changes of latency."""
    print("| network | ms (95 %) | change, % (95 %) | test accuracy, % (95 %) | against netadapt, points (95 %) |")
    print("| -- | -- | -- | -- | -- |")
    latencies = measure_in_turn({words: network_of(folders[0]) for words, folders in rows.items()})
    first = next(iter(latencies.values()))
    for words, folders in rows.items():
        right, latency = correct(folders, data).astype(float), middle(latencies[words])
        ms = f"{latency.median_ms:.3f} ({latency.low_ms:.3f} to {latency.high_ms:.3f})"
        percents = [100 * each for each in change_between(first, latencies[words])]
        change = "" if latencies[words] is first else "{:+.1f} ({:+.1f} to {:+.1f})".format(*percents)
        against = interval(right - correct(references[words], data)) if words in references else ""
        print(f"| {words} | {ms} | {change} | {interval(right)} | {against} |", flush=True)


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
