"""Quantize a trained network to int8 in the way that keeps most of its decisions, and find the operations that suffer.

Static quantization has two choices: a scale of weights per channel or per tensor, and how the range of each tensor of
activations is found (smallest and largest value, a percentile, or the range that keeps most information). Which one is
best differs from network to network, so all six are tried. They are compared by what they change: the Kullback-Leibler
divergence of the int8 network's class probabilities from the float network's, on training images that did not calibrate
the ranges. Depthwise networks may still lose most of their accuracy (Sheng et al. 2018, "A quantization-friendly
separable convolution for MobileNets"). Then the convolutions and linear layers that alone change the probabilities most
stay in float.
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
from nasspace.exporting.checks import INT8, digest
from nasspace.exporting.export import Exported, add_int8, data_of, read_record
from nasspace.exporting.judging import onnx_scores
from nasspace.latency.graph import layer_index
from nasspace.latency.quantization import IMAGES, RANGES, Calibration, Scheme, calibrated

if TYPE_CHECKING:
    from nasspace.data.images import DataSet

LOSS = 0.01  # accuracy that int8 may lose before operations stay in float
MOST_FLOAT = 0.5  # share of the operations with weights that may stay in float
COMPARED = 256  # training images on which files are compared
BATCH = 256  # images that are classified at a time
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
        [0.004, 0.043]
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
            f"int8 loses {100 * self.loss.value:.1f} points of accuracy ({low:.1f} to {high:.1f}), and keeping "
            f"operations in float does not help; layers {layers} are the most sensitive; ship model.onnx"
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
    validation images say what is lost. The folder changes at the end only. A file that fails its checks is not kept,
    with a `VerificationError`.
    """
    folder = Path(folder)
    record = read_record(folder)
    architecture = architectures.load(folder / "architecture.json")
    source = folder / "model.onnx"
    if not source.is_file():
        raise InputError(f"{folder}: has no model.onnx; export it with --format source,onnx,torch")
    if digest(source) != record["files"].get(source.name):
        raise InputError(f"{source}: was changed since the export; export it again")
    name = data if data is not None else (record["data"] or {}).get("name")
    found = data_of(name, data_dir, record, architecture, folder)
    if found is None:
        raise InputError(f"{folder}: the data of its training is not known; name it with --data")
    with temporary.private() as new:
        path = Path(new) / INT8
        result = _quantized(source, path, found, record["trained"], on_step)
        return add_int8(folder, path, found, result.to_json()), result


def _quantized(source: Path, path: Path, data: DataSet, trained: bool, on_step: Step) -> Quantized:
    """Choose a scheme, and keep sensitive operations in float if a trained network loses too much."""
    from nasspace.data.images import spread

    drawn = spread(len(data.train.pixels), IMAGES + COMPARED)
    calibrating = spread(len(drawn), IMAGES)
    others = np.delete(drawn.numpy(), calibrating.numpy())
    images = _inputs(data, "train", others if len(others) else drawn.numpy())
    with calibrated(source, _inputs(data, "train", drawn[calibrating].numpy())) as calibration:
        scheme, tried = choose(source, path, calibration, images)
        on_step(f"of six int8 files the one with {scheme} has the smallest divergence")
        if not trained:
            return Quantized(scheme, tried)
        loss = loss_of(source, path, data)
        if loss.value <= LOSS:
            return Quantized(scheme, tried, loss)
        on_step(f"int8 loses {100 * loss.value:.1f} points of accuracy")
        order = sensitive_operations(source, calibration, scheme, images[:64], on_step)
        kept, loss = _rescued(source, path, calibration, scheme, order, data, on_step)
        return Quantized(kept, tried, loss, tuple(order))


def _rescued(
    source: Path,
    path: Path,
    calibration: Calibration,
    scheme: Scheme,
    order: list[str],
    data: DataSet,
    on_step: Step,
) -> tuple[Scheme, Loss]:
    """Write a file with the first one, two, four, ... operations of `order` in float that loses at most a point.

    If half of them do not suffice, the file with all of them in int8 is written.
    """
    count = 1
    while count <= MOST_FLOAT * len(order):
        kept = replace(scheme, float_nodes=tuple(order[:count]))
        loss = loss_of(source, calibration.quantize(path, kept), data)
        on_step(f"{count} of {len(order)} operations with weights in float: {100 * loss.value:.1f} points lost")
        if loss.value <= LOSS:
            return kept, loss
        count *= 2
    return scheme, loss_of(source, calibration.quantize(path, scheme), data)


def loss_of(source: Path, int8: Path, data: DataSet, split: str = "validation") -> Loss:
    """What an int8 file loses against the float file on the images of a split."""
    right, others = (_right(file, data, split) for file in (source, int8))
    return Loss(int((right & ~others).sum()), int((others & ~right).sum()), len(right))


def _right(path: Path, data: DataSet, split: str) -> np.ndarray:
    """Which images of a split an ONNX file classifies correctly."""
    scores, labels = onnx_scores(path), getattr(data, split).labels.numpy()
    parts = np.array_split(np.arange(len(labels)), -(-len(labels) // BATCH))
    return np.concatenate([scores(_inputs(data, split, part)).argmax(1) for part in parts]) == labels


def _inputs(data: DataSet, split: str, at: np.ndarray) -> np.ndarray:
    """Some images of a split as the network takes them, float32 (N, C, H, W)."""
    from nasspace.training.trainer import normalized

    return normalized(getattr(data, split).pixels[at], data).contiguous().numpy()


def choose(
    source: Path, path: Path, calibration: Calibration, images: np.ndarray
) -> tuple[Scheme, tuple[tuple[Scheme, float], ...]]:
    """Write the int8 file with the smallest divergence, of six; returns its scheme, and the divergence of each.

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


def sensitive_operations(
    source: Path,
    calibration: Calibration,
    scheme: Scheme,
    images: np.ndarray,
    on_step: Step = lambda text: None,
) -> list[str]:
    """The nodes with weights, the most sensitive first.

    A node is as sensitive as the divergence of a file in which it is the only one with weights in int8. Operations
    without weights (additions, activations, pooling) are in int8 in every file.
    """
    expected, nodes = log_probabilities(source, images), calibration.nodes
    changes = {}
    with temporary.private() as folder:
        for i, node in enumerate(nodes):
            others = tuple(other for other in nodes if other != node)
            alone = calibration.quantize(Path(folder) / "alone.onnx", replace(scheme, float_nodes=others))
            changes[node] = divergence(expected, log_probabilities(alone, images))
            if i % 10 == 0:
                on_step(f"how sensitive each operation is: {i + 1} of {len(nodes)}")
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
