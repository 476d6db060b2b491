"""Optimizers, the parameters that weight decay acts on, and the moving average of weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nasspace.initialization import is_depthwise
from nasspace.training.settings import TrainingSettings


class RMSprop(torch.optim.Optimizer):
    """RMSprop as in TensorFlow, with which the MobileNets were trained.

    square <- decay square + (1 - decay) g², from 1; moved <- momentum moved + rate g / sqrt(square + epsilon);
    weight <- weight - moved. PyTorch's RMSprop starts the mean square at 0, adds epsilon outside the root, and applies
    a changed rate to past steps as well. Weight decay is added to the gradient g.
    """

    def __init__(self, groups: list[dict], lr: float, decay: float, momentum: float, epsilon: float):
        super().__init__(groups, {"lr": lr, "decay": decay, "momentum": momentum, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every parameter that has a gradient; a closure is not supported."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict) -> None:
        """Update one parameter in place."""
        state = self.state[parameter]
        if not state:
            state |= {"square": torch.ones_like(parameter), "moved": torch.zeros_like(parameter)}
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        square, moved = state["square"], state["moved"]
        square.mul_(group["decay"]).addcmul_(gradient, gradient, value=1 - group["decay"])
        moved.mul_(group["momentum"]).addcdiv_(gradient, (square + group["epsilon"]).sqrt_(), value=group["lr"])
        parameter.sub_(moved)


def optimizer(
    model: nn.Module, settings: TrainingSettings, depthwise: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimizer of a model's trainable parameters, with weight decay on those that the settings name.

    `depthwise` are weights of depthwise convolutions besides those of the model's own modules.
    """
    exempt = _exempt_from_decay(model, settings.decayed, depthwise)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) not in exempt], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if id(p) in exempt], "weight_decay": 0.0},
    ]
    rate, momentum = settings.learning_rate, settings.momentum
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=True)
    if settings.optimizer == "rmsprop":
        return RMSprop(groups, rate, settings.square_decay, momentum, settings.epsilon)
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=settings.nesterov and momentum > 0, fused=True)


def _exempt_from_decay(model: nn.Module, decayed: str, others: Iterable[nn.Parameter]) -> set[int]:
    """The `id`s of the parameters without weight decay."""
    if decayed == "all":
        return set()
    vectors = {id(parameter) for parameter in model.parameters() if parameter.ndim <= 1}
    depthwise = {id(part.weight) for part in model.modules() if is_depthwise(part)} | set(map(id, others))
    return vectors | depthwise if decayed == "weights-but-depthwise" else vectors


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's weights and batch norm statistics.

    Call its `update_parameters` after each step. After n steps the decay is the smaller of `decay` and
    (1 + n) / (10 + n), as in TensorFlow.
    """

    def update(averages: Sequence[Tensor], currents: Sequence[Tensor], steps: Tensor) -> None:
        count = int(steps)
        current_decay = min(decay, (1 + count) / (10 + count))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - current_decay)
            else:  # a count of batches has no average
                average.copy_(current)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    average.update_parameters(model)  # the first call copies the initial weights
    return average
