"""What int8 loses: trained networks of all families, float and int8, on validation and on test images.

    python benchmarks/int8.py FOLDER --data imagefolder:clothing10 --resolution 64 [--epochs 12] [--only NAME,...]

FOLDER keeps the export of each network, so that a stopped run goes on. The data needs a test split. Every network is
trained from new weights with the package's own settings. Columns `minmax` are what plain ways lose on the test images
with all layers in int8; then what `nas quantize` makes of it. Intervals are of images (Bonett and Price 2012).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from nasspace import zoo
from nasspace.data.images import spread
from nasspace.data.loading import DataSet, load_data
from nasspace.exporting import int8
from nasspace.exporting.export import export
from nasspace.exporting.int8 import INT8, Loss
from nasspace.latency.quantization import Scheme, calibrated
from nasspace.network import build
from nasspace.training import trainer
from nasspace.training.settings import Fidelity, TrainingSettings

NETWORKS = (
    *("squeezenet_1.1", "mobilenet_v1_0.5", "mobilenet_v2_0.5", "mobilenet_v3_small_1.0", "mobilenet_v3_large_0.5"),
    *("mnasnet_b1_0.5", "mnasnet_a1_0.5", "shufflenet_v1_g3_0.5", "shufflenet_v2_0.5", "mobilenext_0.5"),
    *("efficientnet_lite0", "resnet18"),
)
PLAIN = (Scheme(), Scheme(per_channel=False))


def main() -> None:
    """Train, quantize, and print a row per network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--only", default=",".join(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(options.data, resolution=options.resolution)
    print("| network | float test % | lost: per channel, minmax | lost: per tensor, minmax | `nas quantize` | "
          "lost, test (95 %) | lost, validation (95 %) |")  # fmt: skip
    print("| -- | -- | -- | -- | -- | -- | -- |")
    for name in options.only.split(","):
        print(row(name, data, trained(name, data, options)), flush=True)


def trained(name: str, data: DataSet, options: argparse.Namespace) -> Path:
    """The export of a network that was trained; trained at the first call."""
    folder = options.folder / name
    if not (folder / "README.md").is_file():
        architecture = zoo.load(name, options.resolution, len(data.classes))
        model = build(architecture)
        trainer.train(model, data, Fidelity(options.resolution, options.epochs), TrainingSettings(), seed=0)
        export(architecture, folder, weights=model.state_dict(), data=data)
    return folder


def row(name: str, data: DataSet, folder: Path) -> str:
    """A line of the table."""
    source = folder / "model.onnx"
    right = int8._right(source, data, "test")
    calibrating = int8._inputs(data, "train", spread(len(data.train.pixels), 32).numpy())
    with tempfile.TemporaryDirectory() as temporary, calibrated(source, calibrating) as calibration:
        files = [calibration.quantize(Path(temporary) / f"{i}.onnx", scheme) for i, scheme in enumerate(PLAIN)]
        plain = [int8.loss_of(source, file, data, "test") for file in files]
        count = len(calibration.nodes)
    _, found = int8.quantize(folder, data)
    how = str(found.scheme).removeprefix("weights ")
    if found.scheme.float_nodes:
        how += f", {len(found.scheme.float_nodes)} of {count} in float"
    on_test = int8.loss_of(source, folder / INT8, data, "test")
    on_test = int8.loss_of(source, folder / INT8, data, "test")
    losses = [*(f"{100 * each.value:.1f}" for each in plain), how, shown(on_test), shown(found.loss)]
    return f"| `{name}` | {100 * np.mean(right):.1f} | {' | '.join(losses)} |" + (" warned" if found.warning else "")


def shown(loss: Loss | None) -> str:
    """Points lost, with the interval."""
    if loss is None:
        return ""
    low, high = loss.interval
    return f"{100 * loss.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    main()
