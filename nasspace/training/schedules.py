"""Learning rate schedules."""

from __future__ import annotations

import math

from nasspace.training.settings import TrainingSettings

SLIGHTLY = 1e-9  # epochs: corrects steps that rounding puts just before a whole epoch


def rate(settings: TrainingSettings, step: int, steps: int, per_epoch: int = 1, drops: int = 0) -> float:
    """The learning rate of one of `steps` steps, counted from 0; `drops` is the number of plateaus so far."""
    warm_up = warm_up_steps(settings, steps, per_epoch)
    if step < warm_up:
        return settings.learning_rate * (step + 1) / warm_up
    if settings.schedule in ("cosine", "one-cycle"):
        left = (steps - step) / (steps - warm_up + 1)
        share = left if settings.schedule == "one-cycle" else (1 - math.cos(math.pi * left)) / 2
        return settings.last_rate + (settings.learning_rate - settings.last_rate) * share
    drops = _drops(settings, step / per_epoch + SLIGHTLY, drops)
    return max(settings.last_rate, settings.learning_rate * settings.factor**drops)


def warm_up_steps(settings: TrainingSettings, steps: int, per_epoch: int) -> int:
    """The number of warm-up steps, at least 1."""
    return max(1, round(settings.warm_up * (steps if settings.warm_up_in == "share" else per_epoch)))


def _drops(settings: TrainingSettings, epoch: float, plateaus: int) -> int:
    """How many times the rate has been multiplied by `factor`."""
    if settings.schedule == "exponential":
        return int(epoch / settings.every)
    return sum(at <= epoch for at in settings.milestones) if settings.schedule == "steps" else plateaus


class Plateau:
    """Counts in `drops` how many times `patience` epochs in a row brought no better accuracy.

    Its attributes are saved in checkpoints.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.drops = 0
        self._best = -math.inf
        self._waited = 0

    def update(self, accuracy: float) -> None:
        """Add the accuracy after another epoch."""
        self._waited = 0 if accuracy > self._best else self._waited + 1
        self._best = max(self._best, accuracy)
        if self._waited >= self.patience:
            self.drops, self._waited = self.drops + 1, 0
