"""What a worker is sent, and what it makes of it: no node needs the data set, nor a block of the user's own."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from nasspace.documents import Document
from nasspace.studies import evaluate, recipe
from nasspace.studies.measure import Measurer
from nasspace.studies.task import Task

if TYPE_CHECKING:
    import numpy

    from nasspace.accuracy.data import DataSet

Arrays: TypeAlias = "dict[str, tuple[numpy.ndarray, numpy.ndarray]]"  # pixels and labels by split
SPLITS = ("train", "validation")  # a search has no use for the test split


@dataclass(frozen=True)
class Sent:
    """A task as it travels: plain values, arrays (which workers of one node share), the user's own blocks.

    `function` is the evaluator of a search that has one in place of training.
    """

    recipe: dict[str, Any]
    blocks: dict[str, type] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    arrays: Arrays = field(default_factory=dict)
    function: evaluate.FromFunction | None = None
    fresh_latency: bool = False

    @classmethod
    def of(cls, task: Task, fresh_latency: bool) -> Sent:
        from nasspace.blocks import registry

        own = registry.own_blocks()
        written = task.recipe.as_written()
        if task.data is None:
            return cls(written, own, function=task.scorer)
        described = {part.name: getattr(task.data, part.name) for part in dataclasses.fields(task.data)}
        arrays = {split: _arrays(described.pop(split)) for split in SPLITS}
        return cls(written, own, {**described, "test": None}, arrays, fresh_latency=fresh_latency)

    def dataset(self) -> DataSet | None:
        """The data set, its images where the arrays lie."""
        from nasspace.accuracy.data import DataSet

        if self.data is None:
            return None
        return DataSet(**self.data, **{split: _images(*arrays) for split, arrays in self.arrays.items()})

    def measurer(self) -> Measurer:
        """What measures latencies in this process."""
        self._register()
        return Measurer(self._recipe(), self.dataset(), fresh=self.fresh_latency)

    def scorer(self, measure: Any = None) -> Any:
        """The evaluator; `measure` takes the latencies in place of this process."""
        self._register()
        if self.function is not None:
            return self.function
        data = self.dataset()
        assert data is not None
        measure = measure or Measurer(self._recipe(), data, fresh=self.fresh_latency)
        return evaluate.Trained(self._recipe(), data, measure=measure)

    def _recipe(self) -> recipe.Recipe:
        return recipe.read(Document(self.recipe, "the recipe sent"))

    def _register(self) -> None:
        from nasspace.blocks import registry

        for name, block in self.blocks.items():
            if name not in registry.own_blocks():
                registry.register(name, block)


def packed(sent: Sent) -> tuple[bytes, Arrays]:
    """It as bytes beside its arrays, which Ray shares among the workers of a node."""
    from ray import cloudpickle

    return cloudpickle.dumps(dataclasses.replace(sent, arrays={})), sent.arrays


def unpacked(parts: tuple[bytes, Arrays]) -> Sent:
    from ray import cloudpickle

    rest, arrays = parts
    return dataclasses.replace(cloudpickle.loads(rest), arrays=arrays)


def _arrays(images: Any) -> tuple[numpy.ndarray, numpy.ndarray]:
    return images.pixels.numpy(), images.labels.numpy()


def _images(pixels: numpy.ndarray, labels: numpy.ndarray) -> Any:
    import torch

    from nasspace.accuracy.data import Images

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are read only, and nobody writes to them
        return Images(torch.from_numpy(pixels), torch.from_numpy(labels))
