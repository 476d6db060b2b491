"""A folder to ship: the network as readable PyTorch code, as ONNX, its weights, a card; and its verification."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nasspace
from nasspace import architecture as architectures
from nasspace import files
from nasspace.architecture import Architecture
from nasspace.errors import InputError, VerificationError, nearest
from nasspace.network import Network, build
from nasspace.outputs import card as cards
from nasspace.outputs import checks as checking
from nasspace.outputs.checks import Check
from nasspace.outputs.source import model_source
from nasspace.outputs.weights import as_safetensors, as_torch, load_into, read_safetensors

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("source", "onnx", "torch")
VERSION = 1
RECORD = "export.json"
WRITTEN = ("architecture.json", "weights.safetensors", "weights.pt", "model.py", "model.onnx", RECORD, "README.md")
BINARY = ("weights.safetensors", "weights.pt", "model.onnx")  # nobody edits these: their content is held to the byte


@dataclass(frozen=True)
class Exported:
    """An export folder: its files and what was checked."""

    folder: Path
    files: list[str]
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `export` and `verify`."""
        return {
            "folder": str(self.folder),
            "files": self.files,
            "checks": [dict(vars(check)) for check in self.checks],
        }


def export(
    architecture: Architecture,
    folder: str | os.PathLike,
    *,
    weights: Mapping[str, Tensor] | str | os.PathLike | None = None,
    formats: Iterable[str] = FORMATS,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    card: Mapping[str, Any] | None = None,
) -> Exported:
    """Write a network to `folder` at its own input shape, checked before it is moved into place.

    `weights` is a state dictionary or the path of a .safetensors file; without them the network is initialised from
    `seed`, and the card and the first check say that it was never trained. `formats`: `source` (model.py and the
    weights it loads), `torch` (weights.pt), `onnx` (with a batch of `batch_size`, else the card's, else 1). `classes`
    names the outputs; `card` may tell what `card.KEYS` lists. A folder is filled if it is empty or holds an earlier
    export. Errors: `InputError` for what cannot be exported or written, `VerificationError` where a check fails;
    then the folder is as it was.
    """
    formats = _checked_formats(formats)
    about = cards.checked({**(card or {}), **({} if classes is None else {"classes": classes})}, architecture)
    network = _network(architecture, weights, seed)
    folder = Path(folder)
    check_folder(folder)
    record = {
        "nasspace_export": VERSION,
        "nasspace": nasspace.__version__,
        "digest": architecture.digest,
        "trained": weights is not None,
        "seed": seed,
        "batch_size": batch_size or about.get("batch_size", 1),
        "formats": list(formats),
        "card": about,
    }
    with _beside(folder) as new:
        record["files"] = _write(new, architecture, network, record)
        checks = _checked(new, architecture, record)
        files.write_text(new / "README.md", cards.readme(architecture, record, checks))
        files.write_json(new / RECORD, record)
        _move(new, folder)
    return Exported(folder, _listed(record), checks)


def verify(folder: str | os.PathLike) -> Exported:
    """Check an export folder again: its files against each other, and against what was written.

    This runs its model.py. A missing or damaged file is an `InputError` that names it; one that says something else
    than the others is a failed check of the result.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    record = _read_record(folder / RECORD)
    for name in _listed(record):
        if not (folder / name).is_file() and name != "README.md":
            raise InputError(f"{folder / name}: this file of the export is missing; export it again")
    architecture = architectures.load(folder / "architecture.json")
    found, expected = architecture.digest, record["digest"]
    same = Check("architecture.json unchanged", found == expected, found, expected)
    if not same.ok:  # no weights fit another network, so that nothing else can be asked
        return Exported(folder, _listed(record), [same])
    checks = checking.run(folder, architecture, record)
    return Exported(folder, _listed(record), [checks[0], same, *checks[1:]])


def _checked_formats(formats: Iterable[str]) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(formats))
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"'{name}' is not a format of export{nearest(name, FORMATS)}")
    return formats


def check_folder(folder: Path) -> None:
    """A folder may be new, empty, or an earlier export; others' files are never touched."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file; choose another --out folder")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "architecture.json").is_file():
            raise InputError(f"{folder}: holds other files and no earlier export; choose another --out folder")
    except OSError as error:
        raise files.cannot_write(folder, error) from None


def _network(architecture: Architecture, weights: Any, seed: int) -> Network:
    network = build(architecture, seed=seed)
    if isinstance(weights, str | os.PathLike):
        load_into(network, read_safetensors(Path(weights)), str(weights))
    elif weights is not None:
        load_into(network, weights, "weights")
    return network.eval()


def _write(new: Path, architecture: Architecture, network: Network, record: Mapping[str, Any]) -> dict[str, str | None]:
    """Write the files of the formats; their names, with the digests of those that are held to the byte."""
    formats, about, state = record["formats"], record["card"], network.state_dict()
    note = "" if record["trained"] else cards.never_trained(record["seed"])
    files.write_text(new / "architecture.json", architecture.to_json())
    if "source" in formats:
        constants = {key: about[key] for key in ("classes", "mean", "std") if key in about}
        text = model_source(architecture, title=cards.title(architecture, about), note=note, **constants)
        files.write_text(new / "model.py", text)
    metadata = {"architecture": architecture.digest, "trained": str(record["trained"])}
    _write_bytes(new / "weights.safetensors", as_safetensors(state, **metadata))
    if "source" in formats or "torch" in formats:
        _write_bytes(new / "weights.pt", as_torch(state))
    if "onnx" in formats:
        from nasspace.latency.convert import to_onnx

        to_onnx(network, architecture.input, new / "model.onnx", batch_size=record["batch_size"])
    names = sorted(path.name for path in new.iterdir())
    return {name: checking.digest(new / name) if name in BINARY else None for name in names}


def _write_bytes(path: Path, data: bytes) -> None:
    with files.replacing(path) as temporary:
        temporary.write_bytes(data)


def _checked(new: Path, architecture: Architecture, record: Mapping[str, Any]) -> list[Check]:
    """The checks of the files just written; a `VerificationError` names those that fail."""
    try:
        checks = checking.run(new, architecture, record)
    except InputError as error:
        raise VerificationError(f"the export does not hold and was not kept: {error}") from error
    failed = [f"{check.name} ({check.value}, limit {check.limit})" for check in checks if not check.ok]
    if failed:
        raise VerificationError(f"the export does not hold and was not kept: {'; '.join(failed)}")
    return checks


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, gone at the end."""
    place = folder.resolve()
    new = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        new.mkdir(parents=True)
    except OSError as error:
        raise files.cannot_write(folder, error) from None
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _move(new: Path, folder: Path) -> None:
    """Move the whole folder into place, or file by file over an earlier export; what that had more is removed.

    README.md goes first and comes last: a folder that has it is whole.
    """
    try:
        if not folder.exists():
            new.rename(folder)
            return
        for name in ("README.md", RECORD):
            (folder / name).unlink(missing_ok=True)
        for name in WRITTEN:
            if (new / name).exists():
                (new / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise files.cannot_write(folder, error) from None


def _listed(record: Mapping[str, Any]) -> list[str]:
    return sorted({*record["files"], "README.md", RECORD})


def _read_record(path: Path) -> dict[str, Any]:
    """The content of export.json, as far as the checks rely on it."""
    document = files.load_json(path)
    record = document.value
    if not isinstance(record, dict) or record.get("nasspace_export") != VERSION:
        raise document.error((), f"not the record of an export of version {VERSION}; export it again")
    kinds = {"digest": str, "trained": bool, "seed": int, "batch_size": int, "files": dict}
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            raise document.error((key,), f"'{key}' is missing or of another kind; export it again")
    unknown = [name for name in record["files"] if name not in WRITTEN]
    if unknown or "weights.safetensors" not in record["files"]:
        raise document.error(("files",), "not the files of an export; export it again")
    return record
