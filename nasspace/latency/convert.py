"""`nn.Module` to ONNX, TorchScript and ncnn, batch norm folded; outputs compared with the original's."""

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

OPSET = 17
_EXPORTER_WARNINGS = (  # of the fast exporter, chosen knowingly: 0.3 s a network where the newer one takes 15 s
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed",
)
# TorchScript is deprecated in favour of what compiles; it is measured as long as people ship it.
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
) -> Path:
    """Write a network as ONNX, in inference mode, batch norm folded into the convolutions; the path comes back.

    `input_shape` is (C, H, W). The graph has one input "input", (batch_size, C, H, W), and one output "output";
    with `dynamic_batch` any batch size. `metadata` becomes the file's `metadata_props`. The caller's network keeps its
    mode, device and weights. The file appears whole or not at all. Errors: `InputError` for a network that ONNX cannot
    say and for a place that cannot be written.
    """
    path = Path(path)
    data = _export(inference_copy(model), (batch_size, *input_shape), dynamic_batch)
    if dynamic_batch or metadata:
        data = _with_metadata(data, metadata or {})
    with files.replacing(path) as temporary:
        temporary.write_bytes(data)
    return path


def _export(model: nn.Module, shape: tuple[int, ...], dynamic_batch: bool) -> bytes:
    buffer = io.BytesIO()
    try:
        with _known_warnings(), torch.no_grad():
            torch.onnx.export(
                model,
                (torch.zeros(shape),),
                buffer,
                dynamo=False,
                opset_version=OPSET,
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
    """The file with metadata, and with reshapes that say that they keep the batch.

    PyTorch writes a free batch as -1, "what is left". ONNX Runtime then takes it for a size of its own, and does not
    fuse the addition of a shortcut into the convolution (8 % of the time of a ShuffleNet V1); 0 is "as in the input".
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
            wanted = numpy_helper.to_array(constants[node.input[1]]).copy()
            _, *kept = shapes[node.input[0]]
            if wanted.size and wanted[0] == -1 and 0 not in (*kept, *wanted) and np.prod(kept) == np.prod(wanted[1:]):
                wanted[0] = 0
                node.input[1] = f"{node.output[0]}_shape"
                graph.initializer.append(numpy_helper.from_array(wanted, node.input[1]))
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in read]:
        graph.node.remove(node)
    onnx.helper.set_model_props(model, dict(metadata))
    return model.SerializeToString()


@contextlib.contextmanager
def _known_warnings() -> Iterator[None]:
    """Silence the exporter's notices by their text, and the tracer's about shapes, which are fixed here."""
    with warnings.catch_warnings():
        for message in _EXPORTER_WARNINGS:
            warnings.filterwarnings("ignore", message, DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


def to_torchscript(model: nn.Module, batch: Tensor) -> torch.jit.ScriptModule:
    """A network in inference mode traced on one batch, (N, C, H, W) and frozen: its weights are constants."""
    with torchscript_warnings(), torch.no_grad():
        return torch.jit.freeze(torch.jit.trace(model, batch, check_trace=False))


@contextlib.contextmanager
def torchscript_warnings() -> Iterator[None]:
    """Silence TorchScript's deprecation by its text, and the tracer's notices about shapes, which are fixed here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _TORCHSCRIPT_WARNING, DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        yield


def to_ncnn(path: Path, input_shape: tuple[int, int, int]) -> tuple[Path, Path]:
    """Convert an ONNX file of batch 1 by pnnx: ncnn's structure (.param) and weights (.bin, float32) beside it.

    Errors: `InputError` for a network that pnnx or ncnn do not know.
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
    """A copy of a network as it would be shipped: on the CPU, in inference mode."""
    return copy.deepcopy(model).cpu().eval()


def fold_batch_norm(model: nn.Module, input_shape: tuple[int, int, int] | None = None) -> nn.Module:
    """A copy in inference mode with every batch norm that directly follows a convolution folded into it.

    What follows what is found by tracing (torch.fx). A network that cannot be traced is traced child by child; a
    part that cannot be traced at all stays as it is, and so does a convolution used more than once. With
    `input_shape`, (C, H, W), the outputs are compared on seeded input, and where they differ by more than a
    thousandth of the largest the plain copy comes back, unfolded.
    """
    plain = inference_copy(model)
    result = copy.deepcopy(plain)
    with torch.no_grad():
        _fold(result)
        if input_shape is not None:
            image = _random_images((1, *input_shape), seed=0)
            if not relative_difference(plain(image).numpy(), result(image).numpy()) < 1e-3:
                return plain
    return result


def _fold(module: nn.Module) -> None:
    """Fold in place; children one by one where the module itself cannot be traced."""
    try:
        graph = torch.fx.Tracer().trace(module)
    except Exception:  # whatever a user's `forward` raises when it meets a proxy
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
    """Exact types only: a subclass may do more than its name says."""
    if type(convolution) not in _CONVOLUTIONS or type(norm) not in _BATCH_NORMS or norm.running_mean is None:
        return False
    return not (convolution._forward_hooks or convolution._forward_pre_hooks or norm._forward_hooks)


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)


def largest_difference(
    model: nn.Module,
    path: str | PathLike,
    input_shape: tuple[int, int, int],
    seed: int = 0,
    batches: int = 2,
) -> float:
    """How far ONNX Runtime's output is from PyTorch's, in float32, on seeded normal inputs.

    The largest absolute difference divided by the largest absolute output of PyTorch, over `batches` batches of the
    file's batch size (1, 3, 5, ... where it is free); infinite where either has a value that is not finite.
    """
    import onnxruntime

    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    session = onnxruntime.InferenceSession(Path(path).read_bytes(), providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    fixed = given.shape[0] if isinstance(given.shape[0], int) else None
    reference = inference_copy(model).float()
    worst = 0.0
    for i in range(batches):
        image = _random_images((fixed or 2 * i + 1, *input_shape), seed + i)
        with torch.inference_mode():
            expected = reference(image).numpy()
        worst = max(worst, relative_difference(expected, session.run(None, {given.name: image.numpy()})[0]))
    return worst


def _random_images(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def relative_difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Divide the largest absolute difference by the largest expected value.

    It is infinite where the shapes differ and where a value is not finite.
    """
    if expected.shape != found.shape or not (np.isfinite(expected).all() and np.isfinite(found).all()):
        return math.inf
    difference = float(np.abs(expected - found).max(initial=0))
    return difference / max(float(np.abs(expected).max(initial=0)), np.finfo(np.float32).tiny)
