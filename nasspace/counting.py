"""FLOPs, parameters, memory access and activations, layer by layer, each distinct block counted once.

FLOPs are multiply-adds of convolutions and linear layers at batch 1, as in the papers and in fvcore. They are read
off the operations of the block itself as it runs on PyTorch's meta device, which takes no arithmetic: so a
block of one's own is counted without further code, and a thousand blocks take about a second (fvcore traces
each for 17 ms; the tests hold the two equal). Memory access is ShuffleNet V2's MAC, section 2: the elements that
each convolution and linear layer reads and writes, input + output + weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
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
class Operation:
    """One operation of a layer on one image: `kind` and the shapes of what it reads, of its weight, of what it gives.

    `kind` is `pointwise`, `dense`, `grouped` or `depthwise` for convolutions, `linear` for matrix products, else
    PyTorch's name of an operation that moves or combines values (`add`, `mul`, `cat`, `clone`, `max_pool2d`, ...).
    """

    kind: str
    in_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    @property
    def flops(self) -> int:
        """Multiply-adds."""
        if not self.weight_shape:
            return 0
        return math.prod(self.out_shape) * (
            self.in_shape[-1] if self.kind == "linear" else math.prod(self.weight_shape[1:])
        )

    @property
    def memory_access(self) -> int:
        """Elements read and written: input, output and weights."""
        return sum(map(math.prod, (self.in_shape, self.out_shape, self.weight_shape or (0,))))


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
            raise InputError(f"layers[{i}] ({layer.block}): {error}") from error
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
    channels = math.prod(in_shape) if blocks.get(layer.block).flattens else in_shape[0]
    try:
        module, recorder, out = _on_meta(layer, channels, in_shape)
    except Exception:  # an operation without a meta form (any error may come of it), or a map that is too small
        module, recorder, out = _on_cpu(layer, channels, in_shape)
    if layer.out is not None and (out.dim() < 2 or out.shape[1] != layer.out):
        raise InputError(f"gives an output of {_times(out.shape[1:])}, not {layer.out} channels")
    return LayerCost(
        block=layer.block,
        in_shape=in_shape,
        out_shape=tuple(out.shape[1:]),
        flops=recorder.flops,
        params=sum(parameter.numel() for parameter in module.parameters()),
        memory_access=recorder.memory_access,
        activations=recorder.activations,
    )


@lru_cache(maxsize=50_000)
def operations(layer: Layer, in_shape: tuple[int, ...]) -> tuple[Operation, ...]:
    """What one layer does to one image of `in_shape`, in order; batch norm and activations apart, which are folded."""
    channels = math.prod(in_shape) if blocks.get(layer.block).flattens else in_shape[0]
    try:
        _, recorder, _ = _on_meta(layer, channels, in_shape)
    except Exception:  # as in `layer_cost`
        _, recorder, _ = _on_cpu(layer, channels, in_shape)
    return tuple(recorder.operations)


def _on_meta(layer: Layer, channels: int, in_shape: tuple[int, ...]) -> tuple[nn.Module, _Recorder, Tensor]:
    """The block, its recorded operations and its output, with the shape of one image run through it."""
    with _Hollow():
        module = make_block(layer, channels).eval()
    for part in module.modules():
        if type(part) in WITHOUT_COUNT:
            part.forward = _same
    with torch.no_grad(), _Recorder() as recorder, _Shapes(recorder):
        out = module(torch.empty(1, *in_shape, device="meta"))
    if not isinstance(out, Tensor):
        raise TypeError("not a tensor")
    return module, recorder, out


def _on_cpu(layer: Layer, channels: int, in_shape: tuple[int, ...]) -> tuple[nn.Module, _Recorder, Tensor]:
    """The same with one image of zeros; what fails here is the layer's own fault and is told."""
    with torch.random.fork_rng(devices=[]):
        module = make_block(layer, channels).eval()
        try:
            with torch.no_grad(), _Recorder() as recorder:
                out = module(torch.zeros(1, *in_shape))
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"does not run on an input of {_times(in_shape)}: {reason}") from error
    if not isinstance(out, Tensor):
        raise InputError(f"gives a {type(out).__name__}, not a tensor")
    return module, recorder, out


def _times(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))


def _same(x: Tensor) -> Tensor:
    return x


class _Hollow(TorchFunctionMode):
    """Modules made within have their weights on the meta device, and are not initialised."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        if func in MAKES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class _Shapes(TorchFunctionMode):
    """Plain 2d convolutions give a tensor of the right shape at once: PyTorch's way on meta takes ten times as long."""

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        shape = _conv_shape(*args, **(kwargs or {})) if func is nn.functional.conv2d else None
        if shape is None:
            return func(*args, **(kwargs or {}))
        out = torch.empty(shape, device="meta")
        self.recorder.add(args[0], args[1], out, out.numel() * math.prod(args[1].shape[1:]))
        return out


def _conv_shape(*args, **kwargs) -> tuple[int, ...] | None:
    """The shape of `conv2d(input, weight, bias, stride, padding, dilation, groups)` as `nn.Conv2d` calls it.

    None for another call, or one that cannot be: PyTorch sees to those.
    """
    if kwargs or len(args) != 7 or args[0].dim() != 4 or isinstance(args[4], str):
        return None
    (batch, channels, *size), (out, of_group, *kernel) = args[0].shape, args[1].shape
    stride, padding, dilation = (2 * (n,) if isinstance(n, int) else n for n in args[3:6])
    room = [size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1 for i in (0, 1)]
    if channels != of_group * args[6] or min(room) < 0:
        return None
    return (batch, out, room[0] // stride[0] + 1, room[1] // stride[1] + 1)


class _Recorder(TorchDispatchMode):
    """Adds up the multiply-adds and the memory access of every convolution and matrix product that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.memory_access = self.activations = 0
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        operands = OPERANDS.get(func)
        if operands is not None:
            source, weight = (args[i] for i in operands)
            self.add(source, weight, out, self._multiply_adds(func, args, source, weight, out))
        elif func in MOVES:
            self._move(func, args, out)
        return out

    def _move(self, func, args, out) -> None:
        """Note an operation that moves or combines values."""
        given = args[0][0] if isinstance(args[0], list | tuple) else args[0]
        given, out = (value[0] if isinstance(value, tuple) else value for value in (given, out))
        name = func.name().partition("::")[2].partition(".")[0]
        self.operations.append(Operation(name, tuple(given.shape[1:]), (), tuple(out.shape[1:])))

    def add(self, source: Tensor, weight: Tensor, out: Tensor, flops: int) -> None:
        """Count one operation."""
        self.flops += flops
        self.memory_access += source.numel() + weight.numel() + out.numel()
        self.activations += out.numel()
        shapes = tuple(source.shape[1:]), tuple(weight.shape), tuple(out.shape[1:])
        self.operations.append(Operation(_kind(*shapes), *shapes))

    @staticmethod
    def _multiply_adds(func, args, source: Tensor, weight: Tensor, out: Tensor) -> int:
        if func is aten.convolution.default:
            transposed = args[6]
            return (source if transposed else out).numel() * math.prod(weight.shape[1:])
        return out.numel() * source.shape[-1]


def _kind(in_shape: tuple[int, ...], weight_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> str:
    if len(weight_shape) < 4:
        return "linear"
    groups = in_shape[0] // weight_shape[1] if in_shape else 1
    if groups > 1:
        return "depthwise" if weight_shape[1] == 1 else "grouped"
    return "pointwise" if math.prod(weight_shape[2:]) == 1 else "dense"


MAKES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
FILLS = {
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.constant_,
    nn.init.kaiming_uniform_,
    Tensor.zero_,
    Tensor.fill_,
}
WITHOUT_COUNT = {  # and keep the shape: they are left out on the meta device, nine tenths of whose time they take
    nn.BatchNorm2d,
    nn.Dropout,
    nn.Sigmoid,
    nn.Hardsigmoid,
    *ACTIVATIONS.values(),
}
OPERANDS = {  # operation: the positions of its input and its weight
    aten.convolution.default: (0, 1),
    aten.linear.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
}
MOVES = {
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.cat.default,
    aten.clone.default,
    aten.mean.dim,
    aten.max_pool2d_with_indices.default,
    aten.avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
}
