"""Conversion of `nn.Module`s to ONNX, TorchScript and ncnn as they ship, blocks folded, and comparison of outputs."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from nasspace import files
from nasspace.errors import InputError, first_line
from nasspace.network import fold

OPSET = 17
_EXPORTER_WARNINGS = (  # the legacy exporter takes 0.3 s per network, the newer one 15 s
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed",
)
# TorchScript is deprecated in favor of torch.compile, but still shipped.
_TORCHSCRIPT_WARNING = r"`torch\.jit\.\w+` is deprecated"
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def to_onnx(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    path: str | PathLike,
    *,
    batch_size: int = 1,
    dynamic_batch: bool = False,
    metadata: Mapping[str, str] | None = None,
    opset: int = OPSET,
) -> Path:
    """Write a network as ONNX in inference mode, with batch norm folded into the convolutions, and return the path.

    `input_shape` is (C, H, W). The graph has one input "input", (batch_size, C, H, W), and one output "output";
    `dynamic_batch` allows any batch size. `metadata` becomes the file's `metadata_props`, `opset` its operator set. The
    network itself is not changed (mode, device, weights). The file is written atomically. Raises `InputError` for a
    network that ONNX cannot represent and for a path that cannot be written.
    """
    path = Path(path)
    data = _export(deployed(model), (batch_size, *input_shape), dynamic_batch, opset)
    if dynamic_batch or metadata:
        data = _with_metadata(data, metadata or {})
    with files.replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def _export(model: nn.Module, shape: tuple[int, ...], dynamic_batch: bool, opset: int) -> bytes:
    """Export with PyTorch's legacy exporter."""
    buffer = io.BytesIO()
    try:
        with _known_warnings(), torch.no_grad():
            torch.onnx.export(
                model,
                (torch.zeros(shape),),
                buffer,
                dynamo=False,
                opset_version=opset,
                input_names=["input"],
                output_names=["output"],
                dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}} if dynamic_batch else None,
                do_constant_folding=True,
            )
    except (torch.onnx.OnnxExporterError, torch.onnx.errors.OnnxExporterError) as error:
        first = first_line(error)
        raise InputError(f"the network cannot be written as ONNX: {first}; measure it with --runtime eager") from error
    return buffer.getvalue()


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Add metadata, and mark the batch dimension of reshapes as unchanged.

    PyTorch writes a dynamic batch as -1 ("inferred"). ONNX Runtime then treats it as a separate dimension and does not
    fuse the addition of a shortcut into the convolution (8 % of a ShuffleNet V1's time); 0 means "as in the input".
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(data)
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    graph = model.graph
    constants = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    constants |= {one.name: one for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants and shapes.get(node.input[0]):
            shape = numpy_helper.to_array(constants[node.input[1]]).copy()
            _, *rest = shapes[node.input[0]]
            if shape.size and shape[0] == -1 and 0 not in (*rest, *shape) and np.prod(rest) == np.prod(shape[1:]):
                shape[0] = 0
                node.input[1] = f"{node.output[0]}_shape"
                graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in read]:
        graph.node.remove(node)
    onnx.helper.set_model_props(model, dict(metadata))
    return model.SerializeToString()


@contextlib.contextmanager
def _known_warnings() -> Iterator[None]:
    """Ignore the legacy exporter's deprecation and the tracer's warnings about shapes, which are fixed here."""
    with warnings.catch_warnings():
        for message in _EXPORTER_WARNINGS:
            warnings.filterwarnings("ignore", message, DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


def to_torchscript(model: nn.Module, batch: Tensor) -> torch.jit.ScriptModule:
    """Trace a network in inference mode on one batch, (N, C, H, W), and freeze it (weights become constants)."""
    with torchscript_warnings(), torch.no_grad():
        return torch.jit.freeze(torch.jit.trace(model, batch, check_trace=False))


@contextlib.contextmanager
def torchscript_warnings() -> Iterator[None]:
    """Ignore TorchScript's deprecation and the tracer's warnings about shapes, which are fixed here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _TORCHSCRIPT_WARNING, DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


def to_ncnn(path: Path, input_shape: tuple[int, int, int]) -> tuple[Path, Path]:
    """Convert an ONNX file of batch 1 with pnnx to ncnn's structure (.param) and weights (.bin, float32) next to it.

    Raises `InputError` for a network that pnnx or ncnn does not support.
    """
    import pnnx

    command = [pnnx.EXEC_PATH, path.name, f"inputshape=[{','.join(map(str, (1, *input_shape)))}]", "fp16=0"]
    ended = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    param, weights = path.with_suffix(".ncnn.param"), path.with_suffix(".ncnn.bin")
    if ended.returncode or not (param.is_file() and weights.is_file()):
        reason = (ended.stderr.strip().splitlines() or [f"pnnx ended with status {ended.returncode}"])[-1]
        raise InputError(f"the network cannot be converted for ncnn: {reason}; use --runtime onnxruntime")
    return param, weights


def inference_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a network on the CPU in inference mode."""
    return copy.deepcopy(model).cpu().eval()


def deployed(model: nn.Module) -> nn.Module:
    """Return a copy of a network as it ships: on the CPU in inference mode, with its blocks folded.

    Every file and every runtime gets this form (`nasspace.blocks` says what a block folds). Outputs are compared with
    those of `inference_copy`, the network as it was trained.
    """
    return fold(inference_copy(model))


def fold_batch_norm(model: nn.Module, input_shape: tuple[int, int, int] | None = None) -> nn.Module:
    """Return the deployed network with every batch norm that directly follows a convolution folded into it.

    The order of modules is found by tracing (torch.fx). A network that cannot be traced is traced child by child; a
    part that cannot be traced at all is not changed, nor is a convolution used more than once. With `input_shape`,
    (C, H, W), the outputs are compared on seeded input; if they differ by more than a thousandth of the largest output,
    a copy is returned without any folding.
    """
    plain, result = inference_copy(model), deployed(model)
    with torch.no_grad():
        _fold(result)
        if input_shape is not None:
            image = _random_images((1, *input_shape), seed=0)
            if not relative_difference(plain(image).numpy(), result(image).numpy()) < 1e-3:
                return plain
    return result


def _fold(module: nn.Module) -> None:
    """Fold in place; child by child if the module itself cannot be traced."""
    try:
        graph = torch.fx.Tracer().trace(module)
    except Exception:  # a user's `forward` may raise anything on a proxy
        for child in module.children():
            _fold(child)
        return
    used = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        convolution, norm = module.get_submodule(before.target), module.get_submodule(node.target)
        if used[before.target] == used[node.target] == 1 and _foldable(convolution, norm):
            _replace(module, before.target, torch.nn.utils.fuse_conv_bn_eval(convolution, norm))
            _replace(module, node.target, nn.Identity())


def _foldable(convolution: nn.Module, norm: nn.Module) -> bool:
    """Whether the pair can be folded; exact types only, since a subclass may compute something else."""
    if type(convolution) not in _CONVOLUTIONS or type(norm) not in _BATCH_NORMS or norm.running_mean is None:
        return False
    return not (convolution._forward_hooks or convolution._forward_pre_hooks or norm._forward_hooks)


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a submodule by its dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)


def largest_difference(
    model: nn.Module,
    path: str | PathLike,
    input_shape: tuple[int, int, int],
    seed: int = 0,
    batches: int = 2,
) -> float:
    """Compare ONNX Runtime's output with PyTorch's, in float32, on seeded normal inputs.

    Returns the largest absolute difference divided by the largest absolute output of PyTorch, over `batches` batches of
    the file's batch size (1, 3, 5, ... if it is dynamic); infinite if either has a value that is not finite.
    """
    import onnxruntime

    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    session = onnxruntime.InferenceSession(Path(path).read_bytes(), providers=["CPUExecutionProvider"])
    described = session.get_inputs()[0]
    fixed = described.shape[0] if isinstance(described.shape[0], int) else None
    reference = inference_copy(model).float()
    worst = 0.0
    for i in range(batches):
        image = _random_images((fixed or 2 * i + 1, *input_shape), seed + i)
        with torch.inference_mode():
            expected = reference(image).numpy()
        worst = max(worst, relative_difference(expected, session.run(None, {described.name: image.numpy()})[0]))
    return worst


def _random_images(shape: tuple[int, ...], seed: int) -> Tensor:
    """Draw seeded normal input."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def relative_difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Divide the largest absolute difference by the largest absolute expected value.

    The result is infinite if the shapes differ or a value is not finite.
    """
    if expected.shape != found.shape or not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return math.inf
    difference = float(np.abs(expected - found).max(initial=0))
    return difference / max(float(np.abs(expected).max(initial=0)), np.finfo(np.float32).tiny)
