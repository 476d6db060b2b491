"""What every runtime takes: sources, the seeded batch; and what it refuses."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from nasspace.errors import InputError

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A network with the images, float32 (N, C, H, W) as it is fed, from which int8 runtimes take their ranges."""

    model: nn.Module
    images: np.ndarray


if TYPE_CHECKING:
    Source = nn.Module | Calibrated | str | PathLike


def network_of(source: Source, name: str) -> nn.Module:
    """The `nn.Module` in a source; a file is an `InputError` that names the runtime."""
    if isinstance(source, str | PathLike):
        raise InputError(f"{source}: the runtime '{name}' runs networks, not files; use --runtime onnxruntime")
    return source.model if isinstance(source, Calibrated) else source


def batch_of(batch_size: int, input_shape: Shape) -> np.ndarray:
    """Seeded normal input, (batch, C, H, W) in float32."""
    return np.random.default_rng(0).standard_normal((batch_size, *input_shape), dtype=np.float32)


def only_on_cpu(name: str, device: str) -> None:
    """Refuse every other device."""
    if device != "cpu":
        raise InputError(f"device '{device}': {name} runs on the cpu here; use --runtime eager")


def require(name: str, *packages: str) -> None:
    """The packages of an optional engine, or an `InputError` with the command that installs them."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f"--runtime {name} needs {' and '.join(missing)}; run: pip install 'nasspace[{name}]'")
