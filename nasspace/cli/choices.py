"""Choices of flags, from the registries that define them; imported only when help or a completion is needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.core import TyperCommand


def samplers() -> list[str]:
    """Names of the samplers."""
    from nasspace.samplers.optuna_samplers import SAMPLERS

    return list(SAMPLERS)


def runtimes() -> list[str]:
    """Names of the runtimes."""
    from nasspace.latency.runtimes import known

    return known()


def objectives() -> list[str]:
    """Names of the objectives."""
    from nasspace.studies.objectives import OBJECTIVES
    from nasspace.studies.recipe import INT8_OBJECTIVE

    return [*OBJECTIVES, INT8_OBJECTIVE]


def devices() -> list[str]:
    """Names of the devices that networks are trained on."""
    from nasspace.engine.devices import DEVICES

    return list(DEVICES)


def logs() -> list[str]:
    """Names of the programs that trainings are logged for."""
    from nasspace.engine.training_logs import LOGS

    return list(LOGS)


def scores() -> list[str]:
    """Names of the training-free scores."""
    from nasspace.training.proxies import SCORES

    return list(SCORES)


def datasets() -> list[str]:
    """Names of the data sets, and the forms of those in files."""
    from nasspace.data.names import NAMED, PREFIXED

    return [*NAMED, *PREFIXED]


def recipes() -> list[str]:
    """Names of the recipes in `./search` and of those that ship."""
    from nasspace import files

    return list(files.names("search"))


def spaces() -> list[str]:
    """Names of the spaces in `./spaces` and of those that ship."""
    from nasspace import files

    return list(files.names("spaces"))


def studies() -> list[str]:
    """Names of the studies in `./reports`."""
    return sorted(path.parent.name for path in Path("reports").glob("*/study.yaml"))


def members() -> list[str]:
    """The networks on the fronts of the studies in `./reports`, as STUDY:ID, and STUDY:recommended."""
    from nasspace.studies import paths

    found = {study: _front_ids(study) for study in studies()}
    return [f"{study}:{name}" for study, ids in found.items() if ids for name in (*ids, paths.RECOMMENDED)]


def networks() -> list[str]:
    """Published networks, and those on the fronts of the studies in `./reports`."""
    from nasspace.cli import listing

    return [*(network["name"] for network in listing.zoo()), *members()]


def networks_and_fronts() -> list[str]:
    """As `networks`, and STUDY:front for each study."""
    return [*networks(), *(f"{study}:front" for study in studies())]


def _front_ids(study: str) -> list[str]:
    """The first column of a study's front.csv; empty before there is one."""
    try:
        rows = (Path("reports") / study / "front.csv").read_text(encoding="utf-8").splitlines()[1:]
    except (OSError, ValueError):
        return []
    return [number for row in rows if (number := row.partition(",")[0]).isdecimal()]


CHOICES: dict[str, Callable[[], list[str]]] = {
    choices.__name__: choices for choices in (samplers, runtimes, objectives, devices, logs, scores, datasets, recipes)
}


class CommandWithChoices(TyperCommand):
    """A command whose help lists the choices in place of `{samplers}` and similar fields."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        parameters: list[Any] = self.params  # arguments have help in Typer only
        for parameter in parameters:
            if text := getattr(parameter, "help", None):
                parameter.help = fill(text)
        super().format_help(ctx, formatter)


def fill(text: str) -> str:
    """Replace `{samplers}` and similar fields with the names of the choices.

    >>> fill("Where to train: {devices}.")
    'Where to train: cpu, cuda, mps.'
    """
    return re.sub(r"\{(\w+)\}", lambda match: ", ".join(CHOICES[match[1]]()), text)
