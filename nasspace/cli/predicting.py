"""`nas predict`: classify images with an export or a training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from nasspace.cli import printing
from nasspace.cli.spaces import Json
from nasspace.errors import InputError

NETWORK = "model.onnx"
USED = (NETWORK, "preprocessing.json")
RECORD = "export.json"  # has the digests of an export's files
SUBFOLDERS = ("", "export")  # with the files: of an export, and of a training


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("predict")(predict)


def predict(
    folder: Annotated[Path, typer.Argument(help="The folder of an export or a training.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="The K most probable classes; 1, with --json 5.")
    ] = None,
    json: Json = False,
) -> None:
    """Classify images with an export or a training: its preprocessing.json and model.onnx; none of its code is run."""
    from nasspace.data.predict import classify

    used = _network_folder(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about unusual files
        try:
            predictions = classify(images, used, top or (5 if json else 1))
        except (ValueError, ImportError) as error:
            raise InputError((str(error).splitlines() or [str(folder)])[0]) from None
    for name in _changed(used):
        printing.print_message(
            f"nas: {printing.escape_line(used / name)} was changed since the export: `nas verify` checks the folder"
        )
    if json:
        return printing.print_json({"predictions": [_encodable(found) for found in predictions]})
    for found in predictions:
        ranked = (f"{printing.escape_line(each['class'])}\t{each['probability']:.4f}" for each in found["top"])
        print(printing.escape_line(found["file"]), *ranked, sep="\t")
    return None


def _network_folder(folder: Path) -> Path:
    """The folder that has model.onnx; raise `InputError` if there is none."""
    try:
        for subfolder in SUBFOLDERS:
            if (folder / subfolder / NETWORK).is_file():
                return folder / subfolder
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder")
    except OSError as error:  # a name too long, a folder that may not be read
        raise InputError(f"{folder}: cannot be read ({error.strerror or error})") from None
    if (folder / "study.yaml").is_file():
        raise InputError(f"{folder}: this is a study; name one of its exports, {folder / 'exports' / 'ID'}")
    raise InputError(f"{folder}: holds no {NETWORK}; export the network with --format onnx")


def _changed(folder: Path) -> list[str]:
    """Those of the files used that are not what export.json records; none without a readable export.json."""
    from nasspace import files
    from nasspace.exporting.check import digest

    try:
        recorded = files.load_json(folder / RECORD).value["files"]
        return [name for name in USED if name in recorded and recorded[name] != digest(folder / name)]
    except (InputError, TypeError, KeyError):
        return []


def _encodable(value: Any) -> Any:
    """Replace what UTF-8 cannot encode: the name of a file or class need not be text."""
    if isinstance(value, dict):
        return {key: _encodable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_encodable(one) for one in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
