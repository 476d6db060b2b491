"""The data set and split that a network's weights were trained on, as its export or study records it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import architecture as architectures
from nasspace import files
from nasspace.data.loading import DataSet
from nasspace.engine.problem import with_absolute_path
from nasspace.errors import InputError
from nasspace.exporting import preprocessing
from nasspace.exporting.export import RECORD, VERSION, check_origin
from nasspace.studies import study as records
from nasspace.studies.study import Study

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class DataOrigin:
    """A data set with its validation split: arguments of `load_data`, and the fingerprint at `resolution` pixels.

    `recorded_in` is the folder of the export or study.
    """

    recorded_in: Path
    name: str
    seed: int
    held_out: float
    fingerprint: str
    resolution: int

    def __str__(self) -> str:
        return f"{self.name}, split with held_out {self.held_out:g} and seed {self.seed}"

    def has_name(self, name: str) -> bool:
        """Whether `name` names this data set, as seen from the working folder."""
        return with_absolute_path(name) == with_absolute_path(self.name)

    def is_split_of(self, data: DataSet) -> bool:
        """Whether `data` has the same images in the same splits.

        Compares fingerprints at equal resolutions, else names, seeds and held-out shares.
        """
        if data.resolution == self.resolution:
            return data.fingerprint == self.fingerprint
        same = (data.seed, data.held_out) == (self.seed, self.held_out)
        return same and self.has_name(data.name)


def note_on_split(weights: Any, data: DataSet) -> str:
    """A note if weights were trained on the same data set, split in another way; else empty."""
    trained_on = of_weights(weights)
    if trained_on is None or not trained_on.has_name(data.name) or trained_on.is_split_of(data):
        return ""
    return (
        f"{trained_on.recorded_in}: was trained on {trained_on}, another split of the same images: some of those that "
        "are held out here were trained on there, so that accuracies are too high"
    )


def of_study(study: Study) -> DataOrigin | None:
    """The data of a search; None for a search without images."""
    return DataOrigin(study.folder, **study.origin) if study.origin else None


def of_export(folder: Path) -> DataOrigin | None:
    """The data of an export; None if it names none. A damaged record raises `InputError`."""
    try:
        document = files.load_json(folder / RECORD)
    except InputError as error:
        raise InputError(f"{error}; export it again") from None
    record = document.value
    if not isinstance(record, dict) or record.get("nasspace_export") != VERSION:
        raise document.error((), f"not the record of an export of version {VERSION}; export it again")
    data = record.get("data")
    check_origin(document, data)
    if data is None:
        return None
    return DataOrigin(folder, **{"resolution": architectures.load(folder / "architecture.json").input[1], **data})


def of_weights(weights: Mapping[str, Tensor] | Any | None) -> DataOrigin | None:
    """The data of the export or study whose folder holds a file of weights; None for other weights."""
    if weights is None or isinstance(weights, Mapping):
        return None
    if folder := export_folder(weights):
        return of_export(folder)
    study = _study_of(weights)
    return of_study(study) if study else None


def export_folder(weights: Any) -> Path | None:
    """The export folder that holds a file of weights; also if `weights` is that folder."""
    path = weights_file(weights)
    return path.parent if (path.parent / RECORD).is_file() else None


def normalization(weights: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of the images, from 0 to 1, of weights in an export or a study; None for others."""
    spec = None if isinstance(weights, Mapping) else specification(weights)
    return (tuple(spec["mean"]), tuple(spec["std"])) if spec else None


def specification(weights: Any) -> Mapping[str, Any] | None:
    """Classes, mean and standard deviation (of pixels from 0 to 1) that an export or study records with its weights."""
    folder = export_folder(weights)
    if folder and (folder / preprocessing.NAME).is_file():
        return preprocessing.read(folder)
    study = None if folder else _study_of(weights)
    return study.settings["data"] if study else None


def _study_of(weights: Any) -> Study | None:
    """The study in whose folder a file of weights lies: STUDY/weights/ID.safetensors, STUDY/weights/deployed/..."""
    for folder in Path(weights).resolve().parents[1:3]:
        if (folder / "study.yaml").is_file():
            return records.load(str(folder))
    return None


def architecture_of(weights: Any) -> architectures.Architecture | None:
    """The architecture in the export folder that holds a file of weights; None for other weights."""
    folder = None if isinstance(weights, Mapping) else export_folder(weights)
    return architectures.load(folder / "architecture.json") if folder else None


def weights_file(weights: Any) -> Path:
    """The path itself, or the file of weights in it if it is a folder."""
    path = Path(weights)
    try:
        return path / WEIGHTS if path.is_dir() else path
    except OSError as error:  # name too long, or folder not readable
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
