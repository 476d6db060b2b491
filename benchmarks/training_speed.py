"""Measure what makes large trainings possible or fast: images on disk, several processes, mixed precision.

`python benchmarks/training_speed.py images imagefolder:clothing10 --resolution 224`, or with `fashion-mnist`, `digits`:
images that are held in memory against images that are mapped from a file, in a process for each way, the file once new
and once as it was left. Memory is the peak of what belongs to the process (`RssAnon`, Linux), without pages of the
file, which the system takes back when it needs them. To measure with less memory than the images need, start it in a
control group with a limit: `systemd-run --scope --property MemoryMax=1G python benchmarks/training_speed.py ...`.

`python benchmarks/training_speed.py processes digits --epochs 8 --seeds 3`: `nas train` in one process and in two that
`torchrun` starts, in turns, on the CPU; accuracy on the validation and test images.

`python benchmarks/training_speed.py precision mobilenet_v2_1.0`: images a second of training steps, in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from nasspace import zoo
from nasspace.data.loading import load_data
from nasspace.data.pixel_files import usable_memory
from nasspace.network import build
from nasspace.training import trainer
from nasspace.training.depthwise import fast_tiny_maps
from nasspace.training.settings import TrainingSettings

WAYS = {"held in memory": False, "decoded into a file": True, "read from the file": True}
BATCH, BATCHES = 64, 100


class Peak:
    """The largest memory of this process in GiB, looked at 50 times a second; NaN where the system does not tell."""

    def __init__(self) -> None:
        self.gib = float("nan")
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        status = Path("/proc/self/status")
        while status.is_file():
            if found := re.search(r"RssAnon:\s*(\d+) kB", status.read_text()):
                self.gib = max(int(found[1]) / 2**20, 0 if self.gib != self.gib else self.gib)
            time.sleep(0.02)


def with_images(spec: str, resolution: int, on_disk: bool) -> dict[str, object]:
    """Load the data and read random batches, as an epoch does."""
    peak, start = Peak(), time.perf_counter()
    data = load_data(spec, resolution=resolution, on_disk=on_disk)
    loaded = time.perf_counter() - start
    fingerprint, times = data.fingerprint, []
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    for chosen in order.split(BATCH)[:BATCHES]:
        start = time.perf_counter()
        data.train.at(chosen)
        times.append(time.perf_counter() - start)
    splits = [images for images in (data.train, data.validation, data.test) if images]
    return {
        "images": sum(map(len, splits)),
        "size": sum(images.pixels.numel() for images in splits) / 2**30,
        "fingerprint": fingerprint,
        "seconds": loaded,
        "gib": peak.gib,
        "batch": 1000 * statistics.mean(times),
        "slowest": 1000 * max(times),
    }


def images(given: argparse.Namespace) -> None:
    """Print a row for each way of keeping images."""
    if given.one:
        print(json.dumps(with_images(given.data, given.resolution, WAYS[given.one])))
        return
    print(f"usable memory {(usable_memory() or 0) / 2**30:.1f} GiB\n")
    print("| images | way | pixels, GiB | load, s | peak memory, GiB | batch of 64, ms: mean | largest |")
    print("| -- | -- | -- | -- | -- | -- | -- |")
    fingerprints = set()
    with tempfile.TemporaryDirectory() as cache:
        for way in given.ways:
            command = [sys.executable, __file__, "images", given.data, "--resolution", str(given.resolution)]
            environment = {**os.environ, "NASSPACE_CACHE": cache}
            done = subprocess.run([*command, "--one", way], env=environment, stdout=subprocess.PIPE, check=True)
            row = json.loads(done.stdout)
            fingerprints.add(row["fingerprint"])
            print(
                f"| {given.data}, {row['images']:,} at {given.resolution} | {way} | {row['size']:.2f} | "
                f"{row['seconds']:.1f} | {row['gib']:.2f} | {row['batch']:.1f} | {row['slowest']:.1f} |",
                flush=True,
            )
    assert len(fingerprints) == 1, "the pixels differ"


def processes(given: argparse.Namespace) -> None:
    """Print a row for each seed and number of processes, and the means."""
    print("| seed | processes | validation | test | seconds |\n| -- | -- | -- | -- | -- |")
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for seed in range(given.seeds):
        for count in found:
            with tempfile.TemporaryDirectory() as folder:
                alone = [sys.executable, "-m", "nasspace.cli"]
                torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
                command = alone if count == 1 else [*torchrun, "-m", "nasspace.cli"]
                size = ["--resolution", str(given.resolution), "--epochs", str(given.epochs)]
                options = ["--data", given.data, *size, "--seed", str(seed), "--out", f"{folder}/trained", "--json"]
                done = subprocess.run([*command, "train", given.network, *options], stdout=subprocess.PIPE, check=True)
            row = json.loads(done.stdout)
            found[count].append((row["validation"]["accuracy"], row["seconds"]))
            test = f"{row['test']['accuracy']:.4f}" if row["test"] else "-"
            print(f"| {seed} | {count} | {found[count][-1][0]:.4f} | {test} | {row['seconds']:.0f} |", flush=True)
    for count, rows in found.items():
        accuracies = [accuracy for accuracy, _ in rows]
        spread = f"{min(accuracies):.4f} to {max(accuracies):.4f}"
        seconds = statistics.median(second for _, second in rows)
        mean = statistics.mean(accuracies)
        print(f"{count} processes: mean validation accuracy {mean:.4f} ({spread}), median {seconds:.0f} s")
    ratios = [two / one for (_, one), (_, two) in zip(found[1], found[2], strict=True)]
    print(f"time of two over one: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def precision(given: argparse.Namespace) -> None:
    """Print images a second in each precision, and the ratio to float32 in the same round."""
    model = build(zoo.load(given.network, resolution=given.resolution, classes=10), seed=0).train()
    model.to(given.device, memory_format=torch.channels_last)
    pixels = torch.randn(BATCH, 3, given.resolution, given.resolution)
    pixels = pixels.to(given.device, memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH,)).to(given.device)
    kinds = ("float32", "bfloat16", "float16") if given.device.startswith("cuda") else ("float32", "bfloat16")
    steps = {
        kind: trainer._Step(model, TrainingSettings(precision=kind), 1, 10**6, device=given.device) for kind in kinds
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    with trainer.threads(given.threads), fast_tiny_maps(model, given.device):
        for round_number in range(given.rounds + 2):
            for kind, step in steps.items():
                start = time.perf_counter()
                float(step(pixels, labels, 0))  # waits for the GPU
                if round_number > 1:
                    times[kind].append(time.perf_counter() - start)
    for kind, seconds in times.items():
        each = sorted(BATCH / second for second in seconds)
        ratios = sorted(usual / second for usual, second in zip(times["float32"], seconds, strict=True))
        low, high = len(each) // 4, 3 * len(each) // 4
        print(
            f"| {given.network} at {given.resolution}, {given.threads} threads | {kind} | "
            f"{statistics.median(each):.1f} ({each[low]:.1f} to {each[high]:.1f}) | "
            f"{statistics.median(ratios):.2f} ({ratios[low]:.2f} to {ratios[high]:.2f}) |"
        )


def main(arguments: list[str] | None = None) -> None:
    """Run the measurement that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(required=True)
    part = kinds.add_parser("images")
    part.set_defaults(run=images)
    part.add_argument("data")
    part.add_argument("--resolution", type=int, default=224)
    part.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    part.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    part = kinds.add_parser("processes")
    part.set_defaults(run=processes)
    part.add_argument("data")
    part.add_argument("--network", default="mobilenet_v3_small_1.0")
    part.add_argument("--resolution", type=int, default=32)
    part.add_argument("--epochs", type=int, default=8)
    part.add_argument("--seeds", type=int, default=3)
    part = kinds.add_parser("precision")
    part.set_defaults(run=precision)
    part.add_argument("network")
    part.add_argument("--resolution", type=int, default=64)
    part.add_argument("--threads", type=int, default=1)
    part.add_argument("--device", default="cpu")
    part.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args(arguments)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores", file=sys.stderr)
    given.run(given)


if __name__ == "__main__":
    main()
