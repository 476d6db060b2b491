"""Comparison of design spaces, or of the options of a choice, at equal budget.

A comparison is a folder: `comparison.yaml` has the settings, and each space has a study of its own whose sampler
draws uniformly within the budget. So it is resumed, distributed and recorded like a search.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nasspace import files
from nasspace.documents import parse_yaml
from nasspace.engine import loop
from nasspace.engine.checks import EXECUTION_SETTINGS, check_functions, check_recipe, check_report
from nasspace.engine.evaluator import counts
from nasspace.engine.problem import EvaluatorFunction, KnownObjectives, Problem
from nasspace.engine.trials import Report
from nasspace.errors import InputError, NothingFound
from nasspace.latency.conditions import machine
from nasspace.latency.runtimes import library_versions
from nasspace.reporting.comparison import write_comparison
from nasspace.space.bounds import COUNTS, reachable
from nasspace.space.budget import WithinBudget, varied_options
from nasspace.space.space import Space
from nasspace.studies import paths
from nasspace.studies import recipe as recipes
from nasspace.studies.comparison import VERSION, Comparison, Group, Network
from nasspace.studies.objectives import OBJECTIVES
from nasspace.studies.recipe import Recipe
from nasspace.studies.study import Study

NETWORKS = 20  # of each space
LEAST = 2  # networks of each that can be compared
PACKAGES = ("nasspace", "torch", "optuna", "numpy")
FIXED = ("budget", "vary", "spaces", "recipe")  # settings that a comparison keeps when it is resumed
OWN_NAMES = {"uniform.budget": "budget", "trials": "networks"}  # of settings of the recipe
FREE = ("trials", "data_dir", *EXECUTION_SETTINGS)  # settings of the recipe that may differ


def compare(
    spaces: Sequence[Space | str | Path] | Space | str | Path,
    *,
    budget: Mapping[str, Any],
    data: str | None = None,
    networks: int = NETWORKS,
    vary: str | None = None,
    recipe: Recipe | str | Path = "quick",
    seed: int | None = None,
    evaluator: EvaluatorFunction | None = None,
    known: KnownObjectives | None = None,
    study: str | Path | None = None,
    data_dir: str | None = None,
    resolution: int | None = None,
    device: str | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    latency_device: str | None = None,
    fresh_latency: bool = False,
    workers: int | None = None,
    ray: str | None = None,
    gpus: float | None = None,
    trial_timeout: str | None = None,
    storage_path: str | None = None,
    on_event: Report | None = None,
) -> Comparison:
    """Compare spaces, or the options of a choice, by networks drawn within the same budget.

    From each space, `networks` networks are drawn uniformly among all sequences of choices within the budget, without
    repetition, and trained with the recipe's `fidelity`. The same call resumes a stopped comparison; more `networks`
    continue it.

    Args:
        spaces: Two or more spaces (a `Space`, a name or a path); one with `vary`.
        budget: Smallest and largest cost by objective, such as `{"flops": (40e6, 60e6)}` or `{"flops": "40M..60M"}`;
            latency in milliseconds, memory in bytes. Networks outside of a latency budget are measured, not trained.
        data: As in `search`.
        networks: Networks of each space that are trained.
        vary: A pattern of choices of one space, such as `stages.*.kernel`: compare their options, with networks that
            are equal but for these choices and are all within the budget.
        recipe: A `Recipe`, the name of a shipped recipe, or a path: how networks are trained.
        seed: The same seed gives the same networks.
        evaluator: As in `search`: a function of an architecture instead of training.
        known: As in `search`.
        study: Name below `./reports`, or folder; SPACE-vs-SPACE by default.
        data_dir, resolution, device, runtime, threads, batch_size, latency_device, fresh_latency: As in `search`.
        workers, ray, gpus, trial_timeout, storage_path: As in `search`.
        on_event: As in `search`.

    Raises:
        InputError: Something in the input is wrong.
        NothingFound: A space has too few networks within the budget.
    """
    started = time.monotonic()
    base = recipe if isinstance(recipe, Recipe) else recipes.load(recipe)
    given = list(spaces) if isinstance(spaces, Iterable) and not isinstance(spaces, str) else [spaces]
    changes = {
        "sampler": "uniform",
        "uniform": {"budget": budget},
        "trials": networks,
        "data": data,
        "seed": seed,
        "data_dir": data_dir,
        "resolution": resolution,
        "device": device,
        "runtime": runtime,
        "threads": threads,
        "batch_size": batch_size,
        "latency_device": latency_device,
        "workers": workers,
        "ray": ray,
        "gpus": gpus,
        "trial_timeout": trial_timeout,
        "storage_path": storage_path,
    }
    try:
        settings = base.with_changes(changes)
    except InputError as error:
        raise InputError(_with_own_names(str(error))) from None
    # What a search limits or optimizes does not matter here: the budget says which networks, and which costs.
    settings = settings.model_copy(
        update={"limits": recipes.Limits(), "objectives": ("accuracy", *settings.budget), "time_budget": None}
    )
    check_functions(evaluator, known)
    check_report(on_event)
    check_recipe(settings)
    if settings.supernet is not None:
        raise InputError("recipe: shared weights (supernet) are no training of a network; choose another recipe")
    if not settings.budget:
        raise InputError("budget: name a cost and its range, such as flops=40M..60M")
    if settings.trials < LEAST:
        raise InputError(f"networks: {settings.trials} is too few to compare; give at least {LEAST}")
    if not isinstance(vary, str | None):
        raise InputError(f"vary: {recipes.short(vary)} is not a pattern of choices, such as 'stages.*.kernel'")
    loaded = [space if isinstance(space, Space) else Space.load(space) for space in given]
    _check_spaces(loaded, vary)
    if evaluator:
        known = {**{name: count for name, count in counts().items() if name in settings.budget}, **(known or {})}
        problems = [Problem.from_function(settings, space, evaluator, known) for space in loaded]
    else:
        problems = _with_data(settings, loaded)
    groups = _groups(problems, vary)
    for problem in problems:
        _check_reachable(problem, vary)
    folder = paths.folder_of(study or _default_name(loaded, vary))
    evaluated_by = getattr(evaluator, "__qualname__", "function") if evaluator else None
    record = _record(folder, problems[0].recipe, list(groups), vary, evaluated_by)
    report = on_event or (lambda kind, **_: None)
    found = {
        name: loop.run(
            problem, folder / record["spaces"][name], report, started, fresh_latency=fresh_latency, deliver=False
        )
        for name, problem in groups.items()
    }
    _write_record(folder, record)  # now that none of the studies refused other settings
    pairs = _pairs(problems[0], vary, list(found.values())) if vary else {}
    comparison = Comparison(folder, record, tuple(_group(name, one, pairs) for name, one in found.items()))
    _check_counts(comparison)
    write_comparison(comparison)
    return comparison


def _with_own_names(message: str) -> str:
    """An error about a setting of a recipe, with the name that the setting has in a comparison.

    >>> _with_own_names("uniform.budget: 'flop' is not a cost")
    "budget: 'flop' is not a cost"
    """
    place, colon, rest = message.partition(":")
    return f"{OWN_NAMES.get(place, place)}{colon}{rest}"


def _check_spaces(spaces: Sequence[Space], vary: str | None) -> None:
    """Refuse a number of spaces that cannot be compared, and equal names."""
    if vary and len(spaces) != 1:
        raise InputError(f"--vary compares networks of one space; {len(spaces)} are given")
    if not vary and len(spaces) < 2:
        raise InputError("name two spaces or more; or one, with --vary CHOICE")
    names = [space.name for space in spaces]
    if len(set(names)) < len(names):
        raise InputError(f"two spaces have the name '{max(names, key=names.count)}'; rename one of them")


def _with_data(recipe: Recipe, spaces: Sequence[Space]) -> list[Problem]:
    """The problems of the spaces on the same images, which are held once.

    Costs are compared at one resolution: if the spaces would be deployed at several, at the largest.
    """
    problems = [Problem.from_data(recipe, space) for space in spaces]
    sizes = {problem.deployment.sizes for problem in problems}
    if len(sizes) > 1:
        recipe = recipe.model_copy(update={"resolution": max(map(max, sizes))})
        problems = [Problem.from_data(recipe, space) for space in spaces]
    return [replace(problem, data=problems[0].data) for problem in problems]


def _groups(problems: Sequence[Problem], vary: str | None) -> dict[str, Problem]:
    """The problem of each space, or of each option, by the name of the group."""
    if not vary:
        return {problem.space.name: problem for problem in problems}
    problem = problems[0]
    _, options = varied_options(problem.space, vary)
    uniform = problem.recipe.uniform
    return {
        f"{vary.rpartition('.')[2]} {option}": replace(
            problem,
            recipe=problem.recipe.model_copy(
                update={"uniform": uniform.model_copy(update={"vary": vary, "option": option})}
            ),
        )
        for option in options
    }


def _check_reachable(problem: Problem, vary: str | None) -> None:
    """Refuse a budget that holds no network of a space, as far as costs are known before an evaluation."""
    budget, space = problem.recipe.budget, problem.space
    known = problem.evaluator.known if problem.evaluator else counts(problem.recipe.runtime)
    within = WithinBudget(space, budget, known, vary or "")
    if next(within.draws(problem.recipe.seed), None) is not None:
        return
    found = reachable(space)
    ranges = [
        f"{OBJECTIVES[name].label} from {' to '.join(map(OBJECTIVES[name].describe, getattr(found, name)))}"
        for name in budget
        if name in COUNTS
    ]
    reaches = f"; the space has {', '.join(ranges)}" if ranges else ""
    pairs = f" that differ in {vary} only" if vary else ""
    raise NothingFound(f"no networks of '{space.name}'{pairs} within the budget were found{reaches}")


def _default_name(spaces: Sequence[Space], vary: str | None) -> str:
    return f"{spaces[0].name}-{_slug(vary)}" if vary else "-vs-".join(space.name for space in spaces)


def _slug(name: str) -> str:
    """A name as a folder.

    >>> _slug("kernel 5"), _slug("stages.*.kernel")
    ('kernel-5', 'stages-kernel')
    """
    return re.sub(r"[^\w.-]+", "-", name.replace(".*.", "-")).strip("-.")


def _folders(names: Sequence[str]) -> dict[str, str]:
    """The folder of the study of each space or option, also where their names differ in punctuation only.

    >>> _folders(["my net", "=()", "my-net"])
    {'my net': 'my-net', '=()': 'space', 'my-net': 'my-net-2'}
    """
    found: dict[str, str] = {}
    for name in sorted(names):  # the order in which they are given does not matter
        slug, taken = _slug(name) or "space", {folder.casefold() for folder in found.values()}
        numbered = (f"{slug}-{number}" for number in itertools.count(2))
        found[name] = next(one for one in itertools.chain([slug], numbered) if one.casefold() not in taken)
    return {name: found[name] for name in names}


def _record(
    folder: Path, recipe: Recipe, names: Sequence[str], vary: str | None, evaluator: str | None
) -> dict[str, Any]:
    """The content of comparison.yaml; write a new one, or check that a resumed comparison has the same settings."""
    new = {
        "nasspace_comparison": VERSION,
        "name": folder.resolve().name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "spaces": _folders(names),
        "budget": {name: list(ends) for name, ends in recipe.budget.items()},
        "vary": vary or "",
        "recipe": recipe.as_written(),
        "evaluator": evaluator,
        "machine": machine(),
        "versions": library_versions(PACKAGES),
    }
    path = folder / paths.COMPARISON
    if path.is_file():
        old = _read_record(path, new)
        if difference := _difference(old, new):
            remedy = "choose another --study name, or the settings that the comparison was started with"
            raise InputError(f"{path}: {difference}; {remedy}")
        return {**new, "created": old.get("created", new["created"])}
    if (folder / "study.yaml").is_file():
        raise InputError(f"{folder}: the folder is a study, not a comparison; choose another --study name")
    _write_record(folder, new)
    return new


def _read_record(path: Path, expected: Iterable[str]) -> dict[str, Any]:
    """The content of comparison.yaml, with all `expected` keys; a damaged or newer file raises `InputError`."""
    remedy = "restore the file from a copy, or delete it: the same command writes it again"
    text = files.read_text(path)
    try:
        document = parse_yaml(text, str(path))
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
    old = document.value
    version = old.get("nasspace_comparison") if isinstance(old, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise InputError(
            f"{path}: a comparison of version {version}; this nasspace reads version {VERSION}: update nasspace"
        )
    if version != VERSION or (missing := [key for key in expected if key not in old]):
        what = "'nasspace_comparison'" if version != VERSION else f"'{missing[0]}'"
        raise InputError(f"{path}: damaged: {what} is missing or wrong; {remedy}")
    return old


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write comparison.yaml under the folder's lock."""
    with paths.alone(folder):
        files.write_yaml(folder / paths.COMPARISON, record)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first setting of a comparison that is another one; empty if there is none."""
    for key in FIXED:
        before, now = old.get(key), new[key]
        if isinstance(before, dict) and key == "recipe":
            changed = [name for name in now if name not in FREE and before.get(name) != now[name]]
            if not changed:
                continue
            key, before, now = changed[0], before.get(changed[0]), now[changed[0]]
        if before != now:
            return f"{key} is {recipes.short(before)}, now {recipes.short(now)}"
    return ""


def _pairs(problem: Problem, vary: str, studies: Sequence[Study]) -> dict[str, int]:
    """The number of the draw of every network, by digest."""
    known = problem.evaluator.known if problem.evaluator else counts(problem.recipe.runtime)
    draws = WithinBudget(problem.space, problem.recipe.budget, known, vary).draws(problem.recipe.seed)
    count = max(len(study.frozen()) for study in studies)
    return {one.digest: number for number, draw in enumerate(itertools.islice(draws, count)) for one in draw}


def _group(name: str, study: Study, pairs: Mapping[str, int]) -> Group:
    """The evaluated networks of a study."""
    costs = tuple(study.settings["recipe"]["uniform"]["budget"])
    shown = {*costs, *(name for name, objective in OBJECTIVES.items() if objective.is_counted)}
    networks = []
    for trial in study.frozen("COMPLETE")[: study.settings["recipe"]["trials"]]:
        values = trial.user_attrs["values"]
        if all(cost in values for cost in costs):
            kept = {cost: values[cost] for cost in OBJECTIVES if cost in shown and cost in values}
            digest = trial.user_attrs["digest"]
            networks.append(Network(trial.number, digest, 1 - values["accuracy"], kept, pairs.get(digest)))
    failed = sum(str(trial.user_attrs.get("reason", "")).startswith("failed") for trial in study.frozen("FAIL"))
    return Group(name, study.folder, tuple(networks), failed, study.rejected)


def _check_counts(comparison: Comparison) -> None:
    """Refuse to compare too few networks."""
    for group in comparison.groups:
        if len(group.networks) < LEAST:
            raise NothingFound(
                f"{len(group.networks)} networks of '{group.name}' within the budget were evaluated, too few to "
                "compare; give a wider --budget"
            )
    if comparison.is_paired and len(comparison.pairs) < LEAST:
        raise NothingFound(
            f"{len(comparison.pairs)} networks were evaluated with every option, too few to compare; give a wider "
            "--budget, or more --networks"
        )
