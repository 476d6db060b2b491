"""Decisions of an export's files on validation images, compared with those of the training pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nasspace.data import predict
from nasspace.errors import InputError, first_line
from nasspace.training.trainer import normalized

if TYPE_CHECKING:
    from nasspace.data.images import DataSet

TOLERANCE = 0.002  # largest difference of two accuracies on the same images, if that is more than one image
DIFFERING = 0.01  # largest share of different decisions, if that is more than one image
BATCH = 64


@dataclass(frozen=True)
class Verdict:
    """How many of `count` images a file classifies correctly, and on how many it differs from the pipeline."""

    right: int
    differing: int
    count: int

    @property
    def accuracy(self) -> float:
        """The fraction of images that are classified correctly."""
        return self.right / self.count

    @property
    def allowed(self) -> int:
        """The largest number of different decisions."""
        return max(1, int(DIFFERING * self.count))

    def near(self, accuracy: float) -> bool:
        """Whether an accuracy on the same images differs by at most 0.2 points or one image, whichever is more."""
        return abs(self.right - accuracy * self.count) <= max(1, TOLERANCE * self.count) + 1e-6


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The decisions of the training pipeline: the network's on the pixels of its validation split."""

    data: DataSet
    decisions: Tensor

    @classmethod
    def of(cls, network: nn.Module, data: DataSet) -> Pipeline:
        """Run a network on the validation split."""

        def batches() -> Iterator[Tensor]:
            for part in data.validation.pixels.split(BATCH):
                yield network(normalized(part, data)).argmax(1)

        with torch.inference_mode():
            return cls(data, torch.cat(list(batches())))

    def verdict(self, decisions: Tensor) -> Verdict:
        """Judge decisions, which are indices into the data's classes; -1 is a class that the data does not have."""
        labels = self.data.validation.labels
        return Verdict(int((decisions == labels).sum()), int((decisions != self.decisions).sum()), len(labels))

    @property
    def own(self) -> Verdict:
        """The verdict on the pipeline itself."""
        return self.verdict(self.decisions)

    def named(self, outputs: Tensor, spec: Mapping[str, Any]) -> Tensor:
        """Translate outputs, numbered by the folder's list of classes, into indices of the data's classes."""
        known = {name: position for position, name in enumerate(self.data.classes)}
        same = list(self.data.classes) == spec["classes"]
        places = range(len(known)) if same else [known.get(name, -1) for name in spec["classes"]]
        table = torch.full((max(len(places), int(outputs.max()) + 1),), -1)
        table[: len(places)] = torch.tensor(list(places))
        return table[outputs]


def pixels_of(data: DataSet, spec: Mapping[str, Any]) -> Tensor:
    """Preprocess the validation images from their original files as a folder specifies: uint8 [N, C, H, W].

    Raises ValueError with the reason if an image cannot be preprocessed.
    """
    originals = data.validation.originals

    def one(position: int) -> np.ndarray:
        try:
            return predict.preprocess(originals[position], spec)
        except Exception as error:  # Pillow's decoders and foreign specifications raise any error
            raise ValueError(str(error) or type(error).__name__) from error

    with ThreadPoolExecutor() as threads:
        return torch.from_numpy(np.stack(list(threads.map(one, range(len(originals))))))


def described(path: Path) -> tuple[list[Any], dict[str, str]]:
    """The shape of one image that an ONNX file takes, and its metadata; an `InputError` for another file."""
    import onnxruntime

    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        inputs, metadata = session.get_inputs(), dict(session.get_modelmeta().custom_metadata_map)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise InputError(f"{path}: ONNX Runtime cannot run it ({first_line(error)[:200]})") from None
    if len(inputs) != 1:
        raise InputError(f"{path}: takes {len(inputs)} inputs; name a network that takes images alone")
    return list(inputs[0].shape[1:]), metadata


def by_onnx(path: Path, pixels: Tensor, spec: Mapping[str, Any]) -> Tensor:
    """The decisions of an ONNX file: indices of its outputs, int64 [N]."""
    return by_scores(onnx_scores(path), pixels, spec)


def by_scores(scores: Callable[[np.ndarray], np.ndarray], pixels: Tensor, spec: Mapping[str, Any]) -> Tensor:
    """The decisions of a function from inputs, float32 [N, C, H, W], to scores [N, classes]: int64 [N]."""
    return _decided(pixels, lambda part: scores(predict.normalize(part, spec)))


def onnx_scores(path: Path, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """The outputs [N, classes] of an ONNX file for its inputs, float32 [N, C, H, W]; on all cores by default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda inputs: predict.network_scores(session, inputs)


def photo_probabilities(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The probabilities, float32 [classes], that a `photo_onnx` file gives for a decoded image, uint8 [H, W, C]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": np.ascontiguousarray(image)})[0]


def by_photos(probabilities: Callable[[np.ndarray], np.ndarray], data: DataSet, spec: Mapping[str, Any]) -> Tensor:
    """The decisions on the original validation images, decoded to uint8 [H, W, C]: int64 [N]."""
    found = [int(probabilities(predict.photo(original, spec)).argmax()) for original in data.validation.originals]
    return torch.tensor(found)


def by_torch(network: nn.Module, pixels: Tensor, spec: Mapping[str, Any]) -> Tensor:
    """The decisions of a network: indices of its outputs, int64 [N]."""
    with torch.inference_mode():
        return _decided(pixels, lambda part: network(torch.from_numpy(predict.normalize(part, spec))).numpy())


def _decided(pixels: Tensor, scores: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    return torch.cat([torch.from_numpy(scores(part.numpy()).argmax(1)) for part in pixels.split(BATCH)])
