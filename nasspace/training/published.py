"""How the published networks were trained, by name; the table is `published.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nasspace import files, zoo
from nasspace.errors import InputError, nearest
from nasspace.training.settings import TrainingSettings

TABLE = Path(__file__).with_suffix(".yaml")
SHARED = {  # families with one training
    "efficientnet_lite": "mnasnet",
    "mnasnet_small": "mnasnet",
    "resnext": "resnet",
    "shufflenet_v1": "shufflenet",
    "shufflenet_v2": "shufflenet",
}
IMAGES = 1_281_167  # ImageNet's training images, for conversion of iterations to epochs


@dataclass(frozen=True)
class PublishedTraining:
    """The training of a published network.

    `settings` are the settings that can be applied here, `augmentation` describes the source's augmentation, and
    `not_applied` what is not supported here; dropout is part of the architecture. `epochs` is None if it is not known.
    `resolution` is in pixels, `initialization` a scheme of `nasspace.initialization`. `source` says where the values
    are from (paper, official code, secondary, recalled), `note` which are from elsewhere, and other differences.
    """

    name: str
    settings: TrainingSettings
    epochs: int | None
    resolution: int
    initialization: str
    source: str
    augmentation: str
    not_applied: str
    note: str

    @property
    def batch_size(self) -> int:
        """Images per step, over all synchronous devices."""
        return self.settings.batch_size

    def scaled(self, batch_size: int, epochs: int | None = None) -> TrainingSettings:
        """The settings for another batch size, and for another number of epochs if the published one is known.

        Learning rates are scaled in proportion to the batch size (Goyal et al. 2017: a rule for SGD, and customary for
        RMSprop), settings in epochs (warm-up, drops, patience) in proportion to `epochs`. Batch norm statistics are
        re-estimated at the end: running ones with the published momentum need the published number of steps.
        """
        settings = self.settings
        factor = batch_size / settings.batch_size
        stretched = _stretched(settings, epochs / self.epochs) if epochs and self.epochs else {}
        return replace(
            settings,
            batch_size=batch_size,
            learning_rate=settings.learning_rate * factor,
            last_rate=settings.last_rate * factor,
            norm_statistics="re-estimated",
            **stretched,
        )


def _stretched(settings: TrainingSettings, factor: float) -> dict[str, Any]:
    """The settings that are counted in epochs, times `factor`."""
    warm_up = settings.warm_up * (factor if settings.warm_up_in == "epochs" else 1)
    return {
        "warm_up": warm_up,
        "every": settings.every * factor,
        "milestones": tuple(epoch * factor for epoch in settings.milestones),
        "patience": max(1, round(settings.patience * factor)),
    }


def names() -> list[str]:
    """The published trainings, in the order of the table."""
    return list(_table())


def load(name: str) -> PublishedTraining:
    """The published training of a name; an unknown name raises `InputError` with the nearest known one."""
    if name not in _table():
        raise InputError(f"'{name}' is not a published training{nearest(name, _table())}")
    entry = dict(_table()[name])
    training = entry.pop("training")
    try:
        return PublishedTraining(name=name, settings=TrainingSettings.from_mapping(training), **entry)
    except InputError as error:
        raise error.at(f"{TABLE.name}: {name}") from None


def of(network: str) -> PublishedTraining:
    """The training of a published network: its family's, or that of the CIFAR-100 networks for names in `_cifar`.

    A name of no published family raises `InputError`.
    """
    try:
        family = zoo.family_of(network.removesuffix("_d-li14"))
    except InputError:
        known = ", ".join(names())
        raise InputError(f"'{network}' is not a published network; its training is one of {known}") from None
    if network.endswith("_cifar"):
        return load("cifar100")
    training = SHARED.get(family, family)
    return load(f"{training}_d-li14" if network.endswith("_d-li14") and f"{training}_d-li14" in _table() else training)


@lru_cache(maxsize=1)
def _table() -> dict[str, dict[str, Any]]:
    """The content of `published.yaml`."""
    return files.load_yaml(TABLE).value
