"""Quantize a trained network to int8 in the way that keeps most of its decisions, and find the layers that suffer.

Static quantization has two choices: a scale of weights per channel or per tensor, and how the range of each tensor of
activations is found (smallest and largest value, a percentile, or the range that keeps most information). Which one is
best differs from network to network, so all six are tried. They are compared by what they change: the Kullback-Leibler
divergence of the int8 network's class probabilities from the float network's, on training images that did not calibrate
the ranges. Depthwise networks may still lose most of their accuracy (Sheng et al. 2018, "A quantization-friendly
separable convolution for MobileNets"). Then the layers that alone change the probabilities most stay in float.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace import architecture as architectures
from nasspace import temporary
from nasspace.errors import InputError
from nasspace.exporting.checks import INT8
from nasspace.exporting.export import Exported, add_int8, data_of, read_record
from nasspace.exporting.judging import onnx_scores
from nasspace.latency.graph import layer_index
from nasspace.latency.quantization import IMAGES, RANGES, Calibration, Scheme, calibrated

if TYPE_CHECKING:
    from nasspace.data.images import DataSet

LOSS = 0.01  # accuracy that int8 may lose before layers stay in float
MOST_FLOAT = 0.5  # share of the layers with weights that may stay in float
COMPARED = 256  # training images on which files are compared
NAMED = 3  # the most sensitive layers that a warning names
Z = 1.959964  # of a 95 % interval

Step = Callable[[str], None]


@dataclass(frozen=True)
class Loss:
    """How much accuracy int8 loses on the same images, with a 95 % interval (Bonett and Price 2012, adjusted Wald)."""

    lost: int  # images that only the float network classifies correctly
    gained: int  # images that only the int8 network classifies correctly
    count: int

    @property
    def value(self) -> float:
        """The accuracy lost, as a fraction; negative for a gain."""
        return (self.lost - self.gained) / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the interval.

        >>> [round(end, 3) for end in Loss(9, 1, 341).interval]
        [0.005, 0.041]
        """
        lost, gained = (self.lost + 1) / (self.count + 2), (self.gained + 1) / (self.count + 2)
        half = Z * math.sqrt((lost + gained - (lost - gained) ** 2) / (self.count + 2))
        return lost - gained - half, lost - gained + half


@dataclass(frozen=True)
class Quantized:
    """An int8 file: its scheme, how each scheme that was tried diverges (in nats), and what it loses.

    `loss` is None without held-out images. `sensitive` are the nodes that cost most, the worst first, if the network
    with all layers in int8 lost more than a point.
    """

    scheme: Scheme
    tried: tuple[tuple[Scheme, float], ...]
    loss: Loss | None = None
    sensitive: tuple[str, ...] = ()

    @property
    def warning(self) -> str:
        """What a person should know if it loses more than a point; empty else."""
        if self.loss is None or self.loss.value <= LOSS:
            return ""
        low, high = (100 * end for end in self.loss.interval)
        layers = ", ".join(map(str, layers_of(self.sensitive[:NAMED])))
        return (
            f"int8 loses {100 * self.loss.value:.1f} points of accuracy ({low:.1f} to {high:.1f}), and keeping layers "
            f"in float does not help; layers {layers} are the most sensitive; ship model.onnx"
        )

    def to_json(self) -> dict[str, Any]:
        """The record of the choice in export.json."""
        loss = None
        if self.loss is not None:
            low, high = self.loss.interval
            loss = {"value": self.loss.value, "low": low, "high": high, "images": self.loss.count}
        return {
            "weights": "per channel" if self.scheme.per_channel else "per tensor",
            "ranges": self.scheme.ranges,
            "float_nodes": list(self.scheme.float_nodes),
            "sensitive_nodes": list(self.sensitive),
            "loss": loss,
            "divergence": {str(scheme): value for scheme, value in self.tried},
        }


def quantize(
    folder: str | os.PathLike,
    data: DataSet | str | None = None,
    data_dir: str | os.PathLike | None = None,
    on_step: Step = lambda text: None,
) -> tuple[Exported, Quantized]:
    """Write model.int8.onnx into a complete export with model.onnx, and record how, and what it loses.

    `data` is the data that the network was trained on, by default the recorded one: training images calibrate, and the
    validation images say what is lost. A file that fails its checks is removed, with a `VerificationError`.
    """
    folder = Path(folder)
    record = read_record(folder)
    architecture = architectures.load(folder / "architecture.json")
    source = folder / "model.onnx"
    if not source.is_file():
        raise InputError(f"{folder}: has no model.onnx; export it with --format source,onnx,torch")
    name = data if data is not None else (record["data"] or {}).get("name")
    found = data_of(name, data_dir, record, architecture, folder)
    if found is None:
        raise InputError(f"{folder}: the data of its training is not known; name it with --data")
    result = _quantized(source, folder / INT8, found, record["trained"], on_step)
    return add_int8(folder, found, result.to_json()), result


def _quantized(source: Path, path: Path, data: DataSet, trained: bool, on_step: Step) -> Quantized:
    """Choose a scheme, and keep sensitive layers in float if a trained network loses too much."""
    every = max(1, len(data.train.pixels) // (IMAGES + COMPARED))
    spread = _inputs(data, "train")[::every][: IMAGES + COMPARED]
    step = max(1, len(spread) // IMAGES)
    calibrating = np.arange(len(spread)) % step == 0
    with calibrated(source, spread[calibrating]) as calibration:
        images = spread if calibrating.all() else spread[~calibrating]
        scheme, tried = choose(source, path, calibration, images)
        on_step(f"of six int8 files the one with {scheme} changes least")
        if not trained:
            return Quantized(scheme, tried)
        validation, labels = _inputs(data, "validation"), data.validation.labels.numpy()
        right = _right(source, validation, labels)

        def loss_of(file: Path) -> Loss:
            others = _right(file, validation, labels)
            return Loss(int((right & ~others).sum()), int((others & ~right).sum()), len(labels))

        loss = loss_of(path)
        if loss.value <= LOSS:
            return Quantized(scheme, tried, loss)
        on_step(f"int8 loses {100 * loss.value:.1f} points of accuracy")
        order = sensitive_layers(source, calibration, scheme, images[:64], on_step)
        count = 1
        while loss.value > LOSS and count <= MOST_FLOAT * len(order):
            kept = replace(scheme, float_nodes=tuple(order[:count]))
            loss = loss_of(calibration.quantize(path, kept))
            on_step(f"{count} of {len(order)} layers in float: {100 * loss.value:.1f} points lost")
            count *= 2
        if loss.value > LOSS:  # no number of float layers helps, so that none is needed
            kept = scheme
            loss = loss_of(calibration.quantize(path, kept))
        return Quantized(kept, tried, loss, tuple(order))


def _inputs(data: DataSet, split: str) -> np.ndarray:
    """The images of a split as the network takes them."""
    from nasspace.training.trainer import normalized

    return normalized(getattr(data, split).pixels, data).contiguous().numpy()


def _right(path: Path, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which images an ONNX file classifies correctly."""
    return onnx_scores(path)(images).argmax(1) == labels


def choose(
    source: Path, path: Path, calibration: Calibration, images: np.ndarray
) -> tuple[Scheme, tuple[tuple[Scheme, float], ...]]:
    """Write the int8 file that changes least, of six; returns its scheme, and the divergence of each.

    `images`, float32 (N, C, H, W), are preprocessed training images that do not calibrate the ranges.
    """
    expected = log_probabilities(source, images)
    tried = []
    with temporary.private() as folder:
        for per_channel, ranges in itertools.product((True, False), RANGES):
            scheme = Scheme(per_channel, ranges)
            candidate = calibration.quantize(Path(folder) / f"{len(tried)}.onnx", scheme)
            tried.append((scheme, divergence(expected, log_probabilities(candidate, images))))
    best = min(tried, key=lambda each: each[1])[0]
    calibration.quantize(path, best)
    return best, tuple(tried)


def sensitive_layers(
    source: Path,
    calibration: Calibration,
    scheme: Scheme,
    images: np.ndarray,
    on_step: Step = lambda text: None,
) -> list[str]:
    """The nodes with weights, the most sensitive first: those that alone in int8 change the probabilities most."""
    expected, nodes = log_probabilities(source, images), calibration.nodes
    changes = {}
    with temporary.private() as folder:
        for i, node in enumerate(nodes):
            others = tuple(other for other in nodes if other != node)
            alone = calibration.quantize(Path(folder) / "alone.onnx", replace(scheme, float_nodes=others))
            changes[node] = divergence(expected, log_probabilities(alone, images))
            if i % 10 == 0:
                on_step(f"how sensitive each layer is: {i + 1} of {len(nodes)}")
    return sorted(changes, key=lambda node: -changes[node])


def layers_of(nodes: Iterable[str]) -> list[int]:
    """The layers of the architecture that nodes belong to.

    >>> layers_of(["/3/residual/residual.0/Conv", "/3/residual/residual.1/Conv", "/0/layers/Conv"])
    [0, 3]
    """
    return sorted({index for node in nodes if (index := layer_index(node)) is not None})


def log_probabilities(path: Path, images: np.ndarray) -> np.ndarray:
    """The logarithm of the class probabilities, float64 (N, classes), that an ONNX file gives."""
    outputs = onnx_scores(path)(images).astype(np.float64)
    outputs -= outputs.max(1, keepdims=True)
    return outputs - np.log(np.exp(outputs).sum(1, keepdims=True))


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """The mean Kullback-Leibler divergence of distributions, given as logarithms (N, classes), in nats.

    >>> round(divergence(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])), 4)
    0.1438
    """
    value = float((np.exp(expected) * (expected - found)).sum(1).mean())
    return value if math.isfinite(value) else math.inf
