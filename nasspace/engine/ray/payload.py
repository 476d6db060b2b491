"""Serialized payload for Ray workers: no node needs the data set, nor the code of the user's own blocks."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from nasspace.documents import Document
from nasspace.engine.evaluator import FunctionEvaluator, TrainingEvaluator
from nasspace.engine.latency_evaluator import LatencyEvaluator
from nasspace.engine.problem import Problem
from nasspace.engine.shared_weights import InheritingEvaluator
from nasspace.engine.starting_weights import StartingEvaluator
from nasspace.errors import InputError
from nasspace.space.space import Space
from nasspace.studies import recipe as recipes
from nasspace.studies.recipe import Recipe

if TYPE_CHECKING:
    import numpy

    from nasspace.data.loading import DataSet
    from nasspace.training.supernet import Supernet

Arrays: TypeAlias = "dict[str, tuple[numpy.ndarray, numpy.ndarray]]"  # pixels and labels by split
Parts: TypeAlias = "tuple[bytes, Arrays, dict[str, numpy.ndarray]]"  # a payload as Ray carries it
SPLITS = ("train", "validation")  # a search does not use the test split


@dataclass(frozen=True)
class Payload:
    """A problem as plain values, arrays (shared by the workers of a node), and the user's own blocks.

    `function` is the user's evaluator, if there is one, instead of training. `shared` are the weights that all networks
    of `space` share, as arrays; if `starts`, candidates are trained from them.
    """

    recipe: dict[str, Any]
    blocks: dict[str, type] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    arrays: Arrays = field(default_factory=dict)
    function: FunctionEvaluator | None = None
    fresh_latency: bool = False
    space: Space | None = None
    shared: dict[str, numpy.ndarray] = field(default_factory=dict)
    starts: bool = False

    @classmethod
    def from_problem(cls, problem: Problem, fresh_latency: bool) -> Payload:
        """Take a problem apart."""
        from nasspace.blocks import registry

        if problem.data is None:
            return cls(problem.recipe.as_written(), registry.own_blocks(), function=problem.evaluator)
        payload = cls.from_data(problem.recipe, problem.data, fresh_latency)
        if isinstance(problem.evaluator, InheritingEvaluator | StartingEvaluator):
            weights = problem.evaluator.supernet.state_dict()
            shared = {name: tensor.numpy() for name, tensor in weights.items()}
            starts = isinstance(problem.evaluator, StartingEvaluator)
            return dataclasses.replace(payload, space=problem.space, shared=shared, starts=starts)
        return payload

    @classmethod
    def from_data(cls, recipe: Recipe, data: DataSet, fresh_latency: bool = False) -> Payload:
        """Take a data set apart."""
        from nasspace.blocks import registry

        if data.train.file is not None:
            raise InputError(
                f"{data.name}: Ray's workers hold the decoded images, which would take more than half of the memory; "
                "choose a lower resolution, or search without Ray"
            )
        fields = {part.name: getattr(data, part.name) for part in dataclasses.fields(data)}
        arrays = {split: _to_arrays(fields.pop(split)) for split in SPLITS}
        settings = {**fields, "test": None}
        return cls(recipe.as_written(), registry.own_blocks(), settings, arrays, fresh_latency=fresh_latency)

    @property
    def nbytes(self) -> int:
        """Size of the arrays."""
        images = (array for pair in self.arrays.values() for array in pair)
        return sum(array.nbytes for array in (*images, *self.shared.values()))

    def dataset(self) -> DataSet | None:
        """The data set; its tensors share the memory of the arrays."""
        from nasspace.data.loading import DataSet

        if self.data is None:
            return None
        return DataSet(**self.data, **{split: _to_images(*arrays) for split, arrays in self.arrays.items()})

    def latency_evaluator(self) -> LatencyEvaluator:
        """The object that measures latencies in this process."""
        self._register_blocks()
        return LatencyEvaluator(self._recipe(), self.dataset(), fresh=self.fresh_latency)

    def evaluator(self, measure: Any = None) -> Any:
        """The evaluator; `measure` returns latencies instead of measuring in this process."""
        self._register_blocks()
        if self.function is not None:
            return self.function
        data = self.dataset()
        assert data is not None
        measure = measure or LatencyEvaluator(self._recipe(), data, fresh=self.fresh_latency)
        if self.space is not None:
            kind = StartingEvaluator if self.starts else InheritingEvaluator
            return kind(self._recipe(), data, self._supernet(self.space), measure=measure)
        return TrainingEvaluator(self._recipe(), data, measure=measure)

    def _supernet(self, space: Space) -> Supernet:
        """The shared weights, as they were trained."""
        import torch

        from nasspace.training.supernet import Supernet

        supernet = Supernet(space)
        supernet.load_state_dict({name: torch.tensor(array) for name, array in self.shared.items()})
        return supernet

    def training(self) -> tuple[Recipe, DataSet]:
        """The recipe and the data, for a training without a search."""
        self._register_blocks()
        data = self.dataset()
        assert data is not None
        return self._recipe(), data

    def _recipe(self) -> Recipe:
        return recipes.read(Document(self.recipe, "the payload's recipe"))

    def _register_blocks(self) -> None:
        from nasspace.blocks import registry

        for name, block in self.blocks.items():
            if name not in registry.own_blocks():
                registry.register(name, block)


def serialized(payload: Payload) -> Parts:
    """The payload as bytes, next to its arrays, which Ray shares among the workers of a node."""
    from ray import cloudpickle

    return cloudpickle.dumps(dataclasses.replace(payload, arrays={}, shared={})), payload.arrays, payload.shared


def deserialized(parts: Parts) -> Payload:
    """The payload of `serialized`."""
    from ray import cloudpickle

    rest, arrays, shared = parts
    return dataclasses.replace(cloudpickle.loads(rest), arrays=arrays, shared=shared)


def _to_arrays(images: Any) -> tuple[numpy.ndarray, numpy.ndarray]:
    return images.pixels.numpy(), images.labels.numpy()


def _to_images(pixels: numpy.ndarray, labels: numpy.ndarray) -> Any:
    import torch

    from nasspace.data.loading import Images

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the arrays are read-only, and nothing writes to them
        return Images(torch.from_numpy(pixels), torch.from_numpy(labels))
