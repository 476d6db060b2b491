"""Export a network to a folder (PyTorch source, ONNX, weights, model card), and verify the folder."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import nasspace
from nasspace import architecture as architectures
from nasspace import files
from nasspace.architecture import Architecture
from nasspace.documents import Document
from nasspace.errors import InputError, VerificationError, nearest
from nasspace.exporting import checks as checking
from nasspace.exporting import model_card as cards
from nasspace.exporting import photo_onnx, targets
from nasspace.exporting import preprocessing as specifications
from nasspace.exporting.check import Check, digest, has_failed, summary
from nasspace.exporting.checks import INT8
from nasspace.exporting.model_source import model_source
from nasspace.exporting.targets import BY_FILE, LITERT_INT8, TARGETS
from nasspace.exporting.weights import as_safetensors, as_torch, load_into, read_safetensors
from nasspace.network import Network, build

if TYPE_CHECKING:
    from torch import Tensor

    from nasspace.data.images import DataSet

FORMATS = ("source", "onnx", "torch")  # written by default; those of `TARGETS` are for other runtimes
VERSION = 2
RECORD = "export.json"
ORIGIN = {
    "name": str,
    "seed": int,
    "held_out": float,
    "fingerprint": str,
    "resolution": int,
}  # keys of `data` in export.json
LARGEST_SEED = 2**63 - 1
HASHED = (  # recorded with their digests, which `verify` checks
    *("weights.safetensors", "weights.pt", "model.onnx", INT8, photo_onnx.NAME),
    *(name for target in BY_FILE.values() for name in (target.file, *target.others)),
    *("model.py", specifications.PROGRAM, specifications.NAME),
)
INT8_RECORDS = {INT8: "int8", LITERT_INT8.file: "int8_litert"}  # key of export.json that says how a file was made
QUANTIZE = {INT8: "nas quantize", LITERT_INT8.file: "nas quantize --format litert"}
WRITTEN = ("architecture.json", *HASHED, RECORD, "README.md")
TRAINED = ("training.json", "confusion.csv", "training.html")  # added by a full training
COMPRESSED = "compression.json"  # added by a compression
LOGS = "tensorboard"  # folder with the event files of a full training, which is there before the export
DYNAMIC = "dynamic"  # batch size
LARGEST_BATCH = 4096


@dataclass(frozen=True)
class Exported:
    """An export folder: its files, its checks, and the accuracy of each file on the validation images."""

    folder: Path
    files: list[str]
    checks: list[Check]
    accuracy: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no check failed; checks that did not run do not count."""
        return not has_failed(self.checks)

    @property
    def summary(self) -> str:
        """How many checks passed, failed and did not run."""
        return summary(self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `export` and `verify`."""
        checks = [check.to_dict() for check in self.checks]
        return {"folder": str(self.folder), "files": self.files, "checks": checks, "accuracy": self.accuracy}


def export(
    architecture: Architecture,
    folder: str | os.PathLike,
    *,
    weights: Mapping[str, Tensor] | str | os.PathLike | None = None,
    formats: Iterable[str] = FORMATS,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    batch_size: int | Literal["dynamic"] | None = None,
    card: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    data: DataSet | None = None,
    origin: Mapping[str, Any] | None = None,
    replace: bool = True,
) -> Exported:
    """Write a network to `folder` at its own input shape, checked before it is moved into place.

    `weights` is a state dictionary or the path of a .safetensors file; without them the network is initialized from
    `seed`, and the card and the first check state that it was never trained. `formats`: `source` (model.py and the
    weights it loads), `torch` (weights.pt), `onnx` (any batch size unless `batch_size` fixes it), `with-preprocessing`
    (`photo_onnx`), and those of `targets.TARGETS`, for other runtimes. `classes` names the outputs; `card` has keys of
    `model_card.KEYS`. preprocessing.json is that of `data`, else `preprocessing` completed by defaults.

    With `data`, loaded at the network's resolution, each file is judged on the original validation images and must
    decide as the training pipeline does; the `accuracy` on the card must be the pipeline's. Without it, `origin`
    describes the data: `DataSet.origin`, and the `resolution` of its fingerprint.

    The folder must be empty or hold an earlier export; without `replace` that must be one of the same network with the
    same weights, and the folder may hold nothing else. Raises `InputError` if the network cannot be exported or
    written, and `VerificationError` if a check fails; the folder is then unchanged.
    """
    formats, batch_size = _checked_formats(formats), _checked_batch(batch_size)
    named = {} if classes is None else {"classes": list(classes)}
    facts = cards.checked({**(card or {}), **named}, architecture)
    if data is not None:
        _check_data(data, architecture, classes)
    spec = specifications.complete(architecture, {**facts, **named}, preprocessing, data)
    if data is not None or "classes" in (preprocessing or {}):
        facts = cards.checked({**facts, "classes": spec["classes"]}, architecture)
    network = _network(architecture, weights, seed)
    folder = Path(folder)
    check_folder(folder)
    if not replace:
        _refuse_others(folder, architecture)
    record = {
        "nasspace_export": VERSION,
        "nasspace": nasspace.__version__,
        "digest": architecture.digest,
        "trained": weights is not None,
        "seed": seed,
        "batch_size": batch_size,
        "formats": list(formats),
        "data": origin if data is None else data.origin,
        "card": facts,
    }
    with _temporary_folder(folder) as new:
        record["files"] = _write(new, architecture, network, spec, record)
        record["preprocessing"] = record["files"][specifications.NAME]
        checks, accuracy = _checked(new, architecture, record, data)
        record |= {"accuracy": accuracy, "checks": [check.to_dict() for check in checks]}
        files.write_text(new / "README.md", cards.readme(architecture, record, spec, checks))
        files.write_json(new / RECORD, record)
        if not replace:
            _refuse_others(folder, architecture, record["files"][checking.PIPELINE])
        _move(new, folder)
    return Exported(folder, _listed(record), checks, accuracy)


def earlier(folder: Path, architecture: Architecture) -> dict[str, Any]:
    """Arguments of `export` that write the weights of an earlier export again, also at another resolution.

    These are the `origin` of the weights, and the `card` without facts that hold only at the earlier resolution.
    """
    if not (folder / RECORD).is_file():
        return {}
    record = read_record(folder)
    size = architectures.load(folder / "architecture.json").input[1]
    data = record["data"] and {"resolution": size, **record["data"]}
    if not record["trained"]:
        return {"weights": None, "seed": record["seed"], "card": record["card"]}
    if size == architecture.input[1]:
        return {"origin": data, "card": record["card"]}
    card = {key: value for key, value in record["card"].items() if key in ("title", "classes", "mean", "std")}
    at = (data or {}).get("resolution", size)
    return {"origin": data, "card": {**card, "resolution_why": cards.trained_at(at)}}


def add_int8(
    folder: str | os.PathLike,
    path: Path,
    data: DataSet | None = None,
    how: Mapping[str, Any] | None = None,
    name: str = INT8,
) -> Exported:
    """Move an int8 file into a complete export as `name`; record its digest, `how` it was made, its accuracy.

    An earlier one is replaced. A file that fails its checks on `data` is removed, with a `VerificationError`.
    """
    folder = Path(folder)
    record, spec = read_record(folder), specifications.read(folder)  # before anything changes
    architecture = architectures.load(folder / "architecture.json")
    key = INT8_RECORDS[name]
    if name in record["files"]:  # forgotten before the file changes, so that a kill leaves a record that is true
        record["files"].pop(name)
        record["accuracy"].pop(name, None)
        record["checks"] = [one for one in record["checks"] if name not in one["name"]]
        files.write_json(folder / RECORD, {**record, key: None})
    with files.replacing(folder / name) as target:
        shutil.copyfile(path, target)
    record["files"][name] = digest(folder / name)
    record[key] = dict(how) if how else None
    record["files"] = dict(sorted(record["files"].items()))
    new, accuracy = checking.judge_int8(folder, name, architecture, record, data)
    if failed := [check for check in new if check.ok is False]:
        (folder / name).unlink()  # it is not recorded yet
        raise VerificationError(f"{folder / name}: {failed[0].name} ({failed[0].value}, limit {failed[0].limit})")
    record["accuracy"] |= accuracy
    names = {check.name for check in new}
    checks = [*(Check(**{"why": "", **one}) for one in record["checks"] if one["name"] not in names), *new]
    record["checks"] = [check.to_dict() for check in checks]
    files.write_text(folder / "README.md", cards.readme(architecture, record, spec, checks))
    files.write_json(folder / RECORD, record)
    return Exported(folder, _listed(record), checks, record["accuracy"])


def update_card(folder: str | os.PathLike, facts: Mapping[str, Any]) -> None:
    """Replace facts on the model card of a complete export, in export.json and README.md."""
    folder = Path(folder)
    record = read_record(folder)
    architecture = architectures.load(folder / "architecture.json")
    card = {**record["card"], **cards.checked(facts, architecture)}
    if card == record["card"]:
        return
    record["card"] = card
    checks = [Check(**{"why": "", **one}) for one in record["checks"]]
    files.write_text(folder / "README.md", cards.readme(architecture, record, specifications.read(folder), checks))
    files.write_json(folder / RECORD, record)


def verify(
    folder: str | os.PathLike,
    *,
    data: DataSet | str | None = None,
    data_dir: str | os.PathLike | None = None,
    code: bool = True,
) -> Exported:
    """Check an export folder again: its files against each other and against the record of the export.

    This runs its model.py, unless that was changed or `code` is False. With `data` (a data set, or a name as in
    `load_data`) the accuracy of each file is measured again on the same validation images: it must equal the recorded
    one and that of the training pipeline. Data of another fingerprint, and missing or damaged files, are an
    `InputError`; a file that contradicts the others is a failed check.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    record = read_record(folder)
    for name in _listed(record):
        if not (folder / name).is_file() and name != "README.md":
            remedy = f"run `{QUANTIZE[name]}` again" if name in QUANTIZE else "export it again"
            raise InputError(f"{folder / name}: this file of the export is missing; {remedy}")
    architecture = architectures.load(folder / "architecture.json")
    found, expected = architecture.digest, record["digest"]
    same = Check("architecture.json unchanged", found == expected, found, expected)
    if not same.ok:  # no weights fit another network, so that no other check can run
        return Exported(folder, _listed(record), [same], record["accuracy"])
    data = data_of(data, data_dir, record, architecture, folder)
    checks, accuracy = checking.run(folder, architecture, record, data=data, code=code)
    return Exported(folder, _listed(record), [checks[0], same, *checks[1:]], {**record["accuracy"], **accuracy})


def _check_data(data: DataSet, architecture: Architecture, classes: Sequence[str] | None = None) -> None:
    """Refuse data whose images or classes do not fit the network."""
    found, expected = [data.channels, data.resolution, data.resolution], list(architecture.input)
    if found != expected:
        shapes = (" x ".join(map(str, shape)) for shape in (found, expected))
        raise InputError("data {}: images of {}, but the network takes {}".format(data.name, *shapes))
    if len(data.classes) != architecture.classes:
        raise InputError(f"data {data.name}: {len(data.classes)} classes, but the network has {architecture.classes}")
    if classes is not None and list(classes) != list(data.classes):
        raise InputError(f"classes: they differ from those of the data {data.name}; leave them out")


def data_of(
    data: DataSet | str | None, data_dir: Any, record: Mapping[str, Any], architecture: Architecture, folder: Path
) -> DataSet | None:
    """Load the data set of the export at the network's resolution; another fingerprint raises `InputError`.

    It is normalized as in the training of the network.
    """
    origin = record["data"] or {}
    if isinstance(data, str):
        from nasspace.data.loading import load_data

        split = {key: origin[key] for key in ("seed", "held_out") if key in origin}
        data = load_data(data, resolution=architecture.input[1], data_dir=data_dir, skip_broken=True, **split)
    if data is None:
        return None
    _check_data(data, architecture)
    trained = _as_trained(data, data_dir, origin)
    if origin and trained.fingerprint != origin["fingerprint"]:
        raise InputError(
            f"--data {data.name}: these are not the images of the export ({origin['name']}, fingerprint "
            f"{origin['fingerprint']}; found {trained.fingerprint}); name the data that the network was trained on"
        )
    given = _given_normalization(folder)
    if given:
        return dataclasses.replace(data, **given)
    return data if trained is data else dataclasses.replace(data, mean=trained.mean, std=trained.std)


def _given_normalization(folder: Path) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation, from 0 to 255, of a training whose given weights had their own; else empty."""
    path = folder / TRAINED[0]
    if not path.is_file():
        return {}
    document = files.load_json(path)
    found = document.value.get("normalization") if isinstance(document.value, dict) else None
    if found is None:
        return {}
    try:
        return {key: tuple(255 * float(value) for value in found[key]) for key in ("mean", "std")}
    except (TypeError, KeyError, ValueError):
        raise document.error(("normalization",), "not the mean and std of a training; train again") from None


def _as_trained(data: DataSet, data_dir: Any, origin: Mapping[str, Any]) -> DataSet:
    """The data at the resolution of the training, whose mean and standard deviation the network expects."""
    at = origin.get("resolution", data.resolution)
    if at == data.resolution:
        return data
    from nasspace.data.loading import load_data

    split = {"seed": data.seed, "held_out": data.held_out}
    return load_data(data.name, resolution=at, data_dir=data_dir, skip_broken=True, **split)


def _checked_batch(batch_size: int | str | None) -> int | str:
    if batch_size in (None, DYNAMIC):
        return DYNAMIC
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= LARGEST_BATCH:
        raise InputError(f"batch {batch_size!r} is neither '{DYNAMIC}' nor a whole number from 1 to {LARGEST_BATCH}")
    return batch_size


def _checked_formats(formats: Iterable[str]) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(formats))
    for name in formats:
        if name not in (known := (*FORMATS, photo_onnx.FORMAT, *TARGETS)):
            raise InputError(f"'{name}' is not a format of export{nearest(name, known)}")
        if name in TARGETS and TARGETS[name].missing:
            raise InputError(f"--format {name}: {TARGETS[name].missing}")
    return formats


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not new, empty, or an earlier export."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file; choose another --out folder")
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if names - {LOGS} and "architecture.json" not in names:
            raise InputError(f"{folder}: holds other files and no earlier export; choose another --out folder")
    except OSError as error:
        raise files.cannot_write(folder, error) from None


def _refuse_others(folder: Path, architecture: Architecture, weights: str | None = None) -> None:
    """Refuse a folder with other files, another network, or, given the digest of `weights`, other weights."""
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir() if not path.name.startswith((".", "__pycache__"))}
    found = ""
    if foreign := sorted(names.difference(WRITTEN, TRAINED, {LOGS, COMPRESSED})):
        found = (
            f"holds files that do not belong to an export ({', '.join(foreign[:3])}{', ...' if foreign[3:] else ''})"
        )
    elif kept := sorted(names.intersection(TRAINED)):
        found = f"holds the result of a full training ({kept[-1]})"
    elif names and (other := architectures.load(folder / "architecture.json").digest) != architecture.digest:
        found = f"holds the export of another network (digest {other}, not {architecture.digest})"
    elif weights and (folder / checking.PIPELINE).is_file() and digest(folder / checking.PIPELINE) != weights:
        found = "holds an export of this network with other weights"
    if found:
        raise InputError(f"{folder}: {found}; --out names another folder, --force writes over the export")


def _network(architecture: Architecture, weights: Any, seed: int) -> Network:
    network = build(architecture, seed=seed)
    if isinstance(weights, str | os.PathLike):
        load_into(network, read_safetensors(Path(weights)), str(weights))
    elif weights is not None:
        load_into(network, weights, "weights")
    return network.eval()


def _write(
    new: Path, architecture: Architecture, network: Network, spec: Mapping[str, Any], record: Mapping[str, Any]
) -> dict[str, str | None]:
    """Write the files of the formats; returns their names, with digests of the files in HASHED."""
    formats, card, state = record["formats"], record["card"], network.state_dict()
    note = "" if record["trained"] else cards.never_trained(record["seed"])
    files.write_text(new / "architecture.json", architecture.to_json())
    specifications.write(new, spec, program="onnx" in formats or photo_onnx.FORMAT in formats)
    if "source" in formats:
        text = model_source(architecture, title=cards.title(architecture, card), note=note, preprocessing=spec)
        files.write_text(new / "model.py", text)
    metadata = {"architecture": architecture.digest, "trained": str(record["trained"])}
    _write_bytes(new / "weights.safetensors", as_safetensors(state, **metadata))
    if "source" in formats or "torch" in formats:
        _write_bytes(new / "weights.pt", as_torch(state))
    if "onnx" in formats:
        from nasspace.latency.convert import to_onnx

        batch = record["batch_size"]
        size = {"dynamic_batch": True} if batch == DYNAMIC else {"batch_size": batch}
        stated = specifications.metadata(spec, architecture.digest)
        to_onnx(network, architecture.input, new / "model.onnx", **size, metadata=stated)
    if photo_onnx.FORMAT in formats:
        stated = specifications.metadata(spec, architecture.digest)
        photo_onnx.write(network, spec, stated, new / photo_onnx.NAME)
    is_free = record["batch_size"] == DYNAMIC
    shape = (1 if is_free else record["batch_size"], *architecture.input)
    for name in formats:
        if name in TARGETS:
            targets.write(TARGETS[name], network, shape, is_free, new / TARGETS[name].file)
    names = sorted(path.name for path in new.iterdir())
    return {name: digest(new / name) if name in HASHED else None for name in names}


def _write_bytes(path: Path, data: bytes) -> None:
    with files.replacing(path) as temporary:
        temporary.write_bytes(data)


def _checked(
    new: Path, architecture: Architecture, record: Mapping[str, Any], data: DataSet | None
) -> tuple[list[Check], dict[str, float]]:
    """Check the files just written; returns the checks and the accuracies. Failed checks raise `VerificationError`."""
    try:
        checks, accuracy = checking.run(new, architecture, record, data=data)
    except InputError as error:
        raise VerificationError(f"the export failed its checks and was not kept: {error}") from error
    failed = [f"{check.name} ({check.value}, limit {check.limit})" for check in checks if check.ok is False]
    if failed:
        raise VerificationError(f"the export failed its checks and was not kept: {'; '.join(failed)}")
    return checks, accuracy


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """Create a hidden folder next to `folder`, which is removed at the end."""
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
    """Move the folder into place, or replace the files of an earlier export one by one and remove the others.

    README.md is removed first and written last: a folder that has it is complete. The records of a full training and of
    a compression are removed with their network.
    """
    try:
        if not folder.exists():
            new.rename(folder)
            return
        for name in ("README.md", RECORD, *TRAINED, COMPRESSED):
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


def read_record(folder: Path) -> dict[str, Any]:
    """Read the export.json of a folder; the parts that checks rely on are validated."""
    path = folder / RECORD
    if not path.is_file():
        raise InputError(
            f"{folder}: this is not an export folder ({RECORD} is missing); name one that `nas export` wrote"
        )
    document = files.load_json(path)
    record = document.value
    if not isinstance(record, dict) or record.get("nasspace_export") != VERSION:
        raise document.error((), f"not the record of an export of version {VERSION}; export it again")
    kinds = {"digest": str, "trained": bool, "seed": int, "batch_size": int | str, "files": dict, "card": dict}
    kinds |= {"data": dict | None, "accuracy": dict, "checks": list}
    for key, kind in kinds.items():
        if key not in record or not isinstance(record[key], kind):
            raise document.error((key,), f"'{key}' is missing or has the wrong type; export it again")
    try:
        _checked_batch(record["batch_size"])
    except InputError as error:
        raise document.error(("batch_size",), f"{error}; export it again") from None
    unknown = [name for name in record["files"] if name not in WRITTEN]
    missing = [name for name in (checking.PIPELINE, specifications.NAME) if name not in record["files"]]
    unhashed = [name for name, kept in record["files"].items() if name in HASHED and not isinstance(kept, str)]
    if unknown or missing or unhashed:
        raise document.error(("files",), "not the files of an export; export it again")
    figures = [value for value in record["accuracy"].values() if isinstance(value, bool | str | list | dict | None)]
    if figures:
        raise document.error(("accuracy",), "not a number for each file; export it again")
    for key in INT8_RECORDS.values():
        if not isinstance(record.get(key), dict | None):
            raise document.error((key,), "not the record of an int8 file; export it again")
    check_origin(document, record["data"])
    return record


def check_origin(document: Document, data: Any) -> None:
    """Refuse an invalid `data` of export.json; None means unknown data."""
    if data is None:
        return
    for key, kind in ORIGIN.items():
        found = data.get(key, 1 if key == "resolution" else None) if isinstance(data, dict) else None
        if not isinstance(found, kind) or isinstance(found, bool):
            raise document.error(("data", key), f"missing or not of the type {kind.__name__}; export it again")
    if not 0 <= data["seed"] <= LARGEST_SEED or not 0 < data["held_out"] < 1:
        raise document.error(("data",), "needs a seed of 0 or more and a held_out between 0 and 1; export it again")
    if unknown := data.keys() - ORIGIN.keys():
        raise document.error(("data", min(unknown)), "not a key of an export's data; export it again")
