"""Choices of flags, from the registries that define them; imported only when help or a completion is needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand


def samplers() -> list[str]:
    """Names of the samplers."""
    from nasspace.samplers.optuna_samplers import SAMPLERS

    return list(SAMPLERS)


def runtimes() -> list[str]:
    """Names of the runtimes."""
    from nasspace.latency.runtimes import RUNTIMES

    return list(RUNTIMES)


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


CHOICES: dict[str, Callable[[], list[str]]] = {
    choices.__name__: choices for choices in (samplers, runtimes, objectives, devices, logs, scores, datasets, recipes)
}


class CommandWithChoices(TyperCommand):
    """A command whose help lists the choices in place of `{samplers}` and similar fields."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        for parameter in self.params:
            if text := getattr(parameter, "help", None):
                parameter.help = fill(text)
        super().format_help(ctx, formatter)


def fill(text: str) -> str:
    """Replace `{samplers}` and similar fields with the names of the choices.

    >>> fill("Where to train: {devices}.")
    'Where to train: cpu, cuda, mps.'
    """
    return re.sub(r"\{(\w+)\}", lambda match: ", ".join(CHOICES[match[1]]()), text)
