"""Trained networks in the other runtimes: outputs and decisions on real images next to ONNX Runtime's.

    python benchmarks/export_targets.py FOLDER --data imagefolder:clothing10
        [--formats pt2,openvino,executorch,litert,litert-int8]

FOLDER holds exports of trained networks, such as those that `benchmarks/int8.py` makes; every export in it is written
for each runtime whose package is installed, in a temporary folder. OpenVINO runs twice: in float32, as `nas verify`
checks it, and with its own default precision. A table in Markdown is printed: for each network and runtime the largest
difference of scores from ONNX Runtime's, as a share of the largest score, on the images of the test split; how many of
the decisions differ; and both accuracies there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from nasspace import architecture as architectures
from nasspace.data.loading import DataSet, load_data
from nasspace.exporting import int8_litert, targets
from nasspace.exporting.int8 import onnx_scores
from nasspace.exporting.targets import LITERT_INT8, TARGETS, Scores
from nasspace.exporting.weights import read_safetensors
from nasspace.latency.convert import relative_difference
from nasspace.network import build
from nasspace.training.trainer import network_inputs

ALL = {**TARGETS, LITERT_INT8.name: LITERT_INT8}
BATCH = 50  # images; the files take one


def main() -> None:
    """Write, run and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--formats", default=",".join(ALL))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.formats.split(","):
        if ALL[name].missing:
            print(f"{name}: {ALL[name].missing}")
    formats = [name for name in options.formats.split(",") if not ALL[name].missing]
    print("| network | runtime | largest difference | decisions that differ | test accuracy | ONNX Runtime's |")
    print("| -- | -- | -- | -- | -- | -- |")
    for folder in sorted(path.parent for path in options.folder.glob("*/export.json")):
        for row in rows(folder, options.data, formats):
            print(row, flush=True)


def rows(folder: Path, source: str, formats: list[str]) -> Iterator[str]:
    """A line of the table for each runtime."""
    architecture = architectures.load(folder / "architecture.json")
    data = load_data(source, resolution=architecture.input[-1])
    images, labels = test_images(data), data.test.labels.numpy()
    expected = in_batches(onnx_scores(folder / "model.onnx"), images)
    network = build(architecture).eval()
    network.load_state_dict(read_safetensors(folder / "weights.safetensors"))
    for name in formats:
        target = ALL[name]
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / target.file
            if target.is_int8:
                int8_litert.choose(network, (1, *architecture.input), data, path)
            else:
                targets.write(target, network, (1, *architecture.input), False, path)
            runs = {target.title: targets.fitting(targets.scores(target, path), 1)}
            if name == "openvino":
                runs = {
                    f"{target.title}, float32": runs[target.title],
                    f"{target.title}, its default": by_default(path),
                }
            for title, run in runs.items():
                found = in_batches(run, images)
                differing = int((found.argmax(1) != expected.argmax(1)).sum())
                accuracies = [f"{100 * (scores.argmax(1) == labels).mean():.1f} %" for scores in (found, expected)]
                difference = f"{relative_difference(expected, found):.1e}"
                cells = [f"`{folder.name}`", title, difference, f"{differing} of {len(labels)}", *accuracies]
                yield f"| {' | '.join(cells)} |"


def test_images(data: DataSet) -> np.ndarray:
    """The preprocessed images of the test split, float32 (N, C, H, W)."""
    return network_inputs(data.test.pixels, data, data.resolution)


def in_batches(run: Scores, images: np.ndarray) -> np.ndarray:
    """The scores of all images."""
    return np.concatenate([run(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


def by_default(path: Path) -> Scores:
    """OpenVINO's scores with the precision that it chooses itself."""
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU")
    return targets.fitting(lambda images: compiled([images])[0], 1)


if __name__ == "__main__":
    main()
