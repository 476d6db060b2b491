"""What ARCH means: a published network, an architecture JSON, an export folder, or `STUDY:ID`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nasspace import architecture as architectures
from nasspace import zoo
from nasspace.architecture import Architecture
from nasspace.errors import InputError, nearest
from nasspace.studies import study as records
from nasspace.studies.study import Study

FRONT = "front"


@dataclass(frozen=True)
class Subject:
    """An architecture, its trained weights if any are kept, and where it comes from."""

    architecture: Architecture
    weights: Path | None = None
    study: Study | None = None
    number: int | None = None  # of the study's trial
    is_published: bool = False
    folder: Path | None = None  # of an export

    @property
    def name(self) -> str:
        """A name for its folder: STUDY-ID, the network's name, or the digest."""
        if self.study:
            return f"{self.study.name}-{self.number}"
        return self.architecture.name or self.architecture.digest


def study_trial(text: str) -> tuple[str, int] | None:
    """The study and trial that `STUDY:ID` means; None for anything else."""
    study, colon, number = text.rpartition(":")
    is_number = number.isascii() and number.isdecimal()
    return (study, int(number)) if colon and study and is_number and not _kind_of(text) else None


def study_front(text: str) -> str | None:
    """The study whose front `STUDY:front` means; None for anything else."""
    study, colon, part = text.rpartition(":")
    return study if colon and study and part == FRONT and not _kind_of(text) else None


def _kind_of(text: str) -> str:
    """'file' or 'folder', or '' where there is neither: the name may also be one that no file can have."""
    path = Path(text)
    try:
        return "folder" if path.is_dir() else "file" if path.is_file() else ""
    except PermissionError as error:
        raise InputError(f"{text}: cannot be read ({error.strerror})") from None
    except OSError:
        return ""


def subject(text: str) -> Subject:
    """What ARCH means; anything else is an `InputError` with the nearest published network."""
    path, kind = Path(text), _kind_of(text)
    if kind == "file":
        return Subject(architectures.load(path))
    if kind == "folder" and (path / "architecture.json").is_file():
        weights = path / "weights.safetensors"
        exported = path if (path / "export.json").is_file() else None
        loaded = architectures.load(path / "architecture.json")
        return Subject(loaded, weights if weights.is_file() else None, folder=exported)
    if trial := study_trial(text):
        return member(records.load(trial[0]), trial[1])
    if kind == "folder" and text not in zoo.names():
        raise InputError(
            f"{text}: a folder without architecture.json; name an export's folder, or a trial of a study as STUDY:ID"
        )
    if path.suffix == ".json" or len(path.parts) > 1:
        raise InputError(f"{text}: there is no such file")
    try:
        return Subject(zoo.load(text), is_published=True)
    except InputError as error:
        known = nearest(text, zoo.names())
        raise InputError(
            f"'{text}' is not an architecture: not a file, not STUDY:ID, and not a published network{known}"
        ) from error


def member(study: Study, number: int) -> Subject:
    """A trial of a study."""
    weights = study.weights(number) or study.search_weights.path(number)
    return Subject(study.architecture(number), weights, study, number)
