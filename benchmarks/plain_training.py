"""`nasspace.train` next to the same training written plainly in PyTorch: test accuracy and time.

    python benchmarks/plain_training.py imagefolder:DIR [NETWORK] [EPOCHS] [RESOLUTION] [SEEDS] [BATCH] [THREADS]

The data needs a test split. Both train the same network from the same initial weights on the same images in memory,
with SGD and Nesterov momentum, warm-up and a half cosine, label smoothing, gradient clipping, reflected shifts and
mirroring. The plain one is a loop over a shuffled tensor with torch operations, as one would write it: PyTorch's usual
layout, running statistics of batch norm, weight decay on everything. The two take turns, the first of a pair changing
with the seed. Printed: each test accuracy with its 95 % interval (Wilson), and the ratio of the times, median and
range over the seeds; for `nasspace.train` training only (`seconds`), without the export.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional

import nasspace
from nasspace.data.loading import DataSet, load_data
from nasspace.latency.conditions import machine
from nasspace.training.metrics import wilson

RATE, MOMENTUM, DECAY, SMOOTHING, WARM_UP, CLIP, PADDING = 0.2, 0.9, 5e-4, 0.1, 0.2, 1.0, 0.0625


def plain(model: torch.nn.Module, data: DataSet, epochs: int, batch: int, seed: int) -> tuple[int, float]:
    """Right answers on the test split, and seconds of training."""
    torch.manual_seed(seed)
    began = time.perf_counter()
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (data.mean, data.std))
    pixels, labels = data.train.pixels, data.train.labels
    per_epoch = math.ceil(len(labels) / batch)
    steps, rising = epochs * per_epoch, round(WARM_UP * epochs * per_epoch)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, weight_decay=DECAY, nesterov=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda n: (n + 1) / rising if n < rising else (1 + math.cos(math.pi * (n - rising) / (steps - rising))) / 2,
    )
    side = pixels.shape[-1]
    pad = round(PADDING * side)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(batch):
            if len(chosen) == 1:
                continue  # batch norm needs two
            images = functional.pad(pixels[chosen].float(), (pad,) * 4, mode="reflect")
            places = torch.randint(0, 2 * pad + 1, (len(chosen), 2)).tolist()
            images = torch.stack([im[:, y : y + side, x : x + side] for im, (y, x) in zip(images, places, strict=True)])
            if data.channels == 3:
                flipped = torch.rand(len(chosen)) < 0.5
                images[flipped] = images[flipped].flip(3)
            images = (images - mean) / std
            loss = functional.cross_entropy(model(images), labels[chosen], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - began
    model.eval()
    with torch.inference_mode():
        scores = [model((part.float() - mean) / std).argmax(1) for part in data.test.pixels.split(256)]
    return int((torch.cat(scores) == data.test.labels).sum()), seconds


def ours(arch: nasspace.Architecture, data: DataSet, epochs: int, batch: int, seed: int, threads: int):
    with tempfile.TemporaryDirectory() as folder:
        found = nasspace.train(
            arch, data=data, epochs=epochs, batch_size=batch, seed=seed, threads=threads, out=Path(folder) / "t"
        )
    return round(found.test.accuracy * len(data.test)), found.seconds


def main(
    spec: str,
    network: str = "shufflenet_v2_1.0",
    epochs: int = 25,
    resolution: int = 0,
    seeds: int = 3,
    batch: int = 64,
    threads: int = 1,
) -> None:
    data = load_data(spec, resolution=resolution or None)
    if data.test is None:
        sys.exit(f"{spec} has no test split")
    torch.set_num_threads(threads)
    side, classes, count = data.resolution, len(data.classes), len(data.test)
    arch = nasspace.zoo.load(network, resolution=side, classes=classes).with_input(channels=data.channels)
    print(machine())
    print(f"torch {torch.__version__}, {threads} thread(s); {network} at {side}x{side}, {epochs} epochs of {batch}")
    print(f"{len(data.train)} training, {count} test images, {classes} classes")
    ratios, right = [], {"plain": [], "nasspace": []}
    for seed in range(seeds):
        seconds = {}
        for name in ("plain", "nasspace") if seed % 2 == 0 else ("nasspace", "plain"):
            if name == "plain":
                found, seconds[name] = plain(nasspace.build(arch, seed=seed), data, epochs, batch, seed)
            else:
                found, seconds[name] = ours(arch, data, epochs, batch, seed, threads)
            right[name].append(found)
            low, high = wilson(found, count)
            print(f"seed {seed} {name:8} {found / count:.4f} ({low:.4f}-{high:.4f})  {seconds[name]:.1f} s", flush=True)
        ratios.append(seconds["nasspace"] / seconds["plain"])
    for name, counts in right.items():
        shares = [value / count for value in counts]
        spread = f" +- {statistics.stdev(shares):.4f}" if seeds > 1 else ""
        print(f"{name:8} test accuracy {statistics.mean(shares):.4f}{spread} over {seeds} seed(s)")
    print(f"time of nasspace / plain: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
