"""Weights in files: read without running what they hold, and matched with a network by name and shape."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nasspace.errors import InputError, first_line


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; an `InputError` names a file that is missing or damaged."""
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a sound safetensors file ({error})") from None


def load_into(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load all weights, by name and shape; an `InputError` says what does not fit."""
    own = network.state_dict()
    wrong = [
        *(f"'{name}' is missing" for name in own if name not in weights),
        *(f"'{name}' is not one of the network's" for name in weights if name not in own),
        *(
            f"'{name}' has the shape {tuple(weights[name].shape)} where the network has {tuple(own[name].shape)}"
            for name in own
            if name in weights and weights[name].shape != own[name].shape
        ),
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(f"{source}: these weights are not of this architecture: {wrong[0]}{more}")
    network.load_state_dict(dict(weights))


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dictionary in a file of `torch.save`; an `InputError` names a file that is missing or damaged."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # what a damaged file makes of torch.load has no common base
        raise InputError(f"{path}: not a sound file of weights ({first_line(error)[:100]})") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path}: holds no state dictionary (tensors by name)")
    return found


def as_torch(state: Mapping[str, Tensor]) -> bytes:
    """The content of a file that `torch.load(..., weights_only=True)` reads."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def as_safetensors(state: Mapping[str, Tensor], **about: str) -> bytes:
    """The content of a safetensors file; `about` is its metadata.

    The metadata is one JSON text, since safetensors writes several keys in an order that changes from process to
    process, and equal weights are to be equal files.
    """
    import safetensors.torch

    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    return safetensors.torch.save(tensors, {"nasspace": json.dumps(about, sort_keys=True)} if about else None)
