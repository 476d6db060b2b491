"""`nas quantize`: the int8 file of an export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nasspace.cli import choices, printing
from nasspace.cli.spaces import Json
from nasspace.errors import InputError, Interrupted, nearest

if TYPE_CHECKING:
    from nasspace.exporting.int8 import Loss, Quantized


FORMATS = ("onnx", "litert")


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("quantize", cls=choices.CommandWithChoices)(quantize)


def quantize(
    folder: Annotated[Path, typer.Argument(help="An export's folder, or a training's.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="The data that the network was trained on, {datasets}; the recorded one if not given.",
            autocompletion=choices.datasets,
        ),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the files of a named data set.")] = None,
    fine_tune: Annotated[
        int, typer.Option(help="Epochs to train the network as it computes in int8, if int8 loses too much.", min=0)
    ] = 0,
    format: Annotated[
        str, typer.Option(help=f"{' or '.join(FORMATS)}.", autocompletion=lambda: list(FORMATS))
    ] = FORMATS[0],
    json: Json = False,
) -> None:
    """Write model.int8.onnx into an export: the best of six ways to quantize, and what it loses.

    If it loses more than a point of accuracy on the validation images, the most sensitive operations stay in float.
    With --fine-tune the network is also trained in int8, and the better file is kept; the same command resumes.
    --format litert writes model.int8.tflite for LiteRT (TensorFlow Lite) instead, the better of two ways.
    """
    from nasspace.exporting import int8

    if format == "litert":
        if fine_tune:
            raise InputError("--fine-tune trains for model.int8.onnx; leave it out with --format litert")
        return _for_litert(folder, data, data_dir, json)
    if format not in FORMATS:
        raise InputError(f"--format {format}: not {' or '.join(FORMATS)}{nearest(format, FORMATS)}")
    try:
        exported, found = int8.quantize(folder, data, data_dir, printing.print_message, fine_tune=fine_tune)
    except KeyboardInterrupt:
        if not fine_tune:
            raise
        raise Interrupted("interrupted; the same command continues the fine-tuning from its checkpoint") from None
    if json:
        document = {"folder": str(exported.folder), "accuracy": exported.accuracy, **found.to_json()}
        return printing.print_json({**document, "warning": found.warning})
    columns = ("weights", "ranges", "divergence, nats", "")
    rows = [
        {
            "weights": "per channel" if scheme.per_channel else "per tensor",
            "ranges": scheme.ranges,
            "divergence, nats": f"{divergence:.3g}",
            "": "chosen" if scheme == replace(found.scheme, float_nodes=()) else "",
        }
        for scheme, divergence in found.tried
    ]
    caption = "The divergence of its class probabilities from the float network's, on training images."
    printing.print_fitted(columns, rows, (), caption=caption)
    for line in _losses(found, exported.accuracy):
        printing.print_text(line)
    printing.print_text(f"{printing.escape_line(exported.folder)}: {int8.INT8}")
    if found.warning:
        printing.print_message(f"nas: {found.warning}")
    return None


def _for_litert(folder: Path, data: str | None, data_dir: Path | None, json: bool) -> None:
    """Write model.int8.tflite, and print what it loses."""
    from nasspace.exporting import int8_litert
    from nasspace.exporting.targets import LITERT_INT8

    exported, found = int8_litert.quantize(folder, data, data_dir)
    if json:
        document = {"folder": str(exported.folder), "accuracy": exported.accuracy, **found.to_json()}
        return printing.print_json({**document, "warning": found.warning})
    diverging = ", ".join(f"{ranges} {divergence:.3g}" for ranges, divergence in found.tried)
    printing.print_text(f"ranges by {found.ranges}; divergence from the float network, nats: {diverging}")
    if found.loss is not None:
        printing.print_text(_loss(found.loss, exported.accuracy, LITERT_INT8.file))
    if found.float_layers:
        layers = ", ".join(map(str, found.float_layers))
        printing.print_text(f"operations of layers {layers} stay in float: LiteRT's quantizer has no int8 form of them")
    printing.print_text(f"{printing.escape_line(exported.folder)}: {LITERT_INT8.file}")
    if found.warning:
        printing.print_message(f"nas: {found.warning}")
    return None


def _loss(loss: Loss, accuracy: dict[str, Any], file: str) -> str:
    """The accuracies in float and int8, and what is lost."""
    both = ", ".join(f"{name} {accuracy[name]:.2%}" for name in ("model.onnx", file) if name in accuracy)
    value, word = 100 * loss.value, "lost"
    low, high = (100 * end for end in loss.interval)
    if value < 0:
        value, low, high, word = -value, -high, -low, "gained"
    return f"{both}; {value:.2f} points {word} ({low:.2f} to {high:.2f}) on {loss.count:,} validation images"


def _losses(found: Quantized, accuracy: dict[str, Any]) -> list[str]:
    """The accuracies in float and int8, and the layers left in float."""
    from nasspace.exporting import int8

    lines = []
    if found.loss is not None:
        lines.append(_loss(found.loss, accuracy, int8.INT8))
    if nodes := found.scheme.float_nodes:
        layers = ", ".join(map(str, int8.layers_of(nodes)))
        lines.append(f"{len(nodes)} operations stay in float, in layers {layers}: {', '.join(nodes)}")
    if tuning := found.fine_tuning:
        tuned, other = (f"{100 * loss.value:.2f}" for loss in (tuning.loss, tuning.other))
        kept = "the fine-tuned file is kept" if tuning.is_kept else "the file without fine-tuning is kept"
        lines.append(f"{tuned} points lost after {tuning.training.epochs} epochs in int8, {other} without; {kept}")
    return lines
