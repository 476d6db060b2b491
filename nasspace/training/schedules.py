"""The learning rate of each step."""

from __future__ import annotations

import math

from nasspace.training.settings import TrainingSettings

SLIGHTLY = 1e-9  # epochs: a step that floating point puts just before a whole epoch belongs to it


def rate(settings: TrainingSettings, step: int, steps: int, per_epoch: int = 1, drops: int = 0) -> float:
    """The learning rate of one of `steps` steps, counted from 0; `drops` is how often a plateau was met so far."""
    rising = _rising(settings, steps, per_epoch)
    if step < rising:
        return settings.learning_rate * (step + 1) / rising
    if settings.schedule in ("cosine", "one-cycle"):
        left = (steps - step) / (steps - rising + 1)
        share = left if settings.schedule == "one-cycle" else (1 - math.cos(math.pi * left)) / 2
        return settings.last_rate + (settings.learning_rate - settings.last_rate) * share
    drops = _drops(settings, step / per_epoch + SLIGHTLY, drops)
    return max(settings.last_rate, settings.learning_rate * settings.factor**drops)


def _rising(settings: TrainingSettings, steps: int, per_epoch: int) -> int:
    """How many steps the warm-up has; the first step is always of the warm-up."""
    return max(1, round(settings.warm_up * (steps if settings.warm_up_in == "share" else per_epoch)))


def _drops(settings: TrainingSettings, epoch: float, plateaus: int) -> int:
    """How often the rate has been multiplied by `factor`."""
    if settings.schedule == "exponential":
        return int(epoch / settings.every)
    return sum(at <= epoch for at in settings.milestones) if settings.schedule == "steps" else plateaus


class Plateau:
    """Counts how often `patience` epochs in a row brought no better accuracy: `drops`."""

    def __init__(self, patience: int):
        self.patience = patience
        self.drops = 0
        self._best = -math.inf
        self._waited = 0

    def tell(self, accuracy: float) -> None:
        """The accuracy after one more epoch."""
        self._waited = 0 if accuracy > self._best else self._waited + 1
        self._best = max(self._best, accuracy)
        if self._waited >= self.patience:
            self.drops, self._waited = self.drops + 1, 0
