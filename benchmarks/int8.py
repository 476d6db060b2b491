"""What int8 loses: trained networks of all families, float and int8, on validation and on test images.

    python benchmarks/int8.py FOLDER --data imagefolder:clothing10 --resolution 64 [--epochs 12] [--only NAME,...]
        [--fine-tune EPOCHS] [--spread FACTOR]

FOLDER keeps the export of each network, so that a stopped run goes on. The data needs a test split. Every network is
trained from new weights with the package's own settings. Columns `minmax` are what plain ways lose on the test images
with all layers in int8; then what `nas quantize` makes of it. Intervals are of images (Bonett and Price 2012).

Networks that are trained for minutes seldom suffer in int8. With `--spread`, channels between two convolutions are
multiplied by factors from 1/FACTOR to FACTOR (log-uniform, seed 0), and the weights that read them are divided by
these. The function stays the same, and the ranges of channels differ as in networks that int8 ruins (Nagel et al. 2019,
"Data-free quantization through weight equalization and bias correction").
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nasspace import architecture as architectures
from nasspace import zoo
from nasspace.data.images import spread
from nasspace.data.loading import DataSet, load_data
from nasspace.exporting import int8
from nasspace.exporting.export import export
from nasspace.exporting.int8 import INT8, Loss
from nasspace.exporting.weights import read_safetensors
from nasspace.latency.quantization import Scheme, calibrated
from nasspace.network import build
from nasspace.training import trainer
from nasspace.training.settings import Fidelity, TrainingSettings
from nasspace.training.trainer import network_inputs

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
    parser.add_argument("--fine-tune", type=int, default=0)
    parser.add_argument("--spread", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(options.data, resolution=options.resolution)
    print("| network | float test % | lost: per channel, minmax | lost: per tensor, minmax | `nas quantize` | "
          "lost, test (95 %) | lost, validation (95 %) | validation: without, with fine-tuning |")  # fmt: skip
    print("| -- | -- | -- | -- | -- | -- | -- | -- |")
    for name in options.only.split(","):
        folder = trained(name, data, options)
        folder = folder if options.spread == 1 else spread_apart(folder, data, options.spread)
        print(row(name, data, folder, options.fine_tune), flush=True)


def trained(name: str, data: DataSet, options: argparse.Namespace) -> Path:
    """The export of a network that was trained; trained at the first call."""
    folder = options.folder / name
    if not (folder / "README.md").is_file():
        architecture = zoo.load(name, options.resolution, len(data.classes))
        model = build(architecture)
        trainer.train(model, data, Fidelity(options.resolution, options.epochs), TrainingSettings(), seed=0)
        export(architecture, folder, weights=model.state_dict(), data=data)
    return folder


def spread_apart(folder: Path, data: DataSet, factor: float) -> Path:
    """An export of the same function whose channels have ranges that differ."""
    architecture = architectures.load(folder / "architecture.json")
    model, new = build(architecture), folder.with_name(f"{folder.name}-{factor:g}")
    model.load_state_dict(read_safetensors(folder / "weights.safetensors"))
    generator = torch.Generator().manual_seed(0)
    for sequence in model.modules():
        parts = list(sequence) if isinstance(sequence, nn.Sequential) else []
        for (convolution, norm, *activation), reader in pairs(parts):
            draws = 2 * torch.rand(convolution.out_channels, generator=generator) - 1
            if isinstance((activation or [nn.ReLU()])[0], nn.ReLU):
                scales = (draws * math.log(factor)).exp()
                with torch.no_grad():
                    norm.weight *= scales
                    norm.bias *= scales
                    reader.weight /= scales[:, None, None, None] if reader.groups > 1 else scales[:, None, None]
    return export(architecture, new, weights=model.state_dict(), data=data).folder


def pairs(parts: list[nn.Module]) -> Iterator[tuple[nn.Sequential, nn.Conv2d]]:
    """Each convolution with its norm and activation, and the depthwise or full convolution that reads it alone."""
    for first, second in itertools.pairwise(parts):
        found = [each for each in (first, second) if isinstance(each, nn.Sequential) and isinstance(each[0], nn.Conv2d)]
        if len(found) == 2 and found[1][0].groups in (1, found[0][0].out_channels):
            yield found[0], found[1][0]


def row(name: str, data: DataSet, folder: Path, epochs: int) -> str:
    """A line of the table."""
    source = folder / "model.onnx"
    right = int8._right(source, data, "test")
    calibrating = network_inputs(data.train.pixels[spread(len(data.train), 32)], data, data.resolution)
    with tempfile.TemporaryDirectory() as temporary, calibrated(source, calibrating) as calibration:
        files = [calibration.quantize(Path(temporary) / f"{i}.onnx", scheme) for i, scheme in enumerate(PLAIN)]
        plain = [int8.loss_of(source, file, data, "test") for file in files]
        count = len(calibration.nodes)
    _, found = int8.quantize(folder, data, fine_tune=epochs)
    tuning = found.fine_tuning
    how = str(found.scheme).removeprefix("weights ") + (", fine-tuned" if tuning and tuning.is_kept else "")
    if found.scheme.float_nodes:
        how += f", {len(found.scheme.float_nodes)} of {count} in float"
    on_test = int8.loss_of(source, folder / INT8, data, "test")
    losses = [*(f"{100 * each.value:.1f}" for each in plain), how, shown(on_test), shown(found.loss)]
    losses.append(f"{shown(tuning.other)}, {shown(tuning.loss)}" if tuning else "")
    return f"| `{name}` | {100 * np.mean(right):.1f} | {' | '.join(losses)} |" + (" warned" if found.warning else "")


def shown(loss: Loss | None) -> str:
    """Points lost, with the interval."""
    if loss is None:
        return ""
    low, high = loss.interval
    return f"{100 * loss.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


if __name__ == "__main__":
    main()
