"""An int8 ONNX file as a PyTorch network that computes what the file computes, and can be trained.

Quantization-aware training (Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference"): weights, biases and activations are rounded as in the int8 file, in float32.
Gradients pass the rounding unchanged, except where an activation is outside of its range. The nodes of the file are
run one by one, so that batch norm is folded and every tensor is quantized where the file does so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nasspace.errors import InputError, first_line
from nasspace.exporting.judging import onnx_scores
from nasspace.latency.quantization import WEIGHTED
from nasspace.training import depthwise

if TYPE_CHECKING:
    import onnx

LEVELS = 255  # the largest value of a quantized activation
WEIGHT_LEVELS = 64  # the largest value of a quantized weight, which has seven bits
BIAS_LEVELS = (2**31 - 1) / 1.0001  # the largest value of a quantized bias, with ONNX Runtime's margin
SAME = 0.9  # least share of images with the file's class; sums in another order change some
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Weights:
    """The trained tensors of a node, by their place in `QuantizedNetwork.weights`.

    `input_scale` is the scale of the node's input. `axis` is the axis of the weight's scales; None for a single scale.
    """

    weight: int
    bias: int | None
    input_scale: float
    axis: int | None


@dataclass(frozen=True)
class Node:
    """A node of the file; `unread` are the tensors that no later node reads."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Attributes
    weights: Weights | None
    unread: tuple[str, ...]


class QuantizedNetwork(nn.Module):
    """The network of an int8 file: images, float32 [N, C, H, W], to scores [N, classes].

    `path` is a file that `latency.quantization.Calibration.quantize` wrote, and `source` the float file that it was
    made from. The weights are those of `source`; `tensors` are their values after a training, by name. An operator that
    cannot be simulated raises `InputError`.
    """

    def __init__(self, path: Path, source: Path):
        super().__init__()
        reader = _Reader(path, source)
        self.nodes = reader.nodes()
        self.input, self.output = reader.input, reader.output
        self.constants = reader.constants
        self.names = reader.names
        self.weights = nn.ParameterList(reader.floats[name] for name in self.names)
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]

    def extra_repr(self) -> str:
        """The digest of the int8 file, which tells checkpoints apart."""
        return self.digest

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights and biases by their names in the float file."""
        return {name: weight.detach().numpy() for name, weight in zip(self.names, self.weights, strict=True)}

    def check(self, path: Path, images: np.ndarray) -> None:
        """Raise `InputError` unless nearly all images, float32 (N, C, H, W), get the class that the file gives."""
        try:
            with torch.inference_mode():
                found = self(torch.from_numpy(images)).argmax(1).numpy()
        except (RuntimeError, TypeError, KeyError, ValueError) as error:  # of an operator in another form
            raise InputError(f"the network cannot be trained in int8 ({first_line(error)})") from error
        same = float((found == onnx_scores(path)(images).argmax(1)).mean())
        if same < SAME:
            raise InputError(f"the network cannot be trained in int8: only {same:.0%} of its decisions are the file's")

    def forward(self, images: Tensor) -> Tensor:
        """Run the nodes in order."""
        values = {self.input: images}
        for node in self.nodes:
            outputs = self._run(node, values)
            values |= zip(node.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True)
            for name in node.unread:
                values.pop(name, None)
        return values[self.output]

    def _run(self, node: Node, values: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
        """The output of a node, or its outputs."""
        inputs = [values.get(name, self.constants.get(name)) for name in node.inputs]
        if node.weights:
            inputs += self._rounded(node.weights)
        return OPERATORS[node.operator](node.attributes, *inputs)

    def _rounded(self, places: Weights) -> list[Tensor]:
        """The weight of a node, and the bias if it has one, as the file has them."""
        weight = self.weights[places.weight]
        bias = None if places.bias is None else self.weights[places.bias]
        with torch.no_grad():
            scale = weight.abs() / WEIGHT_LEVELS
            scale = scale.amax([axis for axis in range(weight.ndim) if axis != places.axis], keepdim=True)
            if bias is not None:  # which must fit into 32 bits
                least = bias.abs() / (BIAS_LEVELS * places.input_scale)
                scale = torch.maximum(scale, (least.max() if places.axis is None else least).view(scale.shape))
            scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
        rounded = [straight_through(weight, scale)]
        return rounded if bias is None else [*rounded, straight_through(bias, scale.flatten() * places.input_scale)]


def straight_through(values: Tensor, scale: Tensor) -> Tensor:
    """Values rounded to multiples of a scale; their gradient is passed unchanged."""
    return values + ((values / scale).round() * scale - values).detach()


class _Reader:
    """Reads the nodes of an int8 file; `names` are the trained weights and biases in the float file.

    Nodes have the same names in both files. The float file may share a constant that the int8 file has twice.
    """

    def __init__(self, path: Path, source: Path):
        import onnx

        self.graph, floats = onnx.load(path).graph, onnx.load(source).graph
        self.floats, self.constants = _initializers(floats), _initializers(self.graph)
        self.twins = {node.name: node for node in floats.node}
        self.input, self.output = self.graph.input[0].name, self.graph.output[0].name
        self.dequantized = {node.output[0]: node for node in self.graph.node if node.op_type == DEQUANTIZE}
        self.names: list[str] = []

    def nodes(self) -> list[Node]:
        """The nodes in order, without those that dequantize constants."""
        nodes, read = [], {self.output}
        for node in reversed(self.graph.node):
            if node.op_type == DEQUANTIZE and node.input[0] in self.constants:
                continue
            attributes, weights = self._attributes(node), self._weights(node)
            inputs = node.input[:1] if weights else node.input
            self._dequantize(inputs)
            unread = tuple({*inputs, *node.output} - read)
            nodes.append(Node(node.op_type, tuple(inputs), tuple(node.output), attributes, weights, unread))
            read.update(inputs)
        return nodes[::-1]

    def _dequantize(self, inputs: Iterable[str]) -> None:
        """Add the values of the quantized constants among a node's inputs."""
        for name in inputs:
            if name in self.dequantized and self.dequantized[name].input[0] in self.constants:
                values, scale, zero_point = (self.constants[part].float() for part in self.dequantized[name].input)
                self.constants[name] = (values - zero_point) * scale

    def _attributes(self, node: onnx.NodeProto) -> Attributes:
        """Attributes as plain values; of the nodes that quantize, scale and zero point."""
        from onnx.helper import get_attribute_value

        if node.op_type not in OPERATORS:
            raise InputError(f"the operator {node.op_type} cannot be trained in int8")
        if node.op_type == QUANTIZE:
            scale, zero_point = (self.constants[name].item() for name in node.input[1:])
            return {"scale": scale, "zero_point": zero_point}
        values = {each.name: get_attribute_value(each) for each in node.attribute}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    def _weights(self, node: onnx.NodeProto) -> Weights | None:
        """Where the trained tensors of a node are; None for a node without weights in int8."""
        source = self.dequantized.get(node.input[1]) if node.op_type in WEIGHTED else None
        if source is None or source.input[0] not in self.constants:
            return None
        _, weight, *bias = self.twins[node.name].input
        input_scale = self.constants[self.dequantized[node.input[0]].input[1]].item()
        axis = next((each.i for each in source.attribute if each.name == "axis"), 1)
        is_per_channel = self.constants[source.input[1]].ndim > 0
        places = self._place(weight), self._place(bias[0]) if bias else None
        return Weights(*places, input_scale, axis if is_per_channel else None)

    def _place(self, name: str) -> int:
        """The place of a trained tensor, which is added if it is new."""
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)


def _initializers(graph: onnx.GraphProto) -> dict[str, Tensor]:
    """The constants of a file by name."""
    from onnx import numpy_helper

    return {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}


def _conv(at: Attributes, maps: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    maps, padding = _padded(at, maps, 0.0)
    stride, groups = at["strides"], at["group"]
    is_depthwise = groups == maps.shape[1] == len(weight) and set(at["dilations"]) == {1}
    if is_depthwise and weight.requires_grad and depthwise.is_tiny(maps, weight):
        return depthwise.by_pixels(maps, weight, bias, stride, padding)
    return functional.conv2d(maps, weight, bias, stride, padding, at["dilations"], groups)


def _gemm(at: Attributes, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    weight = weight.t() if at.get("transB") else weight
    return torch.addmm(bias, rows, weight, beta=at.get("beta", 1.0), alpha=at.get("alpha", 1.0))


def _max_pool(at: Attributes, maps: Tensor) -> Tensor:
    maps, padding = _padded(at, maps, -torch.inf)
    return functional.max_pool2d(maps, at["kernel_shape"], at["strides"], padding, ceil_mode=bool(at.get("ceil_mode")))


def _average_pool(at: Attributes, maps: Tensor) -> Tensor:
    maps, padding = _padded(at, maps, 0.0)
    whole, included = bool(at.get("ceil_mode")), bool(at.get("count_include_pad"))
    return functional.avg_pool2d(maps, at["kernel_shape"], at["strides"], padding, whole, included)


def _padded(at: Attributes, maps: Tensor, value: float) -> tuple[Tensor, tuple[int, int]]:
    """The maps and the padding that PyTorch adds; padding that differs between opposite sides is added here."""
    top, left, bottom, right = at.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return maps, (top, left)
    return functional.pad(maps, (left, right, top, bottom), value=value), (0, 0)


def _reshape(_: Attributes, values: Tensor, shape: Tensor) -> Tensor:
    return values.reshape([values.shape[axis] if size == 0 else size for axis, size in enumerate(shape.tolist())])


def _slice(_: Attributes, values: Tensor, starts: Tensor, ends: Tensor, axes: Tensor, *steps: Tensor) -> Tensor:
    each = [one.tolist() for one in (starts, ends, axes, *(steps or [torch.ones_like(axes)]))]
    for start, end, axis, step in zip(*each, strict=True):
        values = values[(*[slice(None)] * (axis % values.ndim), slice(start, end, step))]
    return values


def _split(at: Attributes, values: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
    return values.split(sizes.tolist(), at.get("axis", 0))


OPERATORS: dict[str, Callable[..., Any]] = {
    QUANTIZE: lambda at, x, *_: torch.fake_quantize_per_tensor_affine(x, at["scale"], at["zero_point"], 0, LEVELS),
    DEQUANTIZE: lambda at, x, *_: x,
    "Add": lambda at, x, y: x + y,
    "AveragePool": _average_pool,
    "BatchNormalization": lambda at, x, weight, bias, mean, var: functional.batch_norm(
        x, mean, var, weight, bias, eps=at.get("epsilon", 1e-5)
    ),
    "Clip": lambda at, x, low=None, high=None: x.clamp(low, high),
    "Concat": lambda at, *parts: torch.cat(parts, at["axis"]),
    "Conv": _conv,
    "Div": lambda at, x, y: x / y,
    "Elu": lambda at, x: functional.elu(x, at.get("alpha", 1.0)),
    "Erf": lambda at, x: x.erf(),
    "Flatten": lambda at, x: x.flatten(at.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda at, x: x.mean((2, 3), keepdim=True),
    "HardSigmoid": lambda at, x: (x * at.get("alpha", 0.2) + at.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda at, x: functional.hardswish(x),
    "Identity": lambda at, x: x,
    "MatMul": lambda at, x, y: x @ y,
    "MaxPool": _max_pool,
    "Mul": lambda at, x, y: x * y,
    "Relu": lambda at, x: x.relu(),
    "Reshape": _reshape,
    "Sigmoid": lambda at, x: x.sigmoid(),
    "Slice": _slice,
    "Split": _split,
    "Sub": lambda at, x, y: x - y,
    "Tanh": lambda at, x: x.tanh(),
    "Transpose": lambda at, x: x.permute(at["perm"]),
}
