"""Factorization: a convolution or linear layer becomes two smaller ones by singular value decomposition.

The first has fewer outputs than both widths of the layer, its rank, and neither bias, batch norm nor activation; the
second is 1x1 and has those of the layer (Denton et al. 2014, "Exploiting linear structure within convolutional
networks"; Zhang et al. 2016, "Accelerating very deep convolutional networks"). Both are layers of an `Architecture`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nasspace.architecture import Architecture, canonical

WEIGHTS = {"conv": "layers.0.weight", "linear": "linear.weight"}  # of the blocks that can be factorized, in the block
HALVINGS = 40  # of the interval of shares of energy that a share of the weights is translated to


@dataclass(frozen=True)
class Factorized:
    """A factorized network with its weights; `ranks` of the layers by their positions in the whole network."""

    architecture: Architecture
    state: dict[str, Tensor]
    ranks: dict[int, int]


@dataclass(frozen=True)
class _Factors:
    """The decomposition of a layer's weights (out, n): `left` (out, k), `values` (k,), `right` (k, n)."""

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def count(self) -> int:
        """The number of weights of the layer."""
        return len(self.left) * self.right.shape[1]

    def rank(self, energy: float) -> int | None:
        """The smallest rank that keeps a share of the energy (the sum of the squared weights).

        None if two layers have as many weights as one. Multiply-adds are the same share: each weight is used at each
        output pixel.
        """
        kept = self.values.square().cumsum(0) / self.values.square().sum()
        rank = min(len(kept), int((kept < energy).sum()) + 1)
        return rank if self.weights(rank) < self.count else None

    def weights(self, rank: int | None) -> int:
        """The number of weights at a rank; of the whole layer for None."""
        return self.count if rank is None else rank * (len(self.left) + self.right.shape[1])


def factorized(architecture: Architecture, state: Mapping[str, Tensor], keep: float) -> Factorized | None:
    """Factorize the layers so that a share `keep` of their weights, and so of their multiply-adds, is left.

    Every layer keeps the same share of its energy. Layers where that saves nothing stay whole; None if all do. The
    first layer stays, as do convolutions with groups, squeeze-and-excitation or a shortcut, and those inside blocks.
    """
    factors = {i: _decomposed(state[f"{i}.{WEIGHTS[architecture.layers[i].block]}"]) for i in _dense(architecture)}
    limit = keep * sum(one.count for one in factors.values())
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        energy = (low + high) / 2
        needed = sum(one.weights(one.rank(energy)) for one in factors.values())
        low, high = (energy, high) if needed <= limit else (low, energy)
    ranks = {i: rank for i, one in factors.items() if (rank := one.rank(low)) is not None}
    if not ranks:
        return None
    layers = list(_layers(architecture, ranks))
    smaller = Architecture.of(layers, input=architecture.input, classes=architecture.classes, name=architecture.name)
    return Factorized(smaller, dict(_weights(architecture, state, factors, ranks)), ranks)


def _dense(architecture: Architecture) -> Iterator[int]:
    """The positions of the layers that can be factorized."""
    channels: int | None = architecture.input[0]
    is_first = True
    for i, layer in enumerate(architecture.layers):
        full = canonical(layer, channels)
        is_plain = full.get("groups", 1) == 1 and not full.get("squeezed") and full.get("skip", "none") == "none"
        if layer.block == "linear" or (layer.block == "conv" and is_plain and not is_first):
            yield i
        is_first = False
        channels = layer.out


def _decomposed(weight: Tensor) -> _Factors:
    """The singular value decomposition of a layer's weights, in double precision."""
    return _Factors(*torch.linalg.svd(weight.double().flatten(1), full_matrices=False))


def _layers(architecture: Architecture, ranks: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    """The layers, each factorized one as two."""
    for i, layer in enumerate(architecture.to_dict()["layers"]):
        if i not in ranks:
            yield layer
        elif layer["block"] == "linear":
            yield {"block": "linear", "out": ranks[i], "bias": False}
            yield {**layer, "out": architecture.layers[i].out}
        else:
            window = {key: layer[key] for key in ("kernel", "stride", "padding") if key in layer}
            plain = {"activation": "none", "norm": "none", "bias": False}
            yield {"block": "conv", "out": ranks[i], **window, **plain}
            rest = {key: value for key, value in layer.items() if key not in window}
            yield {**rest, "out": architecture.layers[i].out, "kernel": 1}


def _weights(
    architecture: Architecture, state: Mapping[str, Tensor], factors: Mapping[int, _Factors], ranks: Mapping[int, int]
) -> Iterator[tuple[str, Tensor]]:
    """The weights of the factorized network by name."""
    shift = 0
    for i, layer in enumerate(architecture.layers):
        own = {name.removeprefix(f"{i}."): tensor for name, tensor in state.items() if name.startswith(f"{i}.")}
        if i in ranks:
            name = WEIGHTS[layer.block]
            weight = own.pop(name)
            left, values, right = factors[i].left, factors[i].values, factors[i].right
            root = values[: ranks[i]].sqrt()
            first = (root[:, None] * right[: ranks[i]]).view(ranks[i], *weight.shape[1:])
            second = (left[:, : ranks[i]] * root).view(len(left), ranks[i], *(1 for _ in weight.shape[2:]))
            yield f"{i + shift}.{name}", first.to(weight.dtype)
            shift += 1
            yield f"{i + shift}.{name}", second.to(weight.dtype)
        yield from ((f"{i + shift}.{name}", tensor) for name, tensor in own.items())
