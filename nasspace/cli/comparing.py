"""`nas compare`: design spaces, or the options of a choice, at equal budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nasspace.cli import choices, printing
from nasspace.cli.searching import Gpus, RayAddress, StoragePath, TrialTimeout, Workers, execution_settings
from nasspace.cli.spaces import Json
from nasspace.errors import InputError, Interrupted

if TYPE_CHECKING:
    from nasspace.studies.comparison import Comparison


def add_to(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("compare", cls=choices.CommandWithChoices)(compare)


def compare(
    spaces: Annotated[
        list[str],
        typer.Argument(
            metavar="SPACE...", help="Search spaces: names or paths; one with --vary.", autocompletion=choices.spaces
        ),
    ],
    budget: Annotated[
        list[str],
        typer.Option(metavar="COST=LOW..HIGH", help="Range of a cost, such as flops=40M..60M or latency=2ms..3ms."),
    ],
    networks: Annotated[int, typer.Option(help="Networks of each space that are trained.", min=2)] = 20,
    vary: Annotated[
        str | None, typer.Option(metavar="CHOICE", help="Compare the options of a choice, such as 'stages.*.kernel'.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data set: {datasets}.", autocompletion=choices.datasets)] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the files of a named data set.")] = None,
    recipe: Annotated[
        str, typer.Option(help="How networks are trained: {recipes}, or a path.", autocompletion=choices.recipes)
    ] = "quick",
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same networks.")] = None,
    study: Annotated[
        str | None, typer.Option(help="Name (below ./reports) or folder; SPACE-vs-SPACE if not given.")
    ] = None,
    resolution: Annotated[int | None, typer.Option(help="Deployment resolution.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="What runs the network: {runtimes}.", autocompletion=choices.runtimes)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the runtime.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a batch, for the latency.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to train: {devices}.", autocompletion=choices.devices)
    ] = None,
    latency_device: Annotated[str | None, typer.Option(help=printing.LATENCY_DEVICE)] = None,
    fresh_latency: Annotated[
        bool, typer.Option("--fresh-latency", help="Measure again instead of reading the cache.")
    ] = False,
    workers: Workers = None,
    ray: RayAddress = None,
    gpus: Gpus = None,
    trial_timeout: TrialTimeout = None,
    storage_path: StoragePath = None,
    json: Json = False,
) -> None:
    """Compare spaces, or the options of a choice, by networks drawn within the same budget.

    The same command continues a stopped comparison.
    """
    from nasspace.cli.progress import display
    from nasspace.engine.compare import compare as compared

    try:
        with display() as show:
            found = compared(
                spaces,
                budget=_budget(budget),
                data=data,
                networks=networks,
                vary=vary,
                recipe=recipe,
                seed=seed,
                study=study,
                data_dir=data_dir,
                resolution=resolution,
                runtime=runtime,
                threads=threads,
                batch_size=batch_size,
                device=device,
                latency_device=latency_device,
                fresh_latency=fresh_latency,
                **execution_settings(workers, ray, gpus, trial_timeout, storage_path),
                on_event=show,
            )
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what is finished is kept; run the same command to continue") from None
    _print(found, json)


def _budget(texts: list[str]) -> dict[str, Any]:
    """Parse the ranges of costs; `flops=40M..60M,params=..` is the same as two flags."""
    from nasspace.studies.objectives import OBJECTIVES
    from nasspace.studies.recipe import between

    budget: dict[str, Any] = {}
    for text in (part for each in texts for part in each.split(",")):
        name, equals, ends = (part.strip() for part in text.partition("="))
        if not equals:
            raise InputError(f"--budget: '{text}' is not a cost and its range, such as flops=40M..60M")
        if name in budget:
            raise InputError(f"--budget: {name} is given twice")
        try:
            budget[name] = between(ends, OBJECTIVES[name].kind) if name in OBJECTIVES else ends
        except ValueError as error:
            raise InputError(f"--budget: {name}: {error}") from None
    return budget


def _print(found: Comparison, json: bool) -> None:
    """Print the document, or a table and the sentence."""
    from nasspace.reporting.comparison import PAGE

    if json:
        return printing.print_json(found.document())
    first = "option" if found.is_paired else "space"
    columns = (first, "networks", "median error", "best error", "hypervolume")
    rows = [
        {
            first: group.name,
            "networks": len(group.networks),
            "median error": f"{group.median:.2%}",
            "best error": f"{group.errors.min():.2%}",
            "hypervolume": f"{volume.value:.1%} ({volume.low:.1%} to {volume.high:.1%})",
        }
        for group in found.groups
        for volume in [found.hypervolumes[group.name]]
    ]
    printing.print_fitted(columns, rows, (), caption="Errors are of held-out training images, after equal trainings.")
    printing.print_text(found.sentence)
    printing.print_message(str(found.folder / PAGE))
    return None
