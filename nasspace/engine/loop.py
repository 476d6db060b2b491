"""The search: ask, evaluate, tell, until enough is evaluated; then the last rung and the exports."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from numbers import Real
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nasspace import files, temporary
from nasspace.documents import Document
from nasspace.engine import dashboard, delivery, duration, latency_evaluator, shared_weights, starting_weights
from nasspace.engine.checks import (
    EXECUTION_SETTINGS,
    check_execution,
    check_functions,
    check_recipe,
    check_report,
    check_same_settings,
    check_switches,
)
from nasspace.engine.evaluator import TrainingEvaluator, evaluate
from nasspace.engine.infeasible import empty_front, unreachable_limits
from nasspace.engine.problem import EvaluatorFunction, KnownObjectives, Problem
from nasspace.engine.ray import runner
from nasspace.engine.searched import SearchedStudy
from nasspace.engine.trials import Report, TrialManager
from nasspace.errors import InputError
from nasspace.samplers.accuracy_belief import Prior
from nasspace.space.space import Space
from nasspace.studies import paths
from nasspace.studies import recipe as recipes
from nasspace.studies import study as records
from nasspace.studies.belief import believe
from nasspace.studies.recipe import NetAdapt, Recipe, Reward, Rung, Uniform
from nasspace.studies.storage import REMEDY, errors_of_storage
from nasspace.studies.study import Study
from nasspace.training.settings import Fidelity, SupernetSettings, TrainingSettings

PAUSE = 0.5  # seconds between two checks of the trials of other processes


def search(
    space: Space | str | Path,
    data: str | None = None,
    *,
    latency_target_ms: float | None = None,
    flops_target: float | None = None,
    params_target: float | None = None,
    memory_target: str | float | None = None,
    flash_target: str | float | None = None,
    trials: int | None = None,
    time_budget: str | None = None,
    seed: int | None = None,
    objectives: Iterable[str] | None = None,
    recipe: Recipe | str | Path = "quick",
    evaluator: EvaluatorFunction | None = None,
    known: KnownObjectives | None = None,
    sampler: str | None = None,
    reward: Reward | Mapping[str, Any] | None = None,
    netadapt: NetAdapt | Mapping[str, Any] | None = None,
    uniform: Uniform | Mapping[str, Any] | None = None,
    study: str | Path | None = None,
    storage: str | None = None,
    data_dir: str | None = None,
    held_out: float | None = None,
    skip_broken: bool | None = None,
    resolution: int | None = None,
    fidelity: Fidelity | Mapping[str, Any] | None = None,
    rungs: Iterable[Rung | Mapping[str, Any]] | None = None,
    full: Mapping[str, Any] | None = None,
    supernet: SupernetSettings | Mapping[str, Any] | None = None,
    training: TrainingSettings | Mapping[str, Any] | None = None,
    device: str | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    latency_device: str | None = None,
    fresh_latency: bool = False,
    learn_from: str | Path | None = None,
    start_from: str | Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    gpus: float | None = None,
    retries: int | None = None,
    trial_timeout: str | None = None,
    storage_path: str | None = None,
    deliver: bool = True,
    on_event: Report | None = None,
) -> SearchedStudy:
    """Search a space for the Pareto front of accuracy, measured latency and cost, within the limits.

    The study's `front()` is a data frame, `plot()` a Plotly figure; `folder` holds tables, report and exports. With
    data, the members of the front are then trained at their deployment resolution, exported, judged and measured again,
    as by `nas search`. None takes the recipe's value. An existing study of the same name is continued if its settings
    are the same.

    Args:
        space: A `Space`, the name of a shipped space, or a path.
        data: `digits`, `fashion-mnist`, `cifar10`, `imagefolder:DIR`, `parquet:FILE`, or a name on the hub.
        latency_target_ms: Latency limit in milliseconds.
        flops_target: Limit of FLOPs (multiply-adds).
        params_target: Limit of parameters.
        memory_target: Limit of the peak memory of the network's tensors, such as `512KB`, or a number of bytes.
        flash_target: Limit of the memory of the weights as they ship, such as `1MB`, or a number of bytes.
        trials: Number of candidates whose accuracy is evaluated.
        time_budget: Time for the whole call, such as `30m`: alone, or with `trials`, whichever comes first.
        seed: The same seed gives the same study, given the same latencies.
        objectives: Any of `accuracy`, `latency`, `flops`, `params`, `memory_access`, `peak_memory`, `flash`; or
            `accuracy_int8` instead of `accuracy`, with the runtime `onnxruntime-int8`.
        recipe: A `Recipe`, the name of a shipped recipe, or a path.
        evaluator: A function of an architecture that returns its objectives, such as
            `{"accuracy": 0.93, "latency": 3.1}` (a fraction and milliseconds), instead of counting, measuring and
            training. Such a search has no last rung and no exports.
        known: Functions of cheap objectives, by name, which the sampler may call for any candidate.
        sampler: Name of a sampler, such as `gain`, `tpe`, `nsga2`, `evolution`, `gp`, `random`, `brute-force`,
            `mnasnet`, `netadapt`, `spos` or `uniform`.
        reward: The reward of `mnasnet`, such as `{"form": "soft"}`: networks over a limit are then trained, too.
        netadapt: The steps of `netadapt`, such as `{"reduction": 0.02, "start": "first:7"}`.
        uniform: What `uniform` draws, such as `{"budget": {"flops": "40M..60M"}}`.
        study: Name below `./reports`, or folder; SPACE-N by default.
        storage: URL of the Optuna storage; by default a SQLite file in the folder.
        data_dir: Folder of the files of a named data set.
        held_out: Share of the training images that are held out for validation.
        skip_broken: Skip images that cannot be read.
        resolution: Deployment resolution in pixels.
        fidelity: Training budget of a candidate: `resolution`, `epochs`, `share`.
        rungs: Further trainings of the most promising networks, such as `[{"epochs": 6}]`; at the deployment resolution
            unless they have a `resolution`.
        full: The full training that intervals of accuracies refer to, such as `{"epochs": 25}`; it is not run.
        supernet: Judge candidates with weights that all networks share, trained once, such as `{"epochs": 100}`.
        training: Training settings, such as `{"learning_rate": 0.1}`.
        device: Where networks are trained: `cpu`, `cuda` or `mps`.
        runtime: Runtime of the latency, such as `onnxruntime`.
        threads: Threads of the runtime.
        batch_size: Images in a batch, for the latency.
        latency_device: Where latency is measured: `local`, or `ssh://USER@HOST:PORT/PATH/OF/PYTHON`.
        fresh_latency: Measure again instead of reading the cache.
        learn_from: An earlier study on the same images, which shows how much a longer training brings. Used when a
            study is created.
        start_from: Trained weights of a network of the space, which candidates inherit where they overlap: `STUDY:ID`,
            an export's folder, or a checkpoint of a published network.
        workers: Candidates evaluated at a time, on Ray.
        ray: Address of a Ray cluster, `auto` or `none`.
        gpus: GPUs of one worker, such as 0.25.
        retries: How often a candidate whose process died is restarted.
        trial_timeout: Stop a trial that takes longer, such as `10m`.
        storage_path: Shared or cloud storage for trained weights.
        deliver: With False, end after the search: no last rung and no exports. `nasspace.deliver(study)` does these.
        on_event: A function that is called with the kind of an event, and its values as keyword arguments.

    Raises:
        InputError: Something in the input is wrong.
        NothingFound: No network is within the limits.
        VerificationError: An exported file differs from what was trained.
    """
    started = time.monotonic()
    base = recipe if isinstance(recipe, Recipe) else recipes.load(recipe)
    settings = base.with_changes(
        {
            "data": data,
            "trials": trials,
            "time_budget": time_budget,
            "seed": seed,
            "sampler": sampler,
            "reward": _plain(reward),
            "netadapt": _plain(netadapt),
            "uniform": _plain(uniform),
            "objectives": _listed(objectives),
            "limits": {
                "latency": None if latency_target_ms is None else _milliseconds(latency_target_ms),
                "flops": flops_target,
                "params": params_target,
                "peak_memory": _bytes("memory_target", memory_target),
                "flash": _bytes("flash_target", flash_target),
            },
            "data_dir": data_dir,
            "held_out": held_out,
            "skip_broken": skip_broken,
            "resolution": resolution,
            "fidelity": fidelity,
            "rungs": _listed(rungs),
            "full": full,
            "supernet": _plain(supernet),
            "training": training,
            "device": device,
            "runtime": runtime,
            "threads": threads,
            "batch_size": batch_size,
            "latency_device": latency_device,
            "workers": workers,
            "ray": ray,
            "gpus": gpus,
            "retries": retries,
            "trial_timeout": trial_timeout,
            "storage_path": storage_path,
        }
    )
    check_functions(evaluator, known)
    check_report(on_event)
    check_switches(fresh_latency=fresh_latency, deliver=deliver)
    check_recipe(settings)
    if evaluator:
        problem = Problem.from_function(settings, space, evaluator, known)
    else:
        problem = Problem.from_data(settings, space)
    if start_from is not None:
        problem = starting_weights.with_donor(problem, start_from, study)
    if learn_from is not None:
        problem = replace(problem, belief=_learned(learn_from, problem))
    searched = run(problem, study, on_event or _ignore, started, storage=storage, fresh_latency=fresh_latency)
    if deliver and searched.settings["data"]:
        delivery.deliver(searched, on_event)
    return SearchedStudy.of(searched)


def run(
    problem: Problem,
    study: str | Path | None,
    report: Report,
    started: float,
    *,
    storage: str | None = None,
    fresh_latency: bool = False,
    deliver: bool = True,
) -> Study:
    """Search as `search` does, up to the last rung; `started` is as in `_run`.

    Without `deliver`, no last rung and no exports follow, and no time is estimated and kept for them.
    """
    with _study_folder(study, problem) as folder:
        opened = _open(folder, problem, storage)
    return _run(opened, problem, fresh_latency, report, started, deliver)


def resume(
    name: str | Path,
    *,
    workers: int | None = None,
    ray: str | None = None,
    gpus: float | None = None,
    retries: int | None = None,
    trial_timeout: str | None = None,
    storage_path: str | None = None,
    deliver: bool = True,
    on_event: Report | None = None,
) -> SearchedStudy:
    """Continue a stopped study with the settings in its study.yaml; write the files of a finished one again.

    `name` is the study's name below `./reports`, or its folder. The other parameters are those of `search`; they
    replace the settings that the study was started with.
    """
    started = time.monotonic()
    check_report(on_event)
    check_switches(deliver=deliver)
    report = on_event or _ignore
    study = records.load(name)
    report("loaded", study=study)
    if not study.record.user_attrs.get(records.FINISHED):
        changes = {
            "workers": workers,
            "ray": ray,
            "gpus": gpus,
            "retries": retries,
            "trial_timeout": trial_timeout,
            "storage_path": storage_path,
        }
        study = _continue(study, changes, report, started)
    if deliver and (study.is_writable or not study.is_finished):
        delivery.deliver(study, on_event)
    return SearchedStudy.of(study)


def _continue(study: Study, changes: Mapping[str, Any], report: Report, started: float) -> Study:
    """Continue a search; `changes` are of the settings of its execution."""
    settings = study.settings
    if settings["evaluator"]:
        is_compared = (study.folder.parent / paths.COMPARISON).is_file()
        verb, folder = ("compare", study.folder.parent) if is_compared else ("search", study.folder)
        raise InputError(
            f"study '{study.name}' was searched with the evaluator {settings['evaluator']}; continue it with "
            f"nasspace.{verb}(..., evaluator=..., study={str(folder)!r})"
        )
    document = Document(settings["recipe"], str(study.folder / "study.yaml"))
    recipe = recipes.read(document).with_changes(changes)
    study.settings = {**settings, "recipe": recipe.as_written()}
    check_execution(recipe)
    space = Space(Document(settings["space"]["document"], settings["space"]["name"]))
    problem = Problem.from_data(recipe, space)
    problem = replace(problem, donor=starting_weights.of_study(study, problem))
    new_settings = problem.settings(study.folder.name, None)
    check_same_settings(study.folder, settings, new_settings, study.latency_machine())
    return _run(study, problem, False, report, started)


def _listed(values: Any) -> Any:
    """An iterable's values as a list, rungs as plain values; everything else unchanged, for the recipe to refuse."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        return values
    return [value.model_dump() if isinstance(value, Rung) else value for value in values]


def _milliseconds(value: Any) -> str:
    """A number of milliseconds, as a recipe writes it."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"latency_target_ms: {recipes.short(value)} is not a number of milliseconds, such as 20")
    return f"{value}ms"


def _bytes(name: str, value: Any) -> str | None:
    """An amount of memory, as a recipe writes it; a plain number is of bytes."""
    if value is None:
        return None
    try:
        amount = f"{float(value)!r}B" if isinstance(value, Real) and not isinstance(value, bool) else value
        return f"{recipes.quantity(amount, 'memory')!r}B"
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None


def _plain(part: Any) -> Any:
    """A part of a recipe as plain values."""
    if isinstance(part, SupernetSettings):
        return asdict(part)
    return part.model_dump() if isinstance(part, BaseModel) else part


def _learned(name: str | Path, problem: Problem) -> dict[str, Any]:
    """What an earlier study shows of short trainings; refuse one on other images."""
    try:
        study = records.load(name)
    except InputError as error:
        raise InputError(f"--learn-from: {error}") from None
    settings = study.settings
    if why := _nothing_learned(settings, problem):
        raise InputError(f"--learn-from {name}: {why}; leave it out")
    # What an earlier version did not record was not learned: it stands as in any new study.
    prior = {**asdict(Prior()), **settings["belief"]}
    belief = believe({**settings, "belief": prior}, study.frozen("COMPLETE"), study.record.user_attrs)
    if belief is None or not belief.has_trainings:
        raise InputError(
            f"--learn-from {name}: no network of the study is trained yet; resume it first, or leave it out"
        )
    if study.settings["data"]["fingerprint"] != problem.data.fingerprint:
        raise InputError(
            f"--learn-from {name}: the study was searched on other images, with another seed (which chooses the "
            f"held-out images), or at another resolution than {problem.recipe.data}; leave it out, or name a study on "
            "the same images"
        )
    learned = asdict(belief.learned_prior())
    gains = {key: learned[key] for key in ("gain", "gain_sd", "early_gain", "early_gain_sd")}
    return {**asdict(Prior()), **gains, "learned_from": paths.named(study.folder)}


def _nothing_learned(settings: Mapping[str, Any], problem: Problem) -> str:
    """Why nothing can be learned from a study with these settings, or for this problem; empty if it can."""
    if problem.data is None:
        return "an evaluator is taken as exact"
    if not settings.get("data"):
        return f"the study's accuracies came from the evaluator {settings['evaluator']}, not from trainings"
    if "accuracy" not in settings["recipe"]["objectives"]:
        return "accuracy is no objective of the study, which trained no network"
    given = [
        (each or {}).get("fingerprint") for each in (settings.get("start_from"), problem.donor and problem.donor.record)
    ]
    if given[0] != given[1]:
        return "its networks started from other weights (--start-from), so that short trainings say something else"
    if not settings.get("belief"):
        return "the study is of an earlier version, which recorded no intervals of accuracy"
    return ""


def _ignore(kind: str, **_: Any) -> None:
    """Ignore an event."""


@contextlib.contextmanager
def _study_folder(name: str | Path | None, problem: Problem) -> Iterator[Path]:
    """The folder of a study; a new one that stays empty, because the search could not start, is removed."""
    folder = _free_folder(problem) if name is None else paths.folder_of(name)
    is_new = name is None or not folder.exists()
    try:
        yield folder
    except BaseException:
        if is_new and folder.is_dir() and {path.name for path in folder.iterdir()} <= {".lock"}:
            (folder / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another process has started the study
                folder.rmdir()
        raise


def _free_folder(problem: Problem) -> Path:
    """Make reports/SPACE-1, or the one with the next number that is free."""
    stem = problem.space.name
    number = 1
    while True:
        folder = Path("reports") / f"{stem}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if not os.path.lexists(folder):  # `reports` itself is a dangling link
                raise files.cannot_write(folder.parent, error) from None
            number += 1
        except OSError as error:
            raise files.cannot_write(folder, error) from None
        else:
            return folder


def _open(folder: Path, problem: Problem, storage: str | None) -> Study:
    """Create a study, or load the one of this name if its settings are the same.

    A study is created under the folder's lock: if two processes start one name, the second finds the study of the
    first.
    """
    settings = problem.settings(folder.resolve().name, paths.storage_url(storage))
    if not (folder / "study.yaml").is_file():
        used = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
        if used and not any((folder / part).is_file() for part in ("study.yaml", "study.db")):
            raise InputError(f"{folder}: the folder is in use and is not a study; choose another --study name")
        with paths.alone(folder, wait=storage is not None):
            is_new = not (folder / "study.yaml").is_file()
            study = records.create(folder, settings, _optuna_sampler(problem)) if is_new else records.load(folder)
    else:
        study = records.load(folder)
    check_same_settings(folder, study.settings, settings, study.latency_machine())
    if problem.donor:
        starting_weights.keep(study, problem.donor)
    new, old = settings["recipe"], study.settings["recipe"]
    if any(new[key] != old.get(key) for key in EXECUTION_SETTINGS):  # for this process only, not recorded
        study.settings = {**study.settings, "recipe": {**old, **{key: new[key] for key in EXECUTION_SETTINGS}}}
    if any(new[key] != old.get(key) for key in ("trials", "time_budget")):
        with paths.alone(study.folder, wait=study.is_shared):
            records.extend(study, {**study.settings, "recipe": new})
    return study


def _refuse_other_choices(study: Study, problem: Problem) -> None:
    """Refuse a record with choices that the space does not have: samplers and Optuna would fail on them."""
    options = problem.space.options
    for trial in study.frozen():
        for name, distribution in trial.distributions.items():
            recorded = tuple(getattr(distribution, "choices", ()))
            if recorded != tuple(options.get(name, ())):
                raise InputError(
                    f"{study.folder}: trial {trial.number} chose {name} among {recipes.short(recorded)}, which the "
                    f"space does not have; the database is damaged: {REMEDY}"
                )


def _optuna_sampler(problem: Problem) -> Any:
    """The sampler of the Optuna study."""
    from nasspace.samplers.optuna_samplers import optuna_sampler

    return optuna_sampler(problem.recipe.sampler, problem.recipe.seed)


def _run(
    study: Study, problem: Problem, fresh_latency: bool, report: Report, started: float, deliver: bool = True
) -> Study:
    """Search until the study has its trials or the time budget is used up.

    `started` is when the command started, in seconds of `time.monotonic()`: the time budget counts from then.
    """
    recipe = problem.recipe
    study.record.sampler = _optuna_sampler(problem)
    shared = study.is_shared  # other processes may write into the folder
    temporary.clear()
    study.deadline = started + recipe.time_budget if recipe.time_budget else None
    with (
        contextlib.nullcontext() if shared else paths.alone(study.folder),
        errors_of_storage(study.folder),
        study.recording_energy(),
    ):
        _refuse_other_choices(study, problem)
        dashboard.describe_study(study)
        study.data = problem.data
        report("start", study=study, problem=problem)
        for note in problem.notes:
            report("note", text=note)
        expected = _expected_duration(study, problem, report) if deliver else None
        if problem.evaluator is None:
            problem = replace(problem, evaluator=_training_evaluator(study, problem, fresh_latency, report))
        with TrialManager(study, problem, report) as manager:
            manager.reserve_time(_time_after_search(recipe, expected))
            if recipe.distributed:
                runner.run(manager, fresh_latency)
            else:
                _run_sequentially(manager)
        if study.evaluated:
            study.record_search_end()
        elif manager.out_of_time and not study.rejected:
            raise InputError(
                f"{study.folder}: the time budget of {recipe.time_budget:g} s ended before a network was "
                "evaluated; give a longer --time-budget"
            )
        with paths.alone(study.folder, wait=True) if shared else contextlib.nullcontext():
            dashboard.update(study, records.write_tables(study))
        if not study.front_numbers():
            measured = study.evaluated + study.rejected
            raise empty_front(study) if measured else unreachable_limits(study, problem)
    return study


def _time_after_search(recipe: Recipe, expected: duration.Duration | None) -> float:
    """Seconds of a time budget that are kept for the trainings and exports after the search.

    If only time ends the search, half of it is for the further training of the most promising networks.
    """
    if expected is None:
        return 0.0
    return expected.mean_delivery if recipe.is_bounded else recipe.time_budget / 2


def _expected_duration(study: Study, problem: Problem, report: Report) -> duration.Duration | None:
    """Estimate the duration of a new search or one with a deadline, and report it."""
    recipe = problem.recipe
    if study.is_searched or (study.evaluated and not study.deadline):
        return None
    expected = duration.estimate_duration(problem)
    if expected and recipe.supernet is not None:
        expected = _with_shared_weights(expected, study, recipe, report)
    if expected and not recipe.distributed:
        report("note", text=str(expected))
    if expected and study.deadline and expected.delivery[0] > (recipe.time_budget - expected.shared[0]) / 2:
        report("note", text=f"the time budget is short for {expected.last_rung}: it may be exceeded")
    return expected


def _with_shared_weights(
    expected: duration.Duration, study: Study, recipe: Recipe, report: Report
) -> duration.Duration:
    """The estimate with the training of shared weights that is still to do; report if a time budget may end it."""
    if study.shared_weights.path(0) is not None:
        return replace(expected, shared=(0.0, 0.0))
    low, high = expected.shared
    most, epochs = shared_weights.most_seconds(recipe), recipe.supernet.epochs
    if high > most:
        about = min(epochs, round(epochs * 2 * most / (low + high)))
        text = f"the shared weights are trained for at most half of the time budget: about {about} of {epochs} epochs"
        report("note", text=f"{text}; for more, give a longer --time-budget")
    return replace(expected, shared=(min(low, most), min(high, most)))


def _training_evaluator(study: Study, problem: Problem, fresh_latency: bool, report: Report) -> TrainingEvaluator:
    recipe, data = problem.recipe, problem.data
    measure = latency_evaluator.LatencyEvaluator(recipe, data, fresh=fresh_latency)
    if recipe.supernet is not None and not study.is_searched and study.evaluated < recipe.trials:
        supernet = shared_weights.supernet_of(study, problem, report)
        return shared_weights.InheritingEvaluator(recipe, data, supernet, measure=measure)

    def after_epoch(epoch: int, epochs: int, loss: float) -> None:
        report("epoch", epoch=epoch, epochs=epochs, loss=loss)

    if problem.donor and not study.is_searched:
        return starting_weights.evaluator_of(problem, measure=measure, on_epoch=after_epoch)
    return TrainingEvaluator(recipe, data, measure=measure, on_epoch=after_epoch)


def _run_sequentially(manager: TrialManager) -> None:
    """Evaluate one candidate after the other in this process."""
    while True:
        candidate = manager.ask()
        if candidate is not None:
            manager.report_start(candidate)
            with manager.recording_crashes(candidate):
                outcome = evaluate(manager.problem.evaluator, candidate.architecture, candidate.bounds)
            manager.tell(candidate, outcome)
        elif manager.is_finished:
            return
        else:
            time.sleep(PAUSE)  # other processes run the remaining trials
