"""Features of a network's operations, from which the latency predictor learns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache

import numpy as np

from nasspace.architecture import Architecture
from nasspace.counting import Operation, cost, operations

LANES = (8, 16)  # channels that vector units process at once; other widths are slower
SIZES = 7  # the first columns of `size_features` are sizes; the others belong to lanes


class OperationCounts:
    """The distinct operations of architectures, and `counts`, how often each architecture has each of them.

    `counts` has shape (architectures, operations + 1); the last column is 1, for the run itself.
    """

    def __init__(self, architectures: Iterable[Architecture]):
        architectures = list(architectures)
        index: dict[Operation, int] = {}
        for architecture in architectures:
            for operation in operations_of(architecture):
                index.setdefault(operation, len(index))
        self.index, self.operations = index, tuple(index)
        rows = [self.row(operations_of(architecture)) for architecture in architectures]
        self.counts = np.array(rows).reshape(len(rows), -1)
        self.counts[:, -1] = 1

    def row(self, operations: Iterable[Operation]) -> np.ndarray:
        """Count how often each known operation occurs."""
        row = np.zeros(len(self.index) + 1)
        for operation in operations:
            row[self.index[operation]] += 1
        return row

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """The kinds, of shape (operations + 1,), and the `size_features` of each."""
        kinds = np.array([*(operation.kind for operation in self.operations), ""], dtype=object)
        sizes = np.array([*map(size_features, self.operations), (0.0,) * (SIZES + 2 * len(LANES))])
        return kinds, sizes


@lru_cache(maxsize=20_000)
def operations_by_layer(architecture: Architecture) -> tuple[tuple[Operation, ...], ...]:
    """Return the operations of each layer."""
    counted = zip(architecture.layers, cost(architecture).layers, strict=True)
    return tuple(operations(layer, part.in_shape) for layer, part in counted)


def operations_of(architecture: Architecture) -> Iterator[Operation]:
    """Yield all operations of a network, in order."""
    return itertools.chain.from_iterable(operations_by_layer(architecture))


def cost_features(operation: Operation) -> tuple[float, ...]:
    """Return multiply-adds, elements accessed, elements of the output, and one."""
    return (operation.flops, operation.memory_access, math.prod(operation.out_shape), 1)


@lru_cache(maxsize=100_000)
def size_features(operation: Operation) -> tuple[float, ...]:
    """Return logarithms of channels, map sizes, kernel, groups and memory access, then the unused shares of lanes."""
    in_shape, out = operation.in_shape or (1,), operation.out_shape or (1,)  # a user's block may return a scalar
    kernel = operation.weight_shape[-1] if len(operation.weight_shape) == 4 else 1
    per_group = operation.weight_shape[1] if len(operation.weight_shape) == 4 else in_shape[0]
    sizes = (in_shape[0], out[0], math.prod(in_shape[1:]), math.prod(out[1:]), kernel, in_shape[0] / per_group)
    work = math.log(1 + operation.memory_access)
    over = [(-channels % lane) / lane for channels in (in_shape[0], out[0]) for lane in LANES]
    return (*(math.log(max(size, 1)) for size in sizes), work / 2, *over)
