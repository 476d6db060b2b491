"""Resolve training settings given by name or file, for a data set, a batch size and a number of epochs."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from nasspace import files
from nasspace.errors import InputError, nearest
from nasspace.training import published
from nasspace.training.settings import TrainingSettings

OWN = "own"
NOTHING = "nothing known"  # `not_applied` in the table where everything is applied
LEAST_STEPS = 20  # of an epoch: a published batch size that leaves fewer is lowered


@dataclass(frozen=True)
class ResolvedSettings:
    """Training settings, their name, what of a published training is not applied, and notes for the user."""

    name: str
    settings: TrainingSettings
    not_applied: str | None = None
    notes: tuple[str, ...] = ()


def resolve_settings(
    requested: str | os.PathLike | TrainingSettings | None,
    *,
    images: int,
    epochs: int,
    batch_size: int | None = None,
    threads: int | None = None,
    has_teacher: bool = False,
) -> ResolvedSettings:
    """The settings for `images` training images and `epochs` epochs.

    `requested` is None or `own` (the package's own), the name of a published training, the path of a YAML file, or
    settings. With another batch size the learning rates are scaled in proportion (Goyal et al. 2017). Published
    settings are also scaled to the number of epochs. The notes name settings without effect. An unknown name raises
    `InputError` with the nearest known one.
    """
    if requested is None or requested == OWN:
        resolved = ResolvedSettings(OWN, _with_batch_size(TrainingSettings(), batch_size))
    elif isinstance(requested, TrainingSettings):
        resolved = ResolvedSettings("given", _with_batch_size(requested, batch_size))
    elif str(requested) in published.names():
        resolved = _published(str(requested), images, epochs, batch_size)
    else:
        resolved = ResolvedSettings(str(requested), _with_batch_size(_read_file(Path(requested)), batch_size))
    settings = resolved.settings if threads is None else dataclasses.replace(resolved.settings, threads=threads)
    notes = resolved.notes or tuple(settings.without_effect(has_teacher))  # a published training's have notes
    return dataclasses.replace(resolved, settings=settings, notes=notes)


def _with_batch_size(settings: TrainingSettings, batch_size: int | None) -> TrainingSettings:
    """The settings with another batch size and learning rates in proportion."""
    if batch_size is None or batch_size == settings.batch_size:
        return settings
    factor = batch_size / settings.batch_size
    return dataclasses.replace(
        settings,
        batch_size=batch_size,
        learning_rate=settings.learning_rate * factor,
        last_rate=settings.last_rate * factor,
    )


def _read_file(path: Path) -> TrainingSettings:
    """Read settings from a YAML file."""
    try:
        is_file = path.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise InputError(f"--settings {path}: cannot be read ({error.strerror or error})") from None
    if not is_file:
        known = [OWN, *published.names()]
        raise InputError(f"--settings {path}: neither a file nor a published training{nearest(path, known)}")
    document = files.load_yaml(path)
    if not isinstance(document.value, dict):
        raise document.error((), "training settings are a mapping, such as {learning_rate: 0.1}")
    try:
        return TrainingSettings.from_mapping(document.value)
    except InputError as error:
        raise error.at(str(path)) from None


def _published(name: str, images: int, epochs: int, batch_size: int | None) -> ResolvedSettings:
    """The settings of a published training, scaled to the batch size and the number of epochs."""
    entry = published.load(name)
    size = batch_size or _fitting_batch_size(entry.batch_size, images)
    settings = entry.scaled(size, epochs)
    notes = [f"settings {name} ({entry.source}): {entry.augmentation}"]
    if size != entry.batch_size:
        why = "" if batch_size else f", since {images:,} images make few batches of {entry.batch_size:,}"
        notes.append(
            f"batches of {size} instead of {entry.batch_size:,}{why}; the learning rates are scaled in proportion"
        )
    if entry.epochs and entry.epochs != epochs:
        notes.append(f"{epochs} epochs instead of {entry.epochs}; settings in epochs are scaled in proportion")
    elif not entry.epochs:
        notes.append(f"the published number of epochs is not known; settings in epochs are not scaled to {epochs}")
    if entry.settings.norm_statistics == "running":
        notes.append("batch norm's statistics are re-estimated at the end: running ones need the published length")
    return ResolvedSettings(name, settings, None if entry.not_applied == NOTHING else entry.not_applied, tuple(notes))


def _fitting_batch_size(batch_size: int, images: int) -> int:
    """Halve the batch size until an epoch has 20 steps, but not below 16."""
    while batch_size > 16 and images / batch_size < LEAST_STEPS:
        batch_size = max(16, batch_size // 2)
    return batch_size
