"""Files of weights: read without executing code, and matched with a network by name and shape."""

from __future__ import annotations

import argparse
import io
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasspace.errors import InputError

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "state_dict_ema",
    "model_ema",
)  # keys of the weights in a training's checkpoint
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")  # of DataParallel, torch.compile, PyTorch Lightning
REFUSED = re.compile(r"GLOBAL ([\w.]+)")  # in torch.load's messages


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
    if path.suffix == ".onnx":
        raise InputError(f"{path}: an ONNX file has a graph of its own; name the weights that it was exported from")
    found = read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return as_state(found, str(path))


def as_state(given: Any, place: str) -> dict[str, Tensor]:
    """Weights as a state dictionary of finite dense tensors, also from inside a training's checkpoint."""
    state = unwrapped(given) if isinstance(given, Mapping) else given
    return _checked_values(_checked(dict(state) if isinstance(state, Mapping) else state, place), place)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dictionary in a file of `torch.save`; a missing or damaged file raises `InputError`."""
    return _checked(_read_torch(path), str(path))


def _read_torch(path: Path) -> Any:
    """Read a file of `torch.save` of tensors and plain values; another or a damaged file raises `InputError`.

    `argparse.Namespace`, which only holds values, is allowed: the scripts of torchvision and timm save their arguments.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # the errors of torch.load share no base class
        refused = REFUSED.search(str(error))
        what = f"holds a Python object, {refused[1]}" if refused else type(error).__name__
        raise InputError(
            f"{path}: not a valid file of weights ({what}); only tensors are loaded, since objects could run "
            "code: save them alone, with torch.save(network.state_dict(), FILE)"
        ) from None


def unwrapped(state: Mapping[Any, Any], depth: int = 4) -> Mapping[Any, Any]:
    """The weights in a training's checkpoint, under the names that the network had before it was wrapped."""
    if not depth:
        return state
    inner = [state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)]
    if inner:
        return unwrapped(inner[0], depth - 1)
    state = {name: value for name, value in state.items() if name != "n_averaged"}
    for prefix in PREFIXES:
        if state and all(isinstance(name, str) and name.startswith(prefix) for name in state):
            return unwrapped({name.removeprefix(prefix): value for name, value in state.items()}, depth - 1)
    return state


def _checked(found: Any, place: str) -> dict[str, Tensor]:
    """A state dictionary as read from a file; raises `InputError` if it is none."""
    is_state = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    )
    if not is_state or not found:
        names = [str(name)[:20] for name in found][:5] if isinstance(found, dict) else []
        keys = f"; it has {', '.join(names)}" if names else ""
        raise InputError(f"{place}: holds no state dictionary (tensors by name){keys}")
    return found


def _checked_values(state: dict[str, Tensor], place: str) -> dict[str, Tensor]:
    """A state dictionary whose tensors are dense, real and finite; raises `InputError` for another."""
    for name, tensor in state.items():
        is_plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_complex())
        if not is_plain:
            raise InputError(
                f"{place}: '{name[:60]}' is quantized, sparse or without values; save a float network's weights"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(
                f"{place}: '{name[:60]}' has values that are not finite; save the weights of a sound training"
            )
    return state


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
