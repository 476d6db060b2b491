"""FLOPs, parameters, memory access, peak memory and other counts of every layer; each distinct block is counted once.

FLOPs are multiply-adds of convolutions and linear layers at batch 1, as in the papers and in fvcore. They are counted
from the operations that the block runs on PyTorch's meta device, which computes shapes only. A user's block is thus
counted without further code, and a thousand blocks take about a second (fvcore traces each for 17 ms; tests compare
the counts). Memory access is ShuffleNet V2's MAC, section 2: the elements that each convolution and linear layer
reads and writes, input + output + weights. Re-parameterized blocks are counted folded, as they ship and as their papers
count them (`nasspace.network.fold`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nasspace import blocks
from nasspace.architecture import Architecture, Layer
from nasspace.blocks.layers import ACTIVATIONS
from nasspace.errors import InputError
from nasspace.memory import Lifetimes
from nasspace.network import fold, make_block

aten = torch.ops.aten
SUMMED = ("flops", "params", "memory_access", "activations", "units", "flash", "flash_int8")  # over the layers
LARGEST = ("peak_memory", "peak_memory_int8")  # of all layers: only one tensor exists between two of them
FIGURES = attrgetter(*SUMMED, *LARGEST)
FLOAT_BYTES = 4
LARGER = 32  # pixels on top of a map that is too small; the largest kernel of a block is 31
FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
INITIALIZERS = {
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.constant_,
    nn.init.kaiming_uniform_,
    Tensor.zero_,
    Tensor.fill_,
}
UNCOUNTED = {  # modules that keep the shape; skipped on the meta device, where they would take nine tenths of the time
    nn.BatchNorm2d,
    nn.Sigmoid,
    nn.Hardsigmoid,
    *ACTIVATIONS.values(),
}
RECTIFIERS = (  # modules that pass positive values and damp negative ones; sigmoids, which serve as gates, do not
    *(nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.ELU),
    *(nn.LeakyReLU, nn.PReLU, nn.Mish, nn.SELU, nn.CELU),
)
RECTIFICATIONS = {  # the operations of these modules; those of the others are made of these
    *(aten.relu.default, aten.relu_.default, aten.hardtanh.default, aten.hardtanh_.default),
    *(aten.hardswish.default, aten.hardswish_.default, aten.silu.default, aten.silu_.default, aten.gelu.default),
    *(aten.elu.default, aten.elu_.default, aten.leaky_relu.default, aten.leaky_relu_.default),
    *(aten._prelu_kernel.default, aten.mish.default, aten.mish_.default),
}
OPERANDS = {  # operation: positions of its input and its weight
    aten.convolution.default: (0, 1),
    aten.linear.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
}
ARITHMETIC = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}
MOVES = {  # operations that move or combine values
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.cat.default,
    aten.clone.default,
    aten.mean.dim,
    aten.max_pool2d_with_indices.default,
    aten.avg_pool2d.default,
    aten._adaptive_avg_pool2d.default,
}


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer for one image.

    `flops` are multiply-adds, `memory_access` elements read and written, `activations` elements of the outputs of
    convolutions and linear layers, `units` elements of the outputs of ReLU and the other rectifiers. `peak_memory` is
    the most memory that the layer's tensors take at one time (`nasspace.memory`), its input and output included, and
    `flash` the memory of its weights as they ship (batch norm folded), both in bytes in float32. The names with `_int8`
    are those of the int8 network (`nasspace.latency.quantization`), with each channel's scale and zero point.
    """

    block: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    flops: int
    params: int
    memory_access: int
    activations: int
    units: int
    peak_memory: int
    peak_memory_int8: int
    flash: int
    flash_int8: int


@dataclass(frozen=True)
class Operation:
    """One operation of a layer on one image: its kind and the shapes of its input, weight and output.

    `kind` is `pointwise`, `dense`, `grouped` or `depthwise` for convolutions, `linear` for matrix products, else
    PyTorch's name of an operation that moves or combines values (`add`, `mul`, `cat`, `clone`, `max_pool2d`, ...),
    which has no weight: `()`.
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
        per_output = self.in_shape[-1] if self.kind == "linear" else math.prod(self.weight_shape[1:])
        return math.prod(self.out_shape) * per_output

    @property
    def memory_access(self) -> int:
        """Elements read and written: input, output and weights."""
        return sum(map(math.prod, (self.in_shape, self.out_shape, self.weight_shape or (0,))))


@dataclass(frozen=True)
class Cost:
    """Cost of a network for one image: the sums over its layers, and the largest `peak_memory` of one."""

    flops: int
    params: int
    memory_access: int
    activations: int
    units: int
    peak_memory: int
    peak_memory_int8: int
    flash: int
    flash_int8: int
    layers: tuple[LayerCost, ...]


def cost(architecture: Architecture) -> Cost:
    """Count an architecture at its own input; an `InputError` names a layer whose input map is too small."""
    shape: tuple[int, ...] = architecture.input
    layers = []
    for i, layer in enumerate(architecture.layers):
        try:
            counted = layer_cost(layer, shape)
        except InputError as error:
            raise InputError(f"layers[{i}] ({layer.block}): {error}") from error
        layers.append(counted)
        shape = counted.out_shape
    columns = zip(*map(FIGURES, layers), strict=True) if layers else [(0,)] * len((*SUMMED, *LARGEST))
    figures = dict(zip((*SUMMED, *LARGEST), columns, strict=True))
    summed = {name: sum(figures[name]) for name in SUMMED}
    largest = {name: max(figures[name]) for name in LARGEST}
    return Cost(**summed, **largest, layers=tuple(layers))


@lru_cache(maxsize=200_000)
def layer_cost(layer: Layer, in_shape: tuple[int, ...]) -> LayerCost:
    """Count one layer on an input of `in_shape` (channels, height, width)."""
    module, recorder, out = _run(layer, in_shape)
    if layer.out is not None and (out.dim() < 2 or out.shape[1] != layer.out):
        raise InputError(f"its output is {_times(out.shape[1:])}, not {layer.out} channels")
    peak = recorder.lifetimes.peak(out)
    flash, flash_int8 = _flash(module, recorder.lifetimes)
    return LayerCost(
        block=layer.block,
        in_shape=in_shape,
        out_shape=tuple(out.shape[1:]),
        flops=recorder.flops,
        params=sum(parameter.numel() for parameter in module.parameters()),
        memory_access=recorder.memory_access,
        activations=recorder.activations,
        units=recorder.units,
        peak_memory=FLOAT_BYTES * peak,
        peak_memory_int8=peak,
        flash=flash,
        flash_int8=flash_int8,
    )


def _flash(module: nn.Module, lifetimes: Lifetimes) -> tuple[int, int]:
    """Bytes of a block's weights as they ship in float32, and in int8.

    The int8 file of ONNX Runtime has a scale (4 bytes) and a zero point (1) for each channel of a weight, and a bias
    (4), its scale (4) and its zero point (4) for each channel that has one; other vectors stay in float32.
    """
    parameters = list(module.parameters())
    matrices = sum(one.numel() for one in parameters if one.dim() > 1)
    unfolded, biased = lifetimes.vectors()
    kept = sum(one.numel() for one in parameters if one.dim() < 2) + unfolded
    channels = sum(lifetimes.channels.values())
    return FLOAT_BYTES * (matrices + kept), matrices + 5 * channels + 12 * biased + FLOAT_BYTES * (kept - biased)


@lru_cache(maxsize=50_000)
def operations(layer: Layer, in_shape: tuple[int, ...]) -> tuple[Operation, ...]:
    """Operations of one layer on an image of `in_shape`, in order, without batch norm and activations, which fuse."""
    return tuple(_run(layer, in_shape)[1].operations)


def _run(layer: Layer, in_shape: tuple[int, ...]) -> tuple[nn.Module, _Recorder, Tensor]:
    """Run a layer's block on one image; return the block, its recorded operations and its output."""
    channels = math.prod(in_shape) if blocks.get(layer.block).flattens else in_shape[0]
    try:
        return _run_on_meta(layer, channels, in_shape)
    except Exception:  # an operation without a meta form, which may raise anything, or a map that is too small
        return _run_on_cpu(layer, channels, in_shape)


def _run_on_meta(layer: Layer, channels: int, in_shape: tuple[int, ...]) -> tuple[nn.Module, _Recorder, Tensor]:
    """Run the block on the meta device, which computes shapes only."""
    with OnMeta():
        module = fold(make_block(layer, channels).eval())
    recorder = _Recorder()
    for part in module.modules():
        if type(part) in UNCOUNTED:
            part.forward = recorder.stand_in(part)
    image = torch.empty(1, *in_shape, device="meta")
    recorder.lifetimes.start(image)
    with torch.no_grad(), recorder, _FastConvolutions(recorder):
        out = module(image)
    if not isinstance(out, Tensor):
        raise TypeError("not a tensor")
    return module, recorder, out


def _run_on_cpu(layer: Layer, channels: int, in_shape: tuple[int, ...]) -> tuple[nn.Module, _Recorder, Tensor]:
    """Run the block on an image of zeros on the CPU; an error here is the layer's own and becomes an `InputError`."""
    with torch.random.fork_rng(devices=[]):
        module = make_block(layer, channels).eval()
        try:
            module = fold(module)
            image = torch.zeros(1, *in_shape)
            with torch.no_grad(), _Recorder() as recorder:
                recorder.lifetimes.start(image)
                out = module(image)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            remedy = "; choose a larger resolution" if _is_too_small(in_shape, module) else ""
            raise InputError(f"does not run on an input of {_times(in_shape)}: {reason}{remedy}") from error
    if not isinstance(out, Tensor):
        raise InputError(f"its output is a {type(out).__name__}, not a tensor")
    return module, recorder, out


def _is_too_small(in_shape: tuple[int, ...], module: nn.Module) -> bool:
    """Whether a module that does not run on a map runs on one that is larger than the largest kernel."""
    if len(in_shape) != 3:
        return False
    try:
        with torch.no_grad():
            module.to("meta")(torch.empty(1, in_shape[0], *(side + LARGER for side in in_shape[1:]), device="meta"))
    except Exception:  # a user's block may raise anything
        return False
    return True


def _times(shape: Iterable[int]) -> str:
    """Format a shape as 8x4x4."""
    return "x".join(map(str, shape))


class OnMeta(TorchFunctionMode):
    """Create the weights of modules on the meta device and skip their initialization."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in INITIALIZERS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        if func in FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class _FastConvolutions(TorchFunctionMode):
    """Compute the shape of plain 2d convolutions directly: PyTorch's meta kernels take ten times as long."""

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shape = _conv_shape(*args, **(kwargs or {})) if func is nn.functional.conv2d else None
        if shape is None:
            return func(*args, **(kwargs or {}))
        out = torch.empty(shape, device="meta")
        biased = args[2] is not None
        self.recorder.add(args[0], args[1], out, out.numel() * math.prod(args[1].shape[1:]), biased)
        return out


def _shaped(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The output of frequent operations on float32 tensors of the meta device; None for all others.

    PyTorch's own meta kernels of these import its compiler, which takes seconds. Calls that PyTorch may refuse, and
    tensors whose values do not lie in order, are left to it.
    """
    tensors = [one for one in (args[0] if func is aten.cat.default else args) if isinstance(one, Tensor)]
    if kwargs or not all(one.is_meta and one.dtype == torch.float32 for one in tensors):
        return None
    if any(isinstance(one, complex) for one in args):  # the output is complex, too
        return None
    shapes = [one.shape for one in tensors]
    if func is aten.addmm.default:
        bias, source, weight = shapes
        fit = len(source) == len(weight) == 2 and source[1] == weight[0] and bias == weight[1:]
        return torch.empty(source[0], weight[1], device="meta") if fit and len(args) == 3 else None
    if not all(one.is_contiguous() for one in tensors):
        return None
    if func in ARITHMETIC and len({len(shape) for shape in shapes}) == 1:
        sides = [sorted(set(sizes)) for sizes in zip(*shapes, strict=True)]
        fit = all(len(each) == 1 or (len(each) == 2 and each[0] == 1) for each in sides)
        return torch.empty([each[-1] for each in sides], device="meta") if fit else None
    if func is aten.mean.dim and args[1:] in (([2, 3], True), ([-1, -2], True)) and len(shapes[0]) == 4:
        return torch.empty(*shapes[0][:2], 1, 1, device="meta")
    if func is aten.cat.default and args[1:] == (1,) and len({(one[:1], one[2:]) for one in shapes}) == 1:
        return torch.empty(shapes[0][0], sum(one[1] for one in shapes), *shapes[0][2:], device="meta")
    return None


def _conv_shape(*args: Any, **kwargs: Any) -> tuple[int, ...] | None:
    """Output shape of `conv2d(input, weight, bias, stride, padding, dilation, groups)` as `nn.Conv2d` calls it.

    None for other forms of the call and for invalid shapes, which PyTorch handles.
    """
    if kwargs or len(args) != 7 or args[0].dim() != 4 or isinstance(args[4], str):
        return None
    source, weight, _, stride, padding, dilation, groups = args
    (batch, channels, *size), (out, group_channels, *kernel) = source.shape, weight.shape
    stride, padding, dilation = (2 * (n,) if isinstance(n, int) else n for n in (stride, padding, dilation))
    free = [size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1 for i in (0, 1)]
    if channels != group_channels * groups or min(free) < 0:
        return None
    return (batch, out, free[0] // stride[0] + 1, free[1] // stride[1] + 1)


class _Recorder(TorchDispatchMode):
    """Record every operation that runs, with the multiply-adds and memory access of those with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.memory_access = self.activations = self.units = 0
        self.operations: list[Operation] = []
        self.lifetimes = Lifetimes()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: PyTorch would import its compiler, which takes seconds, only to leave this class out of it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = _shaped(func, args, kwargs or {})
        if out is None:
            out = func(*args, **(kwargs or {}))
        operands = OPERANDS.get(func)
        if operands is not None:
            source, weight = (args[i] for i in operands)
            self.add(source, weight, out, self._multiply_adds(func, args, source, weight, out), _has_bias(func, args))
            return out
        if func in RECTIFICATIONS:
            self.units += out.numel()
        elif func in MOVES:
            self._move(func, args, out)
        self.lifetimes.operation(func, args, out)
        return out

    def _move(self, func: Any, args: Any, out: Any) -> None:
        """Record an operation that moves or combines values."""
        source = args[0][0] if isinstance(args[0], list | tuple) else args[0]
        source, out = (value[0] if isinstance(value, tuple) else value for value in (source, out))
        name = func.name().partition("::")[2].partition(".")[0]
        self.operations.append(Operation(name, tuple(source.shape[1:]), (), tuple(out.shape[1:])))

    def add(self, source: Tensor, weight: Tensor, out: Tensor, flops: int, biased: bool) -> None:
        """Record one operation with a weight."""
        self.flops += flops
        self.memory_access += source.numel() + weight.numel() + out.numel()
        self.activations += out.numel()
        shapes = tuple(source.shape[1:]), tuple(weight.shape), tuple(out.shape[1:])
        self.operations.append(Operation(_kind(*shapes), *shapes))
        self.lifetimes.weighted(source, weight, out, biased)

    def rectify(self, x: Tensor) -> Tensor:
        """Count the units of one rectifier, in place of its module."""
        self.units += x.numel()
        return self.elementwise(x)

    def elementwise(self, x: Tensor) -> Tensor:
        """Record an operation that keeps the shape, in place of its module."""
        out = _like(x)
        self.lifetimes.record([x], [out], in_place=True)
        return out

    def norm(self, x: Tensor, parameters: int) -> Tensor:
        """Record a batch norm with so many parameters, in place of its module."""
        out = _like(x)
        self.lifetimes.norm(x, out, parameters)
        return out

    def stand_in(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """What records a module of `UNCOUNTED` in its place."""
        if type(module) is nn.BatchNorm2d:
            return partial(self.norm, parameters=sum(one.numel() for one in module.parameters()))
        return self.rectify if type(module) in RECTIFIERS else self.elementwise

    @staticmethod
    def _multiply_adds(func: Any, args: Any, source: Tensor, weight: Tensor, out: Tensor) -> int:
        """Multiply-adds of a convolution or a matrix product."""
        if func is aten.convolution.default:
            transposed = args[6]
            return (source if transposed else out).numel() * math.prod(weight.shape[1:])
        return out.numel() * source.shape[-1]


def _has_bias(func: Any, args: Any) -> bool:
    """Whether an operation with a weight adds a bias."""
    if func in (aten.convolution.default, aten.linear.default):
        return len(args) > 2 and args[2] is not None
    return func in (aten.addmm.default, aten.baddbmm.default)


def _like(x: Tensor) -> Tensor:
    """A new tensor of the same shape on the meta device."""
    return torch.empty(x.shape, device="meta")


def _kind(in_shape: tuple[int, ...], weight_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> str:
    """Kind of an operation with a weight."""
    if len(weight_shape) < 4:
        return "linear"
    groups = in_shape[0] // weight_shape[1] if in_shape else 1
    if groups > 1:
        return "depthwise" if weight_shape[1] == 1 else "grouped"
    return "pointwise" if math.prod(weight_shape[2:]) == 1 else "dense"
