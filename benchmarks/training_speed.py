"""Measure what makes large trainings possible or fast: images on disk.

`python benchmarks/training_speed.py images imagefolder:clothing10 --resolution 224`, or with `fashion-mnist`, `digits`:
images that are held in memory against images that are mapped from a file, in a process for each way, the file once new
and once as it was left. Memory is the peak of what belongs to the process (`RssAnon`, Linux), without pages of the
file, which the system takes back when it needs them. To measure with less memory than the images need, start it in a
control group with a limit: `systemd-run --scope --property MemoryMax=1G python benchmarks/training_speed.py ...`.
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

from nasspace.data.loading import load_data
from nasspace.data.pixel_files import usable_memory

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
    given = parser.parse_args(arguments)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores", file=sys.stderr)
    given.run(given)


if __name__ == "__main__":
    main()
