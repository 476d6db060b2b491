"""Quantize a trained network to int8 in the way that keeps most of its decisions, and find the operations that suffer.

Static quantization has two choices: a scale of weights per channel or per tensor, and how the range of each tensor of
activations is found (smallest and largest value, a percentile, or the range that keeps most information). Which one is
best differs from network to network, so all six are tried. They are compared by what they change: the Kullback-Leibler
divergence of the int8 network's class probabilities from the float network's, on training images that did not calibrate
the ranges. Depthwise networks may still lose most of their accuracy (Sheng et al. 2018, "A quantization-friendly
separable convolution for MobileNets"). Then the convolutions and linear layers that alone change the probabilities most
stay in float, or the network is fine-tuned as it computes in int8.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace import architecture as architectures
from nasspace import files, temporary
from nasspace.data.images import spread
from nasspace.errors import InputError
from nasspace.exporting import targets
from nasspace.exporting.check import digest
from nasspace.exporting.checks import INT8
from nasspace.exporting.export import TRAINED, Exported, add_int8, data_of, read_record
from nasspace.exporting.fake_quantization import QuantizedNetwork
from nasspace.exporting.judging import onnx_scores
from nasspace.exporting.targets import TARGETS, Scores
from nasspace.latency.graph import layer_index
from nasspace.latency.quantization import IMAGES, RANGES, Calibration, Scheme, calibrated
from nasspace.training import trainer
from nasspace.training.settings import TrainingSettings
from nasspace.training.trainer import network_inputs

if TYPE_CHECKING:
    from nasspace.architecture import Architecture
    from nasspace.data.images import DataSet

LOSS = 0.01  # accuracy that int8 may lose before operations stay in float
MOST_FLOAT = 0.5  # share of the operations with weights that may stay in float
COMPARED = 256  # training images on which files are compared
BATCH = 256  # images that are classified at a time
NAMED = 3  # the most sensitive layers that a warning names
FINE_TUNING: dict[str, Any] = {  # training settings; augmentation is that of the network's training
    **{"optimizer": "sgd", "learning_rate": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0},
    **{"schedule": "cosine", "last_rate": 0.0, "warm_up": 0.2, "warm_up_in": "share"},
    **{"average": 0.0, "norm_statistics": "running", "head_first": 0.0},
}
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

    def to_json(self) -> dict[str, Any]:
        """The record of the loss in export.json."""
        low, high = self.interval
        return {"value": self.value, "low": low, "high": high, "images": self.count}


@dataclass(frozen=True)
class Training:
    """A quantization-aware training; it continues from the file `checkpoint` if it was interrupted."""

    epochs: int
    settings: TrainingSettings
    checkpoint: Path


@dataclass(frozen=True)
class FineTuning:
    """What the file of a quantization-aware training loses, and `other`, the best one with the network's own weights.

    The file that loses less is kept; the fine-tuned one, with all operations in int8, if both lose the same.
    """

    training: Training
    loss: Loss
    other: Loss

    @property
    def is_kept(self) -> bool:
        """Whether the fine-tuned file is kept."""
        return self.loss.value <= self.other.value

    def to_json(self) -> dict[str, Any]:
        """The record of the training in export.json."""
        return {
            "epochs": self.training.epochs,
            "kept": self.is_kept,
            "loss": self.loss.to_json(),
            "loss_without": self.other.to_json(),
            "training": asdict(self.training.settings),
        }


@dataclass(frozen=True)
class Quantized:
    """An int8 file: its scheme, how each scheme that was tried diverges (in nats), and what it loses.

    `loss` is None without held-out images. `sensitive` are the nodes that cost most, the worst first, if the network
    with all layers in int8 lost more than a point, and `fine_tuning` the training that was then asked for.
    """

    scheme: Scheme
    tried: tuple[tuple[Scheme, float], ...]
    loss: Loss | None = None
    sensitive: tuple[str, ...] = ()
    fine_tuning: FineTuning | None = None

    @property
    def warning(self) -> str:
        """What a person should know if it loses more than a point; empty else."""
        if self.loss is None or self.loss.value <= LOSS:
            return ""
        low, high = (100 * end for end in self.loss.interval)
        layers = ", ".join(map(str, layers_of(self.sensitive[:NAMED])))
        useless = "and fine-tuning do not suffice" if self.fine_tuning else "does not suffice (--fine-tune EPOCHS may)"
        return (
            f"int8 loses {100 * self.loss.value:.1f} points of accuracy ({low:.1f} to {high:.1f}), and keeping "
            f"operations in float {useless}; layers {layers} are the most sensitive; ship model.onnx"
        )

    def to_json(self) -> dict[str, Any]:
        """The record of the choice in export.json."""
        return {
            "weights": "per channel" if self.scheme.per_channel else "per tensor",
            "ranges": self.scheme.ranges,
            "float_nodes": list(self.scheme.float_nodes),
            "sensitive_nodes": list(self.sensitive),
            "loss": self.loss and self.loss.to_json(),
            "fine_tuning": self.fine_tuning and self.fine_tuning.to_json(),
            "divergence": {str(scheme): value for scheme, value in self.tried},
        }


def quantize(
    folder: str | os.PathLike,
    data: DataSet | str | None = None,
    data_dir: str | os.PathLike | None = None,
    on_step: Step = lambda text: None,
    *,
    fine_tune: int = 0,
) -> tuple[Exported, Quantized]:
    """Write model.int8.onnx into a complete export with model.onnx, and record how, and what it loses.

    `data` is the data that the network was trained on, by default the recorded one: training images calibrate, and the
    validation images say what is lost. If all operations in int8 lose more than a point, the network is also trained
    for `fine_tune` epochs as it computes in int8. No other file of the folder gets the fine-tuned weights. The folder
    changes at the end only. A file that fails its checks is not kept, with a `VerificationError`.
    """
    folder = Path(folder)
    checkpoint = folder.resolve().with_name(f".{folder.resolve().name}.fine-tuning.pt")
    training = Training(fine_tune, _settings(folder), checkpoint) if fine_tune else None
    given = read_quantizable(folder, data, data_dir)
    if fine_tune and not given.record["trained"]:
        raise InputError(f"{folder}: was never trained; leave out --fine-tune, or train it with `nas train`")
    with temporary.private() as new:
        path = Path(new) / INT8
        result = _quantized(given.source, path, given.data, given.record["trained"], training, on_step)
        exported = add_int8(folder, path, given.data, result.to_json())
    checkpoint.unlink(missing_ok=True)
    return exported, result


@dataclass(frozen=True, eq=False)
class Quantizable:
    """An export that can be quantized: its record, network, float file `source`, and the data of its training."""

    record: dict[str, Any]
    architecture: Architecture
    source: Path
    data: DataSet


def read_quantizable(
    folder: Path, data: DataSet | str | None = None, data_dir: str | os.PathLike | None = None
) -> Quantizable:
    """Read an export and its data; an `InputError` without an unchanged model.onnx or without data."""
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
    return Quantizable(record, architecture, source, found)


def _settings(folder: Path) -> TrainingSettings:
    """The settings of a fine-tuning: images are augmented as in the training that the folder records, if it does."""
    path, recorded = folder / TRAINED[0], TrainingSettings()
    if path.is_file():
        document = files.load_json(path)
        try:
            recorded = TrainingSettings.from_mapping(document.value["training"])
        except (TypeError, KeyError, AttributeError, InputError):
            raise document.error(("training",), "not the settings of a training; train again") from None
    return replace(recorded, **FINE_TUNING)


def _quantized(
    source: Path, path: Path, data: DataSet, trained: bool, training: Training | None, on_step: Step
) -> Quantized:
    """Choose a scheme; if a trained network loses too much, keep sensitive operations in float, or fine-tune it."""
    calibrating, images = calibrating_and_comparing(data)
    with calibrated(source, calibrating) as calibration:
        scheme, tried = choose(source, path, calibration, images)
        on_step(f"of six int8 files the one with {scheme} has the smallest divergence")
        if not trained:
            return Quantized(scheme, tried)
        loss = loss_of(source, path, data)
        on_step(f"int8 loses {100 * loss.value:.1f} points of accuracy")
        if loss.value <= LOSS:
            return Quantized(scheme, tried, loss)
        network = training and _simulated(path, calibration, images)  # which may fail, so before what takes long
        order = sensitive_operations(source, calibration, scheme, images[:64], on_step)
        kept, loss = _rescued(source, path, calibration, scheme, order, data, on_step)
        result = Quantized(kept, tried, loss, tuple(order))
        if training is None or network is None or not _train(network, data, training, on_step):
            return result
        tuned = calibration.with_weights(network.tensors()).quantize(path.with_name("fine-tuned.onnx"), scheme)
        fine_tuning = FineTuning(training, loss_of(source, tuned, data), loss)
        on_step(f"fine-tuned, all operations in int8: {100 * fine_tuning.loss.value:.1f} points lost")
        if not fine_tuning.is_kept:
            return replace(result, fine_tuning=fine_tuning)
        tuned.replace(path)
        return replace(result, scheme=scheme, loss=fine_tuning.loss, fine_tuning=fine_tuning)


def calibrating_and_comparing(data: DataSet) -> tuple[np.ndarray, np.ndarray]:
    """Preprocessed training images, float32 (N, C, H, W): some that calibrate ranges, others that compare files."""
    drawn = network_inputs(data.train.pixels[spread(len(data.train), IMAGES + COMPARED)], data, data.resolution)
    calibrating = spread(len(drawn), IMAGES).numpy()
    others = np.delete(drawn, calibrating, axis=0)
    return drawn[calibrating], others if len(others) else drawn


def _simulated(path: Path, calibration: Calibration, images: np.ndarray) -> QuantizedNetwork:
    """The network of an int8 file, to be trained, if it classifies `images` as the file does."""
    try:
        network = QuantizedNetwork(path, calibration.prepared)
        network.check(path, images)
    except InputError as error:
        raise InputError(f"{calibration.source}: {error}; leave out --fine-tune") from error
    return network


def _train(network: QuantizedNetwork, data: DataSet, training: Training, on_step: Step) -> bool:
    """Train a network as it computes in int8; False if it diverges."""
    if training.checkpoint.is_file():
        on_step(f"continues from {training.checkpoint}")
    trained = trainer.train(
        network,
        data,
        trainer.Fidelity(data.resolution, training.epochs),
        training.settings,
        on_epoch=lambda at: on_step(f"fine-tuning: epoch {at.number} of {at.epochs}, loss {at.loss:.3f}"),
        checkpoint=training.checkpoint,
    )
    if trained.diverged:
        on_step("the fine-tuning diverged: its loss is not a number")
    return not trained.diverged


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
    """Which images of a split a file classifies correctly, in ONNX Runtime or the runtime that it is for."""
    scores = scores_of(path)
    labels = getattr(data, split).labels.numpy()
    batches = getattr(data, split).pixels.split(BATCH)
    return np.concatenate([scores(network_inputs(part, data, data.resolution)).argmax(1) for part in batches]) == labels


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


def scores_of(path: Path) -> Scores:
    """The scores that an ONNX file gives in ONNX Runtime, or one for LiteRT there."""
    return targets.scores(TARGETS["litert"], path) if path.suffix == ".tflite" else onnx_scores(path)


def log_probabilities(path: Path, images: np.ndarray) -> np.ndarray:
    """The logarithm of the class probabilities, float64 (N, classes), that a file gives."""
    outputs = scores_of(path)(images).astype(np.float64)
    outputs -= outputs.max(1, keepdims=True)
    return outputs - np.log(np.exp(outputs).sum(1, keepdims=True))


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """The mean Kullback-Leibler divergence of distributions, given as logarithms (N, classes), in nats.

    >>> round(divergence(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])), 4)
    0.1438
    """
    value = float((np.exp(expected) * (expected - found)).sum(1).mean())
    return value if math.isfinite(value) else math.inf
