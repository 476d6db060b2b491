"""Mixed precision: which devices train in bfloat16 or float16, and the scaling of float16's gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nasspace.errors import InputError


def check_precision(precision: str, device: str) -> None:
    """Refuse a precision that a device cannot train in."""
    kind = device.partition(":")[0]
    if precision == "float16" and kind != "cuda":
        raise InputError(f"training.precision: float16 needs a GPU with CUDA; on {kind}, choose float32 or bfloat16")
    if precision == "bfloat16" and kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError("training.precision: this GPU has no bfloat16; choose float32 or float16")


class Precision:
    """Forward and backward in a precision; weights, gradients, optimizer and loss stay in float32 (`torch.autocast`).

    With float16, the loss is scaled so that small gradients do not become zero (`GradScaler`).
    """

    def __init__(self, precision: str, device: str):
        check_precision(precision, device)
        self.kind = device.partition(":")[0]
        self.dtype = None if precision == "float32" else getattr(torch, precision)
        self.scaler = torch.amp.GradScaler(self.kind) if precision == "float16" else None

    def scores(self, model: nn.Module, images: Tensor) -> Tensor:
        """The logits of images, in float32."""
        if self.dtype is None:
            return model(images)
        with torch.autocast(self.kind, self.dtype):
            return model(images).float()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled with float16."""
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Undo the scaling of the gradients."""
        if self.scaler:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step of an optimizer; with float16, none if a gradient is infinite, and a new scale."""
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()

    def state(self) -> dict[str, Any]:
        """The scale, for checkpoints; empty without one."""
        return self.scaler.state_dict() if self.scaler else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        if self.scaler:
            self.scaler.load_state_dict(dict(state))
