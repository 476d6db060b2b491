"""Files of weights: read without executing code, and matched with a network by name and shape."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasspace.errors import InputError, first_line

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "state_dict_ema",
    "model_ema",
)  # keys of the weights in a training's checkpoint
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
REFUSED = re.compile(r"Unsupported global.*?(?:GLOBAL )?([\w.]+\.\w+)", re.DOTALL)  # in torch.load's messages


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


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights of this or another program: safetensors, or a file of `torch.save`, also a training's checkpoint."""
    if path.suffix == ".safetensors":
        return dict(unwrapped(read_safetensors(path)))
    found = _read_torch(path)
    return _checked(dict(unwrapped(found)) if isinstance(found, Mapping) else found, path)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dictionary in a file of `torch.save`; a missing or damaged file raises `InputError`."""
    return _checked(_read_torch(path), path)


def _read_torch(path: Path) -> Any:
    """Read a file of `torch.save` of tensors and plain values; another or a damaged file raises `InputError`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # the errors of torch.load share no base class
        if refused := REFUSED.search(str(error)):
            raise InputError(
                f"{path}: holds a Python object ({refused[1]}), which is not loaded since it could run code; save the "
                "weights alone, with torch.save(network.state_dict(), FILE)"
            ) from None
        raise InputError(f"{path}: not a valid file of weights ({first_line(error)[:100]})") from None


def unwrapped(state: Mapping[str, object]) -> Mapping[str, object]:
    """The weights in a training's checkpoint, under the names that the network had before it was wrapped."""
    for key in WRAPPERS:
        inner = state.get(key)
        if isinstance(inner, Mapping):
            return unwrapped(inner)
    for prefix in PREFIXES:
        if state and all(isinstance(name, str) and name.startswith(prefix) for name in state):
            return unwrapped({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def _checked(found: Any, path: Path) -> dict[str, Tensor]:
    """A state dictionary as read from a file; raises `InputError` if it is none."""
    is_state = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    )
    if not is_state or not found:
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
