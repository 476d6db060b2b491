"""Magnitude pruning: the smallest weights become zero, step by step during a training.

Han et al. 2015, "Learning both weights and connections for efficient neural networks"; the steps are those of Zhu and
Gupta 2017, "To prune, or not to prune". Zeros shrink the compressed file. They save time only in a runtime with sparse
kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nasspace.compression.weights import large_weights

Threshold = Literal["adaptive", "global", "layer"]
THRESHOLDS = ("adaptive", "global", "layer")
PRUNING_SHARE = 0.5  # of the steps; in the rest, the zeros stay where they are
UPDATES = 50  # of the zeros, spread over these steps


class Sparsity:
    """A constraint of a training: at the end a share `keep` of the large weights is left, all others are zero.

    `threshold` says how weights are compared (`largest`). A weight that became zero stays zero. With s the share of
    zeros at the end, it is s (1 - (1 - t)^3) at the time t, which is 0 at the start and 1 after half of the steps (Zhu
    and Gupta 2017, equation 1).
    """

    def __init__(self, keep: float, threshold: Threshold = "adaptive"):
        self.keep = keep
        self.threshold = threshold
        self.fingerprint = f"sparsity {keep:.6g} {threshold}"
        self.masks: dict[str, Tensor] = {}

    def project(self, model: nn.Module, done: int, steps: int) -> None:
        """Set weights to zero: those that were zero, and at times the smallest others."""
        weights = large_weights(model)
        self._apply(weights)
        if _number(done, steps) > _number(done - 1, steps):
            self.masks = largest(weights, kept(self.keep, _number(done, steps) / UPDATES), self.threshold)
            self._apply(weights)

    def _apply(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, mask in self.masks.items():
                weights[name].mul_(mask.to(weights[name].device))

    def state(self) -> dict[str, Any]:
        """The masks, for checkpoints."""
        return dict(self.masks)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.masks = dict(state)


def _number(done: int, steps: int) -> int:
    """How many updates of the zeros are due after `done` steps."""
    return min(UPDATES, int(UPDATES * done / (PRUNING_SHARE * steps)))


def kept(keep: float, time: float) -> float:
    """The share of the weights that is left at a time from 0 to 1; `keep` at the end.

    >>> [round(kept(0.2, time), 3) for time in (0, 0.25, 0.5, 1)]
    [1.0, 0.538, 0.3, 0.2]
    """
    return keep + (1 - keep) * (1 - time) ** 3


def largest(weights: Mapping[str, Tensor], share: float, threshold: Threshold = "adaptive") -> dict[str, Tensor]:
    """For each tensor, which weights are among the `share` of largest magnitude: boolean tensors of the same shapes.

    `global` compares magnitudes in all tensors, which can empty a large layer of small weights, and `layer` takes the
    same share of each. `adaptive` compares the square of a weight as a share of all squares in its tensor that are not
    smaller (LAMP, Lee et al. 2021): this share is 1 for the largest, so that every layer keeps weights.
    """
    if threshold == "layer":
        return {
            name: _largest(tensor.detach().abs().flatten(), share).view_as(tensor) for name, tensor in weights.items()
        }
    measure = _relative if threshold == "adaptive" else torch.abs
    magnitudes = torch.cat([measure(tensor.detach().flatten()) for tensor in weights.values()])
    parts = _largest(magnitudes, share).split([tensor.numel() for tensor in weights.values()])
    return {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}


def _relative(values: Tensor) -> Tensor:
    """The square of each value (N,) as a share of the sum of all squares that are not smaller; 0 for zeros.

    >>> _relative(torch.tensor([2.0, 1.0, 0.0]))
    tensor([1.0000, 0.2000, 0.0000], dtype=torch.float64)
    """
    squares, order = values.double().square().sort()
    sums = squares.flip(0).cumsum(0).flip(0)
    result = torch.zeros_like(squares)
    result[order] = squares / sums.clamp(min=torch.finfo(torch.float64).tiny)
    return result


def _largest(magnitudes: Tensor, share: float) -> Tensor:
    """Which values of a vector are among the largest; at least one."""
    mask = torch.zeros_like(magnitudes, dtype=torch.bool)
    mask[magnitudes.topk(max(1, round(share * len(magnitudes)))).indices] = True
    return mask


def zeros(weights: Mapping[str, Tensor]) -> float:
    """The share of the weights that are zero."""
    count = sum(tensor.numel() for tensor in weights.values())
    return sum(int((tensor == 0).sum()) for tensor in weights.values()) / count
