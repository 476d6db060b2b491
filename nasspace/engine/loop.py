"""The search: ask, evaluate, tell, until enough was evaluated; stop, resume; then export and measure again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nasspace import files, temporary
from nasspace.architecture import Architecture
from nasspace.documents import Document
from nasspace.engine import duration, latency_evaluator
from nasspace.engine.evaluator import Trained, shown
from nasspace.engine.problem import WHERE, Evaluator, Task, check_names, check_where, refuse_other
from nasspace.engine.proposals import cheapest
from nasspace.engine.ray import runner
from nasspace.engine.trials import Driver, Report, scored
from nasspace.errors import InputError, NothingFound
from nasspace.space.space import Space
from nasspace.studies import paths, recipe
from nasspace.studies import study as records
from nasspace.studies.recipe import Recipe
from nasspace.studies.storage import REMEDY, errors_of_storage
from nasspace.studies.study import Study

PAUSE = 0.5  # seconds between two looks at what other processes do


def search(
    space: Space | str | Path,
    data: str | None = None,
    *,
    latency_target_ms: float | None = None,
    flops_target: float | None = None,
    params_target: float | None = None,
    trials: int | None = None,
    seed: int | None = None,
    objectives: Iterable[str] | None = None,
    recipe: Recipe | str | Path = "quick",
    evaluator: Evaluator | None = None,
    known: Mapping[str, Callable[[Architecture], float]] | None = None,
    sampler: str | None = None,
    study: str | Path | None = None,
    storage: str | None = None,
    fresh_latency: bool = False,
    on_event: Report | None = None,
    **changes: Any,
) -> Study:
    """Search a space; the study's `front()` is a data frame, `folder` holds tables, report and exports.

    `space` is a `Space`, a name or a path; `data` as in `nas search --data`. Targets are in milliseconds and counts.
    `evaluator(architecture)` returns figures such as `{"accuracy": 0.93, "latency": 3.1}` in place of counting,
    measuring and training; `known` gives cheap objectives as functions that the sampler may call on any candidate.
    `recipe` and `changes` (its other fields: `runtime`, `threads`, `resolution`, `fidelity`, ...) set the rest.
    A study of the same name goes on if all that it was asked is the same. Raises `InputError` for what is wrong in
    the input and `NothingFound` if no network is inside the limits.
    """
    started = time.monotonic()
    asked = _recipe(recipe).with_changes(
        {
            **changes,
            "data": data,
            "trials": trials,
            "seed": seed,
            "sampler": sampler,
            "objectives": tuple(objectives) if objectives is not None else None,
            "limits": {
                "latency": None if latency_target_ms is None else f"{latency_target_ms}ms",
                "flops": flops_target,
                "params": params_target,
            },
        }
    )
    check_names(asked)
    task = Task.of_function(asked, space, evaluator, known) if evaluator else Task.of_data(asked, space)
    with _new_or_old_folder(study, task) as folder:
        current = _opened(folder, task, storage)
    return _run(current, task, fresh_latency, on_event or _silent, started)


def resume(name: str | Path, *, on_event: Report | None = None, **where: Any) -> Study:
    """Go on with a stopped study, from its own study.yaml; a finished one is given back as it is.

    `where` says where it goes on (`workers`, `ray`, `gpus`, `storage_path`), if not where it was started.
    """
    started = time.monotonic()
    current = records.load(name)
    if current.record.user_attrs.get(records.FINISHED):
        return current
    settings = current.settings
    if settings["evaluator"]:
        raise InputError(
            f"study '{current.name}' was searched with the evaluator {settings['evaluator']}; go on with "
            f"nasspace.search(..., evaluator=..., study='{current.folder}')"
        )
    document = Document(settings["space"]["document"], settings["space"]["name"])
    asked = recipe.read(Document(settings["recipe"], str(current.folder / "study.yaml"))).with_changes(where)
    current.settings = {**settings, "recipe": asked.as_written()}
    check_where(asked)
    task = Task.of_data(asked, Space(document))
    refuse_other(current.folder, settings, task.settings(current.folder.name, None), current.latency_machine())
    return _run(current, task, False, on_event or _silent, started)


def _recipe(given: Recipe | str | Path) -> Recipe:
    return given if isinstance(given, Recipe) else recipe.load(given)


def _silent(kind: str, **_: Any) -> None:
    return


@contextlib.contextmanager
def _new_or_old_folder(name: str | Path | None, task: Task) -> Iterator[Path]:
    """The folder of a study; one that was made here and stayed empty, since the search could not start, is removed."""
    folder = _free_folder(task) if name is None else paths.folder_of(name)
    made = name is None or not folder.exists()
    try:
        yield folder
    except BaseException:
        if made and folder.is_dir() and {path.name for path in folder.iterdir()} <= {".lock"}:
            (folder / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another process has started it
                folder.rmdir()
        raise


def _opened(folder: Path, task: Task, storage: str | None) -> Study:
    """The study to write into: a new one, or one of the same name that was asked the same.

    It is made under the folder's lock, so that of two processes that start one name the second finds the first's.
    """
    settings = task.settings(folder.resolve().name, paths.storage_url(storage))
    if not (folder / "study.yaml").is_file():
        used = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
        if used and not any((folder / part).is_file() for part in ("study.yaml", "study.db")):
            raise InputError(f"{folder}: the folder is in use and is no study; choose another --study name")
        with paths.alone(folder, wait=storage is not None):
            is_new = not (folder / "study.yaml").is_file()
            current = records.create(folder, settings, _sampler(task)) if is_new else records.load(folder)
    else:
        current = records.load(folder)
    refuse_other(folder, current.settings, settings, current.latency_machine())
    asked, before = settings["recipe"], current.settings["recipe"]
    other_end = any(before.get(key) != asked[key] for key in ("trials", "time_budget"))
    if any(asked[key] != before.get(key) for key in WHERE):  # where it goes on is this process's own matter
        current.settings = {**current.settings, "recipe": {**before, **{key: asked[key] for key in WHERE}}}
    if other_end:
        with paths.alone(current.folder, wait=current.is_shared):
            records.extend(current, {**current.settings, "recipe": settings["recipe"]})
    return current


def _free_folder(task: Task) -> Path:
    """reports/SPACE-1, or the next number that is free."""
    stem = task.space.name
    number = 1
    while True:
        folder = Path("reports") / f"{stem}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if not os.path.lexists(folder):  # `reports` itself: a link to nothing
                raise files.cannot_write(folder.parent, error) from None
            number += 1
        except OSError as error:
            raise files.cannot_write(folder, error) from None
        else:
            return folder


def _refuse_other_choices(study: Study, task: Task) -> None:
    """The choices that are in the record must be those of the space, or samplers and Optuna fail on them."""
    options = task.space.options
    for trial in study.frozen():
        for name, distribution in trial.distributions.items():
            recorded = tuple(getattr(distribution, "choices", ()))
            if recorded != tuple(options.get(name, ())):
                among = recipe.short(recorded)
                raise InputError(
                    f"{study.folder}: trial {trial.number} chose {name} among {among}, which the space does not have; "
                    f"the database is damaged: {REMEDY}"
                )


def _sampler(task: Task) -> Any:
    from nasspace.samplers.optuna_samplers import optuna_sampler

    name = "random" if task.recipe.sampler == "gain" else task.recipe.sampler
    return optuna_sampler(name, task.recipe.seed)


def _run(study: Study, task: Task, fresh_latency: bool, report: Report, started: float) -> Study:
    """`started` is when the command began, in seconds of time.monotonic(): the time budget is of all of it."""
    study.record.sampler = _sampler(task)
    others = study.is_shared  # may be in the folder, too
    temporary.clear()
    study.deadline = started + task.recipe.time_budget if task.recipe.time_budget else None
    with contextlib.nullcontext() if others else paths.alone(study.folder), errors_of_storage(study.folder):
        _refuse_other_choices(study, task)
        study.data = task.data
        report("start", study=study, task=task)
        for note in task.notes:
            report("note", text=note)
        wanted = not study.is_searched and (study.deadline or not study.evaluated)
        likely = duration.estimate(task) if wanted else None
        if likely and not task.recipe.distributed:
            report("note", text=str(likely))
        if likely and study.deadline and likely.delivery[0] > task.recipe.time_budget / 2:
            report("note", text=f"the time budget is short for {likely.last_rung}: it may be exceeded")
        if task.scorer is None:
            task.scorer = Trained(
                task.recipe,
                task.data,
                measure=latency_evaluator.Measurer(task.recipe, task.data, fresh=fresh_latency),
                on_epoch=lambda epoch, epochs, loss: report("epoch", epoch=epoch, epochs=epochs, loss=loss),
            )
        with Driver(study, task, report) as driver:
            driver.reserve(likely.mean_delivery if likely else 0.0)
            if task.recipe.distributed:
                runner.run(driver, fresh_latency)
            else:
                _one_by_one(driver)
        if study.evaluated:
            study.record_search_end()
        elif driver.out_of_time and not study.rejected:
            raise InputError(
                f"{study.folder}: the time budget of {task.recipe.time_budget:g} s ended before a network was "
                "evaluated; give a longer --time-budget"
            )
        with paths.alone(study.folder, wait=True) if others else contextlib.nullcontext():
            records.write_tables(study)
        if not study.front_numbers():
            measured = study.evaluated + study.rejected
            raise nothing_found(study) if measured else _nothing_counted(study, task)
    return study


def _one_by_one(driver: Driver) -> None:
    """Every candidate evaluated in this process, one after the other."""
    while True:
        candidate = driver.ask()
        if candidate is not None:
            driver.started(candidate)
            with driver.attempting(candidate):
                outcome = scored(driver.task.scorer, candidate.architecture)
            driver.tell(candidate, outcome)
        elif driver.finished:
            return
        else:
            time.sleep(PAUSE)  # other processes are at work on what is left


def nothing_found(study: Study) -> NothingFound:
    """The error of an empty front: it names the nearest network that was measured."""
    measured = study.frozen("COMPLETE", "PRUNED")
    if not measured:
        return NothingFound(f"no network within the limits ({_limits(study)}) was found; nothing was measured")
    best = min(measured, key=study.over_limit)
    if study.over_limit(best) <= 0 and (failed := study.undeployable()):
        number, why = next(iter(failed.items()))
        return NothingFound(
            f"no network is left: {len(failed)} failed at the deployment resolution, the first one, {study.name}:"
            f"{number}: {why}; lower the recipe's training.learning_rate"
        )
    if study.over_limit(best) <= 0 and (again := study.remeasured().get(str(best.number))):
        return NothingFound(
            f"no network stayed within the limits ({_limits(study)}): the nearest, {study.name}:{best.number}, took "
            f"{again['median_ms']:.4g} ms when its exported file was measured again; search on with more --trials"
        )
    values = best.user_attrs["values"]
    figures = [f"{name} {shown(name, values[name])}" for name in study.limits if name in values]
    if interval := study.latency(best):
        figures.append(f"the latency's interval reaching {interval['high_ms']:.4g} ms")
    return NothingFound(
        f"no network within the limits ({_limits(study)}) was found among {len(measured)} measured; the nearest is "
        f"{study.name}:{best.number} (digest {best.user_attrs['digest']}) with {', '.join(figures)}"
    )


def _nothing_counted(study: Study, task: Task) -> NothingFound:
    """The error of limits that are broken before anything is measured: it names about the cheapest network."""
    for name in study.limits.keys() & task.scorer.known.keys():
        architecture, count = cheapest(task.space, name, task.scorer.known[name], task.recipe.seed)
        if count > study.limits[name]:
            return NothingFound(
                f"no network within the limits ({_limits(study)}) was found; the nearest of '{task.space.name}' is "
                f"{architecture.digest} with {name} {shown(name, count)}"
            )
    return NothingFound(f"no network within the limits ({_limits(study)}) was found; nothing was measured")


def _limits(study: Study) -> str:
    return ", ".join(f"{name} {shown(name, limit)}" for name, limit in study.limits.items()) or "none"
