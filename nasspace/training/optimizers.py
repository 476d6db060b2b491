"""What makes a step of a training: the optimizers, what of a network decays, and the average of its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nasspace.initialization import is_depthwise
from nasspace.training.settings import TrainingSettings


class RMSprop(torch.optim.Optimizer):
    """Root mean square propagation as in TensorFlow, with which the MobileNets were trained.

    square <- decay square + (1 - decay) g², from 1; moved <- momentum moved + rate g / sqrt(square + epsilon); the
    weight less `moved`. PyTorch's own starts the mean square at 0, adds epsilon outside the root, and applies a
    changed rate to past steps as well. Weight decay is added to the gradient g.
    """

    def __init__(self, groups: list[dict], lr: float, decay: float, momentum: float, epsilon: float):
        super().__init__(groups, {"lr": lr, "decay": decay, "momentum": momentum, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every parameter that has a gradient; there is no closure."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"square": torch.ones_like(parameter), "moved": torch.zeros_like(parameter)}
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        square, moved = state["square"], state["moved"]
        square.mul_(group["decay"]).addcmul_(gradient, gradient, value=1 - group["decay"])
        moved.mul_(group["momentum"]).addcdiv_(gradient, (square + group["epsilon"]).sqrt_(), value=group["lr"])
        parameter.sub_(moved)


def optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimizer of all that is trained in a model, with weight decay where the settings want it."""
    spared = _spared(model, settings.decayed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) not in spared], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0},
    ]
    rate, momentum = settings.learning_rate, settings.momentum
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    if settings.optimizer == "rmsprop":
        return RMSprop(groups, rate, settings.square_decay, momentum, settings.epsilon)
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=settings.nesterov and momentum > 0, fused=True)


def _spared(model: nn.Module, decayed: str) -> set[int]:
    """The identities of the parameters that do not decay."""
    if decayed == "all":
        return set()
    flat = {id(parameter) for parameter in model.parameters() if parameter.ndim <= 1}
    apart = {id(part.weight) for part in model.modules() if is_depthwise(part)}
    return flat | apart if decayed == "weights-but-depthwise" else flat


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that follows its weights and batch norms' statistics; `update_parameters` after each step.

    After n steps the decay is (1 + n) / (10 + n) until that is above `decay`, as in TensorFlow.
    """

    def follow(averages: Sequence[Tensor], currents: Sequence[Tensor], steps: Tensor) -> None:
        count = int(steps)
        kept = min(decay, (1 + count) / (10 + count))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - kept)
            else:  # a count of batches has no average
                average.copy_(current)

    average = AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
    average.update_parameters(model)  # the first call copies: the average begins at the initial weights
    return average
