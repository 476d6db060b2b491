"""FLOPs, parameters, memory access and activations, layer by layer, each distinct block counted once.

FLOPs are multiply-adds of convolutions and linear layers at batch 1, as in the papers and in fvcore. They are read
off the operations of the block itself as it runs on PyTorch's meta device, which takes no arithmetic: so a
block of one's own is counted without further code, and a thousand blocks take about a second (fvcore traces
each for 17 ms; the tests hold the two equal). Memory access is ShuffleNet V2's MAC, section 2: the elements that
each convolution and linear layer reads and writes, input + output + weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nasspace import blocks
from nasspace.architecture import Architecture, Layer
from nasspace.blocks.layers import ACTIVATIONS
from nasspace.errors import InputError
from nasspace.network import make_block

aten = torch.ops.aten


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs for one image: multiply-adds, parameters, and elements read, written, produced."""

    block: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    flops: int
    params: int
    memory_access: int
    activations: int


@dataclass(frozen=True)
class Cost:
    """What a network costs for one image: the sums over its layers."""

    flops: int
    params: int
    memory_access: int
    activations: int
    layers: tuple[LayerCost, ...]


def cost(architecture: Architecture) -> Cost:
    """Count an architecture at its own input; a map too small for a layer is an `InputError` that names it."""
    shape: tuple[int, ...] = architecture.input
    flops = params = memory_access = activations = 0
    layers = []
    for i, layer in enumerate(architecture.layers):
        try:
            counted = layer_cost(layer, shape)
        except InputError as error:
            raise InputError(f"layers[{i}] ({layer.block}): {error}") from None
        layers.append(counted)
        shape = counted.out_shape
        flops += counted.flops
        params += counted.params
        memory_access += counted.memory_access
        activations += counted.activations
    return Cost(flops, params, memory_access, activations, tuple(layers))


@lru_cache(maxsize=200_000)
def layer_cost(layer: Layer, in_shape: tuple[int, ...]) -> LayerCost:
    """Count one layer on an input of `in_shape` (channels, height, width)."""
    flattens = getattr(blocks.get(layer.block).cls, "flattens", False)
    channels = math.prod(in_shape) if flattens else in_shape[0]
    try:
        module, recorder, out = _run(layer, channels, in_shape, "meta")
    except (
        RuntimeError,
        NotImplementedError,
    ):  # an operation without a meta form, or a map that is too small
        module, recorder, out = _run(layer, channels, in_shape, "cpu")
    return LayerCost(
        block=layer.block,
        in_shape=in_shape,
        out_shape=tuple(out.shape[1:]),
        flops=recorder.flops,
        params=sum(parameter.numel() for parameter in module.parameters()),
        memory_access=recorder.memory_access,
        activations=recorder.activations,
    )


def _run(layer: Layer, channels: int, in_shape: tuple[int, ...], device: str) -> tuple[Any, _Recorder, Tensor]:
    """The block, its recorded operations, and its output, with one image run through it."""
    with torch.random.fork_rng(devices=[], enabled=device == "cpu"), torch.device(device):
        module = _bare(make_block(layer, channels).eval())
        image = torch.zeros(1, *in_shape)
    try:
        with torch.no_grad(), _Recorder() as recorder:
            return module, recorder, module(image)
    except RuntimeError as error:
        if device == "meta":
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"does not run on an input of {'x'.join(map(str, in_shape))}: {reason}") from None


def _bare(module: nn.Module) -> nn.Module:
    """The module without what counts nothing and keeps the shape: nine tenths of the meta device's time."""
    for part in module.modules():
        if type(part) in WITHOUT_COUNT:
            part.forward = _same
    return module


def _same(x: Tensor) -> Tensor:
    return x


class _Recorder(TorchDispatchMode):
    """Adds up the multiply-adds and the memory access of every convolution and matrix product that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.memory_access = self.activations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        operands = OPERANDS.get(func)
        if operands is not None:
            source, weight = (args[i] for i in operands)
            self.flops += self._multiply_adds(func, args, source, weight, out)
            self.memory_access += source.numel() + weight.numel() + out.numel()
            self.activations += out.numel()
        return out

    @staticmethod
    def _multiply_adds(func, args, source: Tensor, weight: Tensor, out: Tensor) -> int:
        if func is aten.convolution.default:
            transposed = args[6]
            return (source if transposed else out).numel() * math.prod(weight.shape[1:])
        return out.numel() * source.shape[-1]


WITHOUT_COUNT = {nn.BatchNorm2d, nn.Dropout, nn.Sigmoid, nn.Hardsigmoid, *ACTIVATIONS.values()}
OPERANDS = {  # operation: the positions of its input and its weight
    aten.convolution.default: (0, 1),
    aten.linear.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
}
