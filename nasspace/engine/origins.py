"""The data that a network's weights were trained on, as an export or a study records it."""

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
from nasspace.exporting.export import RECORD, VERSION, check_origin
from nasspace.studies import study as records
from nasspace.studies.study import Study

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Origin:
    """A data set with its validation split: what `load_data` takes, and the fingerprint at `resolution` pixels.

    `place` is the folder that records it.
    """

    place: Path
    name: str
    seed: int
    held_out: float
    fingerprint: str
    resolution: int

    def __str__(self) -> str:
        return f"{self.name}, split with held_out {self.held_out:g} and seed {self.seed}"

    def is_called(self, name: str) -> bool:
        """Whether `name` is this data set's, as seen from the working folder."""
        return with_absolute_path(name) == with_absolute_path(self.name)

    def is_of(self, data: DataSet) -> bool:
        """Whether the data set has the same images in the same splits; by name and seed at another resolution."""
        if data.resolution == self.resolution:
            return data.fingerprint == self.fingerprint
        same = (data.seed, data.held_out) == (self.seed, self.held_out)
        return same and self.is_called(data.name)


def of_study(study: Study) -> Origin | None:
    """The data of a search; None of one without images."""
    return Origin(study.folder, **study.origin) if study.origin else None


def of_export(folder: Path) -> Origin | None:
    """The data of an export; None where it names none. An `InputError` for a damaged record."""
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
    return Origin(folder, **{"resolution": architectures.load(folder / "architecture.json").input[1], **data})


def of_weights(weights: Mapping[str, Tensor] | Any | None) -> Origin | None:
    """The data of the export or study in whose folder a file of weights lies; None for others."""
    if weights is None or isinstance(weights, Mapping):
        return None
    if folder := export_of(weights):
        return of_export(folder)
    for place in Path(weights).resolve().parents[1:3]:  # STUDY/weights/ID.safetensors, STUDY/weights/deployed/...
        if (place / "study.yaml").is_file():
            return of_study(records.load(str(place)))
    return None


def export_of(weights: Any) -> Path | None:
    """The export folder that a file of weights lies in, or that is named for it."""
    path = file_of(weights)
    return path.parent if (path.parent / RECORD).is_file() else None


def file_of(weights: Any) -> Path:
    """The file of weights that a path means: itself, or that of an export's folder."""
    path = Path(weights)
    try:
        return path / WEIGHTS if path.is_dir() else path
    except OSError as error:  # a name too long, a folder that may not be read
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
