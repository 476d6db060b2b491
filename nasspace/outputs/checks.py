"""The checks of an export folder: every file says the same network, and its figures are right."""

from __future__ import annotations

import ast
import hashlib
import math
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasspace import counting
from nasspace.architecture import Architecture
from nasspace.errors import InputError
from nasspace.network import build
from nasspace.outputs.modules import allowed
from nasspace.outputs.weights import load_into, read_safetensors, read_state

LIMIT = 1e-4  # of outputs, relative to the largest
BATCH = 2
TIMEOUT = 600  # seconds for model.py; a guard, not a budget
COUNTED = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum")  # fvcore's names of operators
PROGRAM = """
import importlib.util, sys
sys.modules["nasspace"] = None  # any import of it fails
path, source, target = sys.argv[1:]
spec = importlib.util.spec_from_file_location("model", path)
model = sys.modules["model"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model)
import torch
network = model.load()
with torch.inference_mode():
    torch.save(network(torch.load(source, weights_only=True)), target)
"""


@dataclass(frozen=True)
class Check:
    """One check: what was found, and what it must equal or not exceed."""

    name: str
    ok: bool
    value: Any
    limit: Any


def run(folder: Path, architecture: Architecture, record: Mapping[str, Any]) -> list[Check]:
    """Check the files that `record` (the content of export.json) names.

    model.py is run, in a process of its own that cannot import nasspace. A file that is missing or cannot be read is
    an `InputError` that names it; a file that says something else is a failed check.
    """
    network = _network(folder / "weights.safetensors", architecture)
    checks = [_trained(record), *_counts(network, architecture), *_unchanged(folder, record["files"])]
    if "weights.pt" in record["files"]:
        checks.append(_same_weights(folder / "weights.pt", network))
    if "model.onnx" in record["files"]:
        checks.append(_model_onnx(folder / "model.onnx", network, architecture))
    if "model.py" in record["files"]:
        checks += [_imports(folder / "model.py"), _model_py(folder / "model.py", network, architecture)]
    return checks


def _network(path: Path, architecture: Architecture) -> nn.Module:
    network = build(architecture)
    load_into(network, read_safetensors(path), str(path))
    return network.eval()


def _trained(record: Mapping[str, Any]) -> Check:
    value = "as given" if record["trained"] else f"never trained: initialised from seed {record['seed']}"
    return Check("weights", True, value, "")


def _counts(network: nn.Module, architecture: Architecture) -> Iterator[Check]:
    """Parameters as the network has them, FLOPs as fvcore counts the whole network."""
    counted = counting.cost(architecture)
    params = sum(parameter.numel() for parameter in network.parameters())
    yield Check("parameters", params == counted.params, params, counted.params)
    flops = fvcore_flops(network, architecture.input)
    ok = flops is None or flops == counted.flops
    yield Check("FLOPs by fvcore", ok, "not counted: fvcore cannot trace it" if flops is None else flops, counted.flops)


def fvcore_flops(network: nn.Module, input_shape: tuple[int, int, int]) -> int | None:
    """Multiply-adds of convolutions and linear layers for one image; None where the network cannot be traced."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(network, torch.zeros(1, *input_shape))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        try:
            operators = analysis.by_operator()
        except Exception:  # whatever a user's `forward` raises when it is traced
            return None
    return round(sum(operators[name] for name in COUNTED))


def _unchanged(folder: Path, recorded: Mapping[str, str | None]) -> Iterator[Check]:
    """Whether the files that nobody edits are those that were written."""
    for name, expected in recorded.items():
        if expected is not None:
            found = digest(folder / name)
            yield Check(f"{name} unchanged", found == expected, found, expected)


def digest(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256; a missing file is an `InputError`."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _same_weights(path: Path, network: nn.Module) -> Check:
    """weights.pt holds what weights.safetensors holds, to the last bit."""
    own, found = network.state_dict(), read_state(path)
    worst = math.inf
    if own.keys() == found.keys():
        worst = max((_difference(own[name], found[name]) for name in own), default=0.0)
    value = worst if math.isfinite(worst) else "other names, shapes or kinds"
    return Check("weights.pt equals weights.safetensors", worst == 0, value, 0.0)


def _model_py(path: Path, network: nn.Module, architecture: Architecture) -> Check:
    """The outputs of model.py, run with its own weights in a fresh process that has no nasspace."""
    images = torch.randn(BATCH, *architecture.input, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory(prefix="nasspace-") as name:
        source, target = Path(name) / "images.pt", Path(name) / "outputs.pt"
        torch.save(images, source)
        command = [sys.executable, "-I", "-B", "-W", "ignore", "-c", PROGRAM, str(path), str(source), str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            raise InputError(f"{path}: did not end within {TIMEOUT} seconds") from None
        if done.returncode != 0 or not target.is_file():
            reason = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
            raise InputError(f"{path}: does not run: {reason}")
        found = torch.load(target, weights_only=True)
    with torch.inference_mode():
        expected = network(images)
    value = math.inf
    if expected.shape == found.shape:
        value = _difference(expected, found) / max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
    return _outputs_equal("model.py", value)


def _outputs_equal(name: str, difference: float) -> Check:
    """The check of a relative difference; an infinite one, which JSON cannot hold, is said in words."""
    value = difference if math.isfinite(difference) else "not finite, or of another shape"
    return Check(f"{name} equals PyTorch", difference <= LIMIT, value, LIMIT)


def _difference(expected: Tensor, found: Tensor) -> float:
    """The largest absolute difference; infinite where a value is not finite, or shape or kind differ."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return math.inf
    if expected.is_floating_point() and not (expected.isfinite().all() and found.isfinite().all()):
        return math.inf
    return float((expected.double() - found.double()).abs().max()) if expected.numel() else 0.0


def _imports(path: Path) -> Check:
    """Whether model.py imports PyTorch and the standard library only."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not a Python file ({error})") from None
    found = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    found += ["." * node.level + (node.module or "") for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    others = [name for name in found if not allowed(name)]
    return Check("model.py imports only torch and the standard library", not others, ", ".join(others), "")


def _model_onnx(path: Path, network: nn.Module, architecture: Architecture) -> Check:
    from nasspace.latency.convert import largest_difference

    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        value = largest_difference(network, path, architecture.input)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise InputError(f"{path}: ONNX Runtime cannot run it ({str(error).splitlines()[0][:200]})") from None
    return _outputs_equal("model.onnx", value)
