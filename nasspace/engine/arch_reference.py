"""Resolve an ARCH argument: a published network's name, an architecture JSON, an export folder, or `STUDY:ID`.

`STUDY:recommended` is the network that the study's front recommends.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nasspace import architecture as architectures
from nasspace import zoo
from nasspace.architecture import Architecture
from nasspace.errors import InputError, nearest
from nasspace.studies import paths
from nasspace.studies import study as records
from nasspace.studies.study import Study


@dataclass(frozen=True)
class ResolvedArch:
    """An architecture, its trained weights if there are any, and where it comes from."""

    architecture: Architecture
    weights: Path | None = None
    study: Study | None = None
    number: int | None = None  # of the study's trial
    is_published: bool = False
    folder: Path | None = None  # of an export

    @property
    def name(self) -> str:
        """A name for output folders: STUDY-ID, the network's name, or the digest."""
        if self.study:
            return f"{self.study.name}-{self.number}"
        return self.architecture.name or self.architecture.digest


def resolve_arch(text: str) -> ResolvedArch:
    """Resolve an ARCH argument; anything else raises `InputError`, which names the nearest published network."""
    if not text.strip():
        raise InputError("an architecture needs a name; give a file, STUDY:ID, or a published network")
    path, kind = Path(text), _path_kind(text)
    if kind == "file":
        return ResolvedArch(architectures.load(path))
    if kind == "folder" and (path / "architecture.json").is_file():
        weights = path / "weights.safetensors"
        export = path if (path / "export.json").is_file() else None
        architecture = architectures.load(path / "architecture.json")
        return ResolvedArch(architecture, weights if weights.is_file() else None, folder=export)
    if trial := parse_trial(text):
        return resolve_trial(records.read(trial[0]), trial[1])
    if text not in zoo.names() and (study := _study_of(text)):
        name = paths.as_argument(study)
        raise InputError(f"'{text}' names a study, not a network; give STUDY:ID with an id of `nas front {name}`")
    if kind == "folder" and text not in zoo.names():
        raise InputError(
            f"{text}: a folder without architecture.json; name an export's folder, or a trial of a study as STUDY:ID"
        )
    if path.suffix == ".json" or len(path.parts) > 1:
        raise InputError(f"{text}: there is no such file")
    try:
        return ResolvedArch(zoo.load(text), is_published=True)
    except InputError as error:
        known = nearest(text, zoo.names())
        raise InputError(
            f"'{text}' is not an architecture: not a file, not STUDY:ID, and not a published network{known}"
        ) from error


def _study_of(text: str) -> Path | None:
    """The folder of the study that `STUDY` or `STUDY:...` names; None if there is none."""
    for name in (text, text.rpartition(":")[0]):
        with contextlib.suppress(InputError, OSError):  # no name of a study, or no possible path
            if (folder := paths.folder_of(name)) and (folder / "study.yaml").is_file():
                return folder
    return None


def resolve_trial(study: Study, number: int) -> ResolvedArch:
    """The architecture of a study's trial, with its weights if the study has them."""
    weights = study.weights(number) or study.search_weights.path(number)
    return ResolvedArch(study.architecture(number), weights, study, number)


def parse_trial(text: str) -> tuple[str, int] | None:
    """Split `STUDY:ID` or `STUDY:recommended` into the study and the trial's number; None for anything else.

    A study that recommends no network raises `InputError`.
    """
    study, colon, number = text.rpartition(":")
    if not (colon and study) or _path_kind(text):
        return None
    if number != paths.RECOMMENDED:
        return (study, int(number)) if number.isascii() and number.isdecimal() else None
    found = records.read(study)
    front, name = found.snapshot(), paths.as_argument(found.folder)
    if not front.members:
        raise InputError(f"{text}: the study has no network on its front; run `nas resume {name}`, or widen its limits")
    if front.recommended is None:
        why = "since accuracy is none of its objectives" if "accuracy" not in front.objectives else "so far"
        raise InputError(
            f"{text}: the study recommends no network, {why}; give STUDY:ID with an id of `nas front {name}`"
        )
    return study, front.recommended


def settled(given: Any) -> Any:
    """`STUDY:ID` for `STUDY:recommended`, which may be another network later; anything else as it is."""
    if not isinstance(given, str) or given.rpartition(":")[2] != paths.RECOMMENDED:
        return given
    trial = parse_trial(given)
    return given if trial is None else f"{trial[0]}:{trial[1]}"


def parse_front(text: str) -> str | None:
    """The study of `STUDY:front`; None for anything else."""
    study, colon, part = text.rpartition(":")
    return study if colon and study and part == paths.FRONT and not _path_kind(text) else None


def _path_kind(text: str) -> str:
    """'file', 'folder', or '' if there is neither or the text is no valid path."""
    path = Path(text)
    try:
        return "folder" if path.is_dir() else "file" if path.is_file() else ""
    except PermissionError as error:
        raise InputError(f"{text}: cannot be read ({error.strerror})") from None
    except OSError:
        return ""
