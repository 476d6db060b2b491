"""Devices that networks are trained on."""

from __future__ import annotations

from collections.abc import Callable

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


def device_here(name: str, what: str, report: Callable[..., None]) -> str:
    """The device of a recipe, or the CPU if this machine lacks it, which a cluster's workers may have.

    A note then says that the CPU trains `what`.
    """
    try:
        check_device(name)
    except InputError:
        report("note", text=f"this machine has no {name}: its CPU trains {what}")
        return "cpu"
    return name
