"""The accuracy of a candidate as it would ship in int8, for searches with the objective `accuracy_int8`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nasspace import temporary

if TYPE_CHECKING:
    from torch import nn

    from nasspace.data.loading import DataSet
    from nasspace.studies.recipe import Recipe
    from nasspace.training.trainer import Trained


def with_int8_accuracy(trained: Trained, model: nn.Module, data: DataSet, resolution: int, recipe: Recipe) -> Trained:
    """A training's result, with the accuracy and log loss of the int8 network if the recipe's accuracy is of that.

    The network is quantized per channel, by smallest and largest values on training images, and classifies the
    validation images at `resolution`. Other schemes are not tried, since a search compares many networks.
    """
    if recipe.accuracy_of != "int8" or trained.diverged:
        return trained
    import torch

    from nasspace.data.images import spread
    from nasspace.exporting.judging import onnx_scores
    from nasspace.latency.convert import to_onnx
    from nasspace.latency.quantization import IMAGES, to_int8
    from nasspace.training.calibration import scaled_log_loss
    from nasspace.training.trainer import network_inputs

    start = time.perf_counter()
    pixels = data.train.pixels
    with temporary.private() as folder:
        shape = (data.channels, resolution, resolution)
        path = to_onnx(model, shape, Path(folder) / "model.onnx", dynamic_batch=True)
        to_int8(path, path, network_inputs(pixels[spread(len(pixels), IMAGES)], data, resolution))
        scores = onnx_scores(path, threads=1)
        batches = data.validation.pixels.split(256)
        parts = [torch.from_numpy(scores(network_inputs(batch, data, resolution))) for batch in batches]
    found, labels = torch.cat(parts), data.validation.labels
    accuracy = int((found.argmax(1) == labels).sum()) / len(labels)
    seconds = trained.seconds + time.perf_counter() - start
    return replace(trained, accuracy=accuracy, log_loss=scaled_log_loss(found, labels), seconds=seconds)
