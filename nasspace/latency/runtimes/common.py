"""Sources, the seeded input and the checks that all runtimes share."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace.errors import InputError

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, int, int]
COMPARED_IMAGES = 16  # largest number of images compared with PyTorch


@dataclass(frozen=True, eq=False)
class CalibratedModel:
    """A network with preprocessed images, float32 (N, C, H, W), for the calibration of int8 runtimes."""

    model: nn.Module
    images: np.ndarray


if TYPE_CHECKING:
    Source = nn.Module | CalibratedModel | str | PathLike


def module_of(source: Source, name: str) -> nn.Module:
    """Return the `nn.Module` of a source; `InputError` for a file."""
    if isinstance(source, str | PathLike):
        raise InputError(f"{source}: the runtime '{name}' runs networks, not files; use --runtime onnxruntime")
    return source.model if isinstance(source, CalibratedModel) else source


def random_batch(batch_size: int, input_shape: Shape) -> np.ndarray:
    """Return seeded normal input, float32 (batch_size, C, H, W)."""
    return np.random.default_rng(0).standard_normal((batch_size, *input_shape), dtype=np.float32)


def check_outputs(network: Any, source: Source) -> None:
    """Compare a loaded network's outputs with PyTorch's, on the CPU in float32, for up to 16 images.

    Raises `InputError` if the largest difference exceeds `network.tolerance` times the largest output. A runtime
    without a tolerance is not compared, nor are outputs that are not finite.
    """
    tolerance = getattr(network, "tolerance", None)
    if tolerance is None:
        return
    import torch

    from nasspace.latency.convert import inference_copy, relative_difference

    batch = random_batch(network.batch_size, network.input)
    with torch.inference_mode():
        expected = inference_copy(module_of(source, network.name))(torch.from_numpy(batch[:COMPARED_IMAGES]))
    if not isinstance(expected, torch.Tensor) or not expected.isfinite().all():
        return
    difference = relative_difference(expected.numpy(), network.outputs(batch)[:COMPARED_IMAGES])
    if not difference <= tolerance:
        other = "eager" if network.name != "eager" else "onnxruntime"
        raise InputError(
            f"--runtime {network.name}: its outputs differ from PyTorch's (largest difference: {100 * difference:.2g} "
            f"% of the largest output), so another network would be measured; use --runtime {other}"
        )


def require_cpu(name: str, device: str) -> None:
    """Raise `InputError` for any device other than the CPU."""
    if device != "cpu":
        raise InputError(f"device '{device}': {name} runs on the cpu only; use --runtime eager")


def require_packages(name: str, *packages: str) -> None:
    """Raise `InputError` with the install command if a package of an optional runtime is missing."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"--runtime {name} needs {' and '.join(missing)}; run: pip install 'nasspace[{name}]'")
