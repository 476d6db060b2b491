"""`nas search`, `nas resume`, `nas front`, `nas report`: search, and what was found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nasspace.cli import choices, printing
from nasspace.cli.spaces import Json
from nasspace.errors import InputError, Interrupted
from nasspace.studies import paths
from nasspace.studies.objectives import OBJECTIVES

if TYPE_CHECKING:
    from nasspace.studies.recipe import Kind
    from nasspace.studies.study import Study

StudyName = Annotated[
    str,
    typer.Argument(metavar="STUDY", help="A study's name (below ./reports) or folder.", autocompletion=choices.studies),
]
Workers = Annotated[
    int | None, typer.Option(help="Candidates evaluated at a time, on Ray; 1 without --ray does not use Ray.", min=1)
]
RayAddress = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Ray cluster: HOST:PORT of its head, auto, or none.")
]
Gpus = Annotated[float | None, typer.Option(help="GPUs of one worker, such as 0.25; 1 with --device cuda.", min=0)]
TrialTimeout = Annotated[
    str | None,
    typer.Option(help="Stop a trial that takes longer, such as 10m; trials then run on Ray."),
]
StoragePath = Annotated[
    str | None, typer.Option(help="Shared or cloud storage for trained weights: a path, s3://..., gs://...")
]


def add_to(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("search", cls=choices.CommandWithChoices)(search)
    for command in (resume, front, report):
        app.command(command.__name__)(command)


def search(
    space: Annotated[
        str,
        typer.Option(help="Search space: a name (`nas spaces` lists them) or a path.", autocompletion=choices.spaces),
    ],
    latency_target: Annotated[str | None, typer.Option(help=OBJECTIVES["latency"].limit_help)] = None,
    flops_target: Annotated[str | None, typer.Option(help=OBJECTIVES["flops"].limit_help)] = None,
    params_target: Annotated[str | None, typer.Option(help=OBJECTIVES["params"].limit_help)] = None,
    memory_target: Annotated[str | None, typer.Option(help=OBJECTIVES["peak_memory"].limit_help)] = None,
    flash_target: Annotated[str | None, typer.Option(help=OBJECTIVES["flash"].limit_help)] = None,
    data: Annotated[str | None, typer.Option(help="Data set: {datasets}.", autocompletion=choices.datasets)] = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder of the files of a named data set.")] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Skip images that cannot be read.")] = False,
    recipe: Annotated[
        str, typer.Option(help="How to search: {recipes}, or a path.", autocompletion=choices.recipes)
    ] = "quick",
    objectives: Annotated[
        str | None, typer.Option(help="Comma-separated, any of {objectives}.", autocompletion=choices.objectives)
    ] = None,
    trials: Annotated[int | None, typer.Option(help="Candidates whose accuracy is evaluated.")] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(help="For the whole command, such as 30m: alone, or with --trials, whichever comes first."),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="How candidates are chosen: {samplers}.", autocompletion=choices.samplers)
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="What runs the network: {runtimes}.", autocompletion=choices.runtimes)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the runtime.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a batch, for the latency.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Deployment resolution.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same study, given the same latencies.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name (below ./reports) or folder; SPACE-N if not given.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of the Optuna storage; SQLite in the folder if not given.")
    ] = None,
    workers: Workers = None,
    ray: RayAddress = None,
    gpus: Gpus = None,
    trial_timeout: TrialTimeout = None,
    storage_path: StoragePath = None,
    device: Annotated[
        str | None, typer.Option(help="Where to train: {devices}.", autocompletion=choices.devices)
    ] = None,
    latency_device: Annotated[str | None, typer.Option(help=printing.LATENCY_DEVICE)] = None,
    fresh_latency: Annotated[
        bool, typer.Option("--fresh-latency", help="Measure again instead of reading the cache.")
    ] = False,
    learn_from: Annotated[
        str | None,
        typer.Option(
            metavar="STUDY", help="Learn from an earlier study on the same images.", autocompletion=choices.studies
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            help="Trained weights that candidates inherit: STUDY:ID, an export, or a checkpoint.",
            autocompletion=choices.members,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Search a space for the Pareto front of accuracy, measured latency and FLOPs, within the targets."""
    from nasspace.engine import loop

    settings: dict[str, Any] = {
        "latency_target_ms": _quantity("--latency-target", latency_target, "latency"),
        "flops_target": _quantity("--flops-target", flops_target, "count"),
        "params_target": _quantity("--params-target", params_target, "count"),
        "memory_target": _quantity("--memory-target", memory_target, "memory"),
        "flash_target": _quantity("--flash-target", flash_target, "memory"),
        "data": data,
        "data_dir": data_dir,
        "skip_broken": skip_broken or None,
        "recipe": recipe,
        "objectives": [part.strip() for part in objectives.split(",")] if objectives is not None else None,
        "trials": trials,
        "time_budget": _duration("--time-budget", time_budget),
        "sampler": sampler,
        "runtime": runtime,
        "threads": threads,
        "batch_size": batch_size,
        "resolution": resolution,
        "seed": seed,
        "study": study,
        "storage": storage,
        **execution_settings(workers, ray, gpus, trial_timeout, storage_path),
        "device": device,
        "latency_device": latency_device,
        "fresh_latency": fresh_latency,
        "learn_from": learn_from,
        "start_from": start_from,
    }
    _run(lambda on_event: loop.search(space, **settings, on_event=on_event), json)


def _quantity(flag: str, text: str | None, kind: Kind) -> float | None:
    """Convert an amount with a unit; an error names the flag."""
    from nasspace.studies.recipe import quantity

    if text is None:
        return None
    try:
        return quantity(text, kind)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from None


def _duration(flag: str, text: str | None) -> str | None:
    """Check a time with a unit; an error names the flag."""
    _quantity(flag, text, "time")
    return text


def execution_settings(
    workers: int | None, ray: str | None, gpus: float | None, trial_timeout: str | None, storage_path: str | None
) -> dict[str, Any]:
    """The settings of where and how trials run; a relative path is made absolute, as nodes have other folders."""
    if storage_path and "://" not in storage_path:
        storage_path = str(Path(storage_path).expanduser().absolute())
    timeout = _duration("--trial-timeout", trial_timeout)
    return {"workers": workers, "ray": ray, "gpus": gpus, "trial_timeout": timeout, "storage_path": storage_path}


def resume(
    study: StudyName,
    workers: Workers = None,
    ray: RayAddress = None,
    gpus: Gpus = None,
    trial_timeout: TrialTimeout = None,
    storage_path: StoragePath = None,
    json: Json = False,
) -> None:
    """Continue a stopped study, here or elsewhere; a finished one prints its front."""
    from nasspace.engine import loop

    settings = execution_settings(workers, ray, gpus, trial_timeout, storage_path)
    _run(lambda on_event: loop.resume(study, **settings, on_event=on_event), json)


def _run(start: Callable[[Callable[..., None]], Study], json: bool) -> None:
    """Run a search under the live display, and print its front."""
    from nasspace.cli.progress import display

    studies: list[Study] = []
    try:
        with display() as show:

            def on_event(kind: str, **event: Any) -> None:
                if kind in ("loaded", "start"):
                    studies.append(event["study"])
                show(kind, **event)

            study = start(on_event)
    except KeyboardInterrupt:
        raise _interrupted(studies) from None
    _print_front(study, json)


def _interrupted(studies: list[Study]) -> Interrupted:
    """The message of an interruption: what is kept, and how to continue."""
    if not studies:
        return Interrupted("interrupted before the search started; run the same command again")
    command = f"nas resume {paths.as_argument(studies[0].folder)}"
    return Interrupted(f"interrupted; what is finished is kept; run `{command}` to continue")


def front(
    study: StudyName,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="The front as CSV on standard output.")] = False,
) -> None:
    """Print the Pareto front of a study."""
    from nasspace.studies.study import read

    if json and csv:
        raise InputError("--json and --csv are mutually exclusive; give one")
    loaded = read(study)
    if csv:
        sys.stdout.write(loaded.snapshot().csv())
        return
    _print_front(loaded, json)


def _print_front(study: Study, json: bool) -> None:
    """Print the front as a document, or as a table with notes on standard error."""
    if json:
        return printing.print_json(study.document())
    title = f"{study.name}: {study.evaluated} evaluated, {study.rejected} rejected"
    snapshot = study.snapshot()
    asked = (*study.objectives, *study.limits)
    printing.console().print(printing.front_table(snapshot.rows(), snapshot.accuracy_is_of, title, asked=asked))
    document = snapshot.document()
    if document["resolution_why"]:
        printing.print_message(f"deployment resolution {document['resolution']}: {document['resolution_why']}")
    if document["untrained"]:
        number, name = document["untrained"], paths.as_argument(study.folder)
        printing.print_message(f"{number} more to train at the deployment resolution: run `nas resume {name}`")
    if document["ended_early"]:
        printing.print_message(f"the search ended early: {document['ended_early']}")
    if snapshot.ranking_note:
        printing.print_message(snapshot.ranking_note)
    if snapshot.recommendation_note:
        printing.print_message(snapshot.recommendation_note)
    if snapshot.may_belong_note:
        printing.print_message(snapshot.may_belong_note)
    if document["budget_use"]:
        printing.print_message(document["budget_use"])
    if predictor := document["latency_predictor"]:
        printing.print_message(predictor.get("sentence") or _predictor_sentence(predictor))
    written = [name for name in ("report.html", "front.csv", "exports") if (study.folder / name).exists()]
    printing.print_message(f"{study.folder}: {', '.join(written)}" if written else str(study.folder))
    return None


def _predictor_sentence(predictor: Any) -> str:
    """Describe the predictor of a study that an older version recorded without a sentence."""
    from nasspace.latency.predictor import cross_validation_sentence

    return cross_validation_sentence(predictor)


def report(
    study: StudyName,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Write nothing; check that the tables and the report still follow from the study."
        ),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="First measure what changes by ShuffleNet V2's guidelines would save, as `nas explain` does.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Write a study's tables and report.html again, or check them.

    Without study.db, --check compares the published files with each other and with study.yaml. With --explain, the
    panels of the front's networks show what would make each faster; it is kept in the study.
    """
    from nasspace.reporting.report import write_report
    from nasspace.studies.study import load, read, write_tables

    if check and explain:
        raise InputError("--check writes nothing and --explain measures; give one")
    if check:
        return _check_published(study, json)
    is_whole = not explain or _explain(load(study))
    loaded = read(study)
    path: Path = write_report(write_tables(loaded))
    if not is_whole:
        raise Interrupted("interrupted; what is measured is kept and in the report; run the same command to continue")
    if json:
        printing.print_json({"study": loaded.name, "report": str(path)})
    else:
        print(printing.escape_line(path))
    return None


def _explain(study: Study) -> bool:
    """Explain the front of a study; False if the user interrupts it."""
    from nasspace.cli.progress import display
    from nasspace.engine.explaining import explain_front

    try:
        with display() as show:
            explain_front(study, show)
    except KeyboardInterrupt:
        return False
    return True


def _check_published(name: str, json: bool) -> None:
    """Print whether a study's published files follow from it; a failed check ends with exit status 1."""
    from nasspace.exporting.check import has_failed
    from nasspace.reporting import publication
    from nasspace.studies import study as records

    if alone := records.published_without_database(name):
        folder, checks = alone[0], publication.check_files(*alone)
    else:
        study = records.read(name)
        folder, checks = study.folder, publication.check(study.snapshot())
    files = [name for name in publication.FILES if (folder / name).is_file()]
    if json:
        documents = [check.to_dict() for check in checks]
        printing.print_json(
            {"study": folder.resolve().name, "folder": str(folder), "files": files, "checks": documents}
        )
    else:
        printing.print_text(f"{folder}: {', '.join(files)}")
        printing.print_checks(checks)
    if has_failed(checks):
        raise typer.Exit(1)
