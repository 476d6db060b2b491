"""The search: ask, evaluate, tell, until enough was evaluated; stop, resume; then export and measure again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from nasspace import files
from nasspace.architecture import Architecture
from nasspace.documents import Document
from nasspace.errors import InputError, NothingFound
from nasspace.space import Space
from nasspace.studies import evaluate, places, recipe
from nasspace.studies import study as records
from nasspace.studies.candidates import Candidates, cheapest
from nasspace.studies.recipe import Recipe
from nasspace.studies.study import Study
from nasspace.studies.task import Evaluator, Task, check_names, refuse_other

HOPELESS = 12  # rejected with none inside the limits: the search ends
EXHAUSTED = 60  # rejected in a row after some were inside: the search ends with what it has
FAILURES = 5  # candidates in a row whose training fails
Report = Callable[..., None]


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
    current = _opened(study, task, storage)
    return _run(current, task, fresh_latency, on_event or _silent)


def resume(name: str | Path, *, on_event: Report | None = None) -> Study:
    """Go on with a stopped study, from its own study.yaml; a finished one is given back as it is."""
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
    asked = recipe.read(Document(settings["recipe"], str(current.folder / "study.yaml")))
    task = Task.of_data(asked, Space(document))
    refuse_other(current.folder, settings, task.settings(current.folder.name, None))
    return _run(current, task, False, on_event or _silent)


def _recipe(given: Recipe | str | Path) -> Recipe:
    return given if isinstance(given, Recipe) else recipe.load(given)


def _silent(kind: str, **_: Any) -> None:
    return


def _opened(name: str | Path | None, task: Task, storage: str | None) -> Study:
    """The study to write into: a new one, or one of the same name that was asked the same."""
    folder = _free_folder(task) if name is None else places.folder_of(name)
    settings = task.settings(folder.resolve().name, places.storage_url(storage))
    if not (folder / "study.yaml").is_file():
        used = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
        if used and not (folder / "study.db").is_file():
            raise InputError(f"{folder}: the folder is in use and is no study; choose another --study name")
        return records.create(folder, settings, _sampler(task))
    current = records.load(folder)
    refuse_other(folder, current.settings, settings)
    if current.settings["recipe"]["trials"] != settings["recipe"]["trials"]:
        with places.alone(current.folder):
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
        except FileExistsError:
            number += 1
        except OSError as error:
            raise files.cannot_write(folder, error) from None
        else:
            return folder


def _sampler(task: Task) -> Any:
    from nasspace.studies.samplers import optuna_sampler

    name = "random" if task.recipe.sampler == "gain" else task.recipe.sampler
    return optuna_sampler(name, task.recipe.seed)


def _run(study: Study, task: Task, fresh_latency: bool, report: Report) -> Study:
    study.record.sampler = _sampler(task)
    with places.alone(study.folder), records.errors_of_storage(study.folder):
        report("start", study=study, task=task)
        if task.scorer is None:
            task.scorer = evaluate.Trained(
                task.recipe,
                task.data,
                fresh_latency=fresh_latency,
                on_epoch=lambda epoch, epochs, loss: report("epoch", epoch=epoch, epochs=epochs, loss=loss),
            )
        _loop(study, task, report)
        records.write_tables(study)
        if not study.front_numbers():
            measured = study.evaluated + study.rejected
            raise nothing_found(study) if measured else _nothing_counted(study, task)
    return study


def _loop(study: Study, task: Task, report: Report) -> None:
    candidates = Candidates(study, task.space, task.recipe.sampler, task.scorer.known, task.recipe.seed)
    began = time.monotonic()
    while study.evaluated < task.recipe.trials and not _hopeless(study):
        if task.recipe.time_budget and time.monotonic() - began > task.recipe.time_budget:
            report("note", text=f"the time budget is used up; {study.evaluated} evaluated")
            break
        candidate = candidates.next()
        if candidate is None:
            report("note", text=f"no new network within the limits is left; {study.evaluated} evaluated")
            break
        trial, architecture = candidate
        if study.record.user_attrs.get(records.FINISHED):
            study.record.set_user_attr(records.FINISHED, False)
        report("trial", number=trial.number, architecture=architecture)
        started = time.monotonic()
        outcome = _scored(study, task.scorer, trial, architecture)
        if outcome is not None:
            _tell(study, trial, outcome, time.monotonic() - started)
            report("outcome", number=trial.number, outcome=outcome, architecture=architecture)


def _scored(study: Study, scorer: Any, trial: Any, architecture: Architecture) -> evaluate.Outcome | None:
    """The outcome; None for a candidate whose training itself failed, which is told and left."""
    try:
        return scorer(architecture)
    except (RuntimeError, ValueError, ArithmeticError) as error:
        if isinstance(scorer, evaluate.FromFunction):
            raise
        trial.set_user_attr("reason", f"failed: {error}"[:500])
        study.told(trial, "FAIL")
        last = study.frozen()[-FAILURES:]
        if len(last) == FAILURES and all(t.user_attrs.get("reason", "").startswith("failed") for t in last):
            raise InputError(f"{FAILURES} candidates in a row could not be evaluated; the last one: {error}") from error
        return None


def _tell(study: Study, trial: Any, outcome: evaluate.Outcome, seconds: float) -> None:
    """Write an outcome into the record; the last write is the one that makes the trial finished."""
    if outcome.weights is not None:
        evaluate.save_weights(study.folder / "weights" / f"{trial.number}.safetensors", outcome.weights)
    for key, value in {"values": dict(outcome.values), "reason": outcome.reason, **outcome.details}.items():
        trial.set_user_attr(key, value)
    trial.set_user_attr("seconds", round(seconds, 3))
    told = study.record.get_trials(deepcopy=False)[trial.number].constraints
    for name, limit in study.limits.items():
        if name in outcome.values and name not in told:
            high = outcome.details.get("latency_interval", {}).get("high_ms") if name == "latency" else None
            trial.set_constraint(name, (high or outcome.values[name]) / limit - 1)
    whole = all(name in outcome.values for name in study.objectives)
    if whole and ("accuracy" in study.objectives or not outcome.reason):
        study.told(trial, "COMPLETE", [outcome.values[name] for name in study.objectives])
    else:
        study.told(trial, "PRUNED")
    _keep_front_weights(study)


def _keep_front_weights(study: Study) -> None:
    """The front's weights stay; those of networks that are dominated go, since they never come back."""
    front = set(study.front_numbers())
    for path in (study.folder / "weights").glob("*.safetensors"):
        if path.stem.isdigit() and int(path.stem) not in front:
            path.unlink(missing_ok=True)


def _hopeless(study: Study) -> bool:
    """Whether the limits look out of reach: rejected again and again."""
    inside = sum(not broken for broken in map(study.over_limit, study.frozen("COMPLETE")))
    in_a_row = 0
    for trial in reversed(study.frozen("COMPLETE", "PRUNED")):
        if trial.state.name == "COMPLETE":
            break
        in_a_row += 1
    return in_a_row >= (EXHAUSTED if inside else HOPELESS)


def nothing_found(study: Study) -> NothingFound:
    """The error of an empty front: it names the nearest network that was measured."""
    measured = study.frozen("COMPLETE", "PRUNED")
    if not measured:
        return NothingFound(f"no network within the limits ({_limits(study)}) was found; nothing was measured")
    best = min(measured, key=study.over_limit)
    values = best.user_attrs["values"]
    figures = [f"{name} {evaluate.shown(name, values[name])}" for name in study.limits if name in values]
    if interval := best.user_attrs.get("latency_interval"):
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
                f"{architecture.digest} with {name} {evaluate.shown(name, count)}"
            )
    return NothingFound(f"no network within the limits ({_limits(study)}) was found; nothing was measured")


def _limits(study: Study) -> str:
    return ", ".join(f"{name} {evaluate.shown(name, limit)}" for name, limit in study.limits.items()) or "none"
