"""Where a study comes from, so that a stranger can run it again: commands, data, machine, versions, durations."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from nasspace.errors import InputError
from nasspace.formatting import duration
from nasspace.reporting.network_panel import Command
from nasspace.studies import paths
from nasspace.studies import recipe as recipes
from nasspace.studies.front import Front
from nasspace.studies.objectives import OBJECTIVES
from nasspace.studies.trial_table import RECORD

FLAGS = (  # settings of a recipe that have a flag of the same name
    *("data", "data_dir", "skip_broken", "time_budget", "sampler", "runtime", "threads", "batch_size", "resolution"),
    *("device", "latency_device", "workers", "ray", "gpus", "trial_timeout", "seed"),
)
FILED = ("training", "fidelity", "full", "supernet", "reward")  # settings that only the file of a recipe sets
ALWAYS = ("data", "seed")  # shown although the recipe has the same
UNBOUNDED = 1_000_000  # trials of a search that only time ends


def commands(front: Front) -> list[Command]:
    """The commands that repeat the search and read its results.

    A search with an evaluator, or with a recipe that has no name here, was started by Python: no command repeats it.
    """
    name, search = paths.as_argument(front.folder), search_command(front) if front.data else ""
    return [
        *([Command("Run the search again", search)] if search else []),
        Command("Print the front", f"nas front {name}"),
        Command("Write this page again", f"nas report {name}"),
    ]


def search_command(front: Front) -> str:
    """The `nas search` of a study: settings that its recipe does not have, as flags.

    It is empty if no flag gives the space or the recipe: a space without a file, a recipe that is not found by its
    name, or another one of this name. Older studies recorded only the space's own name.
    """
    recipe, space = front.recipe, front.settings["space"]
    source = space.get("source", space["name"])
    if source is None:
        return ""
    try:
        own = recipes.load(recipe.get("name") or "quick").as_written()
    except InputError:
        return ""
    if any(name in recipe and _filed(recipe, name) != _filed(own, name) for name in FILED):
        return ""
    parts = ["nas", "search", "--space", source, "--recipe", recipe.get("name") or "quick"]
    for name, limit in front.limits.items():
        parts += [OBJECTIVES[name].limit_flag or "", _amount(name, limit)]
    if (trials := recipe.get("trials")) and trials < UNBOUNDED:
        parts += ["--trials", str(trials)]
    objectives = ["accuracy_int8" if name == "accuracy" and recipe.get("accuracy_of") == "int8" else name
                  for name in front.objectives]  # fmt: skip
    if objectives != ["accuracy", "latency", "flops"]:
        parts += ["--objectives", ",".join(objectives)]
    for name in FLAGS:
        value = recipe.get(name, own[name])
        if value is not None and (value != own[name] or name in ALWAYS):
            flag = f"--{name.replace('_', '-')}"
            parts += [flag] if value is True else [flag, str(value)]
    if start := front.settings.get("start_from"):
        parts += ["--start-from", str(start["source"])]
    if earlier := (front.settings.get("belief") or {}).get("learned_from"):
        parts += ["--learn-from", earlier]
    return shlex.join(parts)


def _filed(recipe: Mapping[str, Any], name: str) -> Any:
    """A setting of a recipe's file; a search may have lowered the resolution of its trainings."""
    value = recipe[name]
    return {**value, "resolution": None} if name == "fidelity" else value


def _amount(name: str, limit: float) -> str:
    """A limit as its flag takes it."""
    units = {"latency": "ms", "peak_memory": "B", "flash": "B"}
    return f"{limit:.12g}{units.get(name, '')}"


def durations(front: Front) -> dict[str, str]:
    """How long the parts of a search took, by name."""
    records = [record for row in front.trials if (record := row.get(RECORD))]
    ended = [record for record in records if record.started and record.finished]
    found: dict[str, float] = {}
    if ended:
        start, end = min(one.started for one in ended), max(one.finished for one in ended)
        found["search, from its first trial to its last"] = (end - start).total_seconds()
    if trainings := [record.seconds for record in records if record.seconds]:
        found[f"{len(trainings)} training{'s' if len(trainings) > 1 else ''} of the search"] = sum(trainings)
    later = [one["seconds"] for record in records for one in record.trainings if one.get("seconds")]
    if later:
        found[f"{len(later)} further training{'s' if len(later) > 1 else ''}"] = sum(later)
    return {name: duration(seconds) for name, seconds in found.items()}


def facts(front: Front) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Facts by the titles of their lists."""
    settings = front.settings
    yield (
        "Study",
        {
            "created": settings.get("created"),
            "seed": front.recipe["seed"],
            "identity": settings.get("identity"),
            "trials recorded": len(front.trials),
            "finished": front.is_finished,
        },
    )
    yield "Durations", durations(front)
    if front.energy_joules:
        yield (
            "Energy",
            {"of the machine's processor while the search ran (RAPL)": f"{front.energy_joules / 3600:.3g} Wh"},
        )
    yield "Machine", front.machine
    yield "Versions", settings["versions"]
