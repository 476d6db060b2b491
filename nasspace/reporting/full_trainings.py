"""Finished full trainings (`nas train`) on the images of a study: of its own networks, and of others for reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasspace import files
from nasspace.errors import InputError
from nasspace.studies.front import Front

FOLDER = "trainings"  # the default of `nas train`, next to the folder of the studies
RECORDS = ("*/training.json", "*/*/training.json")  # a network's, and those of a front in one folder


@dataclass(frozen=True)
class Trained:
    """A finished training at a study's resolution, on its images with its split. Accuracies are fractions.

    `test` has `accuracy`, `low` and `high` (95 %, Wilson), or is None without a test split. `starts_from` names the
    weights that it started from, empty for new ones. `is_standard`: it has the epochs of the study's full training, new
    weights and no teacher, so that its accuracy can be compared with what the study expects.
    """

    network: str
    digest: str
    epochs: int
    seed: int
    settings: str
    starts_from: str
    has_teacher: bool
    seconds: float
    validation: float
    test: Mapping[str, float] | None
    is_standard: bool

    def words(self) -> str:
        """How it was trained, in a cell of a table."""
        start = self.starts_from or "new weights"
        teacher = ", with a teacher" if self.has_teacher else ""
        own = "" if self.settings == "own" else f", settings {self.settings}"
        return f"{self.epochs} epochs from {start}{own}{teacher}, seed {self.seed}"


def of_study(front: Front) -> tuple[Trained, ...]:
    """The finished trainings on a study's images at its resolution, best first on the validation images.

    They are those in `trainings/`, next to the folder that holds the study's. A record that cannot be read is none of
    them: `nas train` says what is wrong with it.
    """
    if not front.data.get("fingerprint"):
        return ()
    found = _trainings(_records(front.folder.resolve().parent.parent / FOLDER), front)
    return tuple(sorted(found, key=lambda one: (-one.validation, one.network, one.seed)))


def full_epochs(front: Front) -> int | None:
    """The epochs of a study's full training; None for an older study, whose recipe has none."""
    return (front.recipe.get("full") or {}).get("epochs")


def by_digest(trainings: Iterable[Trained]) -> dict[str, list[Trained]]:
    """Trainings by the architecture that was trained."""
    found: dict[str, list[Trained]] = {}
    for one in trainings:
        found.setdefault(one.digest, []).append(one)
    return found


def _records(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The records of finished trainings in a folder."""
    for path in sorted(path for pattern in RECORDS for path in folder.glob(pattern)):
        try:
            record = files.load_json(path).value
        except InputError:  # damaged: its training is not known
            continue
        if isinstance(record, dict):
            yield record


def _trainings(records: Iterable[Mapping[str, Any]], front: Front) -> Iterator[Trained]:
    """The trainings that were made on the data of a study."""
    epochs, here = full_epochs(front), (front.data["fingerprint"], front.resolution)
    for record in records:
        try:
            is_here = (record["data"]["fingerprint"], record["resolution"]) == here
            one = _read(record, epochs) if is_here else None
        except (KeyError, TypeError, ValueError):  # of another version, or not a training
            continue
        if one is not None:
            yield one


def _read(record: Mapping[str, Any], epochs: int | None) -> Trained:
    """The content of a `training.json`; the study's full training has `epochs`."""
    test, account = record["test"], record.get("starts_from") or [""]
    starts_from, has_teacher = str(account[-1]).removeprefix("starts from "), record.get("teacher") is not None
    return Trained(
        str(record["network"]),
        str(record["digest"]),
        int(record["epochs"]),
        int(record["seed"]),
        str(record["settings"]),
        starts_from,
        has_teacher,
        float(record["seconds"]),
        float(record["validation"]["accuracy"]),
        test and {name: float(test[name]) for name in ("accuracy", "low", "high")},
        record["epochs"] == epochs and not starts_from and not has_teacher,
    )
