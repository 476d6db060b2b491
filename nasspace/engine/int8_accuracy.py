"""The accuracy of a candidate as it would ship in int8, for searches with the objective `accuracy_int8`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nasspace import temporary

if TYPE_CHECKING:
    from torch import nn

    from nasspace.data.loading import DataSet
    from nasspace.studies.recipe import Recipe
    from nasspace.training.trainer import Trained


def as_shipped(trained: Trained, model: nn.Module, data: DataSet, resolution: int, recipe: Recipe) -> Trained:
    """A training's result with the accuracy and log loss of the network in int8, if the recipe's accuracy is of that.

    The network is quantized per channel, by smallest and largest values on training images, and classifies the
    validation images at `resolution`. A search compares many networks, so that it does not try other schemes.
    """
    if recipe.accuracy_of != "int8" or trained.diverged:
        return trained
    import torch

    from nasspace.data.images import prepared
    from nasspace.exporting.judging import onnx_scores
    from nasspace.latency.convert import to_onnx
    from nasspace.latency.quantization import IMAGES, to_int8
    from nasspace.training.calibration import scaled_log_loss
    from nasspace.training.trainer import normalized

    data = prepared(data, resolution)
    spread = data.train.pixels[:: max(1, len(data.train.pixels) // IMAGES)][:IMAGES]
    shape = (data.channels, *data.validation.pixels.shape[2:])
    with temporary.private() as folder:
        path = to_onnx(model, shape, Path(folder) / "model.onnx", dynamic_batch=True)
        to_int8(path, path, normalized(spread, data).numpy())
        scores = onnx_scores(path, threads=1)
        parts = [scores(normalized(part, data).numpy()) for part in data.validation.pixels.split(256)]
    found, labels = torch.cat([torch.from_numpy(part) for part in parts]), data.validation.labels
    accuracy = int((found.argmax(1) == labels).sum()) / len(labels)
    return replace(trained, accuracy=accuracy, log_loss=scaled_log_loss(found, labels))
