"""The methods of `nas compress` that compress weights, and the untouched network: accuracy, size, latency.

    python benchmarks/compression_methods.py FOLDER --data imagefolder:clothing10 --resolution 64
        [--name mobilenet_v2_0.35] [--epochs 15] [--more 10] [--seed 0] [--only "magnitude 20%"]

FOLDER keeps every training, so that a stopped run goes on. The network is trained for `--epochs`, then compressed and
fine-tuned for `--more`. A row is the same network trained for `--more` epochs without any compression, since that alone
changes its accuracy. The last row combines two methods: the second one starts from the result of the first.

Printed: accuracy on the test images with the 95 % bootstrap interval over images, the difference from the untouched
network paired by image, bytes of model.onnx as it is and after deflate, and the latency of all networks, measured in
turn in one session, with its change against the untouched network. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import torch
from compression import correct, interval, network_of, print_error

import nasspace
from nasspace.data.loading import DataSet, load_data
from nasspace.formatting import kilobytes
from nasspace.latency.benchmark import Latency, change_between, measure_in_turn, middle

METHODS: dict[str, tuple[str | None, dict]] = {  # a row: the row that it starts from, options of `nasspace.compress`
    "magnitude 20%": (None, {"method": "magnitude", "keep": 0.2}),
    "magnitude 10%": (None, {"method": "magnitude", "keep": 0.1}),
    "magnitude 20% global": (None, {"method": "magnitude", "keep": 0.2, "threshold": "global"}),
    "magnitude 10% global": (None, {"method": "magnitude", "keep": 0.1, "threshold": "global"}),
    "svd 50%": (None, {"method": "svd", "keep": 0.5}),
    "cluster 4 bits": (None, {"method": "cluster", "bits": 4}),
    "magnitude 20%, cluster 4 bits": ("magnitude 20%", {"method": "cluster", "bits": 4}),
}


def main() -> None:
    """Train, compress, and print a row per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--name", default="mobilenet_v2_0.35")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--more", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=METHODS, action="append")
    options = parser.parse_args()
    folders = {"untouched": options.folder / "untouched"}
    given = {"data": options.data, "resolution": options.resolution, "epochs": options.epochs, "seed": options.seed}
    nasspace.train(options.name, **given, out=folders["untouched"], report=print_error)
    more = {"epochs": options.more, "seed": options.seed, "report": print_error}
    folders["trained further"] = options.folder / "trained-further"
    nasspace.train(folders["untouched"], **more, out=folders["trained further"])
    for words in options.only or METHODS:
        first, chosen = METHODS[words]
        folders[words] = options.folder / words.replace("%", "").replace(",", "").replace(" ", "-")
        nasspace.compress(folders[first or "untouched"], **chosen, **more, out=folders[words])
    print_table(folders, load_data(options.data, resolution=options.resolution))


def print_table(folders: dict[str, Path], data: DataSet) -> None:
    """A row for each folder."""
    columns = ("network", "test accuracy, % (95 %)", "against untouched, points (95 %)", "model.onnx", "deflated")
    print(f"| {' | '.join((*columns, 'ms (95 %)', 'change, % (95 %)'))} |")
    print("| -- | -- | -- | -- | -- | -- | -- |")
    latencies, reference = latencies_of(folders), None
    for words, folder in folders.items():
        right = correct([folder], data).astype(float)
        content, latency = (folder / "model.onnx").read_bytes(), middle(latencies[words])
        against = "" if reference is None else interval(right - reference)
        sizes = f"{kilobytes(len(content))} | {kilobytes(len(zlib.compress(content, 9)))}"
        ms = f"{latency.median_ms:.3f} ({latency.low_ms:.3f} to {latency.high_ms:.3f})"
        change = change_between(latencies["untouched"], latencies[words])
        percent = "" if reference is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * each for each in change))
        print(f"| {words} | {interval(right)} | {against} | {sizes} | {ms} | {percent} |", flush=True)
        reference = right if reference is None else reference
    for words, folder in folders.items():
        if (folder / "compression.json").is_file():
            print(f"{words}: {json.loads((folder / 'compression.json').read_text())['details']}")


def latencies_of(folders: dict[str, Path]) -> dict[str, list[Latency]]:
    """The latencies of the networks with their weights, measured in turn."""
    return measure_in_turn({words: network_of(folder) for words, folder in folders.items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
