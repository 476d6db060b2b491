"""Where a study comes from, so that a stranger can run it again: commands, data, machine, versions, durations."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from nasspace.formatting import duration
from nasspace.reporting.network_panel import Command, study_name
from nasspace.studies.front import Front
from nasspace.studies.objectives import OBJECTIVES
from nasspace.studies.trial_table import RECORD

FLAGS = {  # settings of a recipe that have a flag, and their defaults
    "data": "digits",
    "data_dir": None,
    "time_budget": None,
    "sampler": "gain",
    "runtime": "onnxruntime",
    "threads": 1,
    "batch_size": 1,
    "resolution": None,
    "device": "cpu",
    "latency_device": "local",
    "workers": 1,
    "seed": 0,
}
UNBOUNDED = 1_000_000  # trials of a search that only time ends


def commands(front: Front) -> list[Command]:
    """The commands that repeat the search and read its results; empty for a study that Python started."""
    name = study_name(front)
    search = [Command("Run the search again", search_command(front))] if front.data else []
    return [
        *search,
        Command("Print the front", f"nas front {name}"),
        Command("Write this page again", f"nas report {name}"),
    ]


def search_command(front: Front) -> str:
    """The `nas search` of a study: its settings as flags; what has no flag is in the recipe."""
    recipe = front.recipe
    parts = ["nas", "search", "--space", front.settings["space"]["name"], "--recipe", recipe.get("name") or "quick"]
    for name, limit in front.limits.items():
        parts += [OBJECTIVES[name].limit_flag or "", _amount(name, limit)]
    if (trials := recipe.get("trials")) and trials < UNBOUNDED:
        parts += ["--trials", str(trials)]
    objectives = ["accuracy_int8" if name == "accuracy" and recipe.get("accuracy_of") == "int8" else name
                  for name in front.objectives]  # fmt: skip
    if objectives != ["accuracy", "latency", "flops"]:
        parts += ["--objectives", ",".join(objectives)]
    for name, default in FLAGS.items():
        value = recipe.get(name, default)
        if value is not None and (value != default or name in ("data", "seed")):
            parts += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(parts)


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
        found[f"{len(trainings)} trainings of the search"] = sum(trainings)
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
    yield "Machine", front.machine
    yield "Versions", settings["versions"]
