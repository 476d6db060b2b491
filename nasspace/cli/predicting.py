"""`nas predict`: images classified by an export or a training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from nasspace.cli import printing
from nasspace.cli.spaces import Json
from nasspace.errors import InputError

NETWORK = "model.onnx"
BELOW = ("", "export")  # where in a folder the files of an export are: an export itself, or a training


def add_to(app: typer.Typer) -> None:
    """Add this file's verb."""
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

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files
        try:
            predictions = classify(images, _home(folder), top or (5 if json else 1))
        except (ValueError, ImportError) as error:
            raise InputError((str(error).splitlines() or [str(folder)])[0]) from None
    if json:
        return printing.print_json({"predictions": [_as_text(found) for found in predictions]})
    for found in predictions:
        ranked = (f"{printing.shown(each['class'])}\t{each['probability']:.4f}" for each in found["top"])
        print(printing.shown(found["file"]), *ranked, sep="\t")
    return None


def _home(folder: Path) -> Path:
    """Where model.onnx is; an `InputError` where there is none."""
    try:
        for below in BELOW:
            if (folder / below / NETWORK).is_file():
                return folder / below
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder")
    except OSError as error:  # a name too long, a folder that may not be read
        raise InputError(f"{folder}: cannot be read ({error.strerror or error})") from None
    if (folder / "study.yaml").is_file():
        raise InputError(f"{folder}: this is a study; name one of its exports, {folder / 'exports' / 'ID'}")
    raise InputError(f"{folder}: holds no {NETWORK}; export the network with --format onnx")


def _as_text(value: Any) -> Any:
    """What UTF-8 can hold: the name of a file or class need not be text."""
    if isinstance(value, dict):
        return {key: _as_text(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_text(one) for one in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
