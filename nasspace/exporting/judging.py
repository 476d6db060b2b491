"""What the files of an export decide on validation images, by the folder's own preprocessing; and the pipeline's."""

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

TOLERANCE = 0.002  # of accuracy: what two counts on the same images may differ by, or one image
DIFFERING = 0.01  # of decisions: the share that may differ, or one image
BATCH = 64


@dataclass(frozen=True)
class Verdict:
    """What a file gets right of `count` images, and on how many it decides otherwise than the pipeline."""

    right: int
    differing: int
    count: int

    @property
    def accuracy(self) -> float:
        return self.right / self.count

    @property
    def allowed(self) -> int:
        """How many decisions may differ."""
        return max(1, int(DIFFERING * self.count))

    def near(self, accuracy: float) -> bool:
        """Whether an accuracy on the same images is within 0.2 points or one image, whichever is more."""
        return abs(self.right - accuracy * self.count) <= max(1, TOLERANCE * self.count) + 1e-6


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The decisions of the training pipeline: the network on the pixels that it was validated on."""

    data: DataSet
    decisions: Tensor

    @classmethod
    def of(cls, network: nn.Module, data: DataSet) -> Pipeline:
        def batches() -> Iterator[Tensor]:
            for part in data.validation.pixels.split(BATCH):
                yield network(normalized(part, data)).argmax(1)

        with torch.inference_mode():
            return cls(data, torch.cat(list(batches())))

    def verdict(self, decisions: Tensor) -> Verdict:
        """Of decisions as positions in the data's classes, -1 for a class that is not among them."""
        labels = self.data.validation.labels
        return Verdict(int((decisions == labels).sum()), int((decisions != self.decisions).sum()), len(labels))

    @property
    def own(self) -> Verdict:
        return self.verdict(self.decisions)

    def named(self, outputs: Tensor, spec: Mapping[str, Any]) -> Tensor:
        """Positions in the data's classes of outputs that the folder names by its own list of classes."""
        known = {name: position for position, name in enumerate(self.data.classes)}
        same = list(self.data.classes) == spec["classes"]
        places = range(len(known)) if same else [known.get(name, -1) for name in spec["classes"]]
        table = torch.full((max(len(places), int(outputs.max()) + 1),), -1)
        table[: len(places)] = torch.tensor(list(places))
        return table[outputs]


def pixels_of(data: DataSet, spec: Mapping[str, Any]) -> Tensor:
    """The validation images, uint8 [N, C, H, W], from what they were decoded from, by a folder's preprocessing.

    Raises ValueError with the reason for an image that it cannot be applied to.
    """
    originals = data.validation.originals

    def one(position: int) -> np.ndarray:
        try:
            return predict.preprocess(originals[position], spec)
        except Exception as error:  # Pillow's decoders, and whatever a foreign specification leads to
            raise ValueError(str(error) or type(error).__name__) from error

    with ThreadPoolExecutor() as threads:
        return torch.from_numpy(np.stack(list(threads.map(one, range(len(originals))))))


def described(path: Path) -> tuple[list[Any], dict[str, str]]:
    """The shape of one image that an ONNX file takes, and its metadata; an `InputError` for a damaged file."""
    import onnxruntime

    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        return list(session.get_inputs()[0].shape[1:]), dict(session.get_modelmeta().custom_metadata_map)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise InputError(f"{path}: ONNX Runtime cannot run it ({first_line(error)[:200]})") from None


def by_onnx(path: Path, pixels: Tensor, spec: Mapping[str, Any]) -> Tensor:
    """The outputs that an ONNX file decides for, int64 [N]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return _decided(pixels, lambda part: predict.network_scores(session, predict.normalize(part, spec)))


def by_torch(network: nn.Module, pixels: Tensor, spec: Mapping[str, Any]) -> Tensor:
    """The outputs that a network decides for, int64 [N]."""
    with torch.inference_mode():
        return _decided(pixels, lambda part: network(torch.from_numpy(predict.normalize(part, spec))).numpy())


def _decided(pixels: Tensor, scores: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    return torch.cat([torch.from_numpy(scores(part.numpy()).argmax(1)) for part in pixels.split(BATCH)])
