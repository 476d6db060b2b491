"""Files of weights: read without executing code, and matched with a network by name and shape."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nasspace.errors import InputError, first_line


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name; a missing or damaged file raises `InputError`."""
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a valid safetensors file ({error})") from None


def load_into(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load all weights by name and shape; the first mismatch raises `InputError`."""
    own = network.state_dict()
    wrong = [
        *(f"'{name}' is missing" for name in own if name not in weights),
        *(f"'{name}' is not one of the network's" for name in weights if name not in own),
        *(
            f"'{name}' has the shape {tuple(weights[name].shape)}, but the network has {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ),
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(f"{source}: these weights are not of this architecture: {wrong[0]}{more}")
    network.load_state_dict(dict(weights))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dictionary in a file of `torch.save`; a missing or damaged file raises `InputError`."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # the errors of torch.load share no base class
        raise InputError(f"{path}: not a valid file of weights ({first_line(error)[:100]})") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path}: holds no state dictionary (tensors by name)")
    return found


def as_torch(state: Mapping[str, Tensor]) -> bytes:
    """Serialize a state dictionary for `torch.load(..., weights_only=True)`."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def as_safetensors(state: Mapping[str, Tensor], **metadata: str) -> bytes:
    """Serialize a state dictionary as safetensors.

    The metadata is stored as one JSON text, because the order in which safetensors writes keys changes from process to
    process, and equal weights must give equal files.
    """
    import safetensors.torch

    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    return safetensors.torch.save(tensors, {"nasspace": json.dumps(metadata, sort_keys=True)} if metadata else None)
