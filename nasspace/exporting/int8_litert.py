"""The int8 file of an export for LiteRT (TensorFlow Lite), for phones and microcontrollers.

LiteRT's quantizer has one scale for each output channel of a weight and ranges by smallest and largest value (Jacob et
al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference"). All
operations are in int8, and so are input and output.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import temporary
from nasspace.data.images import spread
from nasspace.errors import InputError
from nasspace.exporting import int8, targets
from nasspace.exporting.checks import PIPELINE
from nasspace.exporting.export import Exported, add_int8
from nasspace.exporting.int8 import LOSS, Loss
from nasspace.exporting.targets import LITERT_INT8
from nasspace.exporting.weights import load_into, read_safetensors
from nasspace.latency.quantization import IMAGES
from nasspace.network import build
from nasspace.training.trainer import network_inputs

if TYPE_CHECKING:
    from nasspace.data.images import DataSet


@dataclass(frozen=True)
class QuantizedForLiteRT:
    """An int8 file for LiteRT: what it loses against model.onnx on held-out images; None of an untrained network."""

    loss: Loss | None

    @property
    def warning(self) -> str:
        """What a person should know if it loses more than a point; empty else."""
        if self.loss is None or self.loss.value <= LOSS:
            return ""
        low, high = (100 * end for end in self.loss.interval)
        return (
            f"{LITERT_INT8.file} loses {100 * self.loss.value:.1f} points of accuracy ({low:.1f} to {high:.1f}); "
            f"model.tflite (nas export --format litert) loses none, and {int8.INT8} (nas quantize without --format) "
            "may keep operations in float"
        )

    def to_json(self) -> dict[str, Any]:
        """The record of the file in export.json."""
        return {"weights": "per channel", "ranges": "minmax", "loss": self.loss and self.loss.to_json()}


def quantize(
    folder: str | os.PathLike, data: DataSet | str | None = None, data_dir: str | os.PathLike | None = None
) -> tuple[Exported, QuantizedForLiteRT]:
    """Write model.int8.tflite into a complete export with model.onnx, and record what it loses.

    `data` is the data that the network was trained on, by default the recorded one: training images calibrate, and the
    validation images say what is lost. The file takes the export's batch, or one image. Raises `InputError` for a
    folder that is no such export, without LiteRT's packages, or for a network that LiteRT cannot represent.
    """
    if LITERT_INT8.missing:
        raise InputError(f"--format litert: {LITERT_INT8.missing}")
    folder = Path(folder)
    given = int8.read_quantizable(folder, data, data_dir)
    network = build(given.architecture).eval()
    load_into(network, read_safetensors(folder / PIPELINE), PIPELINE)
    count = given.record["batch_size"] if isinstance(given.record["batch_size"], int) else 1
    train = given.data.train.pixels
    images = network_inputs(train[spread(len(train), IMAGES)], given.data, given.data.resolution)
    with temporary.private() as new:
        path = Path(new) / LITERT_INT8.file
        targets.write(LITERT_INT8, targets.Source(network, (count, *given.architecture.input), images=images), path)
        loss = int8.loss_of(given.source, path, given.data) if given.record["trained"] else None
        found = QuantizedForLiteRT(loss)
        return add_int8(folder, path, given.data, found.to_json(), name=LITERT_INT8.file), found
