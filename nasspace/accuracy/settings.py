"""How long and how a network is trained: two frozen values, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nasspace.errors import InputError, nearest

OPTIMISERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "one-cycle")


@dataclass(frozen=True)
class Fidelity:
    """A training budget: square resolution in pixels, passes over the data, share of each class's images."""

    resolution: int
    epochs: int
    share: float = 1.0

    def __post_init__(self) -> None:
        _check(self.resolution >= 1, "fidelity.resolution", self.resolution, "a number of pixels above 0")
        _check(self.epochs >= 1, "fidelity.epochs", self.epochs, "1 or more")
        _check(0 < self.share <= 1, "fidelity.share", self.share, "above 0 and at most 1")


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained; the defaults are for short trainings of small networks.

    `learning_rate` is the peak: it rises in a line over the share `warm_up` of all steps, then falls to zero by a
    half cosine or (`one-cycle`) in a line. SGD has Nesterov momentum 0.9. `weight_decay` spares biases and norms.
    `crop_padding` is the largest random shift as a share of the side. `flip` mirrors images left to right; None
    does so for colour images only, since what is drawn or written seldom survives it. `gradient_norm` is the
    largest that a step may have (0: any). `threads` are torch's, on the CPU.
    """

    batch_size: int = 64
    learning_rate: float = 0.2
    optimiser: str = "sgd"
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    warm_up: float = 0.2
    schedule: str = "cosine"
    crop_padding: float = 0.0625
    flip: bool | None = None
    gradient_norm: float = 1.0
    evaluation_batch_size: int = 256
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "evaluation_batch_size", "threads"):
            _check(isinstance(getattr(self, name), int), f"training.{name}", getattr(self, name), "a whole number")
        _check(self.flip in (None, True, False), "training.flip", self.flip, "true, false or null")
        _check(self.batch_size >= 2, "training.batch_size", self.batch_size, "2 or more, for batch norm")
        _check(self.learning_rate > 0, "training.learning_rate", self.learning_rate, "above 0")
        _check(self.optimiser in OPTIMISERS, "training.optimiser", self.optimiser, " or ".join(OPTIMISERS))
        _check(self.weight_decay >= 0, "training.weight_decay", self.weight_decay, "0 or more")
        _check(0 <= self.label_smoothing < 1, "training.label_smoothing", self.label_smoothing, "from 0 to below 1")
        _check(0 <= self.warm_up < 1, "training.warm_up", self.warm_up, "a share of the steps, from 0 to below 1")
        _check(self.schedule in SCHEDULES, "training.schedule", self.schedule, " or ".join(SCHEDULES))
        _check(0 <= self.crop_padding < 1, "training.crop_padding", self.crop_padding, "a share of the side below 1")
        _check(self.gradient_norm >= 0, "training.gradient_norm", self.gradient_norm, "0 or more")
        _check(self.evaluation_batch_size >= 1, "training.evaluation_batch_size", self.evaluation_batch_size, "above 0")
        _check(self.threads >= 1, "training.threads", self.threads, "1 or more")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """The settings of a recipe's `training`; unknown keys are refused with the nearest known one."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(f"training: '{key}' is not a setting{nearest(key, known)}")
        try:
            return cls(**values)
        except TypeError as error:  # a text where a number belongs
            raise InputError(f"training: {error}") from None

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of one of `steps` steps, counted from 0."""
        rising = max(1, round(self.warm_up * steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        left = (steps - step) / (steps - rising + 1)
        return self.learning_rate * (left if self.schedule == "one-cycle" else (1 - math.cos(math.pi * left)) / 2)


def _check(holds: bool, place: str, value: object, allowed: str) -> None:
    if not holds:
        raise InputError(f"{place}: {value!r} is not {allowed}")
