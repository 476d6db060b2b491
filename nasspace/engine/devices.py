"""Devices that networks are trained on."""

from __future__ import annotations

from nasspace.errors import InputError, nearest

DEVICES = ("cpu", "cuda", "mps")


def check_device(name: str) -> None:
    """Raise `InputError` for a device that PyTorch does not have on this machine."""
    import torch

    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise InputError(f"device: '{name}' is not a device{nearest(kind, DEVICES)}")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[kind]:
        raise InputError(f"device: PyTorch finds no {kind} on this machine; choose cpu")
