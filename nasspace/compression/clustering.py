"""Weight sharing: the weights of a layer take few different values, its codebook (Han et al. 2016, "Deep compression").

A file that is compressed afterwards shrinks, since the same values occur again and again. Computation stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nasspace.compression.weights import large_weights

MOST_BITS = 8
ITERATIONS = 300  # of k-means, if it has not converged before
FLOAT = 4  # bytes of a value


class SharedValues:
    """A constraint of a training: weights that share a value keep sharing it; each layer has at most 2^`bits` values.

    After every step, a value becomes the mean of its weights. Its own step is thus the sum of its weights' gradients,
    as in the paper, at a learning rate divided by their number, so that settings for ordinary trainings apply. Zeros
    stay zero if the weights were pruned before; zero is then one of the values, and is not trained.
    """

    def __init__(self, network: nn.Module, bits: int):
        self.fingerprint = f"shared values {bits}"
        self.bits = bits
        self.codes: dict[str, Tensor] = {}
        self.zeroed: set[str] = set()  # the layers with zeros, whose code is 0
        for name, weight in large_weights(network).items():
            if bool((weight == 0).any()):
                self.zeroed.add(name)
            self.codes[name] = codes(weight.detach().flatten(), 2**bits).view_as(weight).to(torch.uint8)

    def project(self, model: nn.Module, done: int, steps: int) -> None:
        """Replace each weight by the mean of those that share its value."""
        weights = large_weights(model)
        with torch.no_grad():
            for name, code in self.codes.items():
                weight = weights[name]
                weight.copy_(shared(weight, code.to(weight.device), has_zeros=name in self.zeroed))

    def state(self) -> dict[str, Any]:
        """Nothing: which weights share a value does not change."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""

    @property
    def values(self) -> int:
        """The largest number of different values in a layer."""
        return max(len(code.unique()) for code in self.codes.values())

    def computed_bytes(self, params: int) -> int:
        """Bytes of a network of `params` parameters: codes of `bits` bits and codebooks, 4 for each other parameter."""
        coded = sum(math.ceil(code.numel() * self.bits / 8) for code in self.codes.values())
        values = sum(len(code.unique()) for code in self.codes.values())
        return coded + FLOAT * (values + params - sum(code.numel() for code in self.codes.values()))


def codes(values: Tensor, count: int) -> Tensor:
    """Cluster values (N,) into at most `count` groups by k-means; returns the number of each value's group, int64 (N,).

    The groups begin at equal distances between the smallest and the largest value, so that large values, which matter
    most, get groups of their own (Han et al. 2016, section 3.2). Zeros are group 0, and alone in it, if there are any.
    """
    is_zero = values == 0
    if bool(is_zero.any()):
        result = torch.zeros(len(values), dtype=torch.int64)
        if count > 1 and not bool(is_zero.all()):
            result[~is_zero] = 1 + codes(values[~is_zero], count - 1)
        return result
    points = values.double().sort().values
    sums = torch.cat([points.new_zeros(1), points.cumsum(0)])
    centers = torch.linspace(float(points[0]), float(points[-1]), count, dtype=torch.float64)
    ends = torch.zeros(0, dtype=torch.int64)  # of the groups, which are intervals, in the order of the points
    for _ in range(ITERATIONS):
        found = torch.searchsorted(points, _between(centers), right=True)
        if torch.equal(found, ends):
            break
        ends = found
        edges = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([len(points)])])
        sizes = edges.diff()
        centers = torch.where(sizes > 0, sums[edges].diff() / sizes, centers)
    return torch.bucketize(values.double(), _between(centers))


def _between(centers: Tensor) -> Tensor:
    """The middle between each center and the next."""
    return (centers[1:] + centers[:-1]) / 2


def shared(weight: Tensor, code: Tensor, *, has_zeros: bool = False) -> Tensor:
    """The weights with each value replaced by the mean of those that have the same code; by 0 for the code of zeros."""
    numbers, values = code.flatten().long(), weight.flatten().double()
    means = numbers.bincount(values) / numbers.bincount()
    if has_zeros:
        means[0] = 0.0  # a step has moved them
    return means[numbers].view_as(weight).to(weight.dtype)
