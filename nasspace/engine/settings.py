"""Training settings by name: the package's own, a published network's, or a file's, for a batch size and a length."""

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
NOTHING = "nothing that is known of"  # the table's words where all is applied
LEAST_STEPS = 20  # an epoch: a published batch size that leaves fewer is lowered


@dataclass(frozen=True)
class ResolvedSettings:
    """Training settings, the name they were asked by, what of them cannot be done, and what is worth saying."""

    name: str
    settings: TrainingSettings
    not_applied: str | None = None
    notes: tuple[str, ...] = ()


def resolve_settings(
    asked: str | os.PathLike | TrainingSettings | None,
    *,
    images: int,
    epochs: int,
    batch_size: int | None = None,
    threads: int | None = None,
) -> ResolvedSettings:
    """The settings for `images` training images and `epochs` passes.

    `asked` is None or `own`, the name of a published training, the path of a YAML file, or settings. With another
    batch size the rates follow in proportion (Goyal et al. 2017). Published settings also follow the number of
    epochs. An unknown name is an `InputError` with the nearest.
    """
    if asked is None or asked == OWN:
        found = ResolvedSettings(OWN, _resized(TrainingSettings(), batch_size))
    elif isinstance(asked, TrainingSettings):
        found = ResolvedSettings("given", _resized(asked, batch_size))
    elif str(asked) in published.names():
        found = _published(str(asked), images, epochs, batch_size)
    else:
        found = ResolvedSettings(str(asked), _resized(_of_file(Path(asked)), batch_size))
    if threads is None:
        return found
    return dataclasses.replace(found, settings=dataclasses.replace(found.settings, threads=threads))


def _resized(settings: TrainingSettings, batch_size: int | None) -> TrainingSettings:
    if batch_size is None or batch_size == settings.batch_size:
        return settings
    factor = batch_size / settings.batch_size
    return dataclasses.replace(
        settings,
        batch_size=batch_size,
        learning_rate=settings.learning_rate * factor,
        last_rate=settings.last_rate * factor,
    )


def _of_file(path: Path) -> TrainingSettings:
    try:
        is_file = path.is_file()
    except OSError as error:  # a name too long, a folder that may not be read
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
    entry = published.load(name)
    size = batch_size or _fitting(entry.batch_size, images)
    settings = entry.scaled(size, epochs)
    notes = [f"settings {name} ({entry.source}): {entry.augmentation}"]
    if size != entry.batch_size:
        why = "" if batch_size else f", since {images:,} images make few batches of {entry.batch_size:,}"
        notes.append(
            f"batches of {size} in place of {entry.batch_size:,}{why}; the learning rates follow in proportion"
        )
    if entry.epochs and entry.epochs != epochs:
        notes.append(f"{epochs} epochs in place of {entry.epochs}; what is counted in epochs follows in proportion")
    elif not entry.epochs:
        notes.append(f"the published number of epochs is not recorded; what is counted in epochs stays, of {epochs}")
    if entry.settings.norm_statistics == "running":
        notes.append("batch norm's statistics are re-estimated at the end: running ones need the published length")
    return ResolvedSettings(name, settings, None if entry.not_applied == NOTHING else entry.not_applied, tuple(notes))


def _fitting(batch_size: int, images: int) -> int:
    """The batch size halved until an epoch has 20 steps, at least 16."""
    while batch_size > 16 and images / batch_size < LEAST_STEPS:
        batch_size = max(16, batch_size // 2)
    return batch_size
