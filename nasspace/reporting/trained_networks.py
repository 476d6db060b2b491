"""Finished full trainings (`nas train`) on the images of a study: of its own networks, and of others for reference."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasspace import files
from nasspace.errors import InputError
from nasspace.studies.front import Front
from nasspace.studies.paths import TRAININGS
from nasspace.studies.trial_table import RECORD
from nasspace.training.settings import TrainingSettings

VERSION = 1  # of training.json
RECORDS = ("*/training.json", "*/*/training.json")  # a network's, and those of a front in one folder
MOST = 10**9  # epochs, pixels and seeds of a record that can be true
OWN = "own"  # the package's own settings, which a study's full training has
OWN_BATCH = TrainingSettings().batch_size


@dataclass(frozen=True)
class TrainedNetwork:
    """A finished training on a study's images with its split. Accuracies are fractions.

    `test` has `accuracy`, `low` and `high` (95 %, Wilson), or is None without a test split. `starts_from` names the
    weights that it started from, empty for new ones. `is_standard`: it is what the study means by a full training, with
    the same epochs, the package's own settings and batch size, new weights and no teacher, so that its accuracy can be
    compared with what the study expects.
    """

    network: str
    digest: str
    resolution: int
    epochs: int
    seed: int
    settings: str
    batch_size: int
    starts_from: str
    has_teacher: bool
    seconds: float
    validation: float
    test: Mapping[str, float] | None
    is_standard: bool

    def words(self) -> str:
        """How it was trained, in a cell of a table."""
        start = self.starts_from or "new weights"
        how = "" if self.settings == OWN else f", settings {self.settings}"
        how += f", batch size {self.batch_size}" if self.settings == OWN and self.batch_size != OWN_BATCH else ""
        how += ", with a teacher" if self.has_teacher else ""
        return f"{self.epochs} epoch{'s' if self.epochs > 1 else ''} from {start}{how}, seed {self.seed}"


@dataclass(frozen=True)
class Trainings:
    """The finished trainings of a study, best first on the validation images, and the records that are not readable."""

    networks: tuple[TrainedNetwork, ...] = ()
    unreadable: tuple[str, ...] = ()  # paths


def of_study(front: Front) -> Trainings:
    """The finished trainings on a study's images at its resolution.

    They are those in `trainings/`, of the working folder and next to the folder that holds the study's. A network of
    the study may have a lower resolution, its own.
    """
    fingerprint, epochs = front.data.get("fingerprint"), full_epochs(front)
    if not fingerprint:
        return Trainings()
    smaller = _smaller(front)
    split = _split(front)
    found, unreadable = {}, []
    for path in _files(front.folder):
        try:
            record = files.load_json(path).value
            data = record["data"]
            is_here = (data["fingerprint"], record["resolution"]) == (fingerprint, front.resolution)
            is_smaller = record["resolution"] == smaller.get(record["digest"])
            if is_here or (is_smaller and {key: data.get(key) for key in split} == split):
                found[_identity(record)] = _read(record, epochs)
        except (InputError, KeyError, TypeError, ValueError, OverflowError):  # damaged, or of another version
            unreadable.append(str(path))
    ordered = sorted(found.values(), key=lambda one: (-one.validation, one.network, one.seed))
    return Trainings(tuple(ordered), tuple(unreadable))


def full_epochs(front: Front) -> int | None:
    """The epochs of a study's full training; None for an older study, whose recipe has none."""
    return (front.recipe.get("full") or {}).get("epochs")


def by_digest(trainings: Iterable[TrainedNetwork]) -> dict[str, list[TrainedNetwork]]:
    """Trainings by the architecture that was trained."""
    found: dict[str, list[TrainedNetwork]] = {}
    for one in trainings:
        found.setdefault(one.digest, []).append(one)
    return found


def _smaller(front: Front) -> dict[str, int]:
    """The resolutions of a study's networks that are below the study's, by digest."""
    found: dict[str, int] = {}
    for row in front.trials if front.resolution else ():
        text = row[RECORD].architecture if row.get(RECORD) else ""
        side = min(json.loads(text)["input"][1:]) if text else front.resolution
        if side < front.resolution:
            found[str(row["digest"])] = side
    return found


def _split(front: Front) -> dict[str, Any]:
    """What a study's images and their split are named by, whatever their resolution."""
    recipe = front.recipe
    return {"name": front.data.get("name"), "seed": recipe.get("seed", 0), "held_out": recipe.get("held_out", 0.2)}


def _files(study: Path) -> list[Path]:
    """The records of finished trainings that belong to a study's folder, each file once."""
    folders = (Path(TRAININGS), study.absolute().parent.parent / TRAININGS)
    paths = {path.resolve(): path for folder in reversed(folders) for each in RECORDS for path in folder.glob(each)}
    return sorted(paths.values())


def _identity(record: Mapping[str, Any]) -> str:
    """What distinguishes trainings: a copied folder holds the same one."""
    identity = record.get("identity")
    return repr(sorted(identity.items())) if isinstance(identity, dict) else repr(record)


def _read(record: Mapping[str, Any], epochs: int | None) -> TrainedNetwork:
    """The content of a `training.json`; the study's full training has `epochs`. Raises if it is not one."""
    if record["nasspace_training"] != VERSION:
        raise ValueError("another version")
    account, test = record.get("starts_from") or [""], record["test"]
    starts_from, has_teacher = str(account[-1]).removeprefix("starts from "), record.get("teacher") is not None
    settings = _text(record["settings"])
    batch_size = _whole((record.get("training") or {}).get("batch_size", OWN_BATCH), 1)
    is_own = settings == OWN and batch_size == OWN_BATCH
    return TrainedNetwork(
        network=_text(record["network"]),
        digest=_text(record["digest"]),
        resolution=_whole(record["resolution"], 1),
        epochs=_whole(record["epochs"], 1),
        seed=_whole(record["seed"], 0),
        settings=settings,
        batch_size=batch_size,
        starts_from=starts_from,
        has_teacher=has_teacher,
        seconds=max(0.0, _number(record["seconds"])),
        validation=_share(record["validation"]["accuracy"]),
        test=test and {name: _share(test[name]) for name in ("accuracy", "low", "high")},
        is_standard=record["epochs"] == epochs and is_own and not starts_from and not has_teacher,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value


def _whole(value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < MOST:
        raise ValueError(f"{value!r:.40} is not a whole number from {least}")
    return value


def _number(value: Any) -> float:
    """A finite number; anything else raises."""
    if isinstance(value, bool | str) or not math.isfinite(float(value)):
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value)


def _share(value: Any) -> float:
    """A number from 0 to 1; anything else raises."""
    if not 0 <= _number(value) <= 1:
        raise ValueError(f"{value!r:.40} is not from 0 to 1")
    return float(value)
