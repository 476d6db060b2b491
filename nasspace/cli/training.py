"""`nas train`: full training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nasspace.cli import choices, printing
from nasspace.cli.spaces import Json
from nasspace.errors import Interrupted


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("train", cls=choices.CommandWithChoices)(train)


def train(
    arch: Annotated[
        str,
        typer.Argument(
            metavar="ARCH",
            help="STUDY:ID, STUDY:recommended, STUDY:front, published network, architecture JSON, or export folder.",
            autocompletion=choices.networks_and_fronts,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="As in `nas search`; the study's or export's own if not given, digits for other networks.",
            autocompletion=choices.datasets,
        ),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the files of a named data set.")] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Skip images that cannot be read.")] = False,
    images_on_disk: Annotated[
        bool,
        typer.Option(
            "--images-on-disk",
            help="Read decoded images from a file of the cache; automatic above half of the memory.",
        ),
    ] = False,
    beside: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY",
            help="Train another network as the study's full training is: its data, split, resolution, epochs.",
            autocompletion=choices.studies,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images; 25, or the study's own, if not given.", min=1)
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Deployment resolution; the study's, or that of network and images.")
    ] = None,
    settings: Annotated[
        str, typer.Option(help="own, a published training such as shufflenet, or a YAML file of settings.")
    ] = "own",
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights to start from: .safetensors or .pth, also of torchvision or timm, or an export."),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Do not start from the weights that the study or export kept.")
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A trained network to learn from: an ONNX file, a folder of an export, or STUDY:ID.",
            autocompletion=choices.members,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write; trainings/NAME if not given. For a front: a folder per member."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same network.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Where to train: {devices}.", autocompletion=choices.devices)] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads; 1 if not given.", min=1)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step; the learning rate changes in proportion.", min=2)
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(
            help="Also log to {logs}; repeatable. TensorBoard: OUT/tensorboard; MLflow: as its environment variables "
            "say.",
            autocompletion=choices.logs,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Train a network fully and export it; the test split is evaluated once. Run the same command to resume."""
    from nasspace.engine import full_training
    from nasspace.training import distributed

    try:
        result = full_training.train(
            arch,
            data=data,
            data_dir=data_dir,
            beside=beside,
            epochs=epochs,
            resolution=resolution,
            settings=settings,
            weights=weights,
            from_scratch=from_scratch,
            teacher=teacher,
            out=out,
            seed=seed,
            device=device,
            threads=threads,
            batch_size=batch_size,
            skip_broken=skip_broken,
            log=log or (),
            on_disk=images_on_disk,
            report=printing.print_message,
        )
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the checkpoint is kept, the same command continues") from None
    if not distributed.is_first():
        return None
    if json:
        return printing.print_json(result.to_dict())
    _print_table(result.trained if isinstance(result, full_training.FrontTraining) else (result,))
    return None


COLUMNS = ("folder", "validation accuracy", "test accuracy (95 %)", "balanced accuracy", "macro F1", "seconds")
DROPPABLE = ("seconds", "macro F1", "balanced accuracy")  # in a narrow terminal, in this order


def _print_table(trained: Any) -> None:
    rows = []
    for one in trained:
        test = one.test
        interval = f"{test.accuracy:.4f} ({test.low:.4f}-{test.high:.4f})" if test else "-"
        others = [f"{test.balanced_accuracy:.4f}", f"{test.macro_f1:.4f}"] if test else ["-", "-"]
        cells = (str(one.folder), f"{one.validation.accuracy:.4f}", interval, *others, f"{one.seconds:.0f}")
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    printing.print_fitted(COLUMNS, rows, DROPPABLE)
