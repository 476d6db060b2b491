"""The checkpoint file of a training: written atomically, and read only by the same training."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nasspace import files
from nasspace.data.images import DataSet
from nasspace.errors import InputError
from nasspace.training.settings import Fidelity, TrainingSettings

VERSION = 1
INTERVAL = 30.0  # seconds between two checkpoints within an epoch


class UnfitCheckpoint(InputError):
    """The checkpoint at `path` cannot be read, is damaged or belongs to another training: the `reason`."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}; delete it to start this training from the beginning")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return UnfitCheckpoint, (self.path, self.reason)


class Checkpoints:
    """The checkpoint file of one training; `identity` identifies the training, part by part.

    `on_save` is called with the path whenever the file was replaced.
    """

    def __init__(self, path: Path, identity: Mapping[str, str], on_save: Callable[[Path], None] | None = None):
        self.path = path
        self.identity = dict(identity)
        self.on_save = on_save

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the file; `state` holds tensors, numbers, strings, lists and dictionaries."""
        buffer = io.BytesIO()
        torch.save({"nasspace_checkpoint": VERSION, "identity": self.identity, "state": dict(state)}, buffer)
        with files.replacing(self.path) as temporary:
            temporary.write_bytes(buffer.getvalue())
        if self.on_save:
            self.on_save(self.path)

    def load(self) -> dict[str, Any] | None:
        """The last saved state, or None; a damaged file or another training's raises `UnfitCheckpoint`."""
        if not self.path.exists():
            return None
        try:
            checkpoint = torch.load(self.path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise UnfitCheckpoint(self.path, f"cannot be read ({error.strerror or error})") from None
        except Exception as error:  # torch.load's exceptions on damaged files have no common base
            raise UnfitCheckpoint(self.path, f"not a sound checkpoint ({type(error).__name__})") from None
        if not isinstance(checkpoint, dict) or checkpoint.get("nasspace_checkpoint") != VERSION:
            raise UnfitCheckpoint(self.path, "not a checkpoint of this version of nasspace")
        other = differing(self.identity, checkpoint["identity"])
        if other:
            raise UnfitCheckpoint(self.path, f"the checkpoint of another training ({', '.join(other)} differ)")
        return checkpoint["state"]


def differing(identity: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The parts in which two identities of trainings differ; a part may be in one of them only."""
    return [part for part in dict.fromkeys([*identity, *other]) if identity.get(part) != other.get(part)]


def identity(
    model: nn.Module, data: DataSet, fidelity: Fidelity, settings: TrainingSettings, seed: int, device: str
) -> dict[str, str]:
    """What distinguishes a training, one short string per part; `model` still has its initial weights."""
    state = model.state_dict()
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in state.items()]
    content = hashlib.sha256()
    for tensor in state.values():
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {
        "settings": settings.fingerprint(),
        "epochs or resolution": _digest(sorted(asdict(fidelity).items())),
        "seed": str(seed),
        "device": device.partition(":")[0],
        "data": data.fingerprint,
        "network": _digest((repr(model), shapes)),
        "initial weights": content.hexdigest()[:12],
        "version of PyTorch": str(torch.__version__),
    }


def _digest(value: Any) -> str:
    """12 hex digits of a value's representation."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:12]
