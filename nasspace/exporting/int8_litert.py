"""The int8 file of an export for LiteRT (TensorFlow Lite), for phones and microcontrollers.

It is made of the float file by LiteRT's own quantizer: one scale for each output channel of a weight, input, output and
operations in int8 (Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference"), except for operations that the quantizer does not know. The range of each tensor of
activations is found in two ways: the smallest and the largest value on the calibration images, or moving averages of
those of each batch, which the quantizer uses by default. The averages cut off large scores, so both are tried.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace import temporary
from nasspace.errors import InputError, first_line
from nasspace.exporting import int8, targets
from nasspace.exporting.check import digest
from nasspace.exporting.checks import PIPELINE
from nasspace.exporting.export import Exported, add_int8
from nasspace.exporting.int8 import LOSS, Loss
from nasspace.exporting.targets import LITERT_INT8, TARGETS
from nasspace.exporting.weights import load_into, read_safetensors
from nasspace.network import build

if TYPE_CHECKING:
    from torch import nn

    from nasspace.data.images import DataSet

RANGES = {"minmax": "min_max_update", "moving average": "moving_average_update"}  # functions of the quantizer
LAYER = re.compile(r"nasspace\.network\.Network/[\w.]*_(\d+)/")  # in the name of a tensor


@dataclass(frozen=True)
class QuantizedForLiteRT:
    """An int8 file for LiteRT: how ranges were found, how each way that was tried diverges (in nats), what it loses.

    The loss is against model.onnx on held-out images; None for an untrained network. `float_layers` are the layers of
    the network with operations that the quantizer left in float.
    """

    ranges: str
    tried: tuple[tuple[str, float], ...]
    loss: Loss | None = None
    float_layers: tuple[int, ...] = ()

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
        loss = self.loss and self.loss.to_json()
        found = {"weights": "per channel", "ranges": self.ranges, "float_layers": list(self.float_layers)}
        return {**found, "loss": loss, "divergence": dict(self.tried)}


def quantize(
    folder: str | os.PathLike, data: DataSet | str | None = None, data_dir: str | os.PathLike | None = None
) -> tuple[Exported, QuantizedForLiteRT]:
    """Write model.int8.tflite into a complete export with model.onnx, and record how, and what it loses.

    `data` is the data that the network was trained on, by default the recorded one: training images calibrate and
    choose, and the validation images say what is lost. The file takes the export's batch, or one image. Raises
    `InputError` for a folder that is no such export, without LiteRT's packages, and for a network that LiteRT cannot
    represent.
    """
    if LITERT_INT8.missing:
        raise InputError(f"--format litert: {LITERT_INT8.missing}")
    folder = Path(folder)
    given = int8.read_quantizable(folder, data, data_dir)
    if digest(folder / PIPELINE) != given.record["files"][PIPELINE]:
        raise InputError(f"{folder / PIPELINE}: was changed since the export; export it again")
    network = build(given.architecture).eval()
    load_into(network, read_safetensors(folder / PIPELINE), PIPELINE)
    batch = given.record["batch_size"]
    shape = (batch if isinstance(batch, int) else 1, *given.architecture.input)
    with temporary.private() as new:
        path = Path(new) / LITERT_INT8.file
        ranges, tried = choose(network, shape, given.data, path)
        loss = int8.loss_of(given.source, path, given.data) if given.record["trained"] else None
        found = QuantizedForLiteRT(ranges, tried, loss, float_layers(path))
        return add_int8(folder, path, given.data, found.to_json(), name=LITERT_INT8.file), found


def choose(
    network: nn.Module, shape: tuple[int, ...], data: DataSet, path: Path
) -> tuple[str, tuple[tuple[str, float], ...]]:
    """Write the int8 file with the smaller divergence from the float file; returns its ranges, and both divergences.

    `shape` is that of the file's batch. Some training images calibrate the ranges, and others compare the files.
    """
    calibrating, images = int8.calibrating_and_comparing(data)
    tried = {}
    with temporary.private() as folder:
        whole = Path(folder) / TARGETS["litert"].file
        targets.write(TARGETS["litert"], network, shape, False, whole)
        expected = int8.log_probabilities(whole, images)
        for ranges in RANGES:
            candidate = Path(folder) / f"{ranges}.tflite"
            write_int8(whole, candidate, calibrating, ranges)
            tried[ranges] = int8.divergence(expected, int8.log_probabilities(candidate, images))
        best = min(tried, key=lambda ranges: tried[ranges])
        path.write_bytes((Path(folder) / f"{best}.tflite").read_bytes())
    return best, tuple(tried.items())


def write_int8(source: Path, path: Path, images: np.ndarray, ranges: str) -> None:
    """Quantize LiteRT's float file, calibrated on images, float32 (N, C, H, W), preprocessed as for inference.

    `ranges` is a key of RANGES. Raises `InputError` if the quantizer refuses the network.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import recipe
    from ai_edge_quantizer.calibrator import Calibrator
    from ai_edge_quantizer.quantizer import Quantizer
    from ai_edge_quantizer.recipe_manager import RecipeManager
    from ai_edge_quantizer.utils import qsv_utils

    with _errors_of_quantizer():
        interpreter = Interpreter(model_path=str(source))
        ((key, names),) = interpreter.get_signature_list().items()
        batches = full_batches(images, int(interpreter.get_input_details()[0]["shape"][0]))
        chosen = recipe.static_wi8_ai8()
        manager = RecipeManager()
        manager.load_quantization_recipe(chosen)
        update = getattr(qsv_utils, RANGES[ranges])
        calibrator = Calibrator(str(source), num_threads=1, qsv_update_func=update)
        calibrator.calibrate({key: [{names["inputs"][0]: batch} for batch in batches]}, manager)
        result = Quantizer(str(source), chosen).quantize(calibrator.get_model_qsvs(), enable_progress_report=False)
        path.write_bytes(result.quantized_model)


@contextlib.contextmanager
def _errors_of_quantizer() -> Iterator[None]:
    """Make one message of what the quantizer raises, and hide the progress that it prints."""
    try:
        with targets.quiet(), contextlib.redirect_stderr(io.StringIO()):
            yield
    except Exception as error:  # of the quantizer, which may raise anything
        raise InputError(
            f"--format litert: LiteRT's quantizer cannot convert the network: {first_line(error)[:200]}"
        ) from error


def float_layers(path: Path) -> tuple[int, ...]:
    """The layers of the network with tensors that an int8 file computes in float."""
    from ai_edge_litert.interpreter import Interpreter

    with targets.quiet():
        interpreter = Interpreter(model_path=str(path))
        interpreter.allocate_tensors()
        details = interpreter.get_tensor_details()
    names = " ".join(each["name"] for each in details if each["dtype"] == np.float32)
    return tuple(sorted({int(number) for number in LAYER.findall(names)}))


def full_batches(images: np.ndarray, count: int) -> list[np.ndarray]:
    """Cut images into batches of `count`; the last one is filled with the first images again.

    >>> [batch.tolist() for batch in full_batches(np.arange(3), 2)]
    [[0, 1], [2, 0]]
    """
    total = -(-len(images) // count) * count
    return list(np.resize(images, (total, *images.shape[1:])).reshape(-1, count, *images.shape[1:]))
