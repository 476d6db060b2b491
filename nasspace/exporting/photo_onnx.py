"""An ONNX file with the preprocessing inside: one decoded image of any size in, class probabilities out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace import files, temporary
from nasspace.errors import InputError

if TYPE_CHECKING:
    from torch import nn

NAME = "model.with-preprocessing.onnx"
FORMAT = "with-preprocessing"  # its name among the formats of an export
OPSET = 18  # the first one whose Resize can antialias
MODES = {"bilinear": "linear", "bicubic": "cubic"}  # Pillow's names and ONNX's
CUBIC = -0.5  # coefficient of Pillow's bicubic interpolation


def write(network: nn.Module, spec: Mapping[str, Any], metadata: Mapping[str, str], path: Path) -> None:
    """Write a network with its preprocessing in front, as preprocessing.json has it.

    The input "image" is uint8 (height, width, channels), upright and in the colors of `spec`; the output
    "probabilities" is float32 (classes,). The image is resized as Pillow does, but without rounding between its two
    passes, so that a pixel may differ by a level. Raises `InputError` for an interpolation that ONNX does not have.
    """
    import onnx
    from onnx import TensorProto, helper

    from nasspace.latency.convert import to_onnx

    if spec["interpolation"] not in MODES:
        known = " or ".join(MODES)
        raise InputError(f"--with-preprocessing: ONNX has no interpolation '{spec['interpolation']}', only {known}")
    with temporary.private() as folder:
        plain = to_onnx(network, tuple(spec["input"]), Path(folder) / "plain.onnx", opset=OPSET)
        model = onnx.load(str(plain))
    graph, steps = model.graph, _Steps()
    steps.preprocess(spec)
    source, scores = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        node.input[:] = ["preprocessed" if name == source else name for name in node.input]
    first = list(steps.nodes)
    steps.nodes.clear()
    steps.add("Softmax", [scores], "probability_row", axis=-1)
    steps.add("Squeeze", ["probability_row", steps.constant("batch_axis", np.array([0]))], "probabilities")
    network_nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*first, *network_nodes, *steps.nodes])
    graph.initializer.extend(steps.constants)
    channels, classes = spec["input"][0], len(spec["classes"])
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.input.append(helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", channels]))
    graph.output.append(helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [classes]))
    helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    with files.replacing(path) as target:
        target.write_bytes(model.SerializeToString())


class _Steps:
    """Nodes and constants of the preprocessing."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant; return its name."""
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node; return its output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"preprocessing/{output}", **attributes))
        return output

    def preprocess(self, spec: Mapping[str, Any]) -> None:
        """From the tensor "image" to "preprocessed", the network's input (1, C, H, W)."""
        from onnx import TensorProto

        self.add("Cast", ["image"], "levels", to=TensorProto.FLOAT)
        self.add("Transpose", ["levels"], "channels_first", perm=[2, 0, 1])
        first = self.constant("first_axis", np.array([0]))
        self.add("Unsqueeze", ["channels_first", first], "batch")
        self.add("Shape", ["image"], "size", end=2)
        one_image = self.constant("one_image", np.array([1, spec["input"][0]]))
        self.add("Concat", [one_image, self._size(spec)], "sizes", axis=0)
        self.add(
            "Resize",
            ["batch", "", "", "sizes"],
            "interpolated",
            mode=MODES[spec["interpolation"]],
            antialias=1,
            cubic_coeff_a=CUBIC,
            exclude_outside=1,
        )
        self.add("Round", ["interpolated"], "rounded")
        bounds = [self.constant(name, np.array(value, np.float32)) for name, value in (("black", 0), ("white", 255))]
        self.add("Clip", ["rounded", *bounds], "resized")
        self.add("Div", [self._cropped(spec), bounds[1]], "shares")
        mean, std = (
            self.constant(key, np.array(spec[key], np.float32)[None, :, None, None]) for key in ("mean", "std")
        )
        self.add("Sub", ["shares", mean], "centered")
        self.add("Div", ["centered", std], "preprocessed")

    def _size(self, spec: Mapping[str, Any]) -> str:
        """The height and width after resizing, int64 (2,), from those of the image."""
        from onnx import TensorProto

        if "size" in spec["resize"]:
            return self.constant("new_size", np.array(spec["resize"]["size"]))
        side = self.constant("shorter_side", np.array(spec["resize"]["shorter_side"], np.float64))
        self.add("Cast", ["size"], "exact_size", to=TensorProto.DOUBLE)
        self.add("ReduceMin", ["size"], "shorter", keepdims=0)
        self.add("Cast", ["shorter"], "exact_shorter", to=TensorProto.DOUBLE)
        self.add("Mul", ["exact_size", side], "scaled")
        self.add("Div", ["scaled", "exact_shorter"], "divided")
        self.add("Round", ["divided"], "rounded_size")  # halves to even, as in Python
        return self.add("Cast", ["rounded_size"], "new_size", to=TensorProto.INT64)

    def _cropped(self, spec: Mapping[str, Any]) -> str:
        """The center of the resized image."""
        if not spec["crop"]:
            return "resized"
        crop = self.constant("crop", np.array(spec["crop"]))
        self.add("Sub", ["new_size", crop], "margins")
        self.add("Div", ["margins", self.constant("two", np.array(2))], "starts")
        self.add("Add", ["starts", crop], "ends")
        return self.add("Slice", ["resized", "starts", "ends", self.constant("plane", np.array([2, 3]))], "cropped")
