"""What every runtime takes: sources, the seeded batch; and what it refuses."""

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
COMPARED_IMAGES = 16  # images


@dataclass(frozen=True, eq=False)
class CalibratedModel:
    """A network with the images, float32 (N, C, H, W) as it is fed, from which int8 runtimes take their ranges."""

    model: nn.Module
    images: np.ndarray


if TYPE_CHECKING:
    Source = nn.Module | CalibratedModel | str | PathLike


def module_of(source: Source, name: str) -> nn.Module:
    """The `nn.Module` in a source; a file is an `InputError` that names the runtime."""
    if isinstance(source, str | PathLike):
        raise InputError(f"{source}: the runtime '{name}' runs networks, not files; use --runtime onnxruntime")
    return source.model if isinstance(source, CalibratedModel) else source


def random_batch(batch_size: int, input_shape: Shape) -> np.ndarray:
    """Seeded normal input, (batch, C, H, W) in float32."""
    return np.random.default_rng(0).standard_normal((batch_size, *input_shape), dtype=np.float32)


def check_outputs(network: Any, source: Source) -> None:
    """Compare a loaded network's outputs with PyTorch's of its source, on the CPU in float32; up to 16 images.

    The largest difference may be `network.tolerance` of the largest output; a runtime without one is not compared, nor
    are outputs that are not finite. Other outputs are those of another network: an `InputError`.
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
            f"--runtime {network.name}: its outputs are not PyTorch's (largest difference: {100 * difference:.2g} % of "
            f"the largest output), so that another network would be measured; use --runtime {other}"
        )


def require_cpu(name: str, device: str) -> None:
    """Refuse every other device."""
    if device != "cpu":
        raise InputError(f"device '{device}': {name} runs on the cpu here; use --runtime eager")


def require_packages(name: str, *packages: str) -> None:
    """The packages of an optional engine, or an `InputError` with the command that installs them."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"--runtime {name} needs {' and '.join(missing)}; run: pip install 'nasspace[{name}]'")
