"""`nas score`: training-free scores."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from nasspace.cli import choices, printing
from nasspace.cli.networks import Arch, Resolution
from nasspace.cli.spaces import Json

DIGITS = 6  # significant digits of a score; counts are exact


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("score", cls=choices.CommandWithChoices)(score)


def score(
    arch: Arch,
    data: Annotated[
        str | None,
        typer.Option(
            help="Draw the minibatch from: {datasets}; the study's own if not given, digits for other networks.",
            autocompletion=choices.datasets,
        ),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the files of a named data set.")] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Skip images that cannot be read.")] = False,
    resolution: Resolution = None,
    only: Annotated[str | None, typer.Option(help="Some scores, with commas: {scores}. All if not given.")] = None,
    images: Annotated[int | None, typer.Option(help="Images of the minibatch; 32 if not given.", min=4)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights and of the minibatch.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="Where to compute: {devices}.", autocompletion=choices.devices)] = "cpu",
    json: Json = False,
) -> None:
    """Score a network without training: counts, and what one minibatch shows at the initial weights.

    Larger scores stand for more accurate networks. Compare networks of one task: a score means nothing alone.
    """
    from nasspace.engine import scoring
    from nasspace.training.proxies import SCORES

    names = None if only is None else [name.strip() for name in only.split(",") if name.strip()]
    result = scoring.score(
        arch,
        data=data,
        data_dir=data_dir,
        resolution=resolution,
        names=names,
        images=scoring.IMAGES if images is None else images,
        seed=seed,
        device=device,
        skip_broken=skip_broken,
    )
    if json:
        return printing.print_json(result.to_dict())
    rows = [
        {
            "score": name,
            "value": _figure(value),
            "CPU seconds": f"{result.seconds[name]:.2g}" if SCORES[name].needs != "counts" else "",
            "source": SCORES[name].source,
        }
        for name, value in result.scores.items()
    ]
    side = result.resolution
    caption = f"{result.images} training images of {result.data}, seed {result.seed}" if result.data else ""
    printing.print_fitted(
        ("score", "value", "CPU seconds", "source"),
        rows,
        ("source", "CPU seconds"),
        title=f"{result.name or 'network'} (digest {result.digest}), input {side}x{side}",
        caption=caption,
        wrapped="source",
    )
    return None


def _figure(value: float) -> str:
    """A count exactly, another score with six digits."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{DIGITS}g}" if math.isfinite(value) else str(value)
