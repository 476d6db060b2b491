"""`nas compress`: a trained network made smaller."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nasspace.cli import choices, printing
from nasspace.cli.spaces import Json
from nasspace.errors import InputError, Interrupted

if TYPE_CHECKING:
    from nasspace.engine.compression_record import Compression


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("compress", cls=choices.CommandWithChoices)(compress)


def compress(
    arch: Annotated[
        str,
        typer.Argument(
            metavar="ARCH",
            help="STUDY:ID, a folder of a training or export, or a network with --weights.",
            autocompletion=choices.networks,
        ),
    ],
    method: Annotated[
        str,
        typer.Option(
            help="netadapt: prune channels, step by step, by measured latency. magnitude: set the smallest weights to "
            "zero, which shrinks the compressed file. svd: two smaller layers for a large one. cluster: few different "
            "values in a layer, which shrinks the compressed file."
        ),
    ] = "netadapt",
    latency_target: Annotated[
        str | None,
        typer.Option(help="netadapt: such as 10ms, or 70% of the network's own; the interval's upper end counts."),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Share of the weights that stays; 20% with magnitude, 50% with svd, if not given."),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            help="magnitude: how layers compare: adaptive (default), global, or layer (the same share of each)."
        ),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="cluster: a layer has 2 to the power of BITS values; 4 if not given.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="The data that the network was trained on, {datasets}; the recorded one if not given.",
            autocompletion=choices.datasets,
        ),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the files of a named data set.")] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Skip images that cannot be read.")] = False,
    weights: Annotated[
        Path | None,
        typer.Option(help="Trained weights: .safetensors or .pth, also of torchvision or timm, or an export."),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Deployment resolution; the study's or export's, or that of network and images.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of the last training; 25 with netadapt, else 10, if not given.", min=1)
    ] = None,
    settings: Annotated[
        str, typer.Option(help="own, a published training such as shufflenet, or a YAML file of settings.")
    ] = "own",
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A trained network to learn from: an ONNX file, a folder of an export, or STUDY:ID.",
            autocompletion=choices.members,
        ),
    ] = None,
    step: Annotated[
        str | None, typer.Option(help="netadapt: share of the first latency that a step removes; 5% if not given.")
    ] = None,
    proposals: Annotated[
        int | None,
        typer.Option(help="netadapt: networks that a step trains briefly, to take one; 6 if not given.", min=1),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="What runs the network: {runtimes}.", autocompletion=choices.runtimes)
    ] = "onnxruntime",
    threads: Annotated[int, typer.Option(help="Threads of the measured network.", min=1)] = 1,
    batch_size: Annotated[int, typer.Option(help="Images of the measured network's batch.", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder to write; compressed/NAME if not given.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same trainings.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Where to train: {devices}.", autocompletion=choices.devices)] = "cpu",
    json: Json = False,
) -> None:
    """Make a trained network smaller, train it, and export it. The same command resumes.

    Size, latency and accuracy are measured before and after.
    """
    from nasspace.engine import compression

    target, share = (None, None) if latency_target is None else _target(latency_target)
    try:
        result = compression.compress(
            arch,
            method=method,
            latency_target_ms=target,
            latency_share=share,
            keep=_optional_share("--keep", keep),
            threshold=threshold,
            bits=bits,
            data=data,
            data_dir=data_dir,
            skip_broken=skip_broken,
            weights=weights,
            resolution=resolution,
            epochs=epochs,
            settings=settings,
            teacher=teacher,
            step=_optional_share("--step", step),
            proposals=proposals,
            runtime=runtime,
            threads=threads,
            batch_size=batch_size,
            out=out,
            seed=seed,
            device=device,
            report=printing.print_message,
        )
    except KeyboardInterrupt:
        raise Interrupted("interrupted; every finished step is kept, the same command continues") from None
    return printing.print_json(result.to_dict()) if json else _print(result)


def _target(text: str) -> tuple[float | None, float | None]:
    """A latency target: milliseconds, or a share of the network's latency."""
    from nasspace.studies.recipe import quantity

    if text.strip().endswith("%"):
        return None, _share("--latency-target", text)
    try:
        return quantity(text, "latency"), None
    except ValueError as error:
        raise InputError(f"--latency-target: {error}, or as a share such as 70%") from None


def _optional_share(flag: str, text: str | None) -> float | None:
    """A share, or None."""
    return None if text is None else _share(flag, text)


def _share(flag: str, text: str) -> float:
    """A share such as 5% or 0.05, between 0 and 1."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if number != text.strip() else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise InputError(f"{flag}: {text!r} is not a share between 0 and 100 %, such as 5%")
    return value


COLUMNS = ("", "validation accuracy (95 %)", "model.onnx", "deflated", "latency, ms (95 %)", "FLOPs", "parameters")
DROPPABLE = ("parameters", "FLOPs")  # in a narrow terminal, in this order


def _print(result: Compression) -> None:
    """The network before and after, and what that brings."""
    from nasspace.formatting import kilobytes, percent

    rows = []
    for name, one in (("before", result.original), (result.method, result.compressed)):
        accuracy = f"{one.accuracy:.2%}"
        if one.accuracy_low is not None and one.accuracy_high is not None:
            accuracy += f" ({one.accuracy_low:.2%} to {one.accuracy_high:.2%})"
        latency = f"{one.latency_ms:.4g} ({one.latency_low_ms:.4g} to {one.latency_high_ms:.4g})"
        sizes = kilobytes(one.file_bytes), kilobytes(one.deflated_bytes)
        cells = (name, accuracy, *sizes, latency, f"{one.flops:,}", f"{one.params:,}")
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    printing.print_fitted(COLUMNS, rows, DROPPABLE)
    printing.print_text(result.bought)
    if result.target_ms is None:
        printing.print_text(f"{result.folder}: {_details(result.details)}")
    else:
        share = result.strength.get("latency_share")
        target = f"{result.target_ms:.4g} ms" if share is None else f"{percent(share)} of the latency"
        printing.print_text(f"{result.folder}: {len(result.steps)} steps to a target of {target}")
    if test := result.training.test:
        printing.print_text(f"test accuracy {test.accuracy:.2%} ({test.low:.2%} to {test.high:.2%}), evaluated once")


def _details(details: dict[str, Any]) -> str:
    """What a method came to."""
    from nasspace.formatting import kilobytes

    if "ranks" in details:
        return "factorized: " + ", ".join(f"layer {i} at rank {rank}" for i, rank in details["ranks"].items())
    weights = f"{details['weights']:,} weights"
    if "zeros" in details:
        return f"{details['zeros']:.2%} of {weights} are zero"
    size = f"as codes and codebooks, the network would take {kilobytes(details['computed_bytes'])} (computed)"
    return f"at most {details['values']} different values in a layer, of {weights}; {size}"
